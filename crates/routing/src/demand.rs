use chat::Bytes;

use crate::speed::Calibration;
use crate::{Concern, Trust};

/// What one answer needs, and where the user wants it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// The model's file here; `None` where there is none.
    pub model: Option<LocalModel>,
    /// Tokens of the rendered prompt; `None` where they weren't counted, and then the context is never shrunk.
    pub prompt_tokens: Option<usize>,
    /// The context that the settings ask for, in tokens.
    pub wanted_context: usize,
    /// Tokens that the answer is expected to have, where the request or the conversation so far says so.
    pub answer_tokens: Option<usize>,
    /// The conversation is marked "stays on this Mac".
    pub stays_local: bool,
    /// The model is marked so: what is asked of it and what it answers is for this machine only.
    pub model_stays_local: bool,
    /// Nodes that are trusted less are never asked.
    pub least_trust: Trust,
    /// Where the user wants this answer; `None` leaves it to the policy.
    pub place: Option<PlaceChoice>,
    /// The answer is being written already, and this asks where it goes on; `None` for a new one.
    pub running: Option<Running>,
}

/// A place where answers are made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// On this machine.
    Here,
    /// On the node of this id.
    Node(String),
}

/// The place that the user chose for one answer.
pub type PlaceChoice = Place;

/// An answer that is being written.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// Where it is written now, or was until that failed.
    pub place: Place,
    /// Tokens written so far.
    pub tokens: usize,
    /// Places that failed during this answer; they aren't tried again.
    pub failed: Vec<Place>,
    /// Why the guard wants it to leave this machine, where it does.
    pub concern: Option<Concern>,
}

impl Running {
    /// An answer at `place` that nothing is wrong with.
    pub fn at(place: Place, tokens: usize) -> Self {
        Self { place, tokens, failed: Vec::new(), concern: None }
    }
}

/// What running a model here takes: its header's numbers, and what this process holds already.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalModel {
    /// The weights in memory.
    pub weights: Bytes,
    /// The KV cache of one token.
    pub kv_per_token: Bytes,
    /// Working memory of prefill and decode.
    pub scratch: Bytes,
    /// The context that the model was trained for, in tokens; 0 where its file doesn't say.
    pub trained_context: usize,
    /// What this very model holds in memory now; `None` where it isn't loaded.
    pub already_loaded: Option<Bytes>,
    /// What unloading our other, idle models gives back.
    pub other_loaded: Bytes,
    /// How many of the prompt's tokens a slot here holds already.
    pub prefix_tokens: Option<usize>,
    /// How fast this model was measured to decode here; `None` where it never ran.
    pub decode_tokens_per_sec: Option<f64>,
    /// How fast this model was measured to prefill here; `None` where it never ran.
    pub prefill_tokens_per_sec: Option<f64>,
    /// Weights that one token of decode reads: of experts only those that are used.
    pub bytes_per_token: Option<Bytes>,
    /// Floating-point operations of one token of prefill: twice the parameters that it uses.
    pub flops_per_token: Option<f64>,
    /// What this machine was measured to do, for forecasts of a model that never ran here.
    pub calibration: Option<Calibration>,
}

/// Tokens by which the engine's KV cache grows.
pub(crate) const CACHE_STEP: usize = 1024;

impl LocalModel {
    /// Weights, KV cache and scratch for a context of `context_len` tokens, as the engine allocates them: the cache in
    /// whole steps.
    pub fn needed(&self, context_len: usize) -> Bytes {
        let cached = context_len.checked_next_multiple_of(CACHE_STEP).unwrap_or(usize::MAX);
        let kv_cache = Bytes(self.kv_per_token.0.saturating_mul(cached as u64));
        self.weights.saturating_add(kv_cache).saturating_add(self.scratch)
    }
}

impl Demand {
    /// Tokens that have to be read where the answer is written next: the prompt, and what is written of the answer.
    pub(crate) fn tokens_to_read(&self) -> Option<usize> {
        let written = self.running.as_ref().map_or(0, |running| running.tokens);
        self.prompt_tokens.map(|prompt| prompt.saturating_add(written))
    }

    pub(crate) fn has_failed(&self, place: &Place) -> bool {
        self.running.as_ref().is_some_and(|running| running.failed.contains(place))
    }
}
