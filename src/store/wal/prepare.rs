//! Work beside the stream: preparing the next segment, and reusing or deleting purged ones.
//!
//! The core offers a [`Job`]; whoever drives the core runs it, on another thread or at once. When
//! the next segment is needed and the job has not been run, the core runs it itself; when it is
//! being run, the core waits for it. So there is one preparation at a time, and none is done twice.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::segment::{self, Segment, Shape};
use crate::limits;
use crate::store::disk::Disk;

/// A segment whose entries are purged.
#[derive(Debug)]
pub(super) struct Retired {
    pub number: u64,
    pub bytes: u64,
    /// No reader holds it, so its bytes may be overwritten.
    pub reusable: bool,
}

#[derive(Debug)]
pub(super) struct Work {
    pub disk: Arc<dyn Disk>,
    pub shape: Shape,
    /// Names of spare files.
    pub pool: Vec<String>,
    /// Ascending: after a power loss those that are left still follow each other without a gap.
    pub retired: Vec<Retired>,
    /// Number of the segment to prepare.
    pub number: Option<u64>,
    /// Bytes of all files of the log.
    pub bytes: Arc<AtomicU64>,
}

#[derive(Debug)]
pub(super) struct Outcome {
    pub pool: Vec<String>,
    /// None when none was asked for. `StorageFull` when there was no space for a new file, which has
    /// left everything as it was; any other error leaves the disk in doubt.
    pub prepared: io::Result<Option<Segment>>,
}

impl Work {
    pub fn run(mut self) -> Outcome {
        let prepared = self.retire().map_err(in_doubt).and_then(|()| self.prepare());
        Outcome { pool: self.pool, prepared }
    }

    fn retire(&mut self) -> io::Result<()> {
        for segment in &self.retired {
            let name = segment::name(segment.number);
            let spare = segment::spare_name(segment.number);
            // A crash between a spare's creation and its use leaves one under the number that it was
            // made for, and another file may have taken that number.
            let keep = segment.reusable
                && segment.bytes == self.shape.bytes
                && self.pool.len() < limits::WAL_SPARE_SEGMENTS
                && !self.pool.contains(&spare);
            if keep {
                self.disk.rename(&name, &spare)?;
                self.pool.push(spare);
            } else {
                self.disk.remove(&name)?;
                self.bytes.fetch_sub(segment.bytes, Ordering::Relaxed);
            }
            // Each on its own: a power loss must not keep a lower one and lose a higher one.
            self.disk.sync_dir()?;
        }
        Ok(())
    }

    fn prepare(&mut self) -> io::Result<Option<Segment>> {
        let Some(number) = self.number else { return Ok(None) };
        let disk = &*self.disk;
        let spare = match self.pool.pop() {
            Some(spare) => spare,
            None => {
                let spare = segment::spare_name(number);
                if let Err(error) = segment::create_spare(disk, &spare, self.shape.bytes) {
                    // Gives the space back; a leftover is removed when the log is next opened.
                    let _ = disk.remove(&spare);
                    return Err(error);
                }
                self.bytes.fetch_add(self.shape.bytes, Ordering::Relaxed);
                spare
            }
        };
        Segment::prepare(disk, &spare, &self.shape, number).map(Some).map_err(in_doubt)
    }
}

/// Only a file that is not part of the log yet may run out of space without harm.
fn in_doubt(error: io::Error) -> io::Error {
    io::Error::other(error)
}

#[derive(Debug)]
enum Stage {
    Idle,
    Offered(Work),
    Running,
    Done(Outcome),
}

/// Where the core and the job meet.
#[derive(Debug)]
pub(super) struct Slot {
    stage: Mutex<Stage>,
    done: Condvar,
}

impl Slot {
    pub fn new() -> Arc<Slot> {
        Arc::new(Slot { stage: Mutex::new(Stage::Idle), done: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_idle(&self) -> bool {
        matches!(*self.lock(), Stage::Idle)
    }

    pub fn offer(self: &Arc<Self>, work: Work) -> Job {
        let mut stage = self.lock();
        assert!(matches!(*stage, Stage::Idle), "one job at a time");
        *stage = Stage::Offered(work);
        Job { slot: Arc::clone(self) }
    }

    /// What a finished job has brought; None when there is none.
    pub fn collect(&self) -> Option<Outcome> {
        let mut stage = self.lock();
        match std::mem::replace(&mut *stage, Stage::Idle) {
            Stage::Done(outcome) => Some(outcome),
            other => {
                *stage = other;
                None
            }
        }
    }

    /// Like [`Slot::collect`], but runs a job that nobody has begun and waits for one under way.
    pub fn complete(&self) -> Option<Outcome> {
        self.run();
        let mut stage = self.lock();
        while matches!(*stage, Stage::Running) {
            stage = self.done.wait(stage).unwrap_or_else(PoisonError::into_inner);
        }
        drop(stage);
        self.collect()
    }

    fn run(&self) {
        let mut stage = self.lock();
        let work = match std::mem::replace(&mut *stage, Stage::Running) {
            Stage::Offered(work) => work,
            other => {
                *stage = other;
                return;
            }
        };
        drop(stage);
        let finish = Finish { slot: self, pool: work.pool.clone() };
        let outcome = work.run();
        finish.with(outcome);
    }
}

/// Ends the running stage even when the disk panics: the core may be waiting.
struct Finish<'a> {
    slot: &'a Slot,
    pool: Vec<String>,
}

impl Finish<'_> {
    fn with(self, outcome: Outcome) {
        *self.slot.lock() = Stage::Done(outcome);
    }
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut stage = self.slot.lock();
        if matches!(*stage, Stage::Running) {
            let prepared = Err(io::Error::other("the preparation of a segment panicked"));
            let pool = std::mem::take(&mut self.pool);
            *stage = Stage::Done(Outcome { pool, prepared });
        }
        self.slot.done.notify_all();
    }
}

/// Prepares the next segment and clears purged ones away. Blocks: run it off the hot path, or drop
/// it and let the core do it when it must. The core notices the result by itself.
#[derive(Debug)]
#[must_use = "nothing is prepared until the job is run"]
pub struct Job {
    slot: Arc<Slot>,
}

impl Job {
    pub fn run(self) {
        self.slot.run();
    }
}
