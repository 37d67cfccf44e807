//! What a model takes beside its weights, from the spec alone.

use candle_core::DType;
use kernels::{KvFormat, KvShape, MOST_SCORES, Span, attention_scratch_bytes};

use super::{
    AttentionSpec, Compression, Deepseek4Layer, Deepseek4Spec, ExpertsSpec, FeedForwardSpec, MixerSpec, ModelSpec, Spec,
};
use crate::device::{self, KvType};
use crate::kv_cache::{GROWTH_STEP, MOST_CHECKPOINTS, SLACK};
use crate::models::MOST_QUERIES;
use crate::worker::PREFILL_CHUNK;

/// Keys and values as attention takes them.
const UNPACKED: KvFormat = KvFormat::float(KvType::DEFAULT.unpacked());
/// Bytes of an activation, and of a recurrent state's value.
const F32: u64 = 4;

/// Something that a layer stores of a sequence.
struct Stored {
    shape: KvShape,
    format: KvFormat,
    /// It grows by so many entries.
    step: usize,
    /// Tokens that one entry stands for.
    tokens: usize,
    /// Each checkpoint has what the next token sees of it.
    in_checkpoints: bool,
}

impl ModelSpec {
    /// Bytes that one more token of a long sequence takes: keys and values in the layers that keep every token, and its
    /// share of those that stand for several.
    pub(crate) fn kv_bytes_per_token(&self, kv_type: KvType) -> u64 {
        let kept = self.stored(kv_type).into_iter().filter(|stored| stored.shape.span == Span::All);
        sum(kept.map(|stored| stored.bytes_of(1).div_ceil(stored.tokens as u64)))
    }

    /// Bytes that a sequence takes however long it is: full windows, recurrent states and their checkpoints.
    pub(crate) fn state_bytes(&self, kv_type: KvType) -> u64 {
        let windows = self.stored(kv_type).into_iter().filter(|stored| stored.shape.span != Span::All);
        sum(windows.map(|stored| stored.bytes(usize::MAX))).saturating_add(self.recurrent_bytes())
    }

    /// Bytes of the cache of one sequence with `context_len` tokens.
    pub(crate) fn cache_bytes(&self, context_len: usize, kv_type: KvType) -> u64 {
        sum(self.stored(kv_type).iter().map(|stored| stored.bytes(context_len))).saturating_add(self.recurrent_bytes())
    }

    /// Bytes of the keys and values that a layer unpacks on a GPU before it computes with them: of the largest layer.
    pub(crate) fn unpacked_bytes(&self, context_len: usize, kv_type: KvType) -> u64 {
        if !device::IS_FOR_GPU {
            return 0;
        }
        let packed = self.stored(kv_type).into_iter().filter(|stored| stored.format.is_packed());
        packed.map(|stored| Stored { format: UNPACKED, ..stored }.bytes(context_len)).max().unwrap_or(0)
    }

    /// Bytes of the cache that the token after `depth` others reads, and of recurrent states that it writes as well.
    pub(crate) fn cache_traffic(&self, depth: usize, kv_type: KvType) -> u64 {
        match self {
            Self::Decoder(spec) => {
                let states = spec.layers.iter().filter_map(|layer| layer.mixer.state_shape(spec.hidden));
                let states = sum(states.map(|state| (state.values() as u64).saturating_mul(2 * F32)));
                sum(spec.layers.iter().map(|layer| spec.keys_read(&layer.mixer, depth, kv_type))).saturating_add(states)
            }
            Self::Deepseek4(spec) => sum(spec.layers.iter().map(|layer| spec.keys_read(layer, depth, kv_type))),
        }
    }

    /// Whether `tensor` isn't one of a layer beyond those that the graph has: predictors of several tokens are shipped
    /// behind the last.
    pub(crate) fn has_layer_of(&self, tensor: &str) -> bool {
        let layers = match self {
            Self::Decoder(spec) => spec.layers.len(),
            Self::Deepseek4(spec) => spec.layers.len(),
        };
        let layer = tensor.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        layer.and_then(|(layer, _)| layer.parse::<usize>().ok()).is_none_or(|layer| layer < layers)
    }

    /// Bytes of the activations of one step of a prefill, at its widest, at the end of a sequence of `context_len` tokens.
    pub(crate) fn activation_bytes(&self, context_len: usize) -> u64 {
        match self {
            Self::Decoder(spec) => spec.activation_bytes(context_len),
            Self::Deepseek4(spec) => spec.activation_bytes(context_len),
        }
    }

