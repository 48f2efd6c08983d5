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

// ---- health checks ----

/// From the beginning of a check to that of the next, and how long one may take.
pub const HEALTH_INTERVAL_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;
pub const DEFAULT_HEALTH_INTERVAL_MS: u64 = 10_000;
pub const HEALTH_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=60_000;
pub const DEFAULT_HEALTH_TIMEOUT_MS: u64 = 2_000;
/// Failures until an instance is critical, and successes until it is passing, in a row.
pub const HEALTH_STREAK: std::ops::RangeInclusive<u64> = 1..=100;
pub const DEFAULT_HEALTH_FAILURES: u32 = 3;
pub const DEFAULT_HEALTH_SUCCESSES: u32 = 2;
/// Bytes of the path and of the Host header of an HTTP check, and the statuses that may be expected.
pub const HEALTH_PATH_BYTES: usize = 1024;
pub const HEALTH_HOST_BYTES: usize = 260;
pub const HEALTH_STATUSES: std::ops::RangeInclusive<u64> = 100..=599;
pub const DEFAULT_HEALTH_STATUSES: (u16, u16) = (200, 299);
/// Checks of one node under way, and names that are resolved at the same time: a resolver that does not
/// answer holds a thread for each.
pub const HEALTH_CHECKS_UNDER_WAY: usize = 256;
pub const HEALTH_LOOKUPS: usize = 16;
/// Bytes of the head of an HTTP answer, and of the answer of grpc.health.v1.
pub const HEALTH_ANSWER_BYTES: usize = 16 * 1024;
/// Instances whose health one command turns.
pub const HEALTH_VERDICTS: usize = 500;
/// Networks and names that `--health-check-allow` may hold.
pub const HEALTH_ALLOWED: usize = 256;
/// How often a node tells the leader that it is there to check, and after what silence its instances are
/// given to others. A node that the leader has not answered for so long checks nothing.
pub const HEALTH_BEAT: Duration = Duration::from_secs(1);
pub const HEALTH_SILENCE: Duration = Duration::from_secs(3);

// ---- sessions ----

pub const SESSION_TTL_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;
pub const DEFAULT_SESSION_TTL_MS: u64 = 10_000;
/// Writes of one session whose answers the client has not acknowledged.
pub const SESSION_IN_FLIGHT: usize = 1_024;
/// Sessions of a cluster.
pub const SESSIONS: usize = 1_000_000;

// ---- configuration ----

/// The group that an empty name means.
pub const DEFAULT_GROUP: &str = "default";
/// Bytes of the content of one release.
pub const CONFIG_VALUE_BYTES: usize = 1024 * 1024;
/// Past releases that are kept of an item, and what may be asked for.
pub const DEFAULT_CONFIG_KEEP: u32 = 50;
pub const CONFIG_KEEP: std::ops::RangeInclusive<u64> = 1..=1_000;
/// Bytes of the contents of an item's past releases.
pub const CONFIG_HISTORY_BYTES: usize = 8 * 1024 * 1024;
/// Items of a namespace, deleted ones and names with a schema alone included.
pub const CONFIG_ITEMS: usize = 100_000;
/// Gray releases of an item, and the bytes of their contents together.
pub const CONFIG_GRAYS: usize = 8;
pub const CONFIG_GRAY_BYTES: usize = 1024 * 1024;
/// Bytes of an item's gray releases with their rules, encoded. `Command::check` allows less; this bounds
/// what a log may say that was not checked.
pub const CONFIG_GRAY_RECORD_BYTES: usize = 2 * COMMAND_BYTES - 64 * 1024;
/// Clients that one rule names.
pub const CONFIG_GRAY_CLIENTS: usize = 1_000;
/// How long a gate may look.
pub const CONFIG_GATE_MS: std::ops::RangeInclusive<u64> = 1_000..=30 * 86_400_000;
/// Items in one report, and items that one session reports.
pub const CONFIG_REPORTS: usize = 1_024;
/// Lost clients that are remembered of one item.
pub const CONFIG_LOST: usize = 10_000;
/// A client that was lost and has come back counts as unhealthy for so long after it was noticed, so that
/// one that crashes again and again is not taken for well because the next of its lives has begun.
pub const CONFIG_LOST_REST_MS: u64 = 60_000;
/// Bytes of a JSON Schema.
pub const SCHEMA_BYTES: usize = 64 * 1024;
/// Bytes of contents that are checked where they come in; more of them, and whatever has a schema, are
/// checked aside.
pub const CONFIG_CHECK_BYTES: usize = 16 * 1024;
/// Checks aside under way on a node; more wait for one to end.
pub const CONFIG_CHECKS: usize = 4;
/// Compiled schemas that a node keeps.
pub const SCHEMAS_CACHED: usize = 64;
/// Bytes of the comment on a release.
pub const COMMENT_BYTES: usize = 1024;

// ---- counters ----

/// Counters of a cluster.
pub const COUNTERS: usize = 1_000_000;
/// Labels of a counter, and bytes of a label's name and value.
pub const COUNTER_LABELS: usize = 16;
pub const COUNTER_LABEL_BYTES: usize = 128;
/// Counters that one answer of /metrics shows.
pub const METRIC_SERIES: usize = 10_000;
/// The label of a series that holds the namespace, and how the names of the node's own figures begin.
pub const NAMESPACE_LABEL: &str = "namespace";
pub const METRIC_PREFIX: &str = "quorate_";
/// What is added is summed up in slots of this length; windows are made of them.
pub const COUNTER_SLOT_MS: u64 = 10_000;
/// The longest window, in slots: 15 minutes.
pub const COUNTER_SLOTS: u64 = 90;

// ---- alarms ----

