//! What the engine can do now, for whoever watches over it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A model that couldn't be loaded counts for this long: then the next request may find its file repaired.
const FAILED_FOR: Duration = Duration::from_secs(60);

/// What the engine can do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It answers, or would.
    Ready,
    /// A model is being brought into memory.
    Loading,
    /// A model could not be brought into memory less than a minute ago, and none is there.
    LoadFailed,
    /// A thread of the engine ended by a bug: nothing is answered here until the program is started anew.
    Died,
}

/// How many requests the engine has, of how many that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Answers that may be written at the same time.
    pub slots: usize,
    /// Slots that are taken.
    pub slots_busy: usize,
    /// Requests that may wait for a slot.
    pub most_waiting: usize,
    /// Requests that wait for one.
    pub waiting: usize,
}

/// What the threads note of themselves.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    has_died: AtomicBool,
    load: Mutex<Load>,
    pub(crate) slots: AtomicUsize,
    pub(crate) most_waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Load {
    is_running: bool,
    failed_at: Option<Instant>,
}

/// Notes the death of the thread that holds it.
pub(crate) struct NotesDeath<'a>(pub(crate) &'a Notes);

impl Drop for NotesDeath<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.has_died.store(true, Ordering::Relaxed);
        }
    }
}

/// A model is being loaded for as long as this lives.
pub(crate) struct Loading<'a>(&'a Notes);

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.0.load().is_running = false;
    }
}

impl Notes {
    pub(crate) fn set_capacity(&self, slots: usize, most_waiting: usize) {
        self.slots.store(slots.max(1), Ordering::Relaxed);
        self.most_waiting.store(most_waiting, Ordering::Relaxed);
    }

    pub(crate) fn begin_loading(&self) -> Loading<'_> {
        self.load().is_running = true;
        Loading(self)
    }

    pub(crate) fn note_load(&self, succeeded: bool) {
        self.load().failed_at = (!succeeded).then(Instant::now);
    }

    /// `has_model`: whether one is in memory.
    pub(crate) fn condition(&self, has_model: bool) -> Condition {
        let load = self.load();
        let failed = load.failed_at.is_some_and(|at| at.elapsed() < FAILED_FOR);
        match () {
            () if self.has_died.load(Ordering::Relaxed) => Condition::Died,
            () if load.is_running => Condition::Loading,
            () if failed && !has_model => Condition::LoadFailed,
            () => Condition::Ready,
        }
    }

    /// `requests`: those that wait and those that are answered.
    pub(crate) fn occupancy(&self, requests: usize) -> Occupancy {
        let slots = self.slots.load(Ordering::Relaxed);
        let slots_busy = requests.min(slots);
        let most_waiting = self.most_waiting.load(Ordering::Relaxed);
        Occupancy { slots, slots_busy, most_waiting, waiting: requests - slots_busy }
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
