//! TCC: the client tries every branch itself; then the cluster confirms all of them, or cancels all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::connection::Client;
use super::super::participant::{BranchContext, BranchOp, BranchResults};
use super::super::remote::lock;
use super::branch::Branch;
use super::message::{abort, submit};
use super::{SagaHandle, millis};
use crate::error::Error;
use crate::proto::v1;

/// A TCC that is not begun.
///
/// ```no_run
/// # use quorate::client::Branch;
/// # use quorate::error::Error;
/// # async fn reserve(_: tonic::Request<()>) -> Result<(), tonic::Status> { Ok(()) }
/// # async fn example(client: quorate::client::Client) -> Result<(), tonic::Status> {
/// let ((), handle) = client
///     .tcc("default")
///     .run(|tcc| async move {
///         for hotel in ["north", "south"] {
///             let branch = Branch::new(hotel, format!("quorate:///{hotel}/hotel.v1.Hotel/Confirm"))
///                 .compensation(format!("quorate:///{hotel}/hotel.v1.Hotel/Cancel"));
///             tcc.try_branch(branch, |context| async move {
///                 let mut request = tonic::Request::new(());
///                 context.inject(&mut request);
///                 reserve(request).await
///             })
///             .await?;
///         }
///         Ok::<_, tonic::Status>(())
///     })
///     .await?;
/// println!("{:?}", handle.wait().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TccPlan {
    client: Client,
    pub(super) request: v1::BeginSagaRequest,
}

/// A TCC whose branches are being tried. Clones are the same one. When nobody confirms it in time it is
/// cancelled by itself.
#[derive(Debug, Clone)]
pub struct Tcc {
    client: Client,
    handle: SagaHandle,
    branches: Arc<Mutex<BTreeMap<String, Tried>>>,
}

/// How far this client is with a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tried {
    /// None while nobody knows whether the cluster has it.
    number: Option<u32>,
    /// The last try has succeeded.
    well: bool,
}

impl Client {
    /// A TCC under a random gid; an empty namespace is "default".
    pub fn tcc(&self, namespace: impl Into<String>) -> TccPlan {
        let request = self.transaction_request(v1::SagaMode::Tcc, namespace.into());
        TccPlan { client: self.clone(), request }
    }
}

impl TccPlan {
    /// How long trying may take until all is cancelled: 1 s..=7 days, by default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> TccPlan {
        self.request.prepared_timeout_ms = millis(timeout);
        self
    }

    /// Begins it, to be ended with [`Tcc::confirm`] or [`Tcc::cancel`]. After an error that is not
    /// [`Error::definite`] begin it again, or leave it.
    pub async fn begin(&self) -> Result<Tcc, Error> {
        let answer = self.client.begin_saga(self.request.clone(), None).await?;
        let (namespace, gid) = self.name();
        let handle = self.client.saga_handle(namespace, gid);
        let mut branches = BTreeMap::new();
        if !answer.created {
            let (saga, _) = handle.look().await?;
            let open = saga.phase() == v1::SagaStatus::Prepared;
            // Of those that an earlier run has registered nobody knows whether they were tried.
            for (number, branch) in (0..).zip(saga.branches).take_while(|_| open) {
                branches.insert(branch.id, Tried { number: Some(number), well: false });
            }
        }
        let branches = Arc::new(Mutex::new(branches));
        Ok(Tcc { client: self.client.clone(), handle, branches })
    }

    /// Begins it, lets the closure try its branches, and confirms it when the closure says Ok: with its value
    /// and the handle of what is then confirmed for certain. When it says Err, all is cancelled, and the
    /// error is returned. When confirming fails with an error that is not [`Error::definite`], nobody knows
    /// yet: [`Client::saga_handle`] with the plan's [name](TccPlan::name) does.
    ///
    /// Dropped in between, it is cancelled when its time is over.
    pub async fn run<T, E, F, Fut>(&self, body: F) -> Result<(T, SagaHandle), E>
    where
        F: FnOnce(Tcc) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let tcc = self.begin().await?;
        let confirmed = match body(tcc.clone()).await {
            Ok(value) => match tcc.confirm().await {
                Ok(handle) => return Ok((value, handle)),
                Err(error) if !error.definite() => return Err(error.into()),
                Err(error) => error.into(),
            },
            Err(error) => error,
        };
        if let Err(error) = tcc.cancel("given up by its client").await {
            tracing::debug!(gid = tcc.gid(), %error, "not cancelled; it is when its time is over");
        }
        Err(confirmed)
    }
}

