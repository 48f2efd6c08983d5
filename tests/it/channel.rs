//! The balancing channel against a real cluster and real instances.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::client::channel::may_have_taken_place;
use quorate::client::{Channel, ChannelOptions, Client, HashKey, Retry, TlsOptions};
use quorate::limits;
use quorate::proto::v1::{self, *};
use tokio::task::JoinSet;
use tonic::Code;

use super::echo::{self, Broken, Echo, Fault, request, say, say_within};
use super::harness::{Cluster, eventually, run};

/// Waits until the channel balances over these instances.
async fn balances(channel: &Channel, wanted: &[&str]) {
    eventually(&format!("{wanted:?}"), async || {
        let snapshot = channel.snapshot();
        let mut found: Vec<&str> =
            snapshot.chosen().iter().map(|it| it.endpoint().id.as_str()).collect();
        found.sort_unstable();
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// Waits until the channel would call an instance at this address.
async fn is_at(channel: &Channel, id: &str, address: SocketAddr) {
    eventually("the new address", async || {
        let snapshot = channel.snapshot();
        let at = snapshot.member(id).unwrap().endpoint().target.address().port;
        if at == address.port() { Ok(()) } else { Err(format!("{at}")) }
    })
    .await;
}

async fn deregister(client: &Client, id: &str) {
    let request = DeregisterRequest { service: "echo".into(), id: id.into(), ..Default::default() };
    assert!(client.deregister(request, None).await.unwrap().removed);
}

async fn drain(client: &Client, id: &str) {
    let request = UpdateInstanceRequest {
        service: "echo".into(),
        id: id.into(),
        admin: Admin::Draining.into(),
        ..Default::default()
    };
    client.update_instance(request, None).await.unwrap();
}

/// Where each of a hundred keys goes. A call that meets the death of an instance is repeated.
async fn mapping(channel: &Channel) -> BTreeMap<String, String> {
    let mut mapping = BTreeMap::new();
    for i in 0..100 {
        let key = format!("user-{i}");
        let mut request = request(&key);
        request.metadata_mut().insert("x-user", key.parse().unwrap());
        request.extensions_mut().insert(Retry::Lost);
        let served = say(channel, request).await.unwrap();
        mapping.insert(key, served.instance.to_string());
    }
    mapping
}

/// A key has its instance; when that dies its keys go to others and all other keys stay, when another one
/// comes it gets keys from all and nobody else does. Header and extension mean the same.
#[test]
fn keys_stay_where_they_are() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let mut echoes = BTreeMap::new();
        for id in ["a", "b", "c", "d"] {
            echoes.insert(id, Echo::start(id).await.register(&client).await);
        }
        let uri = "quorate:///echo?policy=ring_hash&hash_header=X-User";
        let channel = client.channel(uri).await.unwrap();
        balances(&channel, &["a", "b", "c", "d"]).await;
        let before = mapping(&channel).await;
        assert_eq!(mapping(&channel).await, before);
        for (key, instance) in &before {
            let mut request = request(key);
            request.extensions_mut().insert(HashKey::of(key));
            assert_eq!(*say(&channel, request).await.unwrap().instance, **instance, "{key}");
        }
        for (id, echo) in &echoes {
            assert!(echo.served() > 0, "{id} got no key of 100");
        }

        // It dies without a word to the registry: a call of its keys moves on, and always to the same one.
        drop(echoes.remove("b"));
        let without = mapping(&channel).await;
        for (key, instance) in &before {
            match instance.as_str() {
                "b" => assert_ne!(without[key], "b"),
                stays => assert_eq!(without[key], stays, "{key}"),
            }
        }
        deregister(&client, "b").await;
        balances(&channel, &["a", "c", "d"]).await;
        assert_eq!(mapping(&channel).await, without);

        echoes.insert("e", Echo::start("e").await.register(&client).await);
        balances(&channel, &["a", "c", "d", "e"]).await;
        let with = mapping(&channel).await;
        for (key, instance) in &without {
            assert!(with[key] == *instance || with[key] == "e", "{key} went from {instance}");
        }
        assert!(with.values().any(|instance| instance == "e"));
    });
}

