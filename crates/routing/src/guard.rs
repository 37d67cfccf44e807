//! What watches an answer while it is written here.

use std::time::Duration;

use chat::Bytes;

use crate::{LocalModel, Outlook, Policy, ReadingCheck, Reason};

/// What is known of an answer when it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Setup {
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens that it is expected to have, or may have at most.
    pub answer_tokens: Option<usize>,
    /// How fast this model usually decodes here; `None` where it never ran.
    pub usual_tokens_per_sec: Option<f64>,
}

/// What is so while it is written, beside the readings.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The model, with what it and the idle ones hold now.
    pub model: &'a LocalModel,
    /// What the caches of other conversations would give back.
    pub trimmable: Bytes,
    /// Tokens that the context of this answer may grow to.
    pub context_len: usize,
    /// Whether a node could go on with it.
    pub can_move: bool,
}

/// What to do about a running answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Advice {
    /// Nothing.
    GoOn,
    /// Make room here first.
    Relieve(Measure, Concern),
    /// Move it: [`crate::decide()`] says where to, with the concern in [`crate::Running::concern`].
    HandOff(Concern),
}

/// What can be done here before an answer has to move. Each is advised once for an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// Give back the memory of models that nobody uses now.
    UnloadIdleModels,
    /// Give back the caches of other conversations, as far as they can be read again.
    TrimCaches,
    /// Let the context grow to so many tokens only.
    CapContext(usize),
    /// Write no faster than so many tokens per second, so that the machine cools, until [`Guard::may_return`].
    Pace(f64),
}

/// Why an answer should be relieved or moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Concern {
    /// For programs.
    pub reason: Reason,
    /// For people, for after "here": "swaps in 40.0 MB/s".
    pub sentence: String,
    /// The readings that it was seen from.
    pub readings: Vec<ReadingCheck>,
    /// It can't wait for a measure to help.
    pub is_urgent: bool,
}

/// Watches one answer that is written here.
#[derive(Clone, Debug)]
pub struct Guard {
    setup: Setup,
}

impl Guard {
    /// For an answer that starts now.
    pub fn new(setup: Setup) -> Self {
        Self { setup }
    }

    /// A token came, `at` this long after the answer's start.
    pub fn token(&mut self, at: Duration) {
        let _ = (at, &self.setup);
    }

    /// Looks at the answer; to be called for every snapshot.
    pub fn look(&mut self, at: Duration, policy: &Policy, outlook: &Outlook, facts: &Facts<'_>) -> Advice {
        let _ = (at, policy, outlook, facts);
        Advice::GoOn
    }

    /// Whether an answer that was handed off or paced may come back: what was wrong is over, and was for its dwell time.
    pub fn may_return(&self, at: Duration, policy: &Policy, outlook: &Outlook) -> bool {
        let _ = (at, policy, outlook);
        false
    }
}