/// Alarms of a cluster.
pub const ALARMS: usize = 1_000;
/// How long a measure may have to be beyond its bound before an alarm is raised.
pub const ALARM_FOR_MS: std::ops::RangeInclusive<u64> = 0..=86_400_000;
/// Bytes of a webhook's URL.
pub const WEBHOOK_BYTES: usize = 1024;
/// How long one post to a webhook may take, how often in a row one may fail before it is given up, whatever the alarm does
/// meanwhile, and the pause after a failure, which doubles up to the second.
pub const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(5);
pub const WEBHOOK_ATTEMPTS: u32 = 10;
pub const WEBHOOK_AGAIN: Duration = Duration::from_secs(1);
pub const WEBHOOK_AGAIN_MAX: Duration = Duration::from_secs(60);
/// Posts under way on the leader, and of those to one host; more wait their turn.
pub const WEBHOOKS_UNDER_WAY: usize = 16;
pub const WEBHOOKS_OF_HOST: usize = 4;
/// URLs that `--webhook-allow` and `--participant-allow` may name.
pub const WEBHOOKS_ALLOWED: usize = 64;

// ---- locks ----

/// Locks of a namespace, and requests for one lock.
pub const LOCKS: usize = 100_000;
pub const LOCK_REQUESTS: usize = 10_000;
/// Bytes of the value of a lock.
pub const LOCK_VALUE_BYTES: usize = 1024;

// ---- transactions ----

/// Compares of a transaction, and steps each way.
pub const TXN_COMPARES: usize = 128;
pub const TXN_STEPS: usize = 128;
/// Bytes of what its steps answer.
pub const TXN_REPLY_BYTES: usize = 2 * 1024 * 1024;
/// Records that the scopes of its compares and ranges hold together.
pub const TXN_RECORDS: usize = 10_000;

// ---- global transactions ----

/// Transactions of a cluster, and those among them that are kept when they are finished: beyond that the
/// oldest go before their retention is over.
pub const SAGAS: usize = 500_000;
pub const SAGAS_FINISHED: usize = 100_000;
/// What these are made of, and have been answered, together. Beyond it none begins and none gets a branch. Results
/// of those that are there are kept all the same, since later calls are made with them: what is bounded of these
/// is each transaction.
pub const SAGAS_BYTES: usize = 1024 * 1024 * 1024;
pub const SAGAS_FINISHED_BYTES: usize = 256 * 1024 * 1024;
/// Branches of one transaction, what they are made of together, and how much of that each takes besides its
/// texts.
pub const SAGA_BRANCHES: usize = 128;
pub const SAGA_BYTES: usize = 512 * 1024;
pub const SAGA_BRANCH_BYTES: usize = 256;
/// Bytes of a target, and of what an action answers.
pub const SAGA_TARGET_BYTES: usize = 1024;
pub const SAGA_RESULT_BYTES: usize = 4 * 1024;
/// Bytes of all the answers that one call brings along: with base64 they fit the headers that a server takes.
pub const SAGA_RESULTS_BYTES: usize = 8 * 1024;
/// Calls under way of a node, and of those to one participant; more wait their turn.
pub const SAGA_CALLS: usize = 4_096;
pub const SAGA_PARTICIPANT_CALLS: usize = 1_024;
/// Bytes of a participant's answer, of which the first limit above is kept; services whose channels a node
/// keeps open, and for how long after the last call.
pub const PARTICIPANT_ANSWER_BYTES: usize = 1024 * 1024;
pub const PARTICIPANT_CHANNELS: usize = 1_024;
pub const PARTICIPANT_IDLE: Duration = Duration::from_secs(600);
/// Calls that wait on one node until a transaction is finished.
pub const SAGA_WAITS: usize = 100_000;
/// Things that happened to transactions in one command.
pub const SAGA_STEPS: usize = 1_000;
/// How long a transaction may be prepared, and submitted; the latter may be 0, for ever.
pub const SAGA_PREPARED_MS: std::ops::RangeInclusive<u64> = 1_000..=7 * 86_400_000;
pub const DEFAULT_SAGA_PREPARED_MS: u64 = 30_000;
pub const SAGA_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 0..=30 * 86_400_000;
/// How long a phase may last before an operator must look.
pub const SAGA_SUSPEND_AFTER_MS: std::ops::RangeInclusive<u64> = 1_000..=365 * 86_400_000;
pub const DEFAULT_SAGA_SUSPEND_AFTER_MS: u64 = 86_400_000;
/// How long a finished transaction is kept, and how late the first call may be made.
pub const SAGA_RETENTION_MS: std::ops::RangeInclusive<u64> = 0..=30 * 86_400_000;
pub const DEFAULT_SAGA_RETENTION_MS: u64 = 86_400_000;
pub const SAGA_DELAY_MS: std::ops::RangeInclusive<u64> = 0..=30 * 86_400_000;
/// How long one call may take, how many may fail (0 = any number), and the pauses between them.
pub const SAGA_CALL_MS: std::ops::RangeInclusive<u64> = 200..=600_000;
pub const DEFAULT_SAGA_CALL_MS: u64 = 5_000;
pub const SAGA_ATTEMPTS: std::ops::RangeInclusive<u64> = 0..=1_000_000;
pub const DEFAULT_SAGA_ATTEMPTS: u32 = 0;
pub const SAGA_PAUSE_MS: std::ops::RangeInclusive<u64> = 1..=86_400_000;
pub const DEFAULT_SAGA_PAUSE_MS: u64 = 200;
pub const DEFAULT_SAGA_PAUSE_MAX_MS: u64 = 60_000;

// ---- requests ----