/// A call that an instance read and did not answer is an error and goes to nobody else, unless the caller
/// says that it may; one that was refused, or for which there was no connection, goes to the next one.
#[test]
fn what_may_have_happened_is_not_repeated() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let good = Echo::start("z").await.register(&client).await;
        // Always the first one by its id, whatever it did before.
        let uri = "quorate:///echo?policy=pick_first&ejection=off";
        let channel = client.channel(uri).await.unwrap();
        balances(&channel, &["z"]).await;

        let broken = Broken::start(Fault::Lose).await;
        client.register(echo::instance("echo", "a", broken.address), None).await.unwrap();
        balances(&channel, &["a", "z"]).await;
        let lost = say(&channel, request("once")).await.unwrap_err();
        assert_eq!(lost.code(), Code::Unavailable, "{lost}");
        assert!(lost.message().contains("may have taken place"), "{lost}");
        assert!(may_have_taken_place(&lost));
        assert_eq!((broken.seen.load(Ordering::SeqCst), good.served()), (1, 0));
        let mut again = request("as often as you like");
        again.extensions_mut().insert(Retry::Lost);
        let served = say(&channel, again).await.unwrap();
        assert_eq!((&*served.instance, served.attempts), ("z", 2));
        // The first one may have closed before it saw this call.
        assert_eq!(good.served(), 1);

        for fault in [Fault::Refuse, Fault::GoAway] {
            let broken = Broken::start(fault).await;
            client.register(echo::instance("echo", "a", broken.address), None).await.unwrap();
            is_at(&channel, "a", broken.address).await;
            for _ in 0..20 {
                let served = say(&channel, request("refused")).await;
                let served = served.unwrap_or_else(|status| panic!("{fault:?}: {status}"));
                assert_eq!((&*served.instance, served.attempts), ("z", 2), "{fault:?}");
            }
            let address = broken.address;
            drop(broken);
            // Nobody listens there any more.
            eventually("a closed port", async || {
                match tokio::net::TcpStream::connect(address).await {
                    Ok(_) => Err("somebody listens".to_owned()),
                    Err(_) => Ok(()),
                }
            })
            .await;
            assert_eq!(&*say(&channel, request("refused")).await.unwrap().instance, "z");
        }

        // What was sent in part is sent again from its beginning, unless it is too long to be kept.
        let broken = Broken::start(Fault::Refuse).await;
        client.register(echo::instance("echo", "a", broken.address), None).await.unwrap();
        is_at(&channel, "a", broken.address).await;
        let long = "x".repeat(limits::CHANNEL_REPLAY_BYTES - 100);
        assert_eq!(&*say(&channel, request(&long)).await.unwrap().instance, "z");
        match say(&channel, request(&long.repeat(10))).await {
            Ok(served) => assert_eq!(&*served.instance, "z", "it was refused before it was sent"),
            Err(status) => assert!(status.message().contains("too long"), "{status}"),
        }
    });
}

/// An answer of UNAVAILABLE is the caller's to see, and is repeated elsewhere where he allows that.
#[test]
fn unavailable_goes_elsewhere_only_if_allowed() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bad = Echo::start("a").await.register(&client).await;
        let good = Echo::start("b").await.register(&client).await;
        bad.manner.code.store(Code::Unavailable as u32, Ordering::SeqCst);
        let plain = client.channel("quorate:///echo?policy=pick_first&ejection=off").await.unwrap();
        balances(&plain, &["a", "b"]).await;
        let status = say(&plain, request("x")).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "as it was told"));
        assert_eq!((bad.served(), good.served()), (1, 0));
        let uri = "quorate:///echo?policy=pick_first&ejection=off&retry=lost";
        let bold = client.channel(uri).await.unwrap();
        balances(&bold, &["a", "b"]).await;
        assert_eq!(&*say(&bold, request("x")).await.unwrap().instance, "b");
        // Other errors are answers.
        bad.manner.code.store(Code::NotFound as u32, Ordering::SeqCst);
        assert_eq!(say(&bold, request("x")).await.unwrap_err().code(), Code::NotFound);
        // When all say so the last one is heard.
        bad.manner.code.store(Code::Unavailable as u32, Ordering::SeqCst);
        good.manner.code.store(Code::Unavailable as u32, Ordering::SeqCst);
        let status = say(&bold, request("x")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("as it was told"), "{status}");
    });
}

