//! Real targets on loopback.
#![allow(clippy::unwrap_used)]

use std::future::Future;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn prober(allowed: &str) -> SocketProber {
    SocketProber::new(AllowList::parse(allowed).unwrap())
}

fn target(host: &str, port: u16, probe: Probe) -> Target {
    Target { host: host.to_owned(), port, probe, timeout: SECOND }
}

fn http() -> Probe {
    Probe::Http { path: "/ready?a=b".into(), host: String::new(), statuses: (200, 299) }
}

fn grpc(service: &str) -> Probe {
    Probe::Grpc { service: service.into() }
}

/// Serves each connection; answers the port and how many there were.
async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> (u16, Arc<Semaphore>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(Semaphore::new(0));
    let count = connections.clone();
    runtime::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.add_permits(1);
            runtime::spawn(serve(stream));
        }
    });
    (port, connections)
}

/// Answers a request with `answer`, and hands on what was asked.
async fn answering(answer: String) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (asked, heard) = tokio::sync::mpsc::unbounded_channel();
    let (port, _) = listen(move |mut stream| {
        let (asked, answer) = (asked.clone(), answer.clone());
        async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                    break;
                }
                request.push(byte[0]);
            }
            let _ = asked.send(String::from_utf8(request).unwrap());
            let _ = stream.write_all(answer.as_bytes()).await;
            // The body, if any, never ends: who waits for it has the timeout against it.
            runtime::sleep(10 * SECOND).await;
        }
    })
    .await;
    (port, heard)
}

async fn saw(prober: &SocketProber, target: Target) -> Saw {
    prober.probe(target).await
}

#[tokio::test]
async fn a_connection_is_enough_for_tcp() {
    let (port, connections) = listen(|_| async {}).await;
    let prober = prober("127.0.0.1");
    assert_eq!(saw(&prober, target("127.0.0.1", port, Probe::Tcp)).await, Saw::Passed);
    assert_eq!(saw(&prober, target("::ffff:127.0.0.1", port, Probe::Tcp)).await, Saw::Passed);
    assert_eq!(saw(&prober, target("localhost", port, Probe::Tcp)).await, Saw::Passed);
    let _ = connections.acquire_many(3).await.unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let refused = saw(&prober, target("127.0.0.1", nobody, Probe::Tcp)).await;
    assert_eq!(refused, failed("connection refused"));
    let unknown = saw(&prober, target("no-such-host.invalid", 80, Probe::Tcp)).await;
    let Saw::Failed(why) = unknown else { panic!("{unknown:?}") };
    assert!(why.starts_with("its name is not resolved: "), "{why}");
}

