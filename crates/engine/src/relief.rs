use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use chat::Bytes;

/// By what means tokens are guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guesses {
    /// Each token takes a pass of its own.
    None = 0,
    /// By what was written before.
    Lookup = 1,
    /// By a smaller model, where one is named.
    Draft = 2,
    /// By what was written before, and where that says nothing by the smaller model.
    All = 3,
}

/// What running answers are asked to put up with while the machine is in trouble, and what could be given back.
#[derive(Debug)]
pub(crate) struct Relief {
    /// Bits of an `f64`; 0 is none.
    pace: AtomicU64,
    /// Tokens of prompt and answer; `usize::MAX` is none.
    cap: AtomicUsize,
    guesses: AtomicU8,
    idle_caches: AtomicU64,
    caches: AtomicU64,
}

impl Default for Relief {
    fn default() -> Self {
        Self {
            pace: AtomicU64::new(0),
            cap: AtomicUsize::new(usize::MAX),
            guesses: AtomicU8::new(Guesses::All as u8),
            idle_caches: AtomicU64::new(0),
            caches: AtomicU64::new(0),
        }
    }
}

impl Relief {
    /// Each answer gets no more tokens per second than these.
    pub(crate) fn set_pace(&self, tokens_per_sec: Option<f64>) {
        let pace = tokens_per_sec.filter(|pace| pace.is_finite() && *pace > 0.0).unwrap_or(0.0);
        self.pace.store(pace.to_bits(), Ordering::Relaxed);
    }

    /// What a step takes at least.
    pub(crate) fn step(&self) -> Option<Duration> {
        let pace = f64::from_bits(self.pace.load(Ordering::Relaxed));
        // Whatever was asked for, a step is over within a second.
        (pace > 0.0).then(|| Duration::from_secs_f64((1.0 / pace).min(1.0)))
    }

    pub(crate) fn set_guesses(&self, guesses: Guesses) {
        self.guesses.store(guesses as u8, Ordering::Relaxed);
    }

    /// Whether tokens are guessed `by` this means: not while each is to take its time.
    pub(crate) fn guesses(&self, by: Guesses) -> bool {
        self.guesses.load(Ordering::Relaxed) & by as u8 != 0 && self.step().is_none()
    }

    pub(crate) fn set_cap(&self, tokens: Option<usize>) {
        self.cap.store(tokens.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    pub(crate) fn cap(&self) -> usize {
        self.cap.load(Ordering::Relaxed)
    }

    /// What all caches take, and those of them that no answer is written with.
    pub(crate) fn set_caches(&self, all: Bytes, idle: Bytes) {
        self.caches.store(all.0, Ordering::Relaxed);
        self.idle_caches.store(idle.0, Ordering::Relaxed);
    }

    pub(crate) fn caches(&self) -> Bytes {
        Bytes(self.caches.load(Ordering::Relaxed))
    }

    pub(crate) fn idle_caches(&self) -> Bytes {
        Bytes(self.idle_caches.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_the_least_time_of_a_step() {
        let relief = Relief::default();
        assert_eq!(relief.step(), None);
        relief.set_pace(Some(8.0));
        assert_eq!(relief.step(), Some(Duration::from_millis(125)));
        relief.set_pace(Some(1e-300));
        assert_eq!(relief.step(), Some(Duration::from_secs(1)));
        for none in [None, Some(0.0), Some(f64::NAN), Some(-1.0), Some(f64::INFINITY)] {
            relief.set_pace(none);
            assert_eq!(relief.step(), None, "{none:?}");
        }
    }
}
