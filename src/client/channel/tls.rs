//! TLS to endpoints that want it.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::Error;

/// Whom a channel trusts, and as whom it appears.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates of the authorities that may have signed an endpoint's, as PEM.
    pub ca: Vec<u8>,
    /// The own certificate with its chain and its key, as PEM, for endpoints that ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that the endpoints' certificates are for; None = the host of each endpoint.
    pub server_name: Option<String>,
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Ready for connections.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl Tls {
    pub fn new(options: &TlsOptions) -> Result<Tls, Error> {
        let bad = |field: &str, why: String| Error::invalid(field, "a text", why);
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&options.ca) {
            let certificate = certificate
                .map_err(|error| bad("tls.ca", format!("certificates as PEM: {error}")))?;
            roots.add(certificate).map_err(|error| bad("tls.ca", error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(Error::invalid("tls.ca", "none", "1 certificate or more, as PEM"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::internal(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &options.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
                let chain = chain.map_err(|error| {
                    bad("tls.identity", format!("a certificate with its chain as PEM: {error}"))
                })?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|error| bad("tls.identity", format!("a key as PEM: {error}")))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| bad("tls.identity", error.to_string()))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let server_name = options.server_name.clone().map(ServerName::try_from).transpose();
        let server_name =
            server_name.map_err(|error| bad("tls.server_name", format!("a host: {error}")))?;
        Ok(Tls { connector: TlsConnector::from(Arc::new(config)), server_name })
    }

    pub async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?,
        };
        self.connector.connect(name, stream).await.map_err(|error| error.to_string())
    }
}