/// Instances are replaced under load, drained or simply stopped, and the policy changes meanwhile: no call
/// fails, and each is served once.
#[test]
fn instances_and_policies_change_without_a_lost_call() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let channel = client.channel("quorate:///echo").await.unwrap();
        let mut echoes = Vec::new();
        for i in 0..3 {
            echoes.push(Echo::start(&format!("echo-{i}")).await.register(&client).await);
        }
        balances(&channel, &["echo-0", "echo-1", "echo-2"]).await;
        for echo in &echoes {
            echo.manner.delay_ms.store(3, Ordering::SeqCst);
        }
        let done = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(AtomicU64::new(0));
        let by = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
        let mut load = JoinSet::new();
        for worker in 0..8 {
            let (channel, done, calls, by) =
                (channel.clone(), done.clone(), calls.clone(), by.clone());
            load.spawn(async move {
                for i in 0u64.. {
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                    let mut request = request(&format!("{worker}-{i}"));
                    request.extensions_mut().insert(HashKey::of(i.to_le_bytes()));
                    let served = say(&channel, request).await.expect("no call fails");
                    *by.lock().unwrap().entry(served.instance.to_string()).or_default() += 1;
                    calls.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let more = async |n: u64| {
            let goal = calls.load(Ordering::SeqCst) + n;
            eventually("more calls", async || match calls.load(Ordering::SeqCst) {
                done if done >= goal => Ok(()),
                done => Err(format!("{done} of {goal}")),
            })
            .await;
        };
        let mut served = 0;
        let policies = ["ring_hash", "maglev", "round_robin", "peak_ewma", "rendezvous", ""];
        for (round, policy) in policies.into_iter().enumerate() {
            more(200).await;
            let service =
                Service { name: "echo".into(), policy: policy.into(), ..Default::default() };
            client.put_service(service, None).await.unwrap();
            let wanted = if policy.is_empty() { "least_request" } else { policy };
            eventually(wanted, async || match channel.snapshot().policy().name() {
                name if name == wanted => Ok(()),
                name => Err(name.to_owned()),
            })
            .await;
            more(100).await;
            let new = Echo::start(&format!("echo-{}", round + 3)).await.register(&client).await;
            new.manner.delay_ms.store(3, Ordering::SeqCst);
            echoes.push(new);
            let old = echoes.remove(0);
            let (id, manner) = (old.id.clone(), old.manner.clone());
            // Every other one stops without a word before: what it did not begin with goes elsewhere.
            if round % 2 == 0 {
                drain(&client, &id).await;
                eventually("drained", async || {
                    let snapshot = channel.snapshot();
                    let chosen = snapshot.chosen().iter().any(|it| it.endpoint().id == id);
                    if chosen { Err("still chosen".to_owned()) } else { Ok(()) }
                })
                .await;
            }
            old.stop().await;
            served += manner.served.load(Ordering::SeqCst);
            deregister(&client, &id).await;
            more(100).await;
        }
        done.store(true, Ordering::SeqCst);
        while let Some(worker) = load.join_next().await {
            worker.unwrap();
        }
        served += echoes.iter().map(Echo::served).sum::<u64>();
        assert_eq!(served, calls.load(Ordering::SeqCst), "each call is served once");
        let by = by.lock().unwrap();
        assert_eq!(by.values().sum::<u64>(), served);
        assert!(by.len() >= 8, "{by:?}");
    });
}

/// A deadline holds over all that a call waits for; a stream counts as under way until it ends; who does
/// not answer is found out and left.
#[test]
fn deadlines_and_streams() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let channel = client.channel("quorate:///echo?policy=pick_first").await.unwrap();
        let nobody = say(&channel, request("x")).await.unwrap_err();
        assert_eq!(nobody.code(), Code::Unavailable);
        assert!(nobody.message().contains("no endpoints"), "{nobody}");
        assert!(!may_have_taken_place(&nobody));

        let mute = Broken::start(Fault::Swallow).await;
        client.register(echo::instance("echo", "a", mute.address), None).await.unwrap();
        balances(&channel, &["a"]).await;
        let mut hurried = request("x");
        hurried.set_timeout(Duration::from_millis(300));
        let late = say(&channel, hurried).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        assert_eq!(mute.seen.load(Ordering::SeqCst), 1);
        deregister(&client, "a").await;

        let echo = Echo::start("b").await.register(&client).await;
        balances(&channel, &["b"]).await;
        let under_way = || channel.snapshot().member("b").map_or(0, |member| member.in_flight());
        let mut messages = echo::stream(&channel, request("x")).await.unwrap();
        assert_eq!(under_way(), 1);
        while messages.message().await.unwrap().is_some() {}
        assert_eq!(under_way(), 0);
        // Half of it, and then no more.
        echo.manner.delay_ms.store(3_600_000, Ordering::SeqCst);
        let mut messages = echo::stream(&channel, request("x")).await.unwrap();
        messages.message().await.unwrap();
        assert_eq!(under_way(), 1);
        drop(messages);
        assert_eq!(under_way(), 0);
        let mut hurried = request("x");
        hurried.set_timeout(Duration::from_millis(300));
        let mut messages = echo::stream(&channel, hurried).await.unwrap();
        messages.message().await.unwrap();
        let late = messages.message().await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        assert_eq!(under_way(), 0);

        // Without the cluster: what is known stays, what is not known is an error that says so.
        echo.manner.delay_ms.store(0, Ordering::SeqCst);
        cluster.kill_all();
        assert_eq!(&*say(&channel, request("x")).await.unwrap().instance, "b");
        let other = client.channel("quorate:///other").await.unwrap();
        let mut hurried = request("x");
        hurried.set_timeout(Duration::from_millis(300));
        let late = say(&other, hurried).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        assert!(late.message().contains("has not told"), "{late}");
    });
}

