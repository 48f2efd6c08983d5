//! Global transactions as a program writes them down with the client library.

use std::collections::BTreeMap;
use std::time::Duration;

use http::uri::PathAndQuery;
use quorate::client::{
    Branch, BranchContext, BranchOp, Channel, SagaOutcome, SagaPlan, WatchRange, WatchUpdate,
};
use quorate::error::Error;
use quorate::proto::v1;
use quorate::proto::v1::SagaStatus;
use quorate::proto::v1::watch_event::Record;
use tonic::{Code, Request, Status};

use super::echo::Raw;
use super::harness::{Cluster, run};
use super::participant::{Participant, Say, target};

fn branch(id: &str, action: &str, compensation: &str) -> Branch {
    let branch = Branch::new(id, target(action)).bytes(format!("payload of {id}"));
    let branch = branch.pauses(Duration::from_millis(20), Duration::from_millis(100));
    if compensation.is_empty() { branch } else { branch.compensation(target(compensation)) }
}

/// Debit, then credit.
fn transfer(plan: SagaPlan) -> SagaPlan {
    plan.branch(branch("a", "Debit", "UndoDebit")).branch(branch("b", "Credit", "UndoCredit"))
}

/// The statuses that a transaction goes through, each once.
async fn statuses(handle: &quorate::client::SagaHandle) -> Vec<SagaStatus> {
    let mut progress = handle.progress();
    let mut seen = Vec::new();
    while let Some(saga) = progress.next().await {
        let saga = saga.unwrap();
        assert_eq!(saga.gid, handle.gid());
        if seen.last() != Some(&saga.status()) {
            seen.push(saga.status());
        }
    }
    seen
}

#[test]
fn branches_come_in_the_order_of_their_names_with_what_went_before() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        let typed = v1::LockName { namespace: "n".into(), lock: "typed".into() };
        bank.tell("A", [Say::Answer("1")]);
        bank.tell("B", [Say::Answer("2")]);
        let plan = client
            .saga("")
            .branch(branch("a", "A", "").payload(&typed))
            .branch(branch("b", "B", "").after([""; 0]))
            .branch(branch("c", "C", "").after(["b", "a"]).timeout(Duration::from_secs(2)))
            .delay(Duration::from_millis(5))
            .retention(Duration::from_secs(60));
        let outcome = plan.submit_and_wait().await.unwrap();
        let SagaOutcome::Succeeded { results } = &outcome else { panic!("{outcome:?}") };
        assert_eq!(results.get("a"), Some(&b"1"[..]));
        assert_eq!(results.get("c"), Some(&b"C done"[..]));
        bank.book(|book| {
            let calls: BTreeMap<&str, _> =
                book.calls.iter().map(|seen| (seen.branch.as_str(), seen)).collect();
            assert_eq!(calls["a"].payload, prost::Message::encode_to_vec(&typed));
            let results = |pairs: &[(&str, &str)]| {
                let owned = pairs.iter().map(|(id, text)| ((*id).into(), text.as_bytes().into()));
                owned.collect::<BTreeMap<String, Vec<u8>>>()
            };
            assert_eq!(calls["c"].results, results(&[("a", "1"), ("b", "2")]));
            assert_eq!(book.calls.last().unwrap().branch, "c");
        });
        // Submitted again, as after an answer that was lost, it is the same.
        let handle = plan.submit().await.unwrap();
        assert_eq!(("default", handle.gid()), plan.name());
        assert_eq!(handle.wait().await.unwrap(), outcome);
        bank.book(|book| assert_eq!(book.calls.len(), 3, "{:?}", book.calls));
        let saga = handle.status().await.unwrap();
        assert_eq!((saga.retention_ms, saga.delay_ms), (60_000, 5));
        assert_eq!(saga.branches[2].policy.as_ref().unwrap().timeout_ms, 2_000);
        // Two plans are two transactions.
        assert_ne!(client.saga("").name(), client.saga("").name());
    });
}

