//! The settings of a service, of which a command changes some: the others must not be lost when somebody
//! else changes them at the same time.

use super::{Error, view};
use crate::client::Client;
use crate::client::txn::{self, Txn};
use crate::proto::v1;
use crate::{error, limits};

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

/// Writes what `change` makes of the settings, unless that is None, on the condition that nobody else has
/// written them meanwhile; then it is asked again. Of a service that does not exist it is given the name:
/// the settings are made. Returns the settings as they were read or written, and the revision; 0 = the service
/// does not exist.
pub async fn change(
    client: &Client,
    namespace: &str,
    name: &str,
    mut change: impl FnMut(&v1::Service) -> Result<Option<v1::Service>, Error>,
) -> Result<(v1::Service, u64), Error> {
    let record = txn::service(namespace, name);
    for _ in 0..limits::SERVICE_ATTEMPTS {
        let (service, revision) = match read(client, namespace, name).await {
            Err(error::Error::NotFound { kind, .. }) if kind == "service" => {
                let (namespace, name) = (namespace.to_owned(), name.to_owned());
                (v1::Service { namespace, name, ..v1::Service::default() }, 0)
            }
            read => read?,
        };
        let Some(changed) = change(&service)? else { return Ok((service, revision)) };
        // A record that does not exist is at 0, which a request alone cannot ask for.
        let unchanged = record.mod_revision().is(service.mod_revision);
        let commit = Txn::new().when(unchanged).then(changed.clone());
        let answer = commit.commit(client, None).await.map_err(error::Error::without_step)?;
        if answer.succeeded {
            return Ok((changed, view::revision(&answer.header)));
        }
    }
    let what = format!("service {name}");
    Err(error::Error::Conflict { attempts: limits::SERVICE_ATTEMPTS, what }.into())
}
