//! The settings of a service, of which a command changes some: the others must not be lost when somebody
//! else changes them at the same time.

use super::{Error, view};
use crate::client::{Client, Transaction, TransactionOptions, txn};
use crate::error;
use crate::proto::v1;

/// The service, and the revision of the answer.
pub async fn read(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<(v1::Service, u64), error::Error> {
    let request = v1::GetServiceRequest {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        consistency: v1::Consistency::Linearizable.into(),
    };
    let answer = client.get_service(request).await?;
    Ok((answer.service.unwrap_or_default(), view::revision(&answer.header)))
}

/// Writes what `change` makes of the settings, unless that is None, in a transaction: when somebody else has
/// written them meanwhile, it is asked again. Of a service that does not exist it is given the name: the
/// settings are made. Returns the settings as they were read or written, and the revision; 0 = the service
/// does not exist.
pub async fn change(
    client: &Client,
    namespace: &str,
    name: &str,
    change: impl Fn(&v1::Service) -> Result<Option<v1::Service>, Error>,
) -> Result<(v1::Service, u64), Error> {
    let (change, record) = (&change, &txn::service(namespace, name));
    let attempt = |transaction: Transaction| async move {
        let found = transaction.get(record).await?;
        let exists = found.is_some();
        let service = found.unwrap_or_else(|| v1::Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..v1::Service::default()
        });
        let Some(changed) = change(&service)? else { return Ok((service, exists)) };
        transaction.write(changed.clone());
        Ok((changed, true))
    };
    let done = client.transaction(TransactionOptions::default(), attempt).await;
    let done = done.map_err(|error| match error {
        Error::Call(error) => Error::Call(error.without_step()),
        error => error,
    })?;
    let (service, exists) = done.value;
    Ok((service, if exists { done.revision } else { 0 }))
}
