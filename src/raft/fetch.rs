//! A snapshot file that one node asks of another: for a node whose own state is wrong or lost.
//! openraft ships snapshots only to members that lag behind the log.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::codec;
use super::machine::SnapshotFile;
use super::network::{Channel, PeerError, Peers, SNAPSHOT_CHUNK_BYTES};
use super::types::NodeId;
use crate::limits::FETCH_SILENCE;
use crate::runtime;
use crate::store::checkpoint::Digest;
use crate::store::disk::Disk;
use crate::store::receiver::Receiver;
use crate::store::snapshot::{self, SnapshotMeta};

/// Asks a member for a snapshot of its state and receives the file into `disk`, where nothing refers
/// to it yet. The member refuses when it holds something else than `right` at that index.
pub async fn fetch(
    peers: &dyn Peers,
    from: NodeId,
    address: &str,
    right: Option<Digest>,
    disk: Arc<dyn Disk>,
    cluster_id: &str,
) -> Result<SnapshotMeta, PeerError> {
    // The other side makes a file first, and the request must stay open until it is sent.
    let request = stream::iter([codec::to_bytes(&right)]).chain(stream::pending()).boxed();
    let open = peers.stream(from, address, Channel::Fetch, request);
    let mut pieces = runtime::timeout(FETCH_SILENCE, open).await.map_err(|_| silent())??;
    let bytes: u64 = match next(&mut pieces).await? {
        Some(head) => codec::from_bytes("length of a snapshot", &head)?,
        None => return Err(PeerError::NoAnswer("it sends nothing".to_owned())),
    };
    let mut receiver = Receiver::begin(disk, cluster_id, bytes).map_err(unfit)?;
    while let Some(piece) = next(&mut pieces).await? {
        receiver = runtime::blocking(move || {
            receiver.chunk(receiver.received(), &piece)?;
            Ok::<_, snapshot::Error>(receiver)
        })
        .await
        .map_err(unfit)?;
    }
    runtime::blocking(move || receiver.finish()).await.map_err(unfit)
}

/// What is sent to a member that fetches.
pub fn pieces(file: &SnapshotFile) -> BoxStream<'static, Result<Bytes, PeerError>> {
    let head = codec::to_bytes(&file.meta.bytes);
    stream::iter([head]).chain(file.chunks(SNAPSHOT_CHUNK_BYTES)).map(Ok).boxed()
}

type Pieces = BoxStream<'static, Result<Bytes, PeerError>>;

async fn next(pieces: &mut Pieces) -> Result<Option<Bytes>, PeerError> {
    runtime::timeout(FETCH_SILENCE, pieces.next()).await.map_err(|_| silent())?.transpose()
}

fn silent() -> PeerError {
    PeerError::NoAnswer(format!("silent for {FETCH_SILENCE:?}"))
}

/// Here and not there: the file is not what was announced, or this disk does not take it.
fn unfit(error: snapshot::Error) -> PeerError {
    PeerError::NoAnswer(error.to_string())
}