#[test]
fn how_it_ends_is_said_and_how_it_goes_on_is_shown() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        let mut all = client.watch(WatchRange::Sagas { namespace: "".into(), prefix: "t-".into() });
        let first = all.next().await.unwrap().unwrap();
        assert!(matches!(&first, WatchUpdate::Snapshot { events, .. } if events.is_empty()));

        bank.tell("Credit", [Say::Refuse(Code::Aborted)]);
        let handle = transfer(client.saga("").gid("t-1")).submit().await.unwrap();
        let seen = statuses(&handle).await;
        assert_eq!(seen.last(), Some(&SagaStatus::Failed), "{seen:?}");
        let failed = SagaOutcome::Failed { error: "as it was told".into() };
        assert_eq!(handle.wait().await.unwrap(), failed);
        // One that has ended is told as it is.
        assert_eq!(statuses(&handle).await, [SagaStatus::Failed]);

        bank.tell("Credit", vec![Say::Refuse(Code::Unavailable); 2]);
        let plan = client.saga("").gid("t-2").forward().branch(branch("a", "Debit", ""));
        let plan = plan.branch(branch("b", "Credit", "").attempts(2));
        let suspended = plan.submit_and_wait().await.unwrap();
        let SagaOutcome::Suspended { reason, error } = suspended else { panic!("{suspended:?}") };
        assert_eq!(reason, "too many attempts failed");
        assert_eq!(error, "Unavailable: as it was told");
        let handle = client.saga_handle("", "t-2");
        let watched = tokio::spawn({
            let handle = handle.clone();
            async move { statuses(&handle).await }
        });
        let order = v1::order_saga_request::Order::Resume(v1::ResumeSaga {});
        let order =
            v1::OrderSagaRequest { gid: "t-2".into(), order: Some(order), ..Default::default() };
        client.order_saga(order, None).await.unwrap();
        assert!(handle.wait().await.unwrap().succeeded());
        let seen = watched.await.unwrap();
        assert_eq!(seen.last(), Some(&SagaStatus::Succeeded), "{seen:?}");

        // Who watches all of them has seen both.
        let mut stood = BTreeMap::new();
        while stood.len() < 2 || stood["t-2"] != SagaStatus::Succeeded {
            let WatchUpdate::Changes { events, .. } = all.next().await.unwrap().unwrap() else {
                continue;
            };
            for event in events {
                let Some(Record::Saga(saga)) = event.record else { panic!("{event:?}") };
                stood.insert(saga.gid.clone(), saga.status());
            }
        }
        assert_eq!(stood["t-1"], SagaStatus::Failed);

        let nobody = client.saga_handle("", "t-3");
        for missing in [nobody.wait().await.map(drop), nobody.status().await.map(drop)] {
            assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
        }
        let told: Vec<_> = {
            let mut progress = nobody.progress();
            vec![progress.next().await, progress.next().await]
        };
        assert!(matches!(told[..], [Some(Err(Error::NotFound { .. })), None]), "{told:?}");
    });
}

/// Those who wait are not told wrongly, and not forgotten, when the leader dies.
#[test]
fn who_waits_goes_on_waiting_when_the_leader_dies() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        bank.tell("Debit", [Say::Nothing]);
        let handle = transfer(client.saga("")).submit().await.unwrap();
        let (waiting, watching) = (handle.clone(), handle.clone());
        let waiting = tokio::spawn(async move { waiting.wait().await });
        let watching = tokio::spawn(async move { statuses(&watching).await });
        bank.called().await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        assert!(waiting.await.unwrap().unwrap().succeeded());
        assert_eq!(watching.await.unwrap(), [SagaStatus::Submitted, SagaStatus::Succeeded]);
        bank.book(|book| {
            assert!(book.effects.values().all(|effects| *effects == (1, 0)), "{:?}", book.effects);
        });
    });
}

#[test]
fn a_message_goes_out_when_its_sender_is_through() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        let plan = || {
            let policy = v1::SagaPolicy { pause_ms: 20, ..Default::default() };
            let plan = client.message("").query(target("Query")).query_policy(policy);
            plan.branch(branch("mail", "Mail", "")).prepared_timeout(Duration::from_secs(1))
        };
        let sent = plan().gid("m-1").prepare().await.unwrap();
        assert_eq!((sent.namespace(), sent.gid()), ("default", "m-1"));
        assert!(bank.heard().is_empty());
        let handle = sent.submit().await.unwrap();
        assert!(handle.wait().await.unwrap().succeeded());
        sent.submit().await.unwrap();
        let late = sent.abort("changed my mind").await.unwrap_err();
        assert!(matches!(late, Error::SagaIs { .. }), "{late:?}");

        let dropped = plan().gid("m-2").prepare().await.unwrap();
        dropped.abort("no such article").await.unwrap();
        let failed = SagaOutcome::Failed { error: "no such article".into() };
        assert_eq!(client.saga_handle("", "m-2").wait().await.unwrap(), failed);
        let late = dropped.submit().await.unwrap_err();
        assert!(matches!(late, Error::SagaIs { .. }), "{late:?}");

        // Its sender is gone, and has committed.
        drop(plan().gid("m-3").prepare().await.unwrap());
        assert!(client.saga_handle("", "m-3").wait().await.unwrap().succeeded());
        assert!(plan().gid("m-4").submit().await.unwrap().wait().await.unwrap().succeeded());
        bank.book(|book| {
            let calls = book.calls.iter().map(|seen| format!("{} {}", seen.gid, seen.op));
            let calls: Vec<_> = calls.collect();
            assert_eq!(calls, ["m-1 action", "m-3 query", "m-3 action", "m-4 action"]);
        });
    });
}

/// Calls the participant, as the stub of a service would.
async fn call(channel: Channel, method: &str, context: BranchContext) -> Result<(), Status> {
    let mut request = Request::new(b"to be reserved".to_vec());
    context.inject(&mut request);
    let mut grpc = tonic::client::Grpc::new(channel);
    let path = PathAndQuery::try_from(format!("/bank.Bank/{method}")).unwrap();
    grpc.unary(request, path, Raw).await.map(drop)
}

