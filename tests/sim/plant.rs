//! Bugs that are planted on purpose, each behind a seam that production code has anyway: a checker is
//! believed after it has caught one.

/// What is wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// Nothing.
    None,
    /// The log says that a write is durable before it is synced.
    AckBeforeSync,
    /// Syncs of the log's disk do nothing.
    SyncIgnored,
    /// The log acknowledges votes and does not write them.
    VoteLost,
    /// A follower reads without asking the leader for a read index.
    ReadWithoutIndex,
    /// A retried write comes under a new id, as if none were remembered.
    RetryForgotten,
    /// A snapshot loses the stored replies when it is installed.
    RepliesLostInSnapshot,
    /// A follower answers keep-alives itself.
    KeepAliveNotForwarded,
    /// A watcher resumes one revision too late.
    WatchSkips,
    /// A client adds again to a counter, without an id, when it does not know whether it has.
    AddRepeated,
    /// A client that waits for a lock believes that it holds it.
    QueuedIsHeld,
    /// A publication is carried out whatever version there is.
    CompareIgnored,
    /// A watcher gets the changes of one revision in two messages.
    WatchSplits,
    /// A participant that fails is called again at once, under the next attempt, before that is recorded.
    CallUnrecorded,
    /// Each attempt has an idempotency key of its own.
    KeyOfAttempt,
    /// Whoever does not answer a call is taken for having refused it.
    SilenceIsRefusal,
    /// A participant that is at it is taken for done.
    OngoingIsDone,
    /// What a call was answered too late, or after its leader was deposed, counts for the one under way.
    LateIsHeard,
    /// A new leader does not make the calls that an earlier one has begun.
    TakeoverForgotten,
}

impl Plant {
    pub const ALL: [Plant; 19] = [
        Plant::None,
        Plant::AckBeforeSync,
        Plant::SyncIgnored,
        Plant::VoteLost,
        Plant::ReadWithoutIndex,
        Plant::RetryForgotten,
        Plant::RepliesLostInSnapshot,
        Plant::KeepAliveNotForwarded,
        Plant::WatchSkips,
        Plant::AddRepeated,
        Plant::QueuedIsHeld,
        Plant::CompareIgnored,
        Plant::WatchSplits,
        Plant::CallUnrecorded,
        Plant::KeyOfAttempt,
        Plant::SilenceIsRefusal,
        Plant::OngoingIsDone,
        Plant::LateIsHeard,
        Plant::TakeoverForgotten,
    ];
}
