//! The session stream over connections that break.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use futures::FutureExt;
use futures::future::join_all;

use super::fake::{Node, plain};
use super::*;
use crate::client::{Answer, Call, ReadFrom, SessionOptions, Submission};
use crate::error::Error;

#[tokio::test]
async fn answers_find_their_calls() {
    let node = Node::simple(|call| Ok(plain(call)));
    let stream = client(&[&node]).stream();
    let calls = (0..1_000).map(|i| stream.call(get(&i.to_string()), None).boxed());
    for (i, answer) in join_all(calls).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap().instance.unwrap().id, i.to_string());
    }
    assert_eq!(stream.in_flight(), 0);
    assert_eq!(node.fake.streams.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn many_calls_come_back_in_their_order() {
    let node = Node::simple(|call| Ok(plain(call)));
    let stream = client(&[&node]).stream();
    let calls = (0..30_000).map(|i: u32| Call::from(get(&i.to_string()))).collect();
    let answers = stream.call_many(calls).await;
    assert_eq!(answers.len(), 30_000);
    for (i, answer) in answers.into_iter().enumerate() {
        let Ok(Answer::GetInstance(answer)) = answer else { panic!("{answer:?}") };
        assert_eq!(answer.instance.unwrap().id, i.to_string());
    }
    assert_eq!(stream.in_flight(), 0);
    assert!(stream.call_many(Vec::new()).await.is_empty());
}

#[tokio::test]
async fn a_broken_stream_is_made_again_and_ids_stay() {
    let node = Node::simple(|call| Ok(plain(call)));
    node.fake.break_stream_after.store(3, Ordering::Relaxed);
    let client = client(&[&node]);
    let session = client.session(SessionOptions::default()).await.unwrap();
    let stream = client.stream();
    // All leave in one frame, whose third call breaks the stream: nothing is answered.
    let (first, second, read, bare) = tokio::join!(
        stream.call(register("a"), Some(&session)),
        stream.call(register("b"), Some(&session)),
        stream.call(get("c"), None),
        stream.call(register("d"), None),
    );
    first.unwrap();
    second.unwrap();
    read.unwrap();
    let error = bare.unwrap_err();
    assert!(matches!(error, Error::Connection { definite: false, .. }), "{error:?}");
    assert_eq!(node.fake.streams.load(Ordering::Relaxed), 2);
    let id = |sequence| Some(RequestId { session: 7, sequence, lowest_unacknowledged: 1 });
    assert_eq!(node.register_ids(), [id(1), id(2), id(1), id(2)]);
}

#[tokio::test]
async fn a_stream_goes_on_at_another_node() {
    let mut first = Node::new(|_| std::future::pending().boxed());
    let second = Node::simple(|call| Ok(plain(call)));
    first.says(1, 1, Some((1, &first.address)));
    second.says(2, 1, Some((1, &first.address)));
    let client = client(&[&first, &second]);
    client.status().await.unwrap();
    client.check_leader();
    eventually("the leader is learned", || client.leader().as_ref() == Some(&first.address)).await;
    let stream = client.stream();
    let call = tokio::spawn({
        let stream = stream.clone();
        async move { stream.call(get("a"), None).await }
    });
    eventually("the call arrives", || first.calls().len() == 1).await;
    first.stop();
    call.await.unwrap().unwrap();
    assert_eq!(second.calls().len(), 1);
}

#[tokio::test]
async fn a_silent_node_is_left_when_no_call_suffers() {
    let silent = Node::new(|_| std::future::pending().boxed());
    let other = Node::simple(|call| Ok(plain(call)));
    for _ in 0..4 {
        // Whichever node the stream begins with, and although nobody says who leads.
        let stream = client(&[&silent, &other]).stream();
        stream.call(get("a"), None).await.unwrap();
    }
    // A write without an id is left where it is.
    for seed in 0..10 {
        let options = Options { seed: Some(seed), ..options(&[&silent, &other]) };
        let client = Client::connect(options).unwrap();
        let stream = client.stream().with_timeout(Duration::from_millis(1_500));
        let (bare, read) =
            tokio::join!(stream.call(register("a"), None), stream.call(get("b"), None));
        if silent.register_ids().is_empty() {
            assert!(bare.is_ok() && read.is_ok());
            continue;
        }
        assert_eq!(bare.unwrap_err(), Error::Timeout { definite: false });
        assert_eq!(read.unwrap_err(), Error::Timeout { definite: false });
        return;
    }
    panic!("the silent node was never asked");
}

#[tokio::test]
async fn a_call_that_may_be_repeated_is_repeated_after_an_error() {
    let count = AtomicUsize::new(0);
    let node = Node::simple(move |call| match (call, count.fetch_add(1, Ordering::Relaxed)) {
        (Call::Register(_), 0..=2) => Err(Error::NoLeader { leader: None, definite: true }),
        (Call::Register(_), 3) => Err(Error::LeaderChanged),
        (call, _) => Ok(plain(call)),
    });
    let stream = client(&[&node]).stream();
    // Three times it certainly did not take place; the fourth time nobody knows.
    assert_eq!(stream.call(register("a"), None).await.unwrap_err(), Error::LeaderChanged);
    assert_eq!(node.register_ids(), [None; 4]);
    stream.call(register("a"), None).await.unwrap();
}

#[tokio::test]
async fn deadlines_are_kept() {
    let node = Node::new(|_| std::future::pending().boxed());
    let stream = client(&[&node]).stream();
    let short = stream.with_timeout(Duration::from_millis(150));
    let long = tokio::spawn({
        let stream = stream.with_timeout(Duration::from_millis(600));
        async move { stream.call(register("b"), None).await }
    });
    let begun = Instant::now();
    let error = short.call(register("a"), None).await.unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error, Error::Timeout { definite: false });
    assert!(took >= Duration::from_millis(140) && took < Duration::from_millis(400), "{took:?}");
    assert_eq!(long.await.unwrap().unwrap_err(), Error::Timeout { definite: false });
    assert_eq!(stream.in_flight(), 0);
}

