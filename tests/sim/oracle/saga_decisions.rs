//! A decision on a global transaction stands: phases never go back, only a submitted saga that recovers
//! backward is ever aborted, and it has a reason; and a phase ends when all that belongs to it is done, or an
//! operator says so. See `SagaPhase`.

use quorate::state::{
    BranchPlan, CallPolicy, CallState, Saga, SagaBranch, SagaLeg, SagaMode, SagaPhase,
    SagaRecovery, SagaTerms, Suspension,
};

/// What may be behind a change.
pub struct Causes<'a> {
    pub at_ms: u64,
    /// An operator may have settled something of it.
    pub by_hand: bool,
    /// Whether the participant of a branch has refused in this attempt.
    pub refused: &'a dyn Fn(usize, u32) -> bool,
}

pub fn decision_stands(old: Option<&Saga>, new: &Saga, causes: &Causes<'_>) -> Result<(), String> {
    use SagaPhase::{Aborting, Failed, Prepared, Submitted, Succeeded};
    let wrong = |why: &str| Err(format!("transaction {}: {why}", new.gid));
    let Some(old) = old else {
        return match new.phase {
            Prepared | Submitted => Ok(()),
            _ => wrong("it begins behind its decision"),
        };
    };
    match (old.phase, new.phase) {
        (before, after) if before == after => {}
        (Prepared, Submitted | Aborting | Failed) | (Aborting, Failed) => {}
        (Prepared, Succeeded) if new.branches.is_empty() => {}
        (Submitted, Succeeded) => {}
        (Submitted, Aborting | Failed) if old.recovers_backward() => {
            let late = old.aborts_at_ms().is_some_and(|at_ms| at_ms <= causes.at_ms);
            if !late && !any_has_failed(old, causes) {
                return wrong("it is aborted, and no branch has failed");
            }
        }
        (before, after) => return wrong(&format!("{before:?} becomes {after:?}")),
    }
    if causes.by_hand {
        return Ok(());
    }
    let open = |leg| {
        let mut branches = new.branches.iter();
        branches.any(|branch| branch.leg == leg && !branch.call.state.is_done())
    };
    match new.phase {
        Succeeded if open(SagaLeg::Forward) => wrong("it has succeeded before all branches have"),
        Failed if open(SagaLeg::Backward) => wrong("it has failed before all is taken back"),
        _ if new.branches.iter().any(|branch| branch.call.state == CallState::Skipped) => {
            wrong("a branch is skipped, and nobody asked for it")
        }
        _ => Ok(()),
    }
}

/// A call was refused, perhaps while nothing went on, or has failed once too often.
fn any_has_failed(old: &Saga, causes: &Causes<'_>) -> bool {
    old.branches.iter().enumerate().any(|(number, branch)| {
        let (call, attempts) = (branch.call, branch.plan.policy.attempts);
        let exhausted = attempts > 0 && call.failures + 1 >= attempts;
        match call.state {
            CallState::Running { .. } => exhausted || (causes.refused)(number, call.attempt),
            state => state == CallState::Failed,
        }
    })
}

/// No planted bug flips a decision: the state that makes it is the same on all nodes. So the check itself is
/// asked.
#[test]
fn a_decision_that_flips_is_caught() {
    use SagaPhase::{Aborting, Failed, Prepared, Submitted, Succeeded};
    let causes = |refused| Causes { at_ms: 1, by_hand: false, refused };
    let (nobody, somebody) = (&|_: usize, _: u32| false, &|_: usize, _: u32| true);
    for (mode, recovery) in [
        (SagaMode::Saga, SagaRecovery::Backward),
        (SagaMode::Saga, SagaRecovery::Forward),
        (SagaMode::Message, SagaRecovery::Backward),
        (SagaMode::Tcc, SagaRecovery::Backward),
    ] {
        let saga = |phase| example(mode, recovery, phase);
        let stands =
            |old, new| decision_stands(Some(&saga(old)), &saga(new), &causes(somebody)).is_ok();
        let backward = saga(Submitted).recovers_backward();
        assert_eq!(stands(Submitted, Aborting), backward, "{mode:?} {recovery:?}");
        assert!(stands(Prepared, Submitted) && stands(Prepared, Aborting));
        for (old, new) in [
            (Submitted, Prepared),
            (Aborting, Submitted),
            (Aborting, Succeeded),
            (Succeeded, Failed),
            (Succeeded, Aborting),
            (Failed, Succeeded),
        ] {
            assert!(!stands(old, new), "{mode:?} {recovery:?}: {old:?} becomes {new:?}");
        }
        let without = decision_stands(Some(&saga(Submitted)), &saga(Aborting), &causes(nobody));
        assert!(without.is_err(), "{mode:?} {recovery:?}: nobody has refused");
        // Its branch is still called.
        assert!(!stands(Submitted, Succeeded));
    }
}

/// With one branch, which is being called.
fn example(mode: SagaMode, recovery: SagaRecovery, phase: SagaPhase) -> Saga {
    let policy = CallPolicy { timeout_ms: 1, attempts: 0, pause_ms: 1, pause_max_ms: 1 };
    let plan = BranchPlan {
        id: "b".to_owned(),
        trial: String::new(),
        action: "http://b".to_owned(),
        compensation: "http://b".to_owned(),
        payload: Default::default(),
        after: Vec::new(),
        policy,
    };
    let mut branch = SagaBranch::new(plan);
    branch.call.state = CallState::Running { deadline_ms: 1, epoch: 1 };
    let terms = SagaTerms {
        recovery,
        prepared_timeout_ms: 1,
        timeout_ms: 0,
        suspend_after_ms: 1,
        retention_ms: 1,
        delay_ms: 0,
        query: String::new(),
        query_policy: policy,
    };
    Saga {
        namespace: "default".into(),
        gid: "g".into(),
        mode,
        terms: terms.into(),
        phase,
        since_ms: 0,
        suspended: Suspension::None,
        start_at_ms: 0,
        query: Default::default(),
        branches: vec![branch],
        epoch: 1,
        error: "".into(),
        create_revision: 1,
        mod_revision: 1,
        created_at_ms: 0,
        modified_at_ms: 0,
    }
}