#[test]
fn tcc_confirms_what_was_tried_and_cancels_what_was_not() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let bank = Participant::start().await.register(&client).await;
        let channel = client.channel("quorate:///bank").await.unwrap();
        let plan = |gid: &str| client.tcc("").gid(gid);
        let reserve = |tcc: quorate::client::Tcc| {
            let channel = channel.clone();
            async move {
                for id in ["a", "b"] {
                    let attempt = |context: BranchContext| {
                        assert_eq!(
                            (context.op, context.namespace.as_str()),
                            (BranchOp::Try, "default")
                        );
                        call(channel.clone(), "Try", context)
                    };
                    tcc.try_branch(branch(id, "Confirm", "Cancel"), attempt).await?;
                }
                Ok::<_, Status>(7)
            }
        };
        let (value, handle) = plan("c-1").run(reserve).await.unwrap();
        assert_eq!(value, 7);
        assert!(handle.wait().await.unwrap().succeeded());

        // The second try is refused: the first is cancelled, and so is the second, which may have run.
        bank.tell("Try", [Say::Answer("well"), Say::Refuse(Code::Aborted)]);
        let refused = plan("c-2").run(reserve).await.unwrap_err();
        assert_eq!(refused.code(), Code::Aborted);
        let failed = SagaOutcome::Failed { error: "given up by its client".into() };
        assert_eq!(client.saga_handle("", "c-2").wait().await.unwrap(), failed);

        // By hand. What was tried without success is not confirmed before it was.
        bank.tell("Try", [Say::Refuse(Code::Unavailable)]);
        let tcc = plan("c-3").begin().await.unwrap();
        let first = branch("a", "Confirm", "Cancel");
        let attempt = |context| call(channel.clone(), "Try", context);
        let failed = tcc.try_branch(first.clone(), attempt).await.unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable);
        let refused = tcc.confirm().await.unwrap_err();
        assert!(matches!(refused, Error::Invalid { .. }), "{refused:?}");
        tcc.try_branch(first, attempt).await.unwrap();
        let handle = tcc.confirm().await.unwrap();
        assert!(handle.wait().await.unwrap().succeeded());
        let late = tcc.cancel("too late").await.unwrap_err();
        assert!(matches!(late, Error::SagaIs { .. }), "{late:?}");

        // Nobody has heard that the cluster has a branch, which then was not tried.
        let tcc = plan("c-5").begin().await.unwrap();
        let unheard = tcc.try_branch(branch("b", "Confirm", "Cancel"), attempt);
        assert!(tokio::time::timeout(Duration::ZERO, unheard).await.is_err());
        tcc.try_branch(branch("a", "Confirm", "Cancel"), attempt).await.unwrap();
        let refused = tcc.confirm().await.unwrap_err();
        assert!(refused.to_string().contains("\"b\""), "{refused}");
        // The same one, begun again by a program that has started anew.
        tcc.try_branch(branch("b", "Confirm", "Cancel"), attempt).await.unwrap();
        let again = plan("c-5").begin().await.unwrap();
        again.try_branch(branch("b", "Confirm", "Cancel"), attempt).await.unwrap();
        let refused = again.confirm().await.unwrap_err();
        assert!(refused.to_string().contains("\"a\""), "{refused}");
        again.cancel("begun twice").await.unwrap();

        // An operator has suspended it in between; it stays so when it is confirmed.
        let tcc = plan("c-6").begin().await.unwrap();
        tcc.try_branch(branch("a", "Confirm", "Cancel"), attempt).await.unwrap();
        let suspend = v1::SuspendSaga { reason: "looked at".into() };
        let order = Some(v1::order_saga_request::Order::Suspend(suspend));
        let order = v1::OrderSagaRequest { gid: "c-6".into(), order, ..Default::default() };
        client.order_saga(order, None).await.unwrap();
        let again = plan("c-6").begin().await.unwrap();
        let refused = again.confirm().await.unwrap_err();
        assert!(refused.to_string().contains("\"a\""), "{refused}");

        // Nobody confirms it.
        let forgotten = plan("c-4").timeout(Duration::from_secs(1)).begin().await.unwrap();
        forgotten.try_branch(branch("a", "Confirm", "Cancel"), attempt).await.unwrap();
        let failed = SagaOutcome::Failed { error: "not submitted in time".into() };
        assert_eq!(client.saga_handle("", "c-4").wait().await.unwrap(), failed);

        bank.book(|book| {
            let ops = |gid: &str| {
                let calls = book.calls.iter().filter(|seen| seen.gid == gid);
                let ops = calls.map(|seen| format!("{} {}", seen.branch, seen.op));
                let mut ops: Vec<_> = ops.collect();
                ops.sort_unstable();
                ops
            };
            assert_eq!(ops("c-1"), ["a confirm", "a try", "b confirm", "b try"]);
            assert_eq!(ops("c-2"), ["a cancel", "a try", "b cancel", "b try"]);
            assert_eq!(ops("c-3"), ["a confirm", "a try", "a try"]);
            assert_eq!(ops("c-4"), ["a cancel", "a try"]);
        });
    });
}
