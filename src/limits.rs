//! Every limit and every default of Quorate, in one place, with how they relate to each other.
//! Nothing else in the tree states a number that an operator or a client could run into.

use std::time::Duration;

// ---- names and fields of the registry ----

/// Bytes of a namespace, service or instance id.
pub const NAME_BYTES: usize = 128;
/// Bytes of a host name (RFC 1035).
pub const HOST_BYTES: usize = 253;
/// Endpoints of one instance.
pub const ENDPOINTS: usize = 16;
/// Greatest weight of an instance.
pub const WEIGHT: u32 = 65_535;
/// Weight of an instance that states none.
pub const DEFAULT_WEIGHT: u32 = 1;
/// Bytes of a zone.
pub const ZONE_BYTES: usize = 64;
/// Pairs in one metadata map.
pub const METADATA_PAIRS: usize = 64;
/// Bytes of a metadata key.
pub const METADATA_KEY_BYTES: usize = 128;
/// Bytes of a metadata value.
pub const METADATA_VALUE_BYTES: usize = 1024;
/// Bytes of all keys and values of one metadata map.
pub const METADATA_TOTAL_BYTES: usize = 16 * 1024;
/// Bytes of a reason, a description or a client's name.
pub const TEXT_BYTES: usize = 256;
/// Bytes of a balancing policy's name.
pub const POLICY_BYTES: usize = 64;
/// Instances of one service.
pub const INSTANCES_PER_SERVICE: usize = 100_000;
/// Namespaces of a cluster.
pub const NAMESPACES: usize = 10_000;
/// The namespace that always exists and that an empty name means.
pub const DEFAULT_NAMESPACE: &str = "default";

/// How long an instance may stay critical after its session ended, in ms.
pub const DEREGISTER_AFTER_MS: std::ops::RangeInclusive<u64> = 1_000..=86_400_000;
pub const DEFAULT_DEREGISTER_AFTER_MS: u64 = 30_000;

// ---- sessions ----

pub const SESSION_TTL_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;
pub const DEFAULT_SESSION_TTL_MS: u64 = 10_000;
/// Writes of one session whose answers the client has not acknowledged.
pub const SESSION_IN_FLIGHT: usize = 1_024;
/// Sessions of a cluster.
pub const SESSIONS: usize = 1_000_000;

// ---- requests ----

/// Bytes of one encoded command.
pub const COMMAND_BYTES: usize = 1024 * 1024;
/// Commands in one log entry.
pub const BATCH_COMMANDS: usize = 4_096;
/// Bytes of the commands in one log entry; one command may exceed it alone.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// Entries that the proposer keeps in flight.
pub const PROPOSALS_IN_FLIGHT: usize = 2;
/// Commands that wait for the proposer; the next one is refused as OVERLOADED.
pub const PROPOSAL_QUEUE: usize = 16_384;
/// Reads that wait for one read index; the next one is refused as OVERLOADED.
pub const READ_QUEUE: usize = 65_536;
/// Calls in one frame of the session stream.
pub const STREAM_FRAME_CALLS: usize = 4_096;
/// Calls under way on one session stream; the stream is read no further until one is answered.
pub const STREAM_CALLS_IN_FLIGHT: usize = 8_192;
/// Items of one page of a listing, and how many when none is asked for.
pub const PAGE: usize = 10_000;
pub const DEFAULT_PAGE: usize = 1_000;
/// Bytes of one message on the client port.
pub const CLIENT_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of one message on the peer port.
pub const PEER_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Deadline of a call whose client states none.
pub const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Greatest deadline that the server keeps.
pub const MAX_CALL_TIMEOUT: Duration = Duration::from_secs(300);

// ---- watch ----

/// Revisions, and their bytes, that a node keeps for resuming watchers.
pub const WATCH_RING_EVENTS: usize = 65_536;
pub const WATCH_RING_BYTES: usize = 64 * 1024 * 1024;
/// Messages that wait for one watcher before it is cut off.
pub const WATCH_QUEUE: usize = 1_024;
/// Watchers of one node.
pub const WATCHERS: usize = 100_000;
/// Events in one message of a watch snapshot.
pub const WATCH_SNAPSHOT_EVENTS: usize = 1_000;
/// How often an idle watcher hears how far it is complete.
pub const WATCH_BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);

// ---- log ----

/// Bytes of one log segment, preallocated.
pub const WAL_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of one frame's payload in the log.
pub const WAL_FRAME_BYTES: usize = PEER_MESSAGE_BYTES;
/// Bytes of recent entries that stay in memory for replication and apply.
pub const LOG_TAIL_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of entries read at once for replication.
pub const LOG_READ_BYTES: usize = 1024 * 1024;
/// Free bytes on the data directory's file system below which the node takes no writes, and from
/// which it takes them again.
pub const DISK_LOW_BYTES: u64 = 512 * 1024 * 1024;
pub const DISK_OK_BYTES: u64 = 768 * 1024 * 1024;

// ---- image and snapshots ----

/// A checkpoint is written when this much time has passed or this many bytes of log were applied.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(15);
pub const CHECKPOINT_LOG_BYTES: u64 = 256 * 1024 * 1024;
/// Bytes of one value in sled; longer ones are cut into chunks.
pub const IMAGE_CHUNK_BYTES: usize = 4 * 1024;
/// Bytes of one block of a snapshot file.
pub const SNAPSHOT_BLOCK_BYTES: usize = 256 * 1024;
/// Entries after which a snapshot is made, and entries that are kept behind it.
pub const SNAPSHOT_ENTRIES: u64 = 100_000;
pub const SNAPSHOT_KEEP_ENTRIES: u64 = 20_000;

// ---- consensus ----

pub const HEARTBEAT_MS: u64 = 100;
pub const ELECTION_MIN_MS: u64 = 300;
pub const ELECTION_MAX_MS: u64 = 600;

// ---- addresses ----

pub const DEFAULT_BASE_PORT: u16 = 7650;

const _: () = {
    assert!(COMMAND_BYTES < PEER_MESSAGE_BYTES, "a command fits one peer message");
    assert!(BATCH_BYTES + COMMAND_BYTES < WAL_FRAME_BYTES, "a batch fits one log frame");
    assert!((WAL_FRAME_BYTES as u64) <= WAL_SEGMENT_BYTES, "a frame fits one segment");
    assert!(PEER_MESSAGE_BYTES > LOG_READ_BYTES + BATCH_BYTES + COMMAND_BYTES);
    assert!(SNAPSHOT_KEEP_ENTRIES < SNAPSHOT_ENTRIES);
    assert!(ELECTION_MIN_MS >= 2 * HEARTBEAT_MS && ELECTION_MAX_MS > ELECTION_MIN_MS);
    assert!(DISK_OK_BYTES > DISK_LOW_BYTES);
    assert!(METADATA_TOTAL_BYTES < COMMAND_BYTES);
};
