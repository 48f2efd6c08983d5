//! How far a measurement is, which all threads that make load look at.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Only calls that end in `Measure` count; in `Stop` none begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    WarmUp = 0,
    Measure = 1,
    Stop = 2,
}

/// What all threads share.
#[derive(Debug, Default)]
pub struct Shared {
    phase: AtomicU8,
    /// Calls that ended since the measurement began.
    pub done: AtomicU64,
    /// Threads that are ready to begin.
    pub ready: AtomicUsize,
    started: AtomicBool,
    begin: Notify,
}

impl Shared {
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Lets those that wait begin.
    pub fn start(&self) {
        self.started.store(true, Ordering::Release);
        self.begin.notify_waiters();
    }

    pub async fn wait_for_start(&self) {
        let begin = self.begin.notified();
        tokio::pin!(begin);
        begin.as_mut().enable();
        if !self.started.load(Ordering::Acquire) {
            begin.await;
        }
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::WarmUp,
            1 => Phase::Measure,
            _ => Phase::Stop,
        }
    }
}
