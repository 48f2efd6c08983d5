//! Posts of alarms over HTTP and HTTPS.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tonic::codegen::{Bytes, http};

use crate::node::Webhooks;

/// Redirects are not followed: what they
/// name is not what an operator has allowed.
#[derive(Debug, Clone)]
pub struct HttpWebhooks {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Default for HttpWebhooks {
    fn default() -> Self {
        HttpWebhooks { client: Client::builder(TokioExecutor::new()).build(https_connector()) }
    }
}

/// What hyper says of a failure alone is not enough to mend it.
pub fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Certificates are checked against the roots that Mozilla trusts.
pub fn https_connector() -> HttpsConnector<HttpConnector> {
    HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
        .expect("ring has the ciphers of TLS 1.2 and 1.3")
        .https_or_http()
        .enable_http1()
        .build()
}

impl Webhooks for HttpWebhooks {
    fn post(&self, url: &str, body: String) -> BoxFuture<'static, Result<(), String>> {
        let request = http::Request::post(url)
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::USER_AGENT, concat!("quorate/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body)));
        let client = self.client.clone();
        async move {
            let request = request.map_err(|error| error.to_string())?;
            let response = client.request(request).await.map_err(|error| with_cause(&error))?;
            match response.status() {
                status if status.is_success() => Ok(()),
                status => Err(format!("answered {status}")),
            }
        }
        .boxed()
    }
}