    /// How many experts a token uses of how many, where `tensor` has the matrices of all.
    pub(crate) fn experts_share(&self, tensor: &str) -> Option<(usize, usize)> {
        let (layer, part) = tensor.strip_prefix("blk.")?.split_once('.')?;
        if !part.contains("_exps.") {
            return None;
        }
        let experts = self.experts(layer.parse().ok()?)?;
        Some((experts.used, experts.experts))
    }

    fn experts(&self, layer: usize) -> Option<&ExpertsSpec> {
        match self {
            Self::Deepseek4(spec) => spec.layers.get(layer).map(|layer| &layer.experts),
            Self::Decoder(spec) => match &spec.layers.get(layer)?.feed_forward {
                FeedForwardSpec::Dense { .. } => None,
                FeedForwardSpec::Experts(experts) | FeedForwardSpec::DenseAndExperts { experts, .. } => Some(experts),
            },
        }
    }

    fn stored(&self, kv_type: KvType) -> Vec<Stored> {
        match self {
            Self::Decoder(spec) => {
                let stored = |mixer: &MixerSpec| Some(Stored::new(mixer.kv_shape()?, mixer.kv_format(kv_type)));
                spec.layers.iter().filter_map(|layer| stored(&layer.mixer)).collect()
            }
            Self::Deepseek4(spec) => spec.stored(kv_type),
        }
    }

    fn recurrent_bytes(&self) -> u64 {
        let Self::Decoder(spec) = self else { return 0 };
        let states = spec.layers.iter().filter_map(|layer| layer.mixer.state_shape(spec.hidden));
        let values = sum(states.map(|state| state.values() as u64));
        values.saturating_mul(F32 * (1 + MOST_CHECKPOINTS as u64))
    }
}

impl ExpertsSpec {
    /// Gate, up and their product of one token, and on Metal, where its experts run together, what each makes of it.
    fn activations(&self, hidden: usize) -> usize {
        let each = 3 * self.width;
        let chosen = if cfg!(feature = "metal") { self.used * (each + hidden) } else { each };
        chosen.max(3 * self.shared_width)
    }
}

impl Spec {
    /// Bytes of keys and values that a layer reads for the token after `depth` others.
    fn keys_read(&self, mixer: &MixerSpec, depth: usize, kv_type: KvType) -> u64 {
        let stored_by = match mixer {
            MixerSpec::Attention(AttentionSpec { kv_from: Some(layer), .. }) => {
                self.layers.get(*layer).map_or(mixer, |layer| &layer.mixer)
            }
            _ => mixer,
        };
        let Some(shape) = stored_by.kv_shape() else { return 0 };
        Stored::new(shape, stored_by.kv_format(kv_type)).bytes_of(seen(shape.span, depth))
    }

    fn activation_bytes(&self, context_len: usize) -> u64 {
        let chunk = PREFILL_CHUNK.min(context_len);
        let bytes = |values: usize| (values as u64).saturating_mul(chunk as u64 * F32);
        let widest = self.layers.iter().map(|layer| {
            let feed_forward = match &layer.feed_forward {
                FeedForwardSpec::Dense { width, .. } => 3 * width,
                FeedForwardSpec::Experts(experts) => experts.activations(self.hidden),
                FeedForwardSpec::DenseAndExperts { width, experts, .. } => {
                    experts.activations(self.hidden).max(3 * width)
                }
            };
            // Gate, up and their product, or what attention takes, beside the residual stream, queries, keys and values.
            bytes(feed_forward).max(attention_bytes(&layer.mixer, chunk, context_len))
        });
        widest.max().unwrap_or(0).saturating_add(bytes(6 * self.hidden))
    }
}

fn attention_bytes(mixer: &MixerSpec, chunk: usize, context_len: usize) -> u64 {
    let (heads, has_sinks) = match mixer {
        MixerSpec::Attention(attention) => (attention.heads, attention.has_sinks),
        MixerSpec::Latent(latent) => (latent.heads, false),
        MixerSpec::DeltaNet(_) | MixerSpec::ShortConv { .. } => return 0,
    };
    // A layer without a cache of its own has neither sinks nor latents: it is a layer of Gemma's like those it borrows
    // from, which are counted.
    let Some(shape) = mixer.kv_shape() else { return 0 };
    let stored = most_stored(shape.span, context_len, GROWTH_STEP).min(context_len);
    attention_scratch_bytes(chunk, heads, stored, &shape, has_sinks)
}

