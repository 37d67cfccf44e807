//! Whether the answer that is written still has room in memory when it ends.

use std::time::Duration;

use chat::Bytes;

use crate::fit::{Limits, max_context};
use crate::guard::Facts;
use crate::rank::{ASSUMED_DECODE, known_speed};
use crate::{LocalModel, Outlook, Policy, ReadingCheck, Reason, words};

/// Moving an answer takes so long: a node reads the conversation while it goes on here.
const TIME_TO_MOVE: Duration = Duration::from_secs(20);
/// The cache of the answer as it grows, against what is free for it as that shrinks.
pub(crate) struct Growth {
    /// Seconds until it takes more than may be used.
    until: f64,
    /// The most tokens that fit now.
    pub(crate) most_context: usize,
    /// That comes before the answer's end, and too soon to put off moving it.
    pub(crate) is_short: bool,
    /// Other programs take more of it than the answer does.
    is_taken_by_others: bool,
}

impl Growth {
    /// `None` where the memory is unknown.
    pub(crate) fn of(policy: &Policy, outlook: &Outlook, facts: &Facts<'_>, speed: Option<f64>) -> Option<Self> {
        // Idle models and other caches stand in the way as long as nobody was told to give them back.
        let model = LocalModel { other_loaded: Bytes::ZERO, ..facts.model.clone() };
        let budget = Limits::of(&model, policy, outlook.snapshot()).budget()?.saturating_sub(facts.trimmable);
        let tokens_per_sec = known_speed(speed).unwrap_or(ASSUMED_DECODE);
        let held = model.needed(0).0 as f64 + model.kv_per_token.0 as f64 * facts.n_past as f64;
        let by_answer = model.kv_per_token.0 as f64 * tokens_per_sec;
        let by_others = outlook.memory_per_sec().map_or(0.0, |rate| (-rate).max(0.0));
        let rate = by_answer + by_others;
        let until_gone = if rate > 0.0 { (budget.0 as f64 - held).max(0.0) / rate } else { f64::INFINITY };
        // The cache grows in steps, so the last step that fits ends before the last byte does.
        let most_context = max_context(&model, budget);
        let until = until_gone.min(most_context.saturating_sub(facts.n_past) as f64 / tokens_per_sec);
        let until_end = facts.context_len.saturating_sub(facts.n_past) as f64 / tokens_per_sec;
        Some(Self {
            until,
            most_context,
            is_short: until < until_end && until < TIME_TO_MOVE.as_secs_f64(),
            is_taken_by_others: by_others > by_answer,
        })
    }

    pub(crate) fn reason(&self) -> Reason {
        if self.is_taken_by_others { Reason::MemorySoon } else { Reason::Memory }
    }

    pub(crate) fn sentence(&self) -> String {
        format!("would run out of memory for this chat in {}", words::about(self.until))
    }

    pub(crate) fn check(&self, facts: &Facts<'_>) -> ReadingCheck {
        ReadingCheck {
            name: "Room for this chat",
            value: words::tokens(self.most_context.saturating_sub(facts.n_past)),
            limit: Some(format!("up to {} wanted", words::tokens(facts.context_len.saturating_sub(facts.n_past)))),
            exceeded: Some(self.is_short),
        }
    }
}
