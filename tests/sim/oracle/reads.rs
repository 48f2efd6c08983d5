//! A linearizable read sees every write acknowledged before it began, and what any such read has seen
//! before; every read, a stale one too, sees the state as it was at one revision.

use quorate::state::{Key, Record};

use super::Oracle;

impl Oracle {
    /// A client has read a record in a state of this revision. `floor` is what clients knew when
    /// the read began; None for a stale read.
    pub fn read(&mut self, floor: Option<u64>, revision: u64, key: &Key, found: Option<&Record>) {
        match floor {
            Some(floor) => {
                self.counts.reads += 1;
                if revision < floor {
                    self.violated(format!(
                        "a linearizable read of {key:?} saw revision {revision}; {floor} was known \
                         when it began"
                    ));
                }
                self.seen(revision);
            }
            None => self.counts.stale_reads += 1,
        }
        let expected = self.history.at(key, revision);
        if found != expected {
            let what =
                format!("a read at revision {revision} found {found:?}, there was {expected:?}");
            self.violated(what);
        }
    }
}
