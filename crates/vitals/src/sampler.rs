use std::time::{Instant, SystemTime};

use crate::readings::Readings;
use crate::recording::{Recording, RecordingError};
use crate::snapshot::Snapshot;
use crate::sys::{self, SystemProbe};

/// Takes samples of the machine it runs on. Rates are between two samples of one sampler.
#[derive(Debug)]
pub struct Sampler {
    probe: SystemProbe,
    started: Instant,
    before: Option<Readings>,
    unavailable: Vec<(&'static str, String)>,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

impl Sampler {
    /// A sampler that has not sampled yet. Takes no reading.
    pub fn new() -> Self {
        Self { probe: SystemProbe::new(), started: Instant::now(), before: None, unavailable: Vec::new() }
    }

    /// Takes every reading there is. Blocks for a few milliseconds at most and never fails: what can't be read is
    /// `None`, and [`unavailable`](Self::unavailable) says why.
    pub fn sample(&mut self) -> Snapshot {
        let at = SystemTime::now();
        let readings = sys::parse(&self.probe.read_raw(self.started.elapsed()));
        let (snapshot, unavailable) = readings.clone().snapshot(at, self.before.as_ref());
        self.before = Some(readings);
        self.unavailable = unavailable;
        snapshot
    }

    /// The raw readings of this moment as text, for a bug report that becomes a test: [`replay`] reads it. Holds no
    /// file names, no user names and nothing of other programs.
    pub fn raw(&mut self) -> String {
        self.probe.read_raw(self.started.elapsed()).to_text()
    }

    /// Each reading that the latest sample lacks, by the name of its field (`swap.in_per_sec`), and why. A missing
    /// `memory.limit` is not listed: no limit is a fact.
    pub fn unavailable(&self) -> Vec<(&'static str, String)> {
        self.unavailable.clone()
    }
}

/// One recorded snapshot: what was read, and what is missing and why, as [`Sampler::unavailable`] tells it.
pub type Replayed = (Snapshot, Vec<(&'static str, String)>);

/// What the recordings in `text` say, one after the other with rates in between, whatever system they were made on.
/// Recordings carry no date, so each snapshot is taken at the Unix epoch.
///
/// # Errors
/// When `text` holds no recording, one with a line that has no meaning, or one of a system without a parser.
pub fn replay(text: &str) -> Result<Vec<Replayed>, RecordingError> {
    let mut before: Option<Readings> = None;
    Recording::parse_all(text)?
        .iter()
        .map(|recording| {
            if !sys::has_parser(&recording.os) {
                return Err(RecordingError::UnknownSystem(recording.os.clone()));
            }
            let readings = sys::parse(recording);
            let replayed = readings.clone().snapshot(SystemTime::UNIX_EPOCH, before.as_ref());
            before = Some(readings);
            Ok(replayed)
        })
        .collect()
}
