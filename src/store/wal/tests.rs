//! The log against a model that remembers every state it went through.
//!
//! Rule of all crash tests: what is found after a crash is the state behind some write, not before
//! the last acknowledged one and not after the last staged one. `History::check` says so or says
//! why not, so that the tests with planted bugs can ask for the contrary.

#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
mod driver;
mod segments;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::store::fault::{Chance, Crash, FaultDisk, Faults};

const SEGMENT_BYTES: u64 = 8 * 1024;

fn options(create: bool) -> WalOptions {
    WalOptions { segment_bytes: SEGMENT_BYTES, create, log_id: 0x5eed }
}

fn open(disk: &FaultDisk) -> Result<(WalCore, Recovered), OpenError> {
    WalCore::open(disk.handle(), options(false))
}

fn create(disk: &FaultDisk) -> WalCore {
    WalCore::open(disk.handle(), options(true)).unwrap().0
}

fn entry(index: u64, payload: impl Into<Vec<u8>>) -> Write {
    Write::Entry { index, payload: Bytes::from(payload.into()) }
}

fn vote(text: &str) -> Write {
    Write::Vote(Bytes::copy_from_slice(text.as_bytes()))
}

fn truncate(last: u64) -> Write {
    Write::TruncateAfter { last: Some(last) }
}

fn purged(index: u64) -> Write {
    Write::Purged { index, log_id: Bytes::from(format!("id {index}")) }
}

/// What a log holds, but for the lazy committed id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    vote: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    entries: BTreeMap<u64, Bytes>,
}

impl State {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Vote(vote) => self.vote = Some(vote.clone()),
            Write::Committed(_) => {}
            Write::Entry { index, payload } => {
                self.entries.insert(*index, payload.clone());
            }
            Write::TruncateAfter { last } => {
                self.entries.retain(|index, _| last.is_some_and(|last| *index <= last));
            }
            Write::Purged { index, log_id } => {
                self.purged = Some((*index, log_id.clone()));
                self.entries.retain(|at, _| at > index);
            }
        }
    }

    fn next(&self) -> u64 {
        let last = self.entries.keys().next_back().copied();
        last.max(self.purged.as_ref().map(|(index, _)| *index)).map_or(1, |last| last + 1)
    }

    /// Through the reader: what the log says it holds.
    fn of(core: &WalCore, recovered: &Recovered) -> io::Result<State> {
        let mut entries = BTreeMap::new();
        let reader = core.reader();
        if let Some((first, last)) = reader.bounds() {
            assert_eq!((Some(first), Some(last)), (recovered.first, recovered.last));
            entries.extend(reader.read(first..last + 1, usize::MAX)?);
            assert_eq!(entries.len() as u64, last + 1 - first);
        } else {
            assert_eq!((recovered.first, recovered.last), (None, None));
        }
        let Recovered { vote, purged, .. } = recovered.clone();
        Ok(State { vote, purged, entries })
    }
}

/// All states that a log went through, the first one empty.
#[derive(Debug, Clone)]
struct History {
    states: Vec<State>,
    /// The last acknowledged state.
    acked: usize,
    /// Committed ids count up; the one that must at least, and may at most, be found.
    committed: (u64, u64),
    created: bool,
}

impl History {
    fn new() -> History {
        History { states: vec![State::default()], acked: 0, committed: (0, 0), created: false }
    }

    fn last(&self) -> &State {
        &self.states[self.states.len() - 1]
    }

    fn stage(&mut self, core: &mut WalCore, write: &Write) -> io::Result<()> {
        let mut next = self.last().clone();
        next.apply(write);
        if let Write::Committed(id) = write {
            self.committed.1 = number(id);
        }
        // Known before the call: what fails half-way may still reach the disk.
        self.states.push(next);
        core.stage(write)
    }

    fn commit(&mut self, core: &mut WalCore) -> io::Result<()> {
        core.commit()?;
        self.acked = self.states.len() - 1;
        Ok(())
    }

    fn group(&mut self, core: &mut WalCore, writes: &[Write]) -> io::Result<()> {
        for write in writes {
            self.stage(core, write)?;
        }
        self.commit(core)?;
        // Only another write takes the committed id along.
        if writes.iter().any(|write| !matches!(write, Write::Committed(_))) {
            self.committed.0 = self.committed.1;
        }
        Ok(())
    }

    /// Opens the log and compares. Goes on from what was found.
    fn check(&mut self, disk: &FaultDisk) -> Result<WalCore, String> {
        let options = options(!self.created);
        let (core, recovered) =
            WalCore::open(disk.handle(), options).map_err(|error| error.to_string())?;
        self.created = true;
        let found = State::of(&core, &recovered).map_err(|error| error.to_string())?;
        let committed = recovered.committed.as_ref().map_or(0, number);
        if !(self.committed.0..=self.committed.1).contains(&committed) {
            return Err(format!("committed {committed}, not in {:?}", self.committed));
        }
        self.committed = (committed, committed);
        let at = (self.acked..self.states.len()).find(|at| self.states[*at] == found);
        let at = at.ok_or_else(|| {
            let (acked, last) = (&self.states[self.acked], self.last());
            format!("found {found:?}\nacknowledged {acked:?}\nlast staged {last:?}")
        })?;
        self.states = vec![self.states[at].clone()];
        self.acked = 0;
        Ok(core)
    }
}

fn number(id: &Bytes) -> u64 {
    u64::from_le_bytes(id[..8].try_into().unwrap())
}

/// Random writes that follow from the state, with payloads of all sizes.
struct Script {
    chance: Chance,
    committed: u64,
}

impl Script {
    fn new(seed: u64) -> Script {
        Script { chance: Chance(seed), committed: 0 }
    }

    fn write(&mut self, state: &State) -> Write {
        let next = state.next();
        let floor = state.purged.as_ref().map_or(0, |(index, _)| *index);
        match self.chance.below(20) {
            0 | 1 => vote(&format!("vote {}", self.chance.next())),
            2 | 3 => {
                self.committed += 1;
                Write::Committed(Bytes::copy_from_slice(&self.committed.to_le_bytes()))
            }
            4 if next > floor + 1 => {
                let last = floor + self.chance.below((next - floor) as usize) as u64;
                if last == 0 { Write::TruncateAfter { last: None } } else { truncate(last) }
            }
            5 if next > floor + 1 => {
                purged(floor + 1 + self.chance.below((next - floor - 1) as usize) as u64)
            }
            // A snapshot from elsewhere.
            6 if self.chance.below(4) == 0 => purged(next + 3),
            _ => {
                let len = match self.chance.below(8) {
                    0 => 0,
                    7 => 700 + self.chance.below(2500),
                    _ => self.chance.below(200),
                };
                let byte = self.chance.next() as u8;
                entry(next, vec![byte; len])
            }
        }
    }

    /// Groups of writes with what a driver does between them, until the disk fails or it is enough.
    fn run(&mut self, history: &mut History, core: &mut WalCore, groups: usize) -> io::Result<()> {
        for _ in 0..groups {
            let mut state = history.last().clone();
            let writes: Vec<Write> = (0..1 + self.chance.below(4))
                .map(|_| {
                    let write = self.write(&state);
                    state.apply(&write);
                    write
                })
                .collect();
            history.group(core, &writes)?;
            if self.chance.below(3) == 0 {
                core.seal()?;
            }
            // Sometimes the job is late or never run.
            if self.chance.below(3) > 0
                && let Some(job) = core.job()
            {
                job.run();
            }
        }
        Ok(())
    }
}
