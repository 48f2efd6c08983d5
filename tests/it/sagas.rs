//! Global transactions with real participants: order, results, retries, decisions, leaders that die between a
//! call and its answer.

use std::time::Duration;

use futures::StreamExt as _;
use quorate::client::Client;
use quorate::error::Error;
use quorate::proto::v1;
use tonic::Code;

use super::harness::{Cluster, eventually, printed, run, run_within, text};
use super::participant::{Participant, Say, target};

fn branch(id: &str, action: &str, compensation: &str) -> v1::NewSagaBranch {
    let target = |method: &str| if method.is_empty() { String::new() } else { target(method) };
    v1::NewSagaBranch {
        id: id.into(),
        action: target(action),
        compensation: target(compensation),
        payload: format!("payload of {id}").into_bytes(),
        policy: Some(v1::SagaPolicy { pause_ms: 20, pause_max_ms: 100, ..Default::default() }),
        ..Default::default()
    }
}

/// Debit, then credit.
fn transfer(gid: &str) -> v1::BeginSagaRequest {
    v1::BeginSagaRequest {
        gid: gid.into(),
        mode: v1::SagaMode::Saga.into(),
        branches: vec![branch("a", "Debit", "UndoDebit"), branch("b", "Credit", "UndoCredit")],
        submit: true,
        ..Default::default()
    }
}

async fn ended(client: &Client, gid: &str) -> v1::Saga {
    eventually("the end", async || {
        let request = v1::WaitSagaRequest { gid: gid.into(), ..Default::default() };
        let saga = text(client.wait_saga(request).await)?.saga.unwrap();
        match saga.status() {
            v1::SagaStatus::Succeeded | v1::SagaStatus::Failed | v1::SagaStatus::Suspended => {
                Ok(saga)
            }
            status => Err(format!("{status:?}: {}", saga.error)),
        }
    })
    .await
}

#[test]
fn a_saga_goes_forward_in_order_and_hands_results_on() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        bank.tell("Debit", [Say::Answer("receipt 7")]);
        let begun = client.begin_saga(transfer("t-1"), None).await.unwrap();
        assert_eq!((begun.gid.as_str(), begun.created), ("t-1", true));
        let saga = ended(&client, "t-1").await;
        assert_eq!(saga.status(), v1::SagaStatus::Succeeded, "{saga:?}");
        assert_eq!(bank.heard(), ["Debit(a action 1)", "Credit(b action 1)"]);
        bank.book(|book| {
            let [debit, credit] = &book.calls[..] else { panic!("{:?}", book.calls) };
            assert_eq!(
                (debit.gid.as_str(), debit.payload.as_slice()),
                ("t-1", &b"payload of a"[..])
            );
            assert!(debit.results.is_empty());
            assert_eq!(credit.results["a"], b"receipt 7");
            assert!(credit.epoch > 0);
        });
        assert_eq!(saga.branches[0].result, b"receipt 7");
        // Begun once more it is the same; with another content it is refused.
        let again = client.begin_saga(transfer("t-1"), None).await.unwrap();
        assert_eq!((again.created, again.status()), (false, v1::SagaStatus::Succeeded));
        let mut other = transfer("t-1");
        other.branches.pop();
        let refused = client.begin_saga(other, None).await.unwrap_err();
        assert!(matches!(refused, Error::InUse { .. }), "{refused:?}");
    });
}

#[test]
fn what_was_done_is_undone_backwards_when_a_branch_refuses() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        bank.tell("Debit", [Say::Answer("receipt 7")]);
        bank.tell("Credit", [Say::Refuse(Code::Aborted)]);
        // The compensation fails twice; it must be done.
        bank.tell("UndoDebit", [Say::Refuse(Code::Unavailable), Say::Refuse(Code::Aborted)]);
        client.begin_saga(transfer("t-1"), None).await.unwrap();
        let saga = ended(&client, "t-1").await;
        assert_eq!(saga.status(), v1::SagaStatus::Failed, "{saga:?}");
        let heard = bank.heard();
        // What refused may have been called before: it is undone too, the last first.
        assert_eq!(
            heard,
            [
                "Debit(a action 1)",
                "Credit(b action 1)",
                "UndoCredit(b compensate 1)",
                "UndoDebit(a compensate 1)",
                "UndoDebit(a compensate 2)",
                "UndoDebit(a compensate 3)",
            ]
        );
        bank.book(|book| {
            // A compensation knows what its action answered.
            assert_eq!(book.calls[5].results["a"], b"receipt 7");
            assert_eq!(book.effects[&("t-1".into(), "a".into())], (1, 1));
        });
    });
}

