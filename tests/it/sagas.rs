//! Global transactions with real participants: order, results, retries, decisions, leaders that die between a
//! call and its answer.

use std::time::Duration;

use quorate::client::Client;
use quorate::error::Error;
use quorate::proto::v1;
use tonic::Code;

use super::harness::{Cluster, eventually, run, text};
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
        // What refused has done nothing, and is not undone.
        assert_eq!(
            heard,
            [
                "Debit(a action 1)",
                "Credit(b action 1)",
                "UndoDebit(a compensate 1)",
                "UndoDebit(a compensate 2)",
                "UndoDebit(a compensate 3)",
            ]
        );
        bank.book(|book| {
            // A compensation knows what its action answered.
            assert_eq!(book.calls[4].results["a"], b"receipt 7");
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
        eventually("the call", async || match bank.heard().is_empty() {
            true => Err("not yet".to_owned()),
            false => Ok(()),
        })
        .await;
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
