use candle_core::Tensor;

use crate::GenerateError;
use crate::kv_cache::KvCache;
use crate::models::{Model, TokenId};

/// A place that runs one sequence: its tokens so far, and their keys and values.
pub(crate) struct Slot {
    sequence: Vec<TokenId>,
    cache: KvCache,
}

impl Slot {
    pub(crate) fn new(model: &dyn Model) -> Self {
        Self { sequence: Vec::new(), cache: model.new_cache() }
    }

    /// Keeps what the sequence has in common with `prompt` and forgets the rest. Gives the number of tokens that need
    /// not be run again: all but the last at most, since its logits are needed.
    pub(crate) fn reuse_prefix(&mut self, prompt: &[TokenId]) -> usize {
        let common = self.sequence.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = common.min(prompt.len().saturating_sub(1)).min(self.cache.n_past());
        self.sequence.truncate(kept);
        self.cache.trim(kept);
        kept
    }

    /// Runs `tokens` after the sequence; gives the logits of the last one.
    pub(crate) fn forward(&mut self, model: &dyn Model, tokens: &[TokenId]) -> Result<Tensor, GenerateError> {
        let result = kernels::step(|| model.forward(tokens, &mut self.cache));
        match &result {
            Ok(_) => self.sequence.extend_from_slice(tokens),
            // Some layers may have the tokens already.
            Err(_) => self.cache.trim(self.sequence.len()),
        }
        result
    }

    /// Tokens in the sequence.
    pub(crate) const fn len(&self) -> usize {
        self.sequence.len()
    }
}