#[test]
fn what_fails_is_repeated_and_what_goes_on_is_asked_again() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        bank.tell("Debit", [Say::Refuse(Code::Unavailable), Say::Refuse(Code::Internal)]);
        bank.tell("Credit", [Say::Refuse(Code::FailedPrecondition), Say::Nothing]);
        let mut request = transfer("t-1");
        let policy = request.branches[1].policy.as_mut().unwrap();
        policy.timeout_ms = 300;
        client.begin_saga(request, None).await.unwrap();
        let saga = ended(&client, "t-1").await;
        assert_eq!(saga.status(), v1::SagaStatus::Succeeded, "{saga:?}");
        assert_eq!(
            bank.heard(),
            [
                "Debit(a action 1)",
                "Debit(a action 2)",
                "Debit(a action 3)",
                "Credit(b action 1)",
                "Credit(b action 2)",
                "Credit(b action 3)",
            ]
        );
        // What is at it has not failed.
        assert_eq!(saga.branches[1].call.as_ref().unwrap().failures, 1);
    });
}

/// A participant does it and answers when nobody waits any more: the second call finds it done.
#[test]
fn what_answers_too_late_is_done_once() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        bank.tell("Debit", [Say::Late(Duration::from_millis(600))]);
        let mut request = transfer("t-1");
        request.branches[0].policy.as_mut().unwrap().timeout_ms = 200;
        client.begin_saga(request, None).await.unwrap();
        let saga = ended(&client, "t-1").await;
        assert_eq!(saga.status(), v1::SagaStatus::Succeeded, "{saga:?}");
        assert_eq!(bank.heard()[..2], ["Debit(a action 1)", "Debit(a action 2)"]);
        bank.book(|book| assert_eq!(book.effects[&("t-1".into(), "a".into())], (1, 0)));
    });
}

/// The leader dies while a participant is at it: the next one calls again, and soon.
#[test]
fn the_next_leader_goes_on_where_the_last_one_died() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        bank.tell("Debit", [Say::Nothing]);
        client.begin_saga(transfer("t-1"), None).await.unwrap();
        bank.called().await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        let saga = ended(&client, "t-1").await;
        assert_eq!(saga.status(), v1::SagaStatus::Succeeded, "{saga:?}");
        assert_eq!(bank.heard(), ["Debit(a action 1)", "Debit(a action 2)", "Credit(b action 1)"]);
        bank.book(|book| {
            assert!(book.calls[1].epoch > book.calls[0].epoch, "{:?}", book.calls);
            assert!(book.effects.values().all(|effects| *effects == (1, 0)), "{:?}", book.effects);
        });
        // A taken-over call has not failed.
        assert_eq!(saga.branches[0].call.as_ref().unwrap().failures, 0);
    });
}

#[test]
fn what_cannot_be_done_is_suspended_and_an_operator_decides() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        bank.tell("Credit", vec![Say::Refuse(Code::Unavailable); 2]);
        let mut request = transfer("t-1");
        request.recovery = v1::SagaRecovery::Forward.into();
        request.branches[1].policy.as_mut().unwrap().attempts = 2;
        client.begin_saga(request, None).await.unwrap();
        let saga = ended(&client, "t-1").await;
        assert_eq!(saga.status(), v1::SagaStatus::Suspended, "{saga:?}");
        assert_eq!(saga.suspended, "too many attempts failed");
        assert_eq!(saga.error, "Unavailable: as it was told");
        let order = |order| v1::OrderSagaRequest {
            gid: "t-1".into(),
            order: Some(order),
            ..Default::default()
        };
        use v1::order_saga_request::Order;
        client.order_saga(order(Order::Resume(v1::ResumeSaga {})), None).await.unwrap();
        let saga = ended(&client, "t-1").await;
        assert_eq!(saga.status(), v1::SagaStatus::Succeeded, "{saga:?}");
        let refused = client.order_saga(order(Order::Finish(v1::FinishSaga {})), None).await;
        assert!(matches!(refused, Err(Error::SagaIs { .. })), "{refused:?}");
    });
}