impl Deepseek4Spec {
    /// Bytes of keys that a layer reads for the token after `depth` others: its window; of blocks those that its indexer
    /// chooses, and all that it chooses by.
    fn keys_read(&self, layer: &Deepseek4Layer, depth: usize, kv_type: KvType) -> u64 {
        let format = KvFormat::float(kv_type.unpacked());
        let read = |shape: KvShape, keys: usize| Stored::new(shape, format).bytes_of(keys);
        let window = read(self.window_keys(), seen(Span::Window(self.window), depth));
        let blocks = self.blocks(layer.compression);
        let chosen = |blocks: usize| match layer.compression {
            Some(Compression::Sparse) => blocks.min(self.indexer.top_k),
            _ => blocks,
        };
        let keys = sum(blocks.iter().enumerate().map(|(i, block)| {
            let finished = depth / block.len;
            // The blocks that are attended to come first, then those of the indexer.
            read(block.keys(), if i == 0 { chosen(finished) } else { finished })
        }));
        window.saturating_add(keys)
    }

    fn activation_bytes(&self, context_len: usize) -> u64 {
        // The streams before and after a block, and once more between; queries as they are made, turned and mixed, or
        // experts.
        let experts = self.layers.iter().map(|layer| layer.experts.activations(self.hidden)).max().unwrap_or(0);
        let per_token = 4 * self.streams.count * self.hidden + experts.max(4 * self.heads * self.head_dim);
        let keys = self.window + MOST_QUERIES + context_len / 4;
        let scores = (MOST_QUERIES * self.heads.max(self.indexer.heads)).saturating_mul(keys).min(MOST_SCORES);
        // Scores, and their softmax or what is left of them above zero.
        (per_token as u64 * PREFILL_CHUNK as u64).saturating_add(2 * scores as u64).saturating_mul(F32)
    }

    fn stored(&self, kv_type: KvType) -> Vec<Stored> {
        let format = KvFormat::float(kv_type.unpacked());
        let mut stored = Vec::new();
        for layer in &self.layers {
            stored.push(Stored { step: SLACK, in_checkpoints: true, ..Stored::new(self.window_keys(), format) });
            for blocks in self.blocks(layer.compression) {
                let inputs = Stored::new(blocks.inputs(), KvFormat::float(DType::F32));
                stored.push(Stored { step: SLACK, in_checkpoints: true, ..inputs });
                let keys = Stored::new(blocks.keys(), format);
                stored.push(Stored { step: GROWTH_STEP / blocks.len, tokens: blocks.len, ..keys });
            }
        }
        stored
    }
}

impl Stored {
    /// Keys and values of tokens.
    const fn new(shape: KvShape, format: KvFormat) -> Self {
        Self { shape, format, step: GROWTH_STEP, tokens: 1, in_checkpoints: false }
    }

    fn bytes_of(&self, entries: usize) -> u64 {
        (self.shape.bytes_per_token(self.format) as u64).saturating_mul(entries as u64)
    }

    /// Of a sequence of `context_len` tokens.
    fn bytes(&self, context_len: usize) -> u64 {
        let layer = self.bytes_of(most_stored(self.shape.span, context_len / self.tokens, self.step));
        match self.shape.span.most_seen() {
            Some(seen) if self.in_checkpoints => {
                // The next token sees itself, which is in none.
                let copies = self.bytes_of((seen - 1).min(context_len)).saturating_mul(MOST_CHECKPOINTS as u64);
                layer.saturating_add(copies)
            }
            _ => layer,
        }
    }
}

/// Tokens that the one after `depth` others sees, itself among them.
const fn seen(span: Span, depth: usize) -> usize {
    let position = if depth == usize::MAX { depth - 1 } else { depth };
    position + 1 - span.first_seen(position)
}

/// Entries that a layer makes room for, by `step`, in a sequence of `context_len`.
fn most_stored(span: Span, context_len: usize, step: usize) -> usize {
    let window = span.most_seen().map_or(usize::MAX, |len| len + PREFILL_CHUNK);
    window.min(context_len).min(usize::MAX - step).next_multiple_of(step)
}

/// A damaged file may claim more than any memory has.
fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}