/// An instance that is back at its address gets its calls again, also when it is the only one.
#[test]
fn who_comes_back_is_found() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let echo = Echo::start("a").await.register(&client).await;
        let address = echo.address.to_string();
        let channel = client.channel("quorate:///echo").await.unwrap();
        balances(&channel, &["a"]).await;
        for _ in 0..5 {
            say(&channel, request("x")).await.unwrap();
        }
        drop(echo);
        eventually("an error", async || match say(&channel, request("x")).await {
            Err(status) if status.message().contains("refused") => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        let _back = Echo::start_with("a", &address, None).await;
        // The very next call.
        say(&channel, request("x")).await.unwrap();
    });
}

/// Whoever fails again and again gets no calls for a while, and gets them again afterwards.
#[test]
fn who_fails_is_left_out_and_returns() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let mut echoes = Vec::new();
        for id in ["a", "b", "c"] {
            echoes.push(Echo::start(id).await.register(&client).await);
        }
        let uri = "quorate:///echo?policy=round_robin&consecutive_failures=3\
                   &ejection_interval_ms=100&ejection_base_ms=2000";
        let channel = client.channel(uri).await.unwrap();
        balances(&channel, &["a", "b", "c"]).await;
        let is_ejected = || channel.snapshot().member("a").unwrap().is_ejected();
        let bad = &echoes[0].manner;
        bad.code.store(Code::Internal as u32, Ordering::SeqCst);
        let mut failures = 0;
        while !is_ejected() {
            failures += u32::from(say(&channel, request("x")).await.is_err());
            assert!(failures <= 3, "it is left out after three failures in a row");
        }
        assert_eq!(failures, 3);
        bad.code.store(0, Ordering::SeqCst);
        let before = echoes[0].served();
        while is_ejected() && echoes[1].served() < 1_000 {
            say(&channel, request("x")).await.unwrap();
        }
        // The last call may have begun when it had just returned.
        assert!(echoes[0].served() <= before + 1);
        eventually("its return", async || {
            let served = say(&channel, request("x")).await.unwrap();
            if &*served.instance == "a" { Ok(()) } else { Err(served.instance.to_string()) }
        })
        .await;
    });
}

/// Of many instances one is there, behind more dead ones than a call has candidates: it gets every call.
#[test]
fn one_of_many_is_found() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let mut ids: Vec<String> = Vec::new();
        for i in 0..limits::BALANCE_ATTEMPTS + 8 {
            // Nobody listens on the ports that were theirs.
            let gone = Echo::start(&format!("a{i:02}")).await.register(&client).await;
            ids.push(gone.id.clone());
            // Dropped, it may go on for a while on a busy machine.
            gone.stop().await;
        }
        let _good = Echo::start("z").await.register(&client).await;
        ids.push("z".to_owned());
        for policy in ["pick_first", "least_request", "ring_hash"] {
            let uri = format!("quorate:///echo?policy={policy}");
            let channel = client.channel(&uri).await.unwrap();
            balances(&channel, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
            for i in 0..50 {
                let mut request = request("x");
                request.extensions_mut().insert(HashKey::of(format!("{i}")));
                // A port may take connections for a moment after its instance has died.
                request.extensions_mut().insert(Retry::Lost);
                let served = say(&channel, request).await;
                let served = served.unwrap_or_else(|status| panic!("{policy}: {status}"));
                assert_eq!(&*served.instance, "z", "{policy}");
            }
        }
    });
}