/// A message in two phases: nothing is delivered before it is submitted; when nobody submits it, whoever
/// prepared it is asked.
#[test]
fn a_message_is_delivered_when_its_sender_says_so_or_is_asked() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        let message = |gid: &str| v1::BeginSagaRequest {
            gid: gid.into(),
            mode: v1::SagaMode::Message.into(),
            prepared_timeout_ms: 1_000,
            query: target("Query"),
            query_policy: Some(v1::SagaPolicy { pause_ms: 20, ..Default::default() }),
            branches: vec![branch("a", "Mail", ""), branch("b", "Ship", "")],
            concurrent: true,
            ..Default::default()
        };
        // Submitted by its sender.
        client.begin_saga(message("m-1"), None).await.unwrap();
        let submit = v1::SubmitSagaRequest { gid: "m-1".into(), ..Default::default() };
        client.submit_saga(submit, None).await.unwrap();
        assert_eq!(ended(&client, "m-1").await.status(), v1::SagaStatus::Succeeded);
        // Its sender is gone, but has committed.
        bank.tell("Query", [Say::Refuse(Code::Unavailable)]);
        client.begin_saga(message("m-2"), None).await.unwrap();
        assert_eq!(ended(&client, "m-2").await.status(), v1::SagaStatus::Succeeded);
        // Its sender says that nothing came of it.
        bank.tell("Query", [Say::Refuse(Code::Aborted)]);
        client.begin_saga(message("m-3"), None).await.unwrap();
        assert_eq!(ended(&client, "m-3").await.status(), v1::SagaStatus::Failed);
        bank.book(|book| {
            let of = |gid: &str| {
                let calls = book.calls.iter().filter(|seen| seen.gid == gid);
                let mut calls: Vec<&str> = calls.map(|seen| seen.method.as_str()).collect();
                calls.sort_unstable();
                calls
            };
            assert_eq!(of("m-1"), ["Mail", "Ship"]);
            assert_eq!(of("m-2"), ["Mail", "Query", "Query", "Ship"]);
            assert_eq!(of("m-3"), ["Query"]);
        });
    });
}

#[test]
fn tcc_confirms_all_or_cancels_what_may_have_been_tried() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        let begin = |gid: &str| v1::BeginSagaRequest {
            gid: gid.into(),
            mode: v1::SagaMode::Tcc.into(),
            ..Default::default()
        };
        let register = |gid: &str, id: &str| v1::RegisterBranchRequest {
            gid: gid.into(),
            branch: Some(branch(id, "Confirm", "Cancel")),
            ..Default::default()
        };
        for gid in ["c-1", "c-2"] {
            client.begin_saga(begin(gid), None).await.unwrap();
            client.register_branch(register(gid, "a"), None).await.unwrap();
            let answer = client.register_branch(register(gid, "b"), None).await.unwrap();
            assert_eq!((answer.number, answer.created), (1, true));
            let again = client.register_branch(register(gid, "b"), None).await.unwrap();
            assert_eq!((again.number, again.created), (1, false));
        }
        let submit = v1::SubmitSagaRequest { gid: "c-1".into(), ..Default::default() };
        client.submit_saga(submit, None).await.unwrap();
        assert_eq!(ended(&client, "c-1").await.status(), v1::SagaStatus::Succeeded);
        let abort = v1::AbortSagaRequest { gid: "c-2".into(), ..Default::default() };
        client.abort_saga(abort.clone(), None).await.unwrap();
        assert_eq!(ended(&client, "c-2").await.status(), v1::SagaStatus::Failed);
        bank.book(|book| {
            let ops = |gid: &str| {
                let calls = book.calls.iter().filter(|seen| seen.gid == gid);
                calls.map(|seen| format!("{} {}", seen.branch, seen.op)).collect::<Vec<_>>()
            };
            let sorted = |mut ops: Vec<String>| {
                ops.sort_unstable();
                ops
            };
            assert_eq!(sorted(ops("c-1")), ["a confirm", "b confirm"]);
            assert_eq!(sorted(ops("c-2")), ["a cancel", "b cancel"]);
        });
        // A decision stands.
        let refused = client
            .abort_saga(v1::AbortSagaRequest { gid: "c-1".into(), ..abort }, None)
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::SagaIs { .. }), "{refused:?}");
    });
}