#[tokio::test]
async fn what_was_never_sent_is_definite() {
    let mut node = Node::simple(|call| Ok(plain(call)));
    node.stop();
    let stream = client(&[&node]).stream().with_timeout(Duration::from_millis(300));
    let error = stream.call(register("a"), None).await.unwrap_err();
    assert!(error.definite(), "{error:?}");
    assert!(matches!(error, Error::Connection { .. }), "it says why: {error:?}");
}

#[tokio::test]
async fn a_dropped_call_leaves_nothing_behind() {
    let node = Node::new(|call| {
        async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(plain(&call))
        }
        .boxed()
    });
    let stream = client(&[&node]).stream();
    for _ in 0..3 {
        let call = stream.call(get("a"), None);
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
    }
    assert_eq!(stream.in_flight(), 0);
    // Answers to the dropped calls arrive and are nobody's; the next call gets its own.
    let answer = stream.call(get("b"), None).await.unwrap();
    assert_eq!(answer.instance.unwrap().id, "b");
}

#[tokio::test]
async fn a_stream_moves_to_the_leader() {
    let nodes: Vec<Node> = (0..2).map(|_| Node::simple(|call| Ok(plain(call)))).collect();
    let say = |leader: usize, term: u64| {
        for (i, node) in nodes.iter().enumerate() {
            node.says(i as u64 + 1, term, Some((leader as u64 + 1, &nodes[leader].address)));
        }
    };
    say(0, 1);
    let client = client(&[&nodes[0], &nodes[1]]);
    let stream = client.stream();
    let begun = Instant::now();
    let mut moved = false;
    let mut made = 0;
    while begun.elapsed() < Duration::from_secs(8) && !moved {
        // None fails while the stream moves, although they carry no id.
        stream.call(register("a"), None).await.unwrap();
        made += 1;
        if begun.elapsed() > Duration::from_millis(300) {
            say(1, 2);
        }
        let arrived = nodes[1].register_ids().len();
        moved = client.leader().as_ref() == Some(&nodes[1].address) && arrived > 50;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(moved, "the stream stays with {:?}", client.leader());
    let arrived: usize = nodes.iter().map(|node| node.register_ids().len()).sum();
    assert_eq!(arrived, made, "each call arrived once");
}

/// As unary reads: the first goes to one node, the next to another one, and none moves to the leader.
#[tokio::test]
async fn streams_that_read_from_any_node_stay_there() {
    let nodes: Vec<Node> = (0..3).map(|_| Node::simple(|call| Ok(plain(call)))).collect();
    for (i, node) in nodes.iter().enumerate() {
        node.says(i as u64 + 1, 1, Some((1, &nodes[0].address)));
    }
    let all: Vec<&Node> = nodes.iter().collect();
    let client = Client::connect(Options { read_from: ReadFrom::Any, ..options(&all) }).unwrap();
    let streams: Vec<_> = (0..3).map(|_| client.stream()).collect();
    let begun = Instant::now();
    let mut made = 0;
    // Twice as long as a stream takes to look for the leader.
    while begun.elapsed() < Duration::from_millis(600) {
        for stream in &streams {
            stream.call(get("a"), None).await.unwrap();
        }
        made += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    eventually("the leader is known", || client.leader().as_ref() == Some(&nodes[0].address)).await;
    assert_eq!(nodes.iter().map(|node| node.calls().len()).collect::<Vec<_>>(), [made; 3]);
}

#[tokio::test]
async fn a_pipeline_returns_tags_and_settles_ids() {
    let node = Node::simple(|call| match call {
        Call::Register(request) if request.instance.as_ref().unwrap().id == "bad" => {
            Err(Error::invalid("id", "bad", "good"))
        }
        call => Ok(plain(call)),
    });
    let client = client(&[&node]);
    let session = client.session(SessionOptions::default()).await.unwrap();
    let stream = client.stream();
    let mut pipeline = stream.pipeline();
    let mut done = Vec::new();
    assert_eq!(pipeline.completed(&mut done).await, 0, "nothing is under way");
    for round in 0..5u64 {
        let mut batch = Vec::new();
        for i in 0..100u64 {
            let ticket = session.next_request_id().await.unwrap();
            let id = if i == 50 { "bad".to_owned() } else { i.to_string() };
            let request =
                RegisterRequest { request_id: Some(ticket.request_id()), ..register(&id) };
            let tag = round * 1_000 + i;
            batch.push(Submission { tag, call: request.into(), ticket: Some(ticket) });
        }
        pipeline.submit(batch).await;
        while pipeline.completed(&mut done).await > 0 {}
        assert_eq!(session.in_flight(), 0);
    }
    let mut tags: Vec<u64> = done.iter().map(|(tag, _)| *tag).collect();
    tags.sort_unstable();
    let expected: Vec<u64> =
        (0..5).flat_map(|round| (0..100).map(move |i| round * 1_000 + i)).collect();
    assert_eq!(tags, expected);
    for (tag, outcome) in &done {
        assert_eq!(outcome.is_err(), tag % 1_000 == 50, "{tag}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_dropped_pipeline_gives_everything_back() {
    let node = Node::new(|_| std::future::pending().boxed());
    let client = client(&[&node]);
    let stream = client.stream();
    let mut pipeline = stream.pipeline();
    let batch = (0..100).map(|tag| Submission { tag, call: get("a").into(), ticket: None });
    pipeline.submit(batch).await;
    assert_eq!((pipeline.in_flight(), stream.in_flight()), (100, 100));
    drop(pipeline);
    assert_eq!(stream.in_flight(), 0);
}

#[tokio::test]
async fn a_stream_ends_with_its_last_handle() {
    let node = Node::simple(|call| Ok(plain(call)));
    let client = client(&[&node]);
    let stream = client.stream();
    stream.call(get("a"), None).await.unwrap();
    let shared = std::sync::Arc::downgrade(&stream.shared);
    let clone = stream.clone();
    drop(stream);
    clone.call(get("b"), None).await.unwrap();
    drop(clone);
    eventually("both tasks and the connection are gone", || shared.strong_count() == 0).await;
}

#[tokio::test]
async fn a_node_without_the_service_is_told_apart() {
    // Something that speaks HTTP/2 but knows no such call.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_routes(tonic::service::Routes::default())
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    let client = Client::connect(Options::new([address])).unwrap();
    let begun = Instant::now();
    let error = client.stream().call(get("a"), None).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(2), "{error}");
    assert!(error.to_string().contains("Unimplemented"), "{error}");
}
