//! A watcher sees every change of its range, once, in order, all of one revision at once; across
//! nodes, restarts and installed snapshots. What it puts together is the state.

use std::collections::BTreeMap;

use quorate::state::{Change, Key, Record};
use quorate::watch::{Kind, Range};

use super::Oracle;

/// What one watcher knows.
#[derive(Debug)]
pub struct View {
    pub range: Range,
    /// Complete up to this revision.
    pub complete: u64,
    records: BTreeMap<Key, Record>,
    /// The part of a snapshot that has arrived.
    arriving: Option<BTreeMap<Key, Record>>,
}

impl View {
    pub fn new(range: Range) -> View {
        View { range, complete: 0, records: BTreeMap::new(), arriving: None }
    }

    /// The connection is gone, and with it what of a snapshot has arrived.
    pub fn disconnected(&mut self) {
        self.arriving = None;
    }
}

impl Oracle {
    /// A watcher got a message.
    pub fn watched(&mut self, view: &mut View, revision: u64, kind: Kind, events: &[Change]) {
        self.counts.watch_messages += 1;
        let together = self.pair_is_seen_together(kind, events);
        let result = together.and_then(|()| self.follows(view, revision, kind, events));
        let range = &view.range;
        self.check(result.map_err(|why| format!("a watcher of {range:?}: {why}")));
    }

    fn follows(
        &mut self,
        view: &mut View,
        revision: u64,
        kind: Kind,
        events: &[Change],
    ) -> Result<(), String> {
        if revision > self.history.revision {
            return Err(format!("revision {revision} is not applied anywhere"));
        }
        if revision < view.complete {
            return Err(format!("revision {revision} came after {}", view.complete));
        }
        if view.arriving.is_some() && !matches!(kind, Kind::Snapshot { .. }) {
            return Err(format!("{kind:?} in the middle of a snapshot"));
        }
        let missed = self.history.within(&view.range, view.complete, revision);
        match kind {
            Kind::Snapshot { more } => {
                let arriving = view.arriving.get_or_insert_default();
                for change in events {
                    let Some(record) = &change.record else {
                        return Err(format!("a snapshot removes {:?}", change.key));
                    };
                    if arriving.insert(change.key.clone(), record.clone()).is_some() {
                        return Err(format!("{:?} is in a snapshot twice", change.key));
                    }
                }
                if more {
                    return Ok(());
                }
                self.counts.watch_snapshots += 1;
                view.records = view.arriving.take().unwrap_or_default();
                let expected = self.history.range_at(&view.range, revision);
                if view.records != expected {
                    return Err(format!(
                        "the snapshot of revision {revision} holds {:?}, the state held {:?}",
                        view.records.keys(),
                        expected.keys()
                    ));
                }
            }
            Kind::Changes => {
                let changes = events.to_vec();
                if missed != [(revision, changes)] {
                    let missed: Vec<u64> = missed.iter().map(|(revision, _)| *revision).collect();
                    return Err(format!(
                        "after {} it got revision {revision}, changes were made at {missed:?}",
                        view.complete
                    ));
                }
                for change in events {
                    match &change.record {
                        Some(record) => view.records.insert(change.key.clone(), record.clone()),
                        None => view.records.remove(&change.key),
                    };
                }
            }
            Kind::Bookmark => {
                if !missed.is_empty() {
                    return Err(format!(
                        "a bookmark at {revision} after {}, between them {missed:?}",
                        view.complete
                    ));
                }
            }
        }
        view.complete = revision;
        Ok(())
    }

    /// At the end: the watcher has caught up.
    pub fn watched_all(&mut self, view: &View) {
        let missed = self.history.within(&view.range, view.complete, u64::MAX - 1);
        if !missed.is_empty() {
            self.violated(format!(
                "a watcher of {:?} ends at revision {} and never saw {missed:?}",
                view.range, view.complete
            ));
        } else if view.records != self.history.range_at(&view.range, u64::MAX) {
            self.violated(format!("a watcher of {:?} ends with another state", view.range));
        }
    }
}