/// Neither an address nor a name that leads to one; not even a connection.
#[tokio::test]
async fn what_is_not_allowed_gets_no_connection() {
    let (port, connections) = listen(|_| async {}).await;
    for (allowed, host, why) in [
        ("", "127.0.0.1", "127.0.0.1"),
        ("10.0.0.0/8", "127.0.0.1", "127.0.0.1"),
        ("10.0.0.0/8", "::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("", "localhost", "localhost"),
        ("a.example", "localhost", "localhost"),
        // It is looked up, and leads where it must not.
        ("10.0.0.0/8", "localhost", "localhost at "),
        ("localhost", "localhost", "localhost at "),
        ("localhost", "127.0.0.1", "127.0.0.1"),
    ] {
        for probe in [Probe::Tcp, http(), grpc("")] {
            let saw = saw(&prober(allowed), target(host, port, probe)).await;
            let Saw::NotAllowed(reason) = saw else { panic!("{allowed} {host}: {saw:?}") };
            let expected = format!("--health-check-allow does not allow {why}");
            assert!(reason.starts_with(&expected), "{allowed} {host}: {reason}");
        }
    }
    runtime::sleep(Duration::from_millis(50)).await;
    assert_eq!(connections.available_permits(), 0);
    assert_eq!(prober("10.0.0.0/8").refuses("10.1.1.1"), None);
    let why = "--health-check-allow does not allow 11.1.1.1";
    assert_eq!(prober("10.0.0.0/8").refuses("11.1.1.1").unwrap(), why);
}

#[tokio::test]
async fn http_is_asked_for_a_status_and_not_for_a_body() {
    let prober = prober("127.0.0.0/8");
    let probe = |host: &str, statuses| Probe::Http {
        path: "/ready?a=b".into(),
        host: host.into(),
        statuses,
    };
    let answer = "HTTP/1.1 204 No Content\r\n\r\n".to_owned();
    let (port, mut heard) = answering(answer).await;
    assert_eq!(saw(&prober, target("127.0.0.1", port, http())).await, Saw::Passed);
    let request = heard.recv().await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("get /ready?a=b http/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nhost: 127.0.0.1:{port}\r\n")), "{request}");
    assert!(request.contains("\r\nconnection: close\r\n"), "{request}");
    saw(&prober, target("127.0.0.1", port, probe("web.example", (200, 299)))).await;
    let request = heard.recv().await.unwrap().to_ascii_lowercase();
    assert!(request.contains("\r\nhost: web.example\r\n"), "{request}");
    let expected = failed("answered 204, expected 200-203");
    let other = target("127.0.0.1", port, probe("", (200, 203)));
    assert_eq!(saw(&prober, other).await, expected);

    // A body without end is no matter, nor are answers before the answer.
    let endless =
        "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nx";
    let (port, _heard) = answering(endless.to_owned()).await;
    assert_eq!(saw(&prober, target("127.0.0.1", port, http())).await, Saw::Passed);
    for (answer, why) in [
        ("HTTP/1.1 503 No\r\n\r\n".to_owned(), "answered 503, expected 200-299".to_owned()),
        // A redirect is an answer, and its target is not asked.
        (
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n".to_owned(),
            "answered 302, expected 200-299".to_owned(),
        ),
        ("SSH-2.0-OpenSSH\r\n".to_owned(), "no HTTP answer: ".to_owned()),
        (
            format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 * HEALTH_ANSWER_BYTES)),
            "no HTTP answer: ".to_owned(),
        ),
    ] {
        let (port, _heard) = answering(answer).await;
        let saw = saw(&prober, target("127.0.0.1", port, http())).await;
        let Saw::Failed(reason) = saw else { panic!("{why}: {saw:?}") };
        assert!(reason.starts_with(&why), "{reason}");
    }
}

#[tokio::test]
async fn who_says_nothing_runs_into_the_timeout() {
    let (port, _) = listen(|stream| async move {
        runtime::sleep(10 * SECOND).await;
        drop(stream);
    })
    .await;
    let prober = prober("127.0.0.0/8");
    for probe in [http(), grpc("")] {
        let timeout = Duration::from_millis(200);
        let target = Target { timeout, ..target("127.0.0.1", port, probe) };
        let began = Instant::now();
        assert_eq!(saw(&prober, target).await, failed("no answer within 200 ms"));
        assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    }
    // Closed without a word.
    let (port, _) = listen(|_| async {}).await;
    let closed = saw(&prober, target("127.0.0.1", port, http())).await;
    assert!(matches!(&closed, Saw::Failed(why) if why.starts_with("no HTTP answer")), "{closed:?}");
    let closed = saw(&prober, target("127.0.0.1", port, grpc(""))).await;
    assert!(matches!(&closed, Saw::Failed(why) if why.starts_with("no gRPC answer")), "{closed:?}");
}

/// Other people's names that are not resolved say nothing of an instance.
#[tokio::test]
async fn who_does_not_get_to_resolve_a_name_has_seen_nothing() {
    let (port, _) = listen(|_| async {}).await;
    let prober = prober("127.0.0.0/8");
    let timeout = Duration::from_millis(200);
    let localhost = || Target { timeout, ..target("localhost", port, Probe::Tcp) };
    let all = u32::try_from(HEALTH_LOOKUPS).unwrap();
    let others = prober.lookups.permits.clone().acquire_many_owned(all).await.unwrap();
    assert_eq!(saw(&prober, localhost()).await, Saw::Nothing);
    // An address needs none.
    assert_eq!(saw(&prober, target("127.0.0.1", port, Probe::Tcp)).await, Saw::Passed);
    // The next check has its place in the line.
    assert_eq!(saw(&prober, localhost()).await, Saw::Nothing);
    assert_eq!(prober.lookups.under_way().len(), 1);
    drop(others);
    assert_eq!(saw(&prober, localhost()).await, Saw::Passed);
}

