//! What all three services do: listen, register, count, and end in order.

use std::time::Duration;

use quorate::client::{
    Client, ConfigCache, ConfigCacheOptions, Counter, CounterOptions, Counters, RegistrationOptions,
};
use quorate::proto::v1;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::Failed;

/// How long a dead instance is taken for alive.
const SESSION_TTL: Duration = Duration::from_secs(2);
/// How long clients get to turn to other instances before this one ends.
const GRACE: Duration = Duration::from_millis(300);

/// Who and where an instance is.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// Name of the instance
    #[arg(long)]
    pub id: String,
    /// 0 = any free port
    #[arg(long, default_value_t = 0)]
    port: u16,
}

/// What the shop's configuration says, `shop/shop.json`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct Settings {
    pub discount_percent: u32,
}

/// Settings that follow the cluster.
pub struct Live(ConfigCache);

impl Live {
    pub async fn open(client: &Client, id: &str) -> Result<Live, Failed> {
        let options = ConfigCacheOptions::new(id).key("shop", "shop.json");
        let cache = client.config_cache(options).await?;
        cache.synced().await?;
        Ok(Live(cache))
    }

    /// As they are now: a look into memory.
    pub fn get(&self) -> Settings {
        let item = self.0.get("shop", "shop.json");
        item.and_then(|item| serde_json::from_slice(item.content()).ok()).unwrap_or_default()
    }
}

/// Counts calls in the cluster.
pub async fn counters(client: &Client) -> Result<Counters, Failed> {
    Ok(client.counters(CounterOptions::default()).await?)
}

pub fn requests(counters: &Counters, service: &str, id: &str) -> Counter {
    counters.counter("", "shop_requests_total", [("service", service), ("instance", id)])
}

/// Serves until SIGTERM or Ctrl-C: then asks for no new calls, finishes those that came, and goes.
pub async fn serve(
    client: &Client,
    service: &str,
    place: &Place,
    routes: Routes,
    counters: Counters,
) -> Result<(), Failed> {
    let listener = TcpListener::bind(("127.0.0.1", place.port)).await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::builder().add_routes(routes).serve_with_incoming_shutdown(
        TcpListenerStream::new(listener),
        async {
            let _ = stopped.await;
        },
    );
    let server = tokio::spawn(server);
    let instance = v1::Instance {
        service: service.to_owned(),
        id: place.id.clone(),
        endpoints: vec![v1::Endpoint {
            name: "grpc".to_owned(),
            host: address.ip().to_string(),
            port: address.port().into(),
        }],
        ..Default::default()
    };
    let options = RegistrationOptions::new(instance).session_ttl(SESSION_TTL);
    let registration = client.registration(options)?;
    registration.registered().await?;
    registration.run_until_terminated(GRACE).await?;
    let _ = stop.send(());
    server.await??;
    counters.close(Duration::from_secs(2)).await;
    Ok(())
}