/// Bytes of one encoded command: the greatest content of a release and what is said about it.
pub const COMMAND_BYTES: usize = 1024 * 1024 + 256 * 1024;
/// Bytes of one encoded record: an item with its labels and gray releases is the greatest.
pub const RECORD_BYTES: usize = 4 * COMMAND_BYTES;
/// Commands in one log entry. Entries are applied in one go until they have as many together: what a node works on at
/// once stays near the processor, and what else it has to do gets its turn.
pub const BATCH_COMMANDS: usize = 256;
/// Bytes of the commands in one log entry; one command may exceed it alone.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// Entries in flight besides which the proposer waits for a full one before it proposes the next.
pub const PROPOSALS_IN_FLIGHT: usize = 2;
/// Entries in flight besides which it proposes none.
pub const FULL_PROPOSALS_IN_FLIGHT: usize = 16;
/// How fast the time of the cluster goes while it is ahead of the leader's wall clock, which has been set back, in percent of
/// real time: fast enough that no timer waits much longer, and slow enough that the lead is lost again.
pub const CLOCK_SLEW_PERCENT: u128 = 90;
/// How far a node's wall clock may be behind the time of the cluster before its status says so.
pub const CLOCK_LEAD: Duration = Duration::from_secs(10);
/// From one round of keep-alives to the next: each asks a quorum whether the leader still leads, and no keep-alive is
/// in a hurry.
pub const KEEP_ALIVE_DISTANCE: Duration = Duration::from_millis(20);
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
/// Bytes of one answer on the client port: a listing may be longer than what a client sends.
pub const CLIENT_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of a snapshot file in one message of a backup.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;
/// Bytes of one record in an answer: two maps of metadata, the endpoints, and the other texts.
pub const RECORD_WIRE_BYTES: usize = 64 * 1024;
/// Bytes of one message on the peer port.
pub const PEER_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Bytes with which a message of answers to forwarded commands is full; the last of them may be longer.
pub const FORWARD_ANSWER_BYTES: usize = 1024 * 1024;
/// Deadline of a call whose client states none.
pub const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Greatest deadline that the server keeps.
pub const MAX_CALL_TIMEOUT: Duration = Duration::from_secs(300);

// ---- content of config items ----

/// Arrays and objects inside each other, in an item and in a schema.
pub const CONTENT_DEPTH: usize = 64;
/// Bytes by which the aliases of a YAML document may make it grow, 16 for each value besides its text.
pub const CONTENT_ALIAS_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of the automaton of one pattern in a schema.
pub const SCHEMA_PATTERN_BYTES: usize = 128 * 1024;
/// The same of all different patterns of a schema, each taken for as large as its class may be: 2, 8, 32 or
/// 128 KiB.
pub const SCHEMA_PATTERNS_BYTES: usize = 4 * 1024 * 1024;
/// Steps that checking an item against its schema may take, about a microsecond each at most: keywords that
/// are evaluated if everything must be tried, and bytes that patterns look at, more for larger patterns.
pub const SCHEMA_STEPS: u64 = 4_000_000;
/// Steps up to which all violations are collected, to say how many they are.
pub const SCHEMA_COUNTED_STEPS: u64 = 100_000;
/// Pairs of an array or object and a subschema that are remembered while the steps are counted: some 90 bytes
/// each.
pub const SCHEMA_PAIRS: usize = 500_000;
/// Subschemas that are evaluated inside each other: a bound of the stack.
pub const SCHEMA_EVALUATION_DEPTH: usize = 256;
/// Bytes of what is said about a violation.
pub const SCHEMA_MESSAGE_BYTES: usize = 512;
/// Lines of two texts together up to which their difference is looked for in the best way.
pub const DIFF_LINES: usize = 20_000;

// ---- listeners ----

/// HTTP/2 windows of the client port: bytes under way to the node on one stream and on one connection.
pub const SERVER_STREAM_WINDOW: u32 = 4 * 1024 * 1024;
pub const SERVER_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// The same for the peer port.
pub const PEER_STREAM_WINDOW: u32 = 8 * 1024 * 1024;
pub const PEER_CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Bytes that are gathered on a connection, ours of either side, until they are flushed, and room for them that an idle
/// one keeps.
pub const GATHER_BYTES: usize = 32 * 1024;
pub const GATHER_KEPT_BYTES: usize = 4 * 1024;
/// Calls, watches included, under way on one connection of a client's, and of a peer's.
pub const SERVER_CONCURRENT_STREAMS: u32 = 16_384;
pub const PEER_CONCURRENT_STREAMS: u32 = 1_024;
/// Bytes of the headers of one call.
pub const HEADER_BYTES: u32 = 16 * 1024;
/// A connection on which nothing arrives is probed this often and closed when the probe stays
/// unanswered for so long.
pub const SERVER_PROBE_INTERVAL: Duration = Duration::from_secs(10);
pub const SERVER_PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted on one listener.
pub const LISTEN_BACKLOG: u32 = 1_024;
/// From the signal to stop until the process ends, and how much of it running calls may take.
pub const SHUTDOWN: Duration = Duration::from_millis(4_500);
pub const SHUTDOWN_CALLS: Duration = Duration::from_millis(1_500);
/// How long the process then waits for threads that a disk holds up.
pub const SHUTDOWN_BLOCKED: Duration = Duration::from_millis(250);
/// What an operator may count on from the signal to the end of the process.
pub const STOP: Duration = Duration::from_secs(5);

/// Bytes of discovery's answers that a node keeps for whoever asks the same, and what each of them counts for
/// besides.
pub const DISCOVERY_ANSWERS_BYTES: usize = 64 * 1024 * 1024;
pub const DISCOVERY_ANSWER_OVERHEAD: usize = 512;

// ---- watch ----

