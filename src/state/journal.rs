//! What one command has written so far, and how it is taken back: a transaction whose third operation
//! is refused has already carried out the first two.

use super::memory::Tables;
use super::table::{Change, Key, Record};

/// One write to a table: what it became, and what it was.
#[derive(Debug)]
pub(super) struct Written {
    pub change: Change,
    /// None when there was no such record.
    pub before: Option<Record>,
}

/// The writes of one command, in order.
#[derive(Debug, Default)]
pub(super) struct Journal {
    changes: Vec<Change>,
    /// What was before each of them; None while the command cannot be taken back.
    before: Option<Vec<Option<Record>>>,
}

impl Written {
    pub fn put(key: Key, record: Record, before: Option<Record>) -> Written {
        let fresh = before.is_none();
        Written { change: Change { key, record: Some(record), fresh }, before }
    }

    pub fn removed(key: Key, before: Record) -> Written {
        Written { change: Change::new(key, None), before: Some(before) }
    }
}

impl Journal {
    pub fn push(&mut self, written: Written) {
        let Written { change, before } = written;
        self.changes.push(change);
        if let Some(kept) = &mut self.before {
            kept.push(before);
        }
    }

    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub fn into_changes(self) -> Vec<Change> {
        self.changes
    }

    /// What is written from here on can be taken back.
    pub fn begin(&mut self) {
        assert!(self.changes.is_empty(), "{} changes were made before", self.changes.len());
        self.before = Some(Vec::new());
    }

    /// What was written stays.
    pub fn commit(&mut self) {
        self.before = None;
    }

    /// Puts back what was before, the last write first. Afterwards the tables are as they were at
    /// [`Journal::begin`].
    pub fn take_back(&mut self, tables: &mut Tables) {
        let before = self.before.take().expect("a transaction begins its journal");
        assert_eq!(before.len(), self.changes.len(), "one record before each change");
        for (change, before) in self.changes.drain(..).zip(before).rev() {
            tables.put_back(change.key, before);
        }
    }
}

impl Extend<Written> for Journal {
    fn extend<I: IntoIterator<Item = Written>>(&mut self, writes: I) {
        for written in writes {
            self.push(written);
        }
    }
}