/// Instances that say so are called over TLS; who is not trusted is not called.
#[test]
fn tls_where_instances_ask_for_it() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let certified = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (ours, theirs) = (certified("echo.test"), certified("echo.test"));
        let identity = |it: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            tonic::transport::Identity::from_pem(it.cert.pem(), it.signing_key.serialize_pem())
        };
        let over_tls = |echo: &Echo| v1::Instance {
            metadata: [("tls".to_owned(), "true".to_owned())].into(),
            ..echo.instance()
        };
        let good = Echo::start_with("b", "127.0.0.1:0", Some(identity(&ours))).await;
        let false_one = Echo::start_with("a", "127.0.0.1:0", Some(identity(&theirs))).await;
        client.register(over_tls(&good), None).await.unwrap();
        client.register(over_tls(&false_one), None).await.unwrap();
        let tls = TlsOptions {
            ca: ours.cert.pem().into_bytes(),
            server_name: Some("echo.test".into()),
            ..Default::default()
        };
        let options: ChannelOptions = "quorate:///echo?policy=pick_first".parse().unwrap();
        let channel = client.channel_with(options.clone().tls(tls)).await.unwrap();
        balances(&channel, &["a", "b"]).await;
        for _ in 0..3 {
            assert_eq!(&*say(&channel, request("x")).await.unwrap().instance, "b");
        }
        let without = client.channel_with(options.clone()).await.unwrap();
        balances(&without, &["a", "b"]).await;
        let refused = say(&without, request("x")).await.unwrap_err();
        assert!(refused.message().contains("wants TLS"), "{refused}");
        let wrong = client.channel_with(options.tls(TlsOptions::default())).await.unwrap_err();
        assert!(wrong.to_string().contains("tls.ca"), "{wrong}");
    });
}

/// An error tells of every call that may have taken place, also when the call went further, or when its
/// answer had begun.
#[test]
fn errors_tell_what_may_have_taken_place() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let uri = "quorate:///echo?policy=pick_first&ejection=off&retry=lost";
        let channel = client.channel(uri).await.unwrap();
        let losing = Broken::start(Fault::Lose).await;
        client.register(echo::instance("echo", "a", losing.address), None).await.unwrap();
        balances(&channel, &["a"]).await;
        let lost = say(&channel, request("x")).await.unwrap_err();
        assert!(lost.message().contains("no other one to try"), "{lost}");
        let long = "x".repeat(2 * limits::CHANNEL_REPLAY_BYTES);
        let too_long = say(&channel, request(&long)).await.unwrap_err();
        assert!(too_long.message().contains("too long"), "{too_long}");

        let breaking = Broken::start(Fault::BreakOff).await;
        client.register(echo::instance("echo", "a", breaking.address), None).await.unwrap();
        is_at(&channel, "a", breaking.address).await;
        let broken_off = say(&channel, request("x")).await.unwrap_err();
        assert!(broken_off.message().contains("broke off"), "{broken_off}");

        let echo = Echo::start("a").await.register(&client).await;
        is_at(&channel, "a", echo.address).await;
        echo.manner.delay_ms.store(3_600_000, Ordering::SeqCst);
        let mut hurried = request("x");
        hurried.set_timeout(Duration::from_millis(300));
        let mut messages = echo::stream(&channel, hurried).await.unwrap();
        messages.message().await.unwrap();
        let late = messages.message().await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");

        let all = [lost, too_long, broken_off, late];
        assert_eq!(all.each_ref().map(may_have_taken_place), [true; 4], "{all:?}");
    });
}

/// What the caller does wrong is no instance's fault, and is told as it is.
#[test]
fn nobody_is_blamed_for_the_caller() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let a = Echo::start("a").await.register(&client).await;
        let _b = Echo::start("b").await.register(&client).await;
        let channel = client.channel("quorate:///echo?policy=pick_first").await.unwrap();
        balances(&channel, &["a", "b"]).await;
        say(&channel, request("x")).await.unwrap();
        let ejected = || channel.snapshot().member("a").unwrap().is_ejected();
        let mut wrong = Vec::new();
        for _ in 0..20 {
            let status = say_within(&channel, request("more than ten"), 10).await.unwrap_err();
            wrong.push((status.code(), ejected()));
        }
        assert_eq!(wrong, [(Code::OutOfRange, false); 20]);
        let mut wrong = Vec::new();
        for _ in 0..20 {
            let mut late = request("x");
            late.set_timeout(Duration::ZERO);
            let late = say(&channel, late).await.unwrap_err();
            wrong.push((late.code(), may_have_taken_place(&late), ejected()));
        }
        assert_eq!(wrong, [(Code::DeadlineExceeded, false, false); 20]);
        assert_eq!(a.served(), 1);
    });
}