/// Revisions, and their bytes, that a node keeps for resuming watchers.
pub const WATCH_RING_EVENTS: usize = 65_536;
pub const WATCH_RING_BYTES: usize = 64 * 1024 * 1024;
/// Messages that wait in one range for its slowest watcher before that one is cut off. One log entry
/// may bring as many as it has commands.
pub const WATCH_QUEUE: usize = 16_384;
/// Bytes that wait for watchers in all ranges of one node; beyond that those who are furthest behind are cut off, in
/// whatever range.
pub const WATCH_QUEUE_BYTES: usize = 256 * 1024 * 1024;
/// Bytes of the snapshots that watchers of one node are being sent; while there are more, a watch that begins with
/// another one longer than a message is refused as OVERLOADED.
pub const WATCH_SNAPSHOT_BYTES: usize = 1024 * 1024 * 1024;
/// Selectors of one range.
pub const WATCH_SELECTORS: usize = 32;
/// Watchers of one node.
pub const WATCHERS: usize = 100_000;
/// Events in one message of a watch snapshot.
pub const WATCH_SNAPSHOT_EVENTS: usize = 1_000;
/// Bytes of the events in one message of a watch.
pub const WATCH_MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// How often an idle watcher hears how far it is complete.
pub const WATCH_BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);

// ---- log ----

/// Bytes of one log segment, preallocated.
pub const WAL_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of one frame's payload in the log.
pub const WAL_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of an encoded vote, committed id or purged id in the log.
pub const WAL_ID_BYTES: usize = 1024;
/// Purged segments that are kept for reuse; more are deleted.
pub const WAL_SPARE_SEGMENTS: usize = 2;
/// Submissions, and their bytes, that wait for the log's thread; the submitter of more waits.
pub const WAL_QUEUE: usize = 4_096;
pub const WAL_QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of recent entries that stay in memory for replication and apply.
pub const LOG_TAIL_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of entries read at once for replication.
pub const LOG_READ_BYTES: usize = 1024 * 1024;
/// Free bytes on the data directory's file system below which a leader takes no writes, and from
/// which it takes them again.
pub const DISK_LOW_BYTES: u64 = 512 * 1024 * 1024;
pub const DISK_OK_BYTES: u64 = 768 * 1024 * 1024;

// ---- image and snapshots ----

/// A checkpoint is written when this much time has passed or this many bytes of log were applied. With random writes to many
/// records nearly each page of the image changes between two of them, so what one costs hardly falls with the interval,
/// and the bytes bound what a start has to replay onto a whole image.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);
pub const CHECKPOINT_LOG_BYTES: u64 = 1024 * 1024 * 1024;
/// Bytes of records that lie together in the image, as one value of sled.
pub const IMAGE_PAGE_BYTES: usize = 4 * 1024;
/// Bytes of one value in sled; longer ones are cut into chunks.
pub const IMAGE_CHUNK_BYTES: usize = 4 * 1024;
/// Bytes of sled's page cache, which it exceeds; the image is written through and read once.
pub const IMAGE_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes of records that the thread which reads them at a start hands at once to the one that makes the state, and how
/// many times that may wait for it.
pub const RESTORE_BATCH_BYTES: usize = 256 * 1024;
pub const RESTORE_BATCHES: usize = 2;
/// Rows that are handed to sled at once: until all of them are written it keeps what they replace, and for each up to
/// 17 rows that lie beside it.
pub const IMAGE_PART_ROWS: usize = 512;
/// Commands, reads of instances, and instances that are merged for the image or encoded for it, of which what they are
/// about is looked at at once.
pub const LOOK_AHEAD: usize = 32;
/// Damaged images that are kept for inspection, and damaged snapshot files.
pub const IMAGES_SET_ASIDE: usize = 2;
pub const SNAPSHOTS_SET_ASIDE: usize = 2;
/// Bytes of log after which the checkpointer is woken to see whether something is due.
pub const CHECKPOINT_WAKE_BYTES: u64 = 16 * 1024 * 1024;
/// Snapshots and installations that were asked of the checkpointer and are not begun; the next one is
/// refused.
pub const CHECKPOINT_REQUESTS: usize = 64;
/// Niceness of the checkpointer's thread.
pub const CHECKPOINT_NICE: i32 = 10;
/// Every node computes the digest of its state at the multiples of this index, and keeps the newest.
pub const DIGEST_ENTRIES: u64 = 100_000;
pub const DIGESTS_KEPT: usize = 16;
/// Records up to which a digest that is asked for is that of the state in memory.
pub const DIGEST_IN_MEMORY: u64 = 20_000;
/// What `--digest-entries` allows.
pub const DIGEST_ENTRIES_RANGE: std::ops::RangeInclusive<u64> = 10..=100_000_000;
/// Snapshot files that are kept.
pub const SNAPSHOTS_KEPT: usize = 2;
/// Bytes of a snapshot that a member must receive in a second, and write and verify.
pub const SNAPSHOT_SLOWEST_BYTES: u64 = 1024 * 1024;
/// Bytes of a snapshot file's header, that is of a cluster id, a log id and a membership.
pub const SNAPSHOT_HEADER_BYTES: usize = 64 * 1024;
/// Bytes of a snapshot file that another member may send.
pub const SNAPSHOT_FILE_BYTES: u64 = 256 * 1024 * 1024 * 1024;
/// Bytes of a snapshot file that are written between two syncs, so that the log never waits behind
/// one large writeback.
pub const SNAPSHOT_SYNC_BYTES: u64 = 8 * 1024 * 1024;
/// Free bytes that a snapshot longer than that leaves to the log. Far fewer than those below which writes are
/// refused: a snapshot is what lets the log become shorter.
pub const SNAPSHOT_RESERVE_BYTES: u64 = DISK_LOW_BYTES / 8;
/// How far a restored cluster's revisions are ahead of the backup's, unless somebody says otherwise. The old cluster
/// went on after it was made, by fewer revisions than this: so a revision that a client has seen there is never one
/// of the new history.
pub const RESTORE_REVISION_STEP: u64 = 1_000_000_000;
/// What `--bump-revision` allows.
pub const RESTORE_REVISION_STEP_RANGE: std::ops::RangeInclusive<u64> = 1..=1_000_000_000_000_000;
/// Bytes of a cluster's name.
pub const CLUSTER_ID_BYTES: usize = 128;
/// Bytes of one block of a snapshot file.
pub const SNAPSHOT_BLOCK_BYTES: usize = 256 * 1024;
/// Entries after which a snapshot is made, and entries that are kept behind it.
pub const SNAPSHOT_ENTRIES: u64 = 100_000;
pub const SNAPSHOT_KEEP_ENTRIES: u64 = 20_000;
/// Bytes of log after which a snapshot is made, however few entries they are; half of them are kept
/// behind it.
pub const SNAPSHOT_LOG_BYTES: u64 = 1024 * 1024 * 1024;
/// Bytes of log that what is applied may be ahead of such a snapshot: more, and a checkpoint comes first.
pub const SNAPSHOT_LACKS_BYTES: u64 = SNAPSHOT_LOG_BYTES / 2;
/// A follower that lacks the log of so many snapshots, by entries or by bytes, gets a snapshot and keeps the log from
/// being purged no longer. While the leader is low on disk it is each that lacks what may be purged.
pub const LAG_SNAPSHOTS: u64 = 4;