/// Counters of the cluster are participants without a service: stock that is not there refuses the order, and
/// what was reserved before comes back.
#[test]
fn counters_take_part_by_themselves() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let set = v1::SetCounterRequest { name: "stock".into(), value: 5, ..Default::default() };
        client.set_counter(set, None).await.unwrap();
        let counter = |id: &str, name: &str, delta: i64| v1::NewSagaBranch {
            id: id.into(),
            action: format!("counter:///{name}?delta={delta}&floor=0"),
            compensation: format!("counter:///{name}?delta={}", -delta),
            ..Default::default()
        };
        let order = |gid: String, count: i64| v1::BeginSagaRequest {
            gid,
            mode: v1::SagaMode::Saga.into(),
            branches: vec![counter("sold", "sold", count), counter("stock", "stock", -count)],
            submit: true,
            ..Default::default()
        };
        let leader = cluster.leader().await;
        let mut statuses = Vec::new();
        for number in 0..8 {
            client.begin_saga(order(format!("o-{number}"), 1), None).await.unwrap();
            if number == 3 {
                cluster.kill(leader);
            }
        }
        for number in 0..8 {
            statuses.push(ended(&client, &format!("o-{number}")).await.status());
        }
        let succeeded = statuses.iter().filter(|it| **it == v1::SagaStatus::Succeeded).count();
        assert_eq!(succeeded, 5, "{statuses:?}");
        let value = async |name: &str| {
            let get = v1::GetCounterRequest { name: name.into(), ..Default::default() };
            client.get_counter(get).await.unwrap().counter.unwrap().value
        };
        assert_eq!((value("stock").await, value("sold").await), (0, 5));
    });
}

/// A participant whose data are in the cluster: what it does and that it was done is one transaction.
#[test]
fn a_transaction_in_the_cluster_passes_the_barrier_once() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let begin = v1::BeginSagaRequest {
            gid: "t-1".into(),
            mode: v1::SagaMode::Tcc.into(),
            ..Default::default()
        };
        client.begin_saga(begin, None).await.unwrap();
        let register = v1::RegisterBranchRequest {
            gid: "t-1".into(),
            branch: Some(v1::NewSagaBranch {
                id: "a".into(),
                action: "counter:///sold?delta=2".into(),
                compensation: "counter:///stock?delta=2".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        client.register_branch(register, None).await.unwrap();
        let attempt = |op: &str, gid: &str| v1::TxnRequest {
            then: vec![v1::TxnStep {
                step: Some(v1::txn_step::Step::SetCounter(v1::SetCounterRequest {
                    name: "stock".into(),
                    value: 8,
                    ..Default::default()
                })),
            }],
            barrier: Some(v1::SagaBarrier {
                gid: gid.into(),
                branch: "a".into(),
                op: op.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let first = client.txn(attempt("try", "t-1"), None).await.unwrap();
        assert_eq!((first.barrier(), first.succeeded), (v1::BarrierOutcome::Executed, true));
        let again = client.txn(attempt("try", "t-1"), None).await.unwrap();
        assert_eq!(again.barrier(), v1::BarrierOutcome::Duplicate);
        let abort = v1::AbortSagaRequest { gid: "t-1".into(), ..Default::default() };
        client.abort_saga(abort, None).await.unwrap();
        assert_eq!(ended(&client, "t-1").await.status(), v1::SagaStatus::Failed);
        let late = client.txn(attempt("try", "t-1"), None).await.unwrap();
        assert_eq!((late.barrier(), late.results.len()), (v1::BarrierOutcome::Hanging, 0));
        let get = v1::GetCounterRequest { name: "stock".into(), ..Default::default() };
        let stock = client.get_counter(get).await.unwrap().counter.unwrap().value;
        assert_eq!(stock, 10);
        // What there is not is told apart from what may not be done.
        let unknown = client.txn(attempt("try", "t-2"), None).await.unwrap_err();
        assert!(matches!(unknown, Error::NotFound { .. }), "{unknown:?}");
        let wrong = client.txn(attempt("do", "t-1"), None).await.unwrap_err();
        assert!(
            matches!(&wrong, Error::Invalid { field, .. } if field == "barrier.op"),
            "{wrong:?}"
        );
    });
}

/// Targets that no `--participant-allow` names are refused where they come in; those that one names are posted.
#[test]
fn urls_are_called_only_where_it_is_allowed() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let seen = requests.clone();
        // Refuses the action of the second branch; says no more than that.
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let seen = seen.clone();
                tokio::spawn(async move {
                    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                    let mut socket = socket;
                    let mut text = String::new();
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = socket.read(&mut bytes).await {
                        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
                        if !text.ends_with("payload of a") && !text.ends_with("payload of b") {
                            continue;
                        }
                        let answer = match text.contains("/b/do ") {
                            true => "409 Conflict\r\ncontent-length: 4\r\n\r\nfull",
                            false => "200 OK\r\ncontent-length: 2\r\n\r\nok",
                        };
                        seen.lock().unwrap().push(std::mem::take(&mut text));
                        socket.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.unwrap();
                    }
                });
            }
        });
        let allowed = format!("{url}/saga");
        let cluster = super::harness::Setup::default();
        let cluster = cluster.option("--participant-allow", &allowed).start(3).await;
        let client = cluster.client();
        let mut request = transfer("t-1");
        for (branch, id) in request.branches.iter_mut().zip(["a", "b"]) {
            branch.action = format!("{allowed}/{id}/do");
            branch.compensation = format!("{allowed}/{id}/undo");
        }
        let mut other = request.clone();
        other.branches[1].compensation = format!("{url}/other");
        let refused = client.begin_saga(other, None).await.unwrap_err();
        let Error::Invalid { field, allowed, .. } = &refused else { panic!("{refused:?}") };
        assert_eq!(field, "branches[1].compensation");
        assert_eq!(*allowed, format!("a URL that begins with {url}/saga"));
        client.begin_saga(request, None).await.unwrap();
        let saga = ended(&client, "t-1").await;
        assert_eq!((saga.status(), saga.error.as_str()), (v1::SagaStatus::Failed, "full"));
        let requests = requests.lock().unwrap();
        let lines: Vec<&str> = requests.iter().filter_map(|text| text.lines().next()).collect();
        assert_eq!(
            lines,
            [
                "POST /saga/a/do HTTP/1.1",
                "POST /saga/b/do HTTP/1.1",
                "POST /saga/b/undo HTTP/1.1",
                "POST /saga/a/undo HTTP/1.1",
            ]
        );
        for undo in &requests[2..] {
            assert!(undo.contains("quorate-op: compensate\r\n"), "{undo}");
            assert!(undo.contains("quorate-gid: t-1\r\n"), "{undo}");
        }
        // What the action answered comes with its compensation.
        assert!(!requests[2].contains("quorate-results-bin: "), "{}", requests[2]);
        assert!(requests[3].contains("quorate-results-bin: "), "{}", requests[3]);
    });
}

