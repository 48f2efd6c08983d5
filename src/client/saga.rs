//! Global transactions as a client writes them down: sagas, messages in two phases and TCC.
//!
//! ```no_run
//! use quorate::client::{Branch, SagaOutcome};
//! # #[derive(Clone, PartialEq, prost::Message)]
//! # pub struct Move { #[prost(string, tag = 1)] pub account: String, #[prost(int64, tag = 2)] pub cents: i64 }
//! # async fn example(client: quorate::client::Client) -> Result<(), quorate::error::Error> {
//! let [from, to] = ["alice", "bob"].map(|account| Move { account: account.into(), cents: 500 });
//! let outcome = client
//!     .saga("default")
//!     .branch(
//!         Branch::new("debit", "quorate:///north/bank.v1.Bank/Debit")
//!             .compensation("quorate:///north/bank.v1.Bank/UndoDebit")
//!             .payload(&from),
//!     )
//!     .branch(
//!         Branch::new("credit", "quorate:///south/bank.v1.Bank/Credit")
//!             .compensation("quorate:///south/bank.v1.Bank/UndoCredit")
//!             .payload(&to),
//!     )
//!     .submit_and_wait()
//!     .await?;
//! match outcome {
//!     SagaOutcome::Succeeded { results } => println!("moved: {:?}", results.get("credit")),
//!     SagaOutcome::Failed { error } => println!("nothing was moved: {error}"),
//!     SagaOutcome::Suspended { reason, .. } => println!("an operator must look: {reason}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Exactly once: a plan has its gid from the beginning, also when the client makes it up. So whatever a plan
//! sends may be sent again after an error that leaves its outcome open, with the same plan: the cluster
//! knows the gid and says where that transaction stands. A plan that is cloned keeps the gid; a second
//! transaction needs a second plan.

mod branch;
mod handle;
mod message;
mod tcc;

use std::time::Duration;

pub use branch::Branch;
pub use handle::{SagaHandle, SagaOutcome, SagaProgress};
pub use message::{MessagePlan, PreparedMessage};
pub use tcc::{Tcc, TccPlan};

use super::config::or_default;
use super::connection::Client;
use crate::error::Error;
use crate::limits::DEFAULT_NAMESPACE;
use crate::proto::v1;

/// A saga that is being written down: branches one after the other, unless they say what they come after.
/// When one of them is refused, it and those before it are compensated.
#[derive(Debug, Clone)]
pub struct SagaPlan {
    client: Client,
    request: v1::BeginSagaRequest,
    branches: Vec<Branch>,
}

impl Client {
    /// A saga under a random gid; an empty namespace is "default".
    pub fn saga(&self, namespace: impl Into<String>) -> SagaPlan {
        let request = self.transaction_request(v1::SagaMode::Saga, namespace.into());
        SagaPlan { client: self.clone(), request, branches: Vec::new() }
    }

    /// A transaction that was begun, by whomever. Whether it exists is not asked.
    pub fn saga_handle(&self, namespace: impl Into<String>, gid: impl Into<String>) -> SagaHandle {
        let namespace = or_default(&namespace.into(), DEFAULT_NAMESPACE).to_owned();
        SagaHandle::new(self, namespace, gid.into())
    }

    /// 96 random bits: two transactions with one gid would be taken for one.
    fn transaction_request(&self, mode: v1::SagaMode, namespace: String) -> v1::BeginSagaRequest {
        let kind = match mode {
            v1::SagaMode::Message => 'm',
            v1::SagaMode::Tcc => 't',
            v1::SagaMode::Saga | v1::SagaMode::Unspecified => 's',
        };
        let namespace = or_default(&namespace, DEFAULT_NAMESPACE).to_owned();
        let gid = format!("{kind}{:016x}{:08x}", self.random(), self.random() >> 32);
        v1::BeginSagaRequest { namespace, gid, mode: mode.into(), ..Default::default() }
    }
}

/// What all plans say of themselves. Times are rounded up to milliseconds.
macro_rules! terms {
    ($plan:ty) => {
        impl $plan {
            /// 1..=128 bytes, unique in the namespace; random if it is not said. With the id of what the
            /// transaction is about it takes place once even if its client is started anew meanwhile.
            pub fn gid(mut self, gid: impl Into<String>) -> Self {
                self.request.gid = gid.into();
                self
            }

            /// How long it may go forward, or back, before it is suspended and an operator must look:
            /// 1 s..=365 days, by default one day.
            pub fn suspend_after(mut self, after: Duration) -> Self {
                self.request.suspend_after_ms = millis(after);
                self
            }

            /// How long it is known when it is finished: at most 30 days, by default one day. With zero
            /// whoever waits for it may find it gone.
            pub fn retention(mut self, retention: Duration) -> Self {
                self.request.retention_ms = Some(millis(retention));
                self
            }

            /// Namespace and gid under which it is begun.
            pub fn name(&self) -> (&str, &str) {
                (&self.request.namespace, &self.request.gid)
            }
        }
    };
}

terms!(SagaPlan);
terms!(MessagePlan);
terms!(TccPlan);

impl SagaPlan {
    /// At most 128. Without [`Branch::after`] it comes after the one before it.
    pub fn branch(mut self, branch: Branch) -> SagaPlan {
        self.branches.push(branch);
        self
    }

    /// What fails or is refused is called until it succeeds, and nothing is ever compensated.
    pub fn forward(mut self) -> SagaPlan {
        self.request.recovery = v1::SagaRecovery::Forward.into();
        self
    }

    /// How long it may take until it is given up and compensated, at most 30 days; by default for ever.
    /// Not of one that recovers forward.
    pub fn timeout(mut self, timeout: Duration) -> SagaPlan {
        self.request.timeout_ms = millis(timeout);
        self
    }

    /// From its submission to the first call, at most 30 days.
    pub fn delay(mut self, delay: Duration) -> SagaPlan {
        self.request.delay_ms = millis(delay);
        self
    }

    /// Begins it. From an answer on it goes on by itself, whatever becomes of this client. After an error
    /// that is not [`Error::definite`] it may have begun or not: submit it again.
    pub async fn submit(&self) -> Result<SagaHandle, Error> {
        let branches = branch::numbered(&self.branches, |number| match number {
            0 => Vec::new(),
            number => vec![number - 1],
        })?;
        // Each branch says what it comes after.
        let request = v1::BeginSagaRequest {
            branches,
            concurrent: true,
            submit: true,
            ..self.request.clone()
        };
        self.client.begin_saga(request, None).await?;
        let (namespace, gid) = self.name();
        Ok(self.client.saga_handle(namespace, gid))
    }

    /// See [`SagaPlan::submit`] and [`SagaHandle::wait`].
    pub async fn submit_and_wait(&self) -> Result<SagaOutcome, Error> {
        self.submit().await?.wait().await
    }
}

/// Never 0 of what is not zero, which would mean the default.
fn millis(duration: Duration) -> u64 {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    u64::try_from(millis).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_becomes_none() {
        assert_eq!(millis(Duration::ZERO), 0);
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_millis(30)), 30);
        assert_eq!(millis(Duration::MAX), u64::MAX);
    }
}