// ---- rebuilding a node from another ----

/// How often the leader compares the digests of the replicas.
pub const AUDIT_INTERVAL: Duration = Duration::from_secs(5);
/// A node that was rebuilt does not do it again for so long: it would not help, and a node that is
/// always rebuilding is one less.
pub const REBUILD_REST: Duration = Duration::from_secs(600);
/// A member that sends nothing for so long is given up: it may be making the file. One that is gone is
/// noticed by its connection.
pub const FETCH_SILENCE: Duration = Duration::from_secs(300);
/// Pause after a round in which no member sent a state; doubles up to the second.
pub const FETCH_AGAIN: Duration = Duration::from_secs(1);
pub const FETCH_AGAIN_MAX: Duration = Duration::from_secs(16);

// ---- consensus ----

pub const HEARTBEAT_MS: u64 = 100;
pub const ELECTION_MIN_MS: u64 = 250;
pub const ELECTION_MAX_MS: u64 = 400;
/// What `--heartbeat-ms` and `--election-*-ms` allow.
pub const HEARTBEAT_MS_RANGE: std::ops::RangeInclusive<u64> = 5..=10_000;
pub const ELECTION_MS_RANGE: std::ops::RangeInclusive<u64> = 10..=60_000;
/// What `--snapshot-entries` allows.
pub const SNAPSHOT_ENTRIES_RANGE: std::ops::RangeInclusive<u64> = 10..=100_000_000;
/// What `--worker-threads` allows.
pub const WORKER_THREADS: std::ops::RangeInclusive<u64> = 1..=64;
/// Numbers of nodes.
pub const NODE_IDS: std::ops::RangeInclusive<u64> = 1..=(i64::MAX as u64);
/// Nodes that a cluster remembers as its members, of now and of the past: a number is never used again.
pub const MEMBERS: usize = 100_000;
/// Members that a cluster begins with.
pub const INITIAL_MEMBERS: usize = 9;

// ---- client ----

/// How long a client tries to open one connection.
pub const CLIENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a client waits for one node before it sends a repeatable call to another one; doubles
/// with each round, so that a slow cluster is not asked for the same thing ever more often.
pub const CLIENT_ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Deadline of membership changes and of the wait for one message of a backup.
pub const CLIENT_ADMIN_TIMEOUT: Duration = Duration::from_secs(60);
/// A repeated call waits for a random time of at most the first, doubled each time up to the second.
pub const CLIENT_BACKOFF_MIN: Duration = Duration::from_millis(10);
pub const CLIENT_BACKOFF_MAX: Duration = Duration::from_millis(500);
/// A connection with calls under way is probed this often and given up when the probe stays
/// unanswered for so long: together how fast a dead node is noticed.
pub const CLIENT_PROBE_INTERVAL: Duration = Duration::from_secs(1);
pub const CLIENT_PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a client that writes asks the leader whether it still is, and how often at most it asks
/// every node who leads.
pub const CLIENT_LEADER_CHECK: Duration = Duration::from_secs(2);
pub const CLIENT_LEADER_SEARCH: Duration = Duration::from_millis(100);
/// How long a node that did not answer is asked last.
pub const CLIENT_SUSPECT: Duration = Duration::from_secs(1);
/// Nodes that one client knows, and connections that it keeps to each.
pub const CLIENT_NODES: usize = 64;
pub const CLIENT_CONNECTIONS: usize = 64;
/// HTTP/2 windows of a client: bytes under way to it on one stream and on one connection.
pub const CLIENT_STREAM_WINDOW: u32 = 4 * 1024 * 1024;
pub const CLIENT_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// How long a client sums up additions to counters, how many of them to one counter it does not hold back
/// any longer, and how many sums it has under way.
pub const CLIENT_COUNTER_INTERVAL: Duration = Duration::from_millis(200);
pub const CLIENT_COUNTER_ADDITIONS: u64 = 100_000;
pub const CLIENT_COUNTERS_UNDER_WAY: usize = 512;
/// Counters that a client keeps ready although nobody holds them.
pub const CLIENT_COUNTERS_KEPT: usize = 1_000;
/// Bytes of one frame of the session stream; one call may exceed it alone.
pub const STREAM_FRAME_BYTES: usize = 256 * 1024;
/// How long a session stream that moves to another node waits for the answers that are under way.
pub const STREAM_DRAIN: Duration = Duration::from_secs(1);
/// A watcher that hears nothing for so long looks for another node.
pub const WATCH_SILENCE: Duration = Duration::from_secs(30);
/// A watcher that only finds nodes which are behind what it saw gives up after this time.
pub const WATCH_BEHIND: Duration = Duration::from_secs(60);
/// How long who follows the cluster for good, a cache of configuration or a discovery, pauses at most after
/// the cluster or the disk has failed it.
pub const FOLLOW_AGAIN: Duration = Duration::from_secs(2);
/// How long a cache waits for more to report.
pub const CONFIG_REPORT_PAUSE: Duration = Duration::from_millis(50);