/// A stream whose reader never has to wait ends at its deadline too.
#[test]
fn a_stream_without_a_pause_ends_at_its_deadline() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let channel = client.channel("quorate:///echo").await.unwrap();
        let flood = Broken::start(Fault::Flood).await;
        client.register(echo::instance("echo", "a", flood.address), None).await.unwrap();
        balances(&channel, &["a"]).await;
        let mut hurried = request("x");
        hurried.set_timeout(Duration::from_millis(300));
        let mut messages = echo::stream(&channel, hurried).await.unwrap();
        let read = async {
            loop {
                if let Err(status) = messages.message().await {
                    return status;
                }
                // The instance is faster than this.
                std::thread::sleep(Duration::from_micros(100));
                tokio::task::yield_now().await;
            }
        };
        let late = tokio::time::timeout(Duration::from_secs(5), read).await.expect("an end");
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    });
}

/// Of instances that all were away the one that is back takes the very next call, whichever it is.
#[test]
fn whoever_comes_back_is_found() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let a = Echo::start("a").await.register(&client).await;
        let b = Echo::start("b").await.register(&client).await;
        let address = b.address.to_string();
        let uri = "quorate:///echo?policy=pick_first&ejection=off";
        let channel = client.channel(uri).await.unwrap();
        balances(&channel, &["a", "b"]).await;
        say(&channel, request("x")).await.unwrap();
        drop((a, b));
        eventually("both away", async || match say(&channel, request("x")).await {
            Err(status) if status.message().contains("2 endpoints were tried") => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        let _back = Echo::start_with("b", &address, None).await;
        let served = say(&channel, request("x")).await.unwrap();
        assert_eq!(&*served.instance, "b");
    });
}

/// Who was ejected is better than nobody: when the others cannot be reached it is asked.
#[test]
fn the_ejected_are_the_last_resort() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let a = Echo::start("a").await.register(&client).await;
        let b = Echo::start("b").await.register(&client).await;
        let channel = client.channel("quorate:///echo?policy=pick_first").await.unwrap();
        balances(&channel, &["a", "b"]).await;
        a.manner.code.store(Code::Internal as u32, Ordering::SeqCst);
        eventually("an ejection", async || {
            let served = say(&channel, request("x")).await.map(|served| served.instance);
            if channel.snapshot().member("a").unwrap().is_ejected() {
                Ok(())
            } else {
                Err(format!("{served:?}"))
            }
        })
        .await;
        a.manner.code.store(0, Ordering::SeqCst);
        assert_eq!(&*say(&channel, request("x")).await.unwrap().instance, "b");
        drop(b);
        eventually("a call", async || match say(&channel, request("x")).await {
            // The first one may meet the death of b.
            Err(status) if may_have_taken_place(&status) => Err(format!("{status}")),
            served => {
                assert_eq!(&*served.unwrap().instance, "a");
                Ok(())
            }
        })
        .await;
    });
}

/// A stream in both directions answers before its request ends, also when another instance refused it
/// first; it counts until it ends.
#[test]
fn streams_in_both_directions() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let refusing = Broken::start(Fault::Refuse).await;
        client.register(echo::instance("echo", "a", refusing.address), None).await.unwrap();
        let _echo = Echo::start("z").await.register(&client).await;
        let uri = "quorate:///echo?policy=pick_first&ejection=off";
        let channel = client.channel(uri).await.unwrap();
        balances(&channel, &["a", "z"]).await;
        let under_way = || channel.snapshot().member("z").map_or(0, |member| member.in_flight());
        for early in [true, false] {
            let (say, messages) = tokio::sync::mpsc::channel(1);
            if early {
                say.send(b"0".to_vec()).await.unwrap();
            }
            let mut heard = echo::chat(&channel, messages).await.unwrap();
            if !early {
                say.send(b"0".to_vec()).await.unwrap();
            }
            assert_eq!(heard.message().await.unwrap().unwrap(), b"0");
            for i in 1..100u32 {
                let message = i.to_string().repeat(1_000).into_bytes();
                say.send(message.clone()).await.unwrap();
                assert_eq!(heard.message().await.unwrap().unwrap(), message);
            }
            assert_eq!(under_way(), 1);
            drop(say);
            assert_eq!(heard.message().await.unwrap(), None);
            assert_eq!(under_way(), 0);
        }
        assert_eq!(refusing.seen.load(Ordering::SeqCst), 2);
    });
}
