//! The last state of a service on disk: a snapshot of a watch, see [`kept`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use prost::Message as _;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{DiscoveryOptions, Known, ServiceState, Shared};
use crate::client::config::or_default;
use crate::client::kept;
use crate::client::watch::WatchUpdate;
use crate::limits;
use crate::proto::v1::{self, watch_event};

const MAGIC: &[u8; 8] = b"QRSRVCE\x01";

/// The file of one service.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    directory: PathBuf,
    /// Of what the file holds.
    checksum: Option<u128>,
}

/// Opens the directory and reads what was kept of the service.
pub async fn open(
    directory: PathBuf,
    options: &DiscoveryOptions,
) -> io::Result<(Store, Option<ServiceState>)> {
    let (namespace, service) = (options.namespace.clone(), options.service.clone());
    let open = move || {
        std::fs::create_dir_all(&directory)?;
        let namespace = or_default(&namespace, limits::DEFAULT_NAMESPACE);
        let path = kept::path(&directory, &[namespace, &service], "service");
        let mut store = Store { path, directory, checksum: None };
        let payload = match kept::read(&store.path, MAGIC, limits::CLIENT_ANSWER_BYTES) {
            Ok(payload) => payload,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((store, None)),
            Err(error) => {
                let path = store.path.display();
                tracing::warn!(%path, %error, "a file of discovery is ignored");
                return Ok((store, None));
            }
        };
        let state = decode(&payload, namespace, &service);
        if state.is_some() {
            store.checksum = Some(kept::checksum(&payload));
        }
        Ok((store, state))
    };
    tokio::task::spawn_blocking(open).await.map_err(io::Error::other)?
}

/// None when it is of another service.
fn decode(payload: &[u8], namespace: &str, service: &str) -> Option<ServiceState> {
    let v1::WatchResponse { revision, events, .. } = v1::WatchResponse::decode(payload).ok()?;
    let own = events.iter().all(|event| match &event.record {
        Some(watch_event::Record::Instance(it)) => {
            it.namespace == namespace && it.service == service
        }
        Some(watch_event::Record::Service(it)) => it.namespace == namespace && it.name == service,
        Some(_) | None => false,
    });
    let mut known = Known::default();
    known.take(WatchUpdate::Snapshot { revision, events });
    let state = ServiceState { stale: true, ..known.state(&ServiceState::default()) };
    own.then_some(state)
}

fn encode(state: &ServiceState) -> Vec<u8> {
    let instance = |it: &Arc<v1::Instance>| watch_event::Record::Instance(v1::Instance::clone(it));
    let settings = state.settings.iter().map(|it| watch_event::Record::Service((**it).clone()));
    let records = settings.chain(state.instances.values().map(instance));
    let event = |record| v1::WatchEvent { record: Some(record), deleted: false };
    let events = records.map(event).collect();
    let revision = state.revision;
    v1::WatchResponse { revision, snapshot: true, events, ..Default::default() }.encode_to_vec()
}

impl Store {
    /// Keeps the file as the state is, until nobody holds the discovery. A state that was replaced before
    /// it was written is left out.
    pub async fn keep(mut self, shared: Arc<Shared>, mut states: watch::Receiver<u64>) {
        let mut closing = shared.closing.subscribe();
        loop {
            tokio::select! {
                biased;
                changed = states.changed() => if changed.is_err() { return },
                _ = closing.wait_for(|closing| *closing) => return,
            }
            let state = shared.state.load_full();
            let write = move || {
                let result = self.save(&state);
                (self, result)
            };
            // An error means that the runtime ends.
            let Ok((returned, result)) = tokio::task::spawn_blocking(write).await else { return };
            self = returned;
            if let Err(error) = result {
                let path = self.path.display();
                tracing::warn!(%path, %error, "discovery not written to disk; trying again");
                states.mark_changed();
                tokio::select! {
                    biased;
                    _ = closing.wait_for(|closing| *closing) => return,
                    () = sleep(limits::FOLLOW_AGAIN) => {}
                }
            }
        }
    }

    fn save(&mut self, state: &ServiceState) -> io::Result<()> {
        let payload = encode(state);
        let checksum = Some(kept::checksum(&payload));
        if self.checksum != checksum {
            kept::write(&self.path, MAGIC, &payload)?;
            kept::sync_directory(&self.directory)?;
            self.checksum = checksum;
        }
        Ok(())
    }
}