/// The resolver does not answer for a name until this is set.
static ANSWERS: (Mutex<bool>, std::sync::Condvar) = (Mutex::new(false), std::sync::Condvar::new());

fn slow_but_for_localhost(host: &str) -> io::Result<Vec<SocketAddr>> {
    if host != "localhost" {
        let (answers, changed) = &ANSWERS;
        drop(changed.wait_while(answers.lock().unwrap(), |answers| !*answers).unwrap());
    }
    Ok(vec![([127, 0, 0, 1], 0).into()])
}

/// Lets the resolver answer, after a failure too: the runtime's end waits for it.
struct Answer;

impl Drop for Answer {
    fn drop(&mut self) {
        *ANSWERS.0.lock().unwrap() = true;
        ANSWERS.1.notify_all();
    }
}

/// A name is resolved once for all who ask for it, and fails those alone.
#[tokio::test]
async fn a_name_that_is_not_resolved_holds_up_nobody_else() {
    let answer = Answer;
    let (port, _) = listen(|_| async {}).await;
    let lookups = Lookups {
        permits: Arc::new(Semaphore::new(HEALTH_LOOKUPS)),
        resolve: slow_but_for_localhost,
        under_way: Mutex::default(),
    };
    let allowed = Arc::new(AllowList::parse("127.0.0.0/8").unwrap());
    let prober = SocketProber { allowed, lookups: Arc::new(lookups) };
    let timeout = Duration::from_millis(300);
    let slow = || Target { timeout, ..target("slow.example", port, Probe::Tcp) };
    // It had little time left when its turn came.
    let all = u32::try_from(HEALTH_LOOKUPS).unwrap();
    let others = prober.lookups.permits.clone().acquire_many_owned(all).await.unwrap();
    let release = async {
        runtime::sleep(timeout / 2).await;
        drop(others);
    };
    let (saw_late, ()) = futures::join!(saw(&prober, slow()), release);
    assert_eq!(saw_late, Saw::Nothing);
    let many = futures::future::join_all((0..3 * HEALTH_LOOKUPS).map(|_| saw(&prober, slow())));
    let quick = async {
        runtime::sleep(Duration::from_millis(50)).await;
        saw(&prober, Target { timeout, ..target("localhost", port, Probe::Tcp) }).await
    };
    let (many, quick) = futures::join!(many, quick);
    assert_eq!(quick, Saw::Passed);
    for saw in many {
        assert_eq!(saw, failed("no connection within 300 ms"));
    }
    assert_eq!(prober.lookups.permits.available_permits(), HEALTH_LOOKUPS - 1);
    drop(answer);
    assert_eq!(saw(&prober, slow()).await, Saw::Passed);
    assert!(prober.lookups.under_way().is_empty());
    assert_eq!(prober.lookups.permits.available_permits(), HEALTH_LOOKUPS);
}

#[tokio::test]
async fn grpc_health_is_asked_for_the_service() {
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    runtime::spawn(server.serve_with_incoming(incoming));
    let prober = prober("127.0.0.0/8");
    let at = |service| target("127.0.0.1", port, grpc(service));
    assert_eq!(saw(&prober, at("")).await, Saw::Passed);
    assert_eq!(saw(&prober, at("web")).await, failed("answered NotFound"));
    reporter.set_service_status("web", tonic_health::ServingStatus::NotServing).await;
    assert_eq!(saw(&prober, at("web")).await, failed("answered NOT_SERVING"));
    reporter.set_service_status("web", tonic_health::ServingStatus::Serving).await;
    assert_eq!(saw(&prober, at("web")).await, Saw::Passed);
}