#[test]
fn the_command_line_shows_one_and_settles_what_cannot_go_on() {
    run(async {
        let cluster = Cluster::three().await;
        let endpoints = cluster.endpoints().join(",");
        let say = async |words: &[&str]| {
            let words = [&["--endpoints", &endpoints, "saga"], words].concat();
            printed(words).await
        };
        let client = cluster.client();
        let set = v1::SetCounterRequest { name: "stock".into(), value: 1, ..Default::default() };
        client.set_counter(set, None).await.unwrap();
        let order = [
            "--step",
            "counter:///sold?delta=1 counter:///sold?delta=-1",
            "--step",
            "counter:///stock?delta=-1&floor=0 counter:///stock?delta=1",
            "--wait",
        ];
        let first = say(&[&["begin", "o-1"], &order[..]].concat()).await;
        assert_eq!((first.code, first.stdout.as_str()), (0, "saga o-1 succeeded\n"), "{first:?}");
        let second = say(&[&["begin", "o-2"], &order[..]].concat()).await;
        assert_eq!(second.code, 1, "{second:?}");
        assert!(second.stdout.starts_with("saga o-2 failed 0 and -1 would cross"), "{second:?}");
        // Nobody is there to do it.
        let begun = say(&["begin", "o-3", "--step", "quorate:///nobody/p.S/M"]).await;
        assert!(begun.stdout.starts_with("saga o-3 begun at revision "), "{begun:?}");
        let early = say(&["finish", "o-3"]).await;
        assert_eq!(
            (early.code, early.stderr.trim_end()),
            (1, "error: the transaction is submitted")
        );
        say(&["suspend", "o-3", "--reason", "nobody is there"]).await;
        let listed = say(&["list", "--status", "suspended", "-w", "json"]).await;
        let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
        assert_eq!(listed["sagas"].as_array().unwrap().len(), 1);
        assert_eq!(listed["sagas"][0]["suspended"], "nobody is there");
        let skipped = say(&["skip", "o-3", "0"]).await;
        assert!(skipped.stdout.starts_with("saga o-3 is suspended at revision "), "{skipped:?}");
        say(&["resume", "o-3"]).await;
        let ended = say(&["wait", "o-3"]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (0, "saga o-3 succeeded\n"), "{ended:?}");
        let shown = say(&["get", "o-3"]).await;
        assert!(shown.stdout.contains("quorate:///nobody/p.S/M   skipped"), "{shown:?}");
        let missing = say(&["get", "o-4"]).await;
        assert_eq!(missing.code, 1);
        assert_eq!(missing.stderr, "error: global transaction \"default/o-4\" does not exist\n");
    });
}