/// Changes of a service that come within so long of each other become one state of its discovery; the first
/// is not held up.
pub const DISCOVERY_PAUSE: Duration = Duration::from_millis(50);
/// How long a channel takes to open a connection to an instance, and how long after a failure it does not
/// try again: the first for each failure in a row twice as long, up to the second.
pub const CHANNEL_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
pub const CHANNEL_CONNECT_AGAIN: Duration = Duration::from_millis(100);
pub const CHANNEL_CONNECT_AGAIN_MAX: Duration = Duration::from_secs(2);
/// Bytes of a call that are kept so that it can be sent to another instance.
pub const CHANNEL_REPLAY_BYTES: usize = 64 * 1024;
/// How often a call that an instance may have begun with goes to another one, where that is allowed.
pub const CHANNEL_LOST_RETRIES: u32 = 2;
/// Calls under way of one channel.
pub const CHANNEL_CALLS: usize = 65_536;
/// Endpoints from which on the snapshots of a channel are made on a thread that may block.
pub const CHANNEL_APART: usize = 64;
/// How often at least the holder of a registration looks whether the instance is as it left it.
pub const REGISTRATION_CHECK: Duration = Duration::from_secs(5);
/// How often in a row it writes although somebody else was quicker, before it pauses.
pub const REGISTRATION_CONFLICTS: u32 = 8;
/// How often at least a client that waits for a lock, or holds one, reads who has it, besides watching.
pub const LOCK_RECHECK: Duration = Duration::from_secs(10);
/// How long a client that gives up waiting for a lock waits until its place is given up.
pub const LOCK_LEAVING: Duration = Duration::from_secs(1);
/// How long a client that waits for a global transaction lets one node tell it. A node that is cut off from the
/// others would not know.
pub const CLIENT_SAGA_WAIT: Duration = Duration::from_secs(5);
/// How often an optimistic transaction is tried by default.
pub const TRANSACTION_ATTEMPTS: u32 = 16;
/// After a conflict a transaction waits for a random time of at most the first, doubled each time up to
/// the second; not after the first conflict.
pub const TRANSACTION_BACKOFF_MIN: Duration = Duration::from_millis(2);
pub const TRANSACTION_BACKOFF_MAX: Duration = Duration::from_millis(250);
/// Bytes of what a transaction has read that its commit reads afresh when it conflicts; with more the
/// next attempt reads for itself. The cluster keeps the answer of a commit with an id until its client
/// has it.
pub const TRANSACTION_FRESH_BYTES: usize = 256 * 1024;

// ---- balancing ----

/// Points of an endpoint on a hash ring per unit of weight; the unit is the greatest power of two that is
/// no more than the least weight.
pub const BALANCE_POINTS: std::ops::RangeInclusive<u64> = 1..=10_000;
pub const DEFAULT_BALANCE_POINTS: u32 = 160;
/// Points of one ring, as in Envoy; a ring that would have more gets fewer per unit of weight.
pub const BALANCE_RING: std::ops::RangeInclusive<u64> = 1..=8_388_608;
/// Slots of a Maglev table, a prime number. When none is stated, it is the first of these that gives each
/// endpoint so many: few sizes, as another one moves nearly all keys.
pub const BALANCE_TABLE: std::ops::RangeInclusive<u64> = 2..=5_000_011;
pub const BALANCE_TABLES: [u32; 8] =
    [65_537, 131_101, 262_147, 524_309, 1_048_583, 2_097_169, 4_194_319, 5_000_011];