impl Tcc {
    pub fn gid(&self) -> &str {
        self.handle.gid()
    }

    pub fn namespace(&self) -> &str {
        self.handle.namespace()
    }

    /// Registers the branch, and then runs `attempt`, which calls the participant and sends what the context
    /// says along: see [`BranchContext::inject`]. From then on the branch is confirmed or cancelled with the
    /// others, cancelled also when `attempt` has failed, or never came to run.
    ///
    /// It may be tried again with the same branch. [`Branch::after`] is about the order of confirmations;
    /// cancellations go the other way.
    pub async fn try_branch<T, E, F, Fut>(&self, branch: Branch, attempt: F) -> Result<T, E>
    where
        F: FnOnce(BranchContext) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let (namespace, gid) = (self.namespace().to_owned(), self.gid().to_owned());
        let plan = {
            let branches = lock(&self.branches);
            let known =
                branches.iter().filter_map(|(id, tried)| Some((id.as_str(), tried.number?)));
            let known = known.collect();
            branch.plan("branch.after", &known, Vec::new())?
        };
        let id = branch.id().to_owned();
        let before = lock(&self.branches).get(&id).copied();
        // From here on the cluster may have it, also when nobody waits for the answer any more.
        let number = before.and_then(|tried| tried.number);
        lock(&self.branches).insert(id.clone(), Tried { number, well: false });
        let request = v1::RegisterBranchRequest {
            namespace: namespace.clone(),
            gid: gid.clone(),
            branch: Some(plan),
            request_id: None,
        };
        let number = match self.client.register_branch(request, None).await {
            Ok(answer) => Some(answer.number),
            Err(error) => {
                if error.definite() {
                    let mut branches = lock(&self.branches);
                    match before {
                        Some(before) => branches.insert(id, before),
                        None => branches.remove(&id),
                    };
                }
                return Err(error.into());
            }
        };
        lock(&self.branches).insert(id.clone(), Tried { number, well: false });
        let context = BranchContext {
            namespace,
            gid,
            branch: id.clone(),
            op: BranchOp::Try,
            attempt: 1,
            epoch: 0,
            results: BranchResults::default(),
        };
        let answer = attempt(context).await?;
        lock(&self.branches).insert(id, Tried { number, well: true });
        Ok(answer)
    }

    /// Decides that all is confirmed, which then takes place by itself. Refused while a branch was not tried
    /// with success, and with [`Error::SagaIs`] when all was cancelled before, for instance because its
    /// time was over. After an error that is not [`Error::definite`] confirm it again.
    pub async fn confirm(&self) -> Result<SagaHandle, Error> {
        let failed = |(id, tried): (&String, &Tried)| (!tried.well).then(|| id.clone());
        if let Some(id) = lock(&self.branches).iter().find_map(failed) {
            return Err(Error::invalid("branch", id, "branches that were tried with success"));
        }
        submit(&self.client, &self.handle).await?;
        Ok(self.handle.clone())
    }

    /// Decides that all is cancelled, which then takes place by itself. Refused with [`Error::SagaIs`] when
    /// it was confirmed before.
    pub async fn cancel(&self, reason: impl Into<String>) -> Result<SagaHandle, Error> {
        abort(&self.client, &self.handle, reason.into()).await?;
        Ok(self.handle.clone())
    }
}
