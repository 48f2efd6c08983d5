//! Messages in two phases: prepared before a local transaction, submitted after it. When the sender dies in
//! between, the cluster asks it what came of the local transaction.

use std::time::Duration;

use super::super::connection::Client;
use super::branch::{self, Branch};
use super::{SagaHandle, millis};
use crate::error::Error;
use crate::proto::v1;

/// A message that is being written down: it is delivered to every branch, to all at once unless they say
/// what they come after, until each has taken it.
///
/// ```no_run
/// # use quorate::client::Branch;
/// # async fn example(client: quorate::client::Client) -> Result<(), quorate::error::Error> {
/// let message = client
///     .message("default")
///     .query("quorate:///orders/orders.v1.Orders/WasPlaced")
///     .branch(Branch::new("mail", "quorate:///mail/mail.v1.Mail/Confirm").bytes("order 17"))
///     .prepare()
///     .await?;
/// // The order is stored in the sender's own database, together with a mark that it was.
/// # let stored = true;
/// match stored {
///     true => drop(message.submit().await?),
///     false => message.abort("no such article").await?,
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MessagePlan {
    client: Client,
    pub(super) request: v1::BeginSagaRequest,
    branches: Vec<Branch>,
}

/// A message that is not sent yet. Dropped, it stays prepared until its time is over; then its sender is
/// asked, or, without a query, it is given up.
#[derive(Debug, Clone)]
pub struct PreparedMessage {
    client: Client,
    handle: SagaHandle,
}

impl Client {
    /// A message under a random gid; an empty namespace is "default".
    pub fn message(&self, namespace: impl Into<String>) -> MessagePlan {
        let request = self.transaction_request(v1::SagaMode::Message, namespace.into());
        MessagePlan { client: self.clone(), request, branches: Vec::new() }
    }
}

impl MessagePlan {
    /// At most 128.
    pub fn branch(mut self, branch: Branch) -> MessagePlan {
        self.branches.push(branch);
        self
    }

    /// Who is asked when the message was prepared and not submitted in time: OK = submit it, ABORTED = give
    /// it up. A target as those of branches, called with an empty request.
    pub fn query(mut self, target: impl Into<String>) -> MessagePlan {
        self.request.query = target.into();
        self
    }

    /// Timeout and attempts of the query; pauses as of [`Branch::pauses`].
    pub fn query_policy(mut self, policy: v1::SagaPolicy) -> MessagePlan {
        self.request.query_policy = Some(policy);
        self
    }

    /// How long it may be prepared: 1 s..=7 days, by default 30 s.
    pub fn prepared_timeout(mut self, timeout: Duration) -> MessagePlan {
        self.request.prepared_timeout_ms = millis(timeout);
        self
    }

    /// From its submission to the first delivery, at most 30 days.
    pub fn delay(mut self, delay: Duration) -> MessagePlan {
        self.request.delay_ms = millis(delay);
        self
    }

    /// The first phase. After an error that is not [`Error::definite`] prepare it again, or leave it: nobody
    /// has submitted it.
    pub async fn prepare(&self) -> Result<PreparedMessage, Error> {
        let handle = self.begin(false).await?;
        Ok(PreparedMessage { client: self.client.clone(), handle })
    }

    /// Both phases at once, for a sender with nothing to do in between.
    pub async fn submit(&self) -> Result<SagaHandle, Error> {
        self.begin(true).await
    }

    async fn begin(&self, submit: bool) -> Result<SagaHandle, Error> {
        let branches = branch::numbered(&self.branches, |_| Vec::new())?;
        let request =
            v1::BeginSagaRequest { branches, concurrent: true, submit, ..self.request.clone() };
        self.client.begin_saga(request, None).await?;
        let (namespace, gid) = self.name();
        Ok(self.client.saga_handle(namespace, gid))
    }
}

impl PreparedMessage {
    /// For instance to be stored by the local transaction, so that the query can be answered.
    pub fn gid(&self) -> &str {
        self.handle.gid()
    }

    pub fn namespace(&self) -> &str {
        self.handle.namespace()
    }

    /// The second phase: from an answer on it will be delivered. Fails with [`Error::SagaIs`] when it was
    /// given up before; after an error that is not [`Error::definite`] submit it again.
    pub async fn submit(&self) -> Result<SagaHandle, Error> {
        submit(&self.client, &self.handle).await?;
        Ok(self.handle.clone())
    }

    /// Gives it up. Fails with [`Error::SagaIs`] when it was submitted before.
    pub async fn abort(&self, reason: impl Into<String>) -> Result<(), Error> {
        abort(&self.client, &self.handle, reason.into()).await
    }
}

pub(super) async fn submit(client: &Client, handle: &SagaHandle) -> Result<(), Error> {
    let (namespace, gid) = (handle.namespace().to_owned(), handle.gid().to_owned());
    let request = v1::SubmitSagaRequest { namespace, gid, request_id: None };
    client.submit_saga(request, None).await.map(drop)
}

pub(super) async fn abort(
    client: &Client,
    handle: &SagaHandle,
    reason: String,
) -> Result<(), Error> {
    let (namespace, gid) = (handle.namespace().to_owned(), handle.gid().to_owned());
    let request = v1::AbortSagaRequest { namespace, gid, reason, request_id: None };
    client.abort_saga(request, None).await.map(drop)
}