pub const BALANCE_TABLE_PER_ENDPOINT: u64 = 100;
/// Calls under way at one endpoint in percent of the average, where they are bounded.
pub const BALANCE_BOUND_PERCENT: std::ops::RangeInclusive<u64> = 101..=10_000;
pub const DEFAULT_BALANCE_BOUND_PERCENT: u32 = 125;
/// Endpoints of which the one with the least load is taken.
pub const BALANCE_CHOICES: std::ops::RangeInclusive<u64> = 2..=10;
pub const DEFAULT_BALANCE_CHOICES: u32 = 2;
/// After this time a latency counts 1/e of what it did.
pub const BALANCE_DECAY_MS: std::ops::RangeInclusive<u64> = 10..=3_600_000;
pub const DEFAULT_BALANCE_DECAY_MS: u64 = 10_000;
/// The latency that a call under way is taken to have at an endpoint that has not answered yet.
pub const BALANCE_UNKNOWN_LATENCY: Duration = Duration::from_secs(1);
/// Endpoints that one call may try.
pub const BALANCE_ATTEMPTS: usize = 16;
/// Random choices that may hit an endpoint which cannot be taken before all are looked at in turn.
pub const BALANCE_PROBES: u32 = 32;
/// Points of a ring that are passed in turn before that, and how often the same endpoint is drawn in vain
/// as a second choice.
pub const BALANCE_WALK: u32 = 1_024;
pub const BALANCE_REPEATS: u32 = 16;
/// Steps of one period of weighted round robin: so many for each endpoint when they do not suffice
/// for the weights as they are, at least the second and at most the third.
pub const BALANCE_PERIOD_PER_ENDPOINT: u64 = 64;
pub const BALANCE_PERIOD_LEAST: u64 = 65_536;
pub const BALANCE_PERIOD: u64 = 1_048_576;
/// Steps times endpoints up to which endpoints of the same weight are interleaved one by one.
pub const BALANCE_PERIOD_WORK: u64 = 4_194_304;
/// Endpoints of a subset.
pub const BALANCE_SUBSET: std::ops::RangeInclusive<u64> = 1..=(INSTANCES_PER_SERVICE as u64);
/// When less than this percentage of endpoints is available, availability is not asked for.
pub const DEFAULT_BALANCE_PANIC_PERCENT: u32 = 50;
/// A zone takes all of its calls while this percentage of its available endpoints is at least all of
/// its endpoints, as in Envoy.
pub const BALANCE_OVERPROVISIONING_PERCENT: u64 = 140;
/// How long a new endpoint takes to get its full share, and the percentage of it that it begins with.
pub const BALANCE_SLOW_START_MS: std::ops::RangeInclusive<u64> = 1..=3_600_000;
pub const BALANCE_SLOW_START_PERCENT: u64 = 10;
/// Ejection of outliers, by the defaults of gRFC A50: how often endpoints are compared, how long one is
/// ejected for each time that it was, and at most, and how many may be at once.
pub const EJECTION_MS: std::ops::RangeInclusive<u64> = 1..=86_400_000;
pub const DEFAULT_EJECTION_INTERVAL_MS: u64 = 10_000;
pub const DEFAULT_EJECTION_BASE_MS: u64 = 30_000;
pub const DEFAULT_EJECTION_MAX_MS: u64 = 300_000;
pub const DEFAULT_EJECTION_MAX_PERCENT: u32 = 10;
/// An endpoint is compared when it had so many calls in the interval, and when there are so many of them.
pub const EJECTION_COUNT: std::ops::RangeInclusive<u64> = 1..=1_000_000;
pub const DEFAULT_EJECTION_HOSTS: u32 = 5;
pub const DEFAULT_EJECTION_SUCCESS_RATE_CALLS: u32 = 100;
pub const DEFAULT_EJECTION_FAILURE_PERCENT_CALLS: u32 = 50;
/// It is ejected when its success rate is lower than the mean by more than so many thousandths of the
/// standard deviation, when more than this percentage of its calls failed, or so many in a row.
pub const EJECTION_STDEV_FACTOR: std::ops::RangeInclusive<u64> = 0..=100_000;
pub const DEFAULT_EJECTION_STDEV_FACTOR: u32 = 1_900;
pub const DEFAULT_EJECTION_FAILURE_PERCENT: u32 = 85;
pub const EJECTION_STREAK: std::ops::RangeInclusive<u64> = 0..=1_000_000;
pub const DEFAULT_EJECTION_STREAK: u32 = 5;

// ---- addresses ----

pub const DEFAULT_BASE_PORT: u16 = 7650;
/// Distance of the base ports of two nodes on one machine (`quorate dev`).
pub const DEV_PORT_STEP: u16 = 10;
/// Where the command line looks for a cluster: the three nodes of `quorate dev`.
pub const DEFAULT_ENDPOINTS: &str = "127.0.0.1:7650,127.0.0.1:7660,127.0.0.1:7670";

// ---- command line ----

/// How long the command of `quorate lock` may take to end when the lock is lost, before it is killed.
pub const LOCK_COMMAND_STOP: Duration = Duration::from_secs(10);
/// How long the nodes of `quorate dev` may take to stop before they are killed.
pub const DEV_STOP: Duration = Duration::from_secs(10);
/// Registrations that `service import` has under way at once, and items that `config import` has.
pub const IMPORT_IN_FLIGHT: usize = 16;
/// Keys of which `service spread` says where they go.
pub const SPREAD_KEYS: std::ops::RangeInclusive<u64> = 1..=10_000_000;
pub const DEFAULT_SPREAD_KEYS: u64 = 100_000;
/// Bytes of the manifest of an exported namespace.
pub const MANIFEST_BYTES: usize = 1024 * 1024 * 1024;
/// Bytes of a file name of an exported item; a longer one is shortened.
pub const EXPORT_NAME_BYTES: usize = 200;
/// How often a publication whose format is that of the current release is tried while others publish.
pub const PUBLISH_ATTEMPTS: usize = 8;