/// Transfers between accounts under a load of their own, while the leader is killed every two seconds and the
/// participant loses answers before and after it has done its part: at the end the sums are what they were,
/// each part was done once at most, and nothing runs any more.
#[test]
fn no_money_is_lost_or_made_while_leaders_die() {
    const KILL_EVERY: Duration = Duration::from_secs(2);
    let transfers: u32 = std::env::var("QUORATE_TEST_TRANSFERS")
        .map_or(600, |text| text.parse().expect("a number of transfers"));
    run_within(Duration::from_secs(240 + u64::from(transfers) / 10), async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        bank.book(|book| book.loses = true);
        let workers = 16;
        let next = std::sync::Arc::<std::sync::atomic::AtomicU32>::default();
        let mut running = futures::stream::FuturesUnordered::new();
        for _ in 0..workers {
            let (client, next) = (client.clone(), next.clone());
            running.push(async move {
                let mut ends = Vec::new();
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if number >= transfers {
                        return ends;
                    }
                    let gid = format!("t-{number}");
                    let mut request = transfer(&gid);
                    for branch in &mut request.branches {
                        branch.policy.as_mut().unwrap().timeout_ms = 500;
                    }
                    eventually("the beginning", async || {
                        text(client.begin_saga(request.clone(), None).await).map(drop)
                    })
                    .await;
                    let saga = ended(&client, &gid).await;
                    ends.push((gid, saga.status()));
                }
            });
        }
        let mut ends = Vec::new();
        let mut killed = 0;
        let work = async {
            while let Some(part) = running.next().await {
                ends.extend(part);
            }
        };
        let kill = async {
            loop {
                // All nodes are there for a while.
                tokio::time::sleep(KILL_EVERY).await;
                let leader = cluster.leader().await;
                cluster.kill(leader);
                killed += 1;
                cluster.start(leader).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = kill => unreachable!("it goes on for as long as there is work"),
        }
        assert!(killed > 0, "no leader was killed in {transfers} transfers");
        assert_eq!(ends.len(), transfers as usize);
        let (mut debits, mut credits) = (0, 0);
        let (mut succeeded, mut failed) = (0, 0);
        bank.book(|book| {
            for (gid, status) in &ends {
                let of = |branch: &str| {
                    let effects = book.effects.get(&(gid.clone(), branch.to_owned()));
                    effects.copied().unwrap_or_default()
                };
                let (debit, credit) = (of("a"), of("b"));
                match status {
                    v1::SagaStatus::Succeeded => {
                        succeeded += 1;
                        assert_eq!((debit, credit), ((1, 0), (1, 0)), "{gid}");
                    }
                    v1::SagaStatus::Failed => {
                        failed += 1;
                        assert!(debit.0 == debit.1 && debit.0 <= 1, "{gid}: {debit:?}");
                        assert!(credit.0 == credit.1 && credit.0 <= 1, "{gid}: {credit:?}");
                    }
                    other => panic!("{gid} is {other:?}"),
                }
                debits += debit.0 - debit.1;
                credits += credit.0 - credit.1;
            }
        });
        assert_eq!(debits, credits);
        assert_eq!(debits, succeeded);
        assert!(succeeded > 0 && failed > 0, "{succeeded} succeeded, {failed} failed");
        println!(
            "{transfers} transfers: {succeeded} succeeded, {failed} failed, {killed} leaders killed"
        );
        let status = v1::ListSagasRequest { limit: 10_000, ..Default::default() };
        let all = client.list_sagas(status).await.unwrap().sagas;
        let running = all.iter().filter(|saga| {
            !matches!(saga.status(), v1::SagaStatus::Succeeded | v1::SagaStatus::Failed)
        });
        assert_eq!(running.count(), 0);
    });
}
