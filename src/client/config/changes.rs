//! Changes of a cache's values for those who follow them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use futures::{Stream, stream};
use tokio::sync::Notify;

use super::{ConfigValue, Name, Shared};
use crate::client::remote::lock;

/// What became of one item.
#[derive(Debug, Clone)]
pub struct ConfigChange {
    pub group: String,
    pub key: String,
    /// As the follower knew it; None = there was none.
    pub before: Option<Arc<ConfigValue>>,
    /// None = it was deleted.
    pub after: Option<Arc<ConfigValue>>,
}

/// Follows the changes of a cache.
pub struct ConfigChanges {
    shared: Arc<Shared>,
    pending: Arc<Pending>,
}

#[derive(Default)]
pub(super) struct Subscribers {
    all: Vec<Weak<Pending>>,
    ended: bool,
}

#[derive(Default)]
struct Pending {
    queue: Mutex<Queue>,
    more: Notify,
}

/// Changes that a follower has not read, each item once. Invariant: it holds items that the follower
/// has seen or that exist now, so that however slow the follower is, it does not grow beyond them.
#[derive(Default)]
struct Queue {
    /// In the order in which they changed first.
    order: BTreeMap<u64, Name>,
    changes: BTreeMap<Name, (u64, ConfigChange)>,
    next: u64,
    ended: bool,
}

impl Queue {
    fn push(&mut self, before: Option<Arc<ConfigValue>>, after: Option<Arc<ConfigValue>>) {
        let Some(name) = before.as_ref().or(after.as_ref()).map(|value| value.name()) else {
            return;
        };
        if let Some((place, change)) = self.changes.get_mut(&name) {
            change.after = after;
            if change.before.is_none() && change.after.is_none() {
                self.order.remove(place);
                self.changes.remove(&name);
            }
            return;
        }
        let (group, key) = name.clone();
        let change = ConfigChange { group, key, before, after };
        self.order.insert(self.next, name.clone());
        self.changes.insert(name, (self.next, change));
        self.next += 1;
    }

    fn pop(&mut self) -> Option<ConfigChange> {
        let (_, name) = self.order.pop_first()?;
        self.changes.remove(&name).map(|(_, change)| change)
    }
}

impl Subscribers {
    pub fn tell(&mut self, before: Option<Arc<ConfigValue>>, after: Option<Arc<ConfigValue>>) {
        self.all.retain(|subscriber| {
            let Some(pending) = subscriber.upgrade() else { return false };
            lock(&pending.queue).push(before.clone(), after.clone());
            pending.more.notify_one();
            true
        });
    }

    /// Nothing will be told any more.
    pub fn end(&mut self) {
        self.ended = true;
        for pending in self.all.drain(..).filter_map(|pending| pending.upgrade()) {
            lock(&pending.queue).ended = true;
            pending.more.notify_one();
        }
    }
}

impl fmt::Debug for ConfigChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = lock(&self.pending.queue).order.len();
        f.debug_struct("ConfigChanges").field("waiting", &waiting).finish_non_exhaustive()
    }
}

impl ConfigChanges {
    pub(super) fn new(shared: Arc<Shared>) -> ConfigChanges {
        let pending = Arc::new(Pending::default());
        {
            let mut subscribers = lock(&shared.subscribers);
            let mut queue = lock(&pending.queue);
            for value in shared.all() {
                queue.push(None, Some(value));
            }
            queue.ended = subscribers.ended;
            drop(queue);
            if !subscribers.ended {
                subscribers.all.push(Arc::downgrade(&pending));
            }
        }
        ConfigChanges { shared, pending }
    }

    /// The next change; None when the cache has ended and all were read. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Option<ConfigChange> {
        loop {
            {
                let mut queue = lock(&self.pending.queue);
                if let Some(change) = queue.pop() {
                    if let Some(value) = &change.after {
                        self.shared.hand_out(value);
                    }
                    return Some(change);
                }
                if queue.ended {
                    return None;
                }
            }
            self.pending.more.notified().await;
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = ConfigChange> + Send {
        stream::unfold(self, |mut changes| async move {
            let change = changes.next().await?;
            Some((change, changes))
        })
    }
}