const _: () = {
    assert!(COMMAND_BYTES < PEER_MESSAGE_BYTES, "a command fits one peer message");
    // Between nodes a number takes eight bytes that takes one in a stored reply, and a variant four.
    assert!(9 * TXN_REPLY_BYTES + FORWARD_ANSWER_BYTES < PEER_MESSAGE_BYTES, "an answer fits");
    assert!(BATCH_BYTES + COMMAND_BYTES < WAL_FRAME_BYTES, "a batch fits one log frame");
    assert!((WAL_FRAME_BYTES as u64) * 2 <= WAL_SEGMENT_BYTES, "a frame fits one segment");
    assert!(WAL_QUEUE_BYTES >= WAL_FRAME_BYTES, "a frame fits the queue");
    assert!(PROPOSALS_IN_FLIGHT < FULL_PROPOSALS_IN_FLIGHT);
    assert!(FULL_PROPOSALS_IN_FLIGHT * (BATCH_BYTES + COMMAND_BYTES) <= WAL_QUEUE_BYTES);
    assert!(PEER_MESSAGE_BYTES > LOG_READ_BYTES + BATCH_BYTES + COMMAND_BYTES);
    assert!(SNAPSHOT_KEEP_ENTRIES < SNAPSHOT_ENTRIES);
    assert!(CHECKPOINT_WAKE_BYTES < CHECKPOINT_LOG_BYTES);
    assert!(SNAPSHOTS_KEPT >= 2, "a damaged snapshot leaves one to fall back to");
    assert!(ELECTION_MIN_MS >= 2 * HEARTBEAT_MS && ELECTION_MAX_MS > ELECTION_MIN_MS);
    assert!(DISK_OK_BYTES > DISK_LOW_BYTES);
    assert!(
        WATCH_QUEUE >= 2 * BATCH_COMMANDS,
        "an entry cuts nobody off who had read the last one"
    );
    assert!(WATCH_RING_EVENTS >= WATCH_QUEUE, "who is cut off may resume from the ring");
    assert!(WATCH_MESSAGE_BYTES < CLIENT_MESSAGE_BYTES);
    assert!(WEBHOOKS_OF_HOST < WEBHOOKS_UNDER_WAY, "a host that does not answer leaves room");
    assert!(METADATA_TOTAL_BYTES < COMMAND_BYTES);
    assert!(
        HEALTH_VERDICTS * (3 * NAME_BYTES + TEXT_BYTES + 64) < COMMAND_BYTES,
        "the verdicts of one command fit it"
    );
    assert!(DEFAULT_HEALTH_TIMEOUT_MS <= DEFAULT_HEALTH_INTERVAL_MS);
    assert!(
        *HEALTH_TIMEOUT_MS.start() <= *HEALTH_INTERVAL_MS.start(),
        "the shortest interval has a timeout"
    );
    assert!(HEALTH_SILENCE.as_millis() > 2 * HEALTH_BEAT.as_millis(), "one lost beat is none");
    assert!(
        CONFIG_VALUE_BYTES + METADATA_TOTAL_BYTES + CONFIG_GRAY_CLIENTS * (NAME_BYTES + 4) + 8192
            < COMMAND_BYTES,
        "content, labels, the clients of a rule and the rest fit one command"
    );
    assert!(
        CONFIG_VALUE_BYTES
            + CONFIG_GRAY_BYTES
            + CONFIG_GRAYS * (CONFIG_GRAY_CLIENTS * (NAME_BYTES + 4) + METADATA_TOTAL_BYTES + 8192)
            + METADATA_TOTAL_BYTES
            < RECORD_BYTES,
        "an item fits its record"
    );
    assert!(
        CONFIG_GRAY_BYTES
            + CONFIG_GRAYS * (CONFIG_GRAY_CLIENTS * (NAME_BYTES + 4) + METADATA_TOTAL_BYTES + 8192)
            < CONFIG_GRAY_RECORD_BYTES,
        "all that may be asked for in rules can be kept"
    );
    assert!(
        2 * COMMAND_BYTES + CONFIG_GRAY_RECORD_BYTES < RECORD_BYTES,
        "an item fits its record: content and labels of two commands, and the gray releases"
    );
    assert!(
        COMMAND_BYTES
            + SAGA_BYTES
            + SAGA_BRANCHES * (SAGA_RESULT_BYTES + SAGA_BRANCH_BYTES)
            + 2 * TEXT_BYTES
            + 1024
            < RECORD_BYTES,
        "a transaction fits its record: what it began with, its branches and what they answered"
    );
    assert!(SAGAS_FINISHED < SAGAS, "finished ones leave room");
    assert!(SAGAS_FINISHED_BYTES < SAGAS_BYTES, "finished ones leave room");
    assert!(SAGA_BYTES > SAGA_BRANCHES * (3 * SAGA_TARGET_BYTES + NAME_BYTES + SAGA_BRANCH_BYTES));
    assert!(SAGA_BYTES < COMMAND_BYTES, "what a transaction is made of fits one command");
    assert!(DEFAULT_SAGA_PAUSE_MS <= DEFAULT_SAGA_PAUSE_MAX_MS);
    assert!(TXN_REPLY_BYTES < RECORD_BYTES, "the reply to a transaction can be stored");
    assert!(CONFIG_VALUE_BYTES <= CONFIG_HISTORY_BYTES, "a release that was current is kept");
    assert!(
        2 * (METADATA_TOTAL_BYTES + 16 * METADATA_PAIRS)
            + ENDPOINTS * (NAME_BYTES + HOST_BYTES + 32)
            + 6 * (NAME_BYTES + TEXT_BYTES)
            + HEALTH_PATH_BYTES
            + HEALTH_HOST_BYTES
            < RECORD_WIRE_BYTES
    );
    assert!(
        CLIENT_ANSWER_BYTES > 2 * RECORD_WIRE_BYTES && CLIENT_ANSWER_BYTES > CLIENT_MESSAGE_BYTES
    );
    assert!(RECORD_WIRE_BYTES < WATCH_MESSAGE_BYTES);
    assert!(SHUTDOWN_CALLS.as_millis() < SHUTDOWN.as_millis());
    assert!(SHUTDOWN.as_millis() + SHUTDOWN_BLOCKED.as_millis() < STOP.as_millis());
    assert!(DEV_STOP.as_millis() > 2 * SHUTDOWN.as_millis(), "dev lets its nodes stop in order");
    assert!(STREAM_FRAME_BYTES < CLIENT_MESSAGE_BYTES, "a frame of the stream fits one message");
    assert!(STREAM_CALLS_IN_FLIGHT <= 1 << 16, "a call under way has a slot of 16 bits");
    assert!(TRANSACTION_FRESH_BYTES <= TXN_REPLY_BYTES / 2, "what is read afresh may have grown");
    assert!(CLIENT_COUNTERS_UNDER_WAY < SESSION_IN_FLIGHT);
    assert!(WATCH_SILENCE.as_millis() > 2 * WATCH_BOOKMARK_INTERVAL.as_millis());
    assert!(CLIENT_CONNECT_TIMEOUT.as_millis() < CLIENT_ATTEMPT_TIMEOUT.as_millis());
    assert!(
        *BALANCE_RING.end() < u32::MAX as u64,
        "positions on a ring and its owners are 32 bits"
    );
    assert!(*BALANCE_RING.end() >= INSTANCES_PER_SERVICE as u64, "everybody has a point");
    assert!(*BALANCE_TABLE.end() >= INSTANCES_PER_SERVICE as u64, "everybody has a slot");
    assert!(BALANCE_TABLES[BALANCE_TABLES.len() - 1] as u64 == *BALANCE_TABLE.end());
    assert!(BALANCE_PERIOD > INSTANCES_PER_SERVICE as u64, "everybody has a step");
};
