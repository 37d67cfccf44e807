use std::path::Path;

use chat::Bytes;

use crate::device::KvType;
use crate::gguf::Gguf;
use crate::kv_cache::KvCache;
use crate::models::{self, Model, Part, TokenId};
use crate::spec::{MixerSpec, ModelSpec, RopeScaling, Spec};
use crate::tokenizer::Tokenizer;
use crate::{GenerateError, LoadError, device};

/// A model by itself, without the engine's threads: gives the logits of every token. For comparing a model with a
/// reference, and for measuring perplexity.
pub struct Evaluator {
    model: Box<dyn Model>,
    tokenizer: Tokenizer,
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// e to the mean negative log-likelihood of a token; 1 is a model that knows the text.
    pub value: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
}

/// Tokens that run at once: their logits exist at once too, hundreds of kilobytes each.
const LOGITS_AT_ONCE: usize = 64;

/// The tokens of one sequence that a model has seen.
pub struct EvaluatedSequence {
    cache: KvCache,
}

/// What a model can be trained with and GGUF has no key for. `None` is what the families' published models have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwritten {
    /// Whether YaRN widens the range between its two cut-offs to whole dimensions.
    pub yarn_truncate: Option<bool>,
    /// Llama 4: tokens of a chunk that attends to itself, and of one step of the attention's temperature.
    pub attention_chunk: Option<usize>,
}

impl Evaluator {
    /// Loads the model at `path` onto the device that the engine computes on.
    ///
    /// # Errors
    /// As [`read_header`](crate::read_header), and where the device cannot take the weights.
    pub fn open(path: &Path, unwritten: Unwritten) -> Result<Self, LoadError> {
        let gguf = Gguf::open(path)?;
        let mut spec = ModelSpec::read(&gguf)?;
        if let ModelSpec::Decoder(spec) = &mut spec {
            unwritten.apply(spec);
        }
        let model = models::load_with(spec, &gguf, &device::open(), &mut |_, _| {})?.model;
        Ok(Self { model, tokenizer: Tokenizer::load(&gguf)? })
    }

    /// Perplexity on `text` in windows of `window` tokens, of each of which the second half is predicted from all before
    /// it: as `llama-perplexity` of llama.cpp reckons it, so that figures compare. A rest shorter than a window is left
    /// out.
    ///
    /// # Errors
    /// When the device fails, for example for want of memory, or the text is shorter than a window.
    pub fn perplexity(&self, text: &str, window: usize) -> Result<Perplexity, GenerateError> {
        let mut tokens = self.tokenizer.encode_prompt(text, None);
        let bos = self.tokenizer.bos.filter(|bos| tokens.first() == Some(bos));
        let window = window.max(2);
        let (mut sum, mut count) = (0.0, 0_u32);
        for window in tokens.chunks_exact_mut(window) {
            // Each window is a text of its own to a model that was trained with a beginning.
            if let Some(bos) = bos {
                window[0] = bos;
            }
            let (first, mut sequence) = (window.len() / 2, self.sequence(KvType::DEFAULT));
            for (part, chunk) in window.chunks(LOGITS_AT_ONCE).enumerate() {
                for (i, logits) in self.logits(&mut [(chunk, &mut sequence)])?.iter().enumerate() {
                    let at = part * LOGITS_AT_ONCE + i;
                    if let Some(next) = window.get(at + 1).filter(|_| at >= first) {
                        sum -= log_probability(logits, *next);
                        count += 1;
                    }
                }
            }
        }
        if count == 0 {
            return Err(GenerateError::InvalidRequest(format!("the text has fewer than {window} tokens")));
        }
        Ok(Perplexity { value: (sum / f64::from(count)).exp(), tokens: count as usize })
    }

    /// An empty sequence.
    pub fn sequence(&self, kv_type: KvType) -> EvaluatedSequence {
        EvaluatedSequence { cache: self.model.new_cache(kv_type) }
    }

    /// Runs the tokens of each part after those of its sequence, all in one pass; gives the logits of every token, part
    /// after part.
    ///
    /// # Errors
    /// When the device fails, for example for want of memory.
    pub fn logits(&self, parts: &mut [(&[u32], &mut EvaluatedSequence)]) -> Result<Vec<Vec<f32>>, GenerateError> {
        let mut parts: Vec<Part<'_>> = parts
            .iter_mut()
            .map(|(tokens, sequence)| Part { tokens, cache: &mut sequence.cache, logits: tokens.len() })
            .collect();
        let logits = kernels::step(|| self.model.forward(&mut parts))?;
        Ok(logits.to_vec2::<f32>()?)
    }
}

impl EvaluatedSequence {
    /// Tokens in it.
    pub const fn len(&self) -> usize {
        self.cache.n_past()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that its keys, values and states take.
    pub fn allocated(&self) -> Bytes {
        self.cache.allocated()
    }

    /// Makes it possible to come back to here with [`Self::trim`], for models with a recurrent state.
    pub fn checkpoint(&mut self) {
        self.cache.checkpoint();
    }

    /// A sequence of its own with the first `len` tokens; `None` where the model cannot go back to there.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn copy(&self, len: usize) -> Result<Option<Self>, GenerateError> {
        Ok(self.cache.copy(len)?.map(|cache| Self { cache }))
    }

    /// Forgets every token from the `len`-th on, and as many more as the model cannot do without; gives what is left.
    pub fn trim(&mut self, len: usize) -> usize {
        self.cache.trim(len)
    }
}

/// The natural logarithm of the probability of `token`.
fn log_probability(logits: &[f32], token: TokenId) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
    let own = logits.get(token as usize).map_or(f64::NEG_INFINITY, |logit| f64::from(logit - highest));
    own - sum.ln()
}

impl Unwritten {
    fn apply(self, spec: &mut Spec) {
        for rope in &mut spec.ropes {
            if let (RopeScaling::Yarn(yarn), Some(truncate)) = (&mut rope.scaling, self.yarn_truncate) {
                yarn.truncate = truncate;
            }
        }
        let Some(len) = self.attention_chunk else { return };
        for layer in &mut spec.layers {
            let MixerSpec::Attention(attention) = &mut layer.mixer else { continue };
            if let kernels::Span::Chunk(chunk) = &mut attention.span {
                *chunk = len;
            }
            if let Some(temperature) = &mut attention.temperature {
                temperature.floor = len;
            }
        }
    }
}
