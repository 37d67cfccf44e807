use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use crate::{KvLayer, KvShape, Span, cpu, softmax};

/// Causal attention of `queries` `(tokens, heads, key_dim)` over a cache whose last tokens are theirs. Several heads
/// share one head of the cache, which is never repeated in memory. `sinks` `(heads)` are scores of a token that has no
/// value. Gives `(tokens, heads · value_dim)`.
///
/// # Errors
/// When the cache has fewer tokens than there are queries, or the shapes don't fit together.
pub fn attention(queries: &Tensor, cache: &KvLayer, scale: f32, sinks: Option<&Tensor>) -> Result<Tensor> {
    let (tokens, heads, head_dim) = queries.dims3()?;
    let shape = cache.shape();
    let is_plain = sinks.is_none()
        && shape.key_dim == shape.value_dim
        && shape.span.first_seen(cache.len() - 1) == 0
        && cache.start() == 0;
    match queries.device() {
        Device::Cpu if queries.dtype() == DType::F32 => cpu::attention(queries, cache, scale, sinks),
        Device::Metal(_) if is_plain && has_metal_kernel(tokens, head_dim) => {
            // For several queries the kernel reads as many keys as if they were a multiple of its tile, past the last
            // token if need be, so they are made one. Queries and keys are filled up alike, which keeps each query at
            // its place, and none that is wanted sees a key that isn't there.
            let more = if tokens > 1 { tokens.next_multiple_of(METAL_TILE) - tokens } else { 0 };
            let (keys, values) = cache.heads_first_and_more(more)?;
            let heads_first = queries.transpose(0, 1)?.to_dtype(keys.dtype())?.contiguous()?;
            let heads_first = heads_first.pad_with_zeros(1, 0, more)?.contiguous()?.unsqueeze(0)?;
            let (keys, values) = (keys.unsqueeze(0)?, values.unsqueeze(0)?);
            let out = candle_nn::ops::sdpa(&heads_first, &keys, &values, None, tokens > 1, scale, 1.0)?;
            let out = out.squeeze(0)?.narrow(1, 0, tokens)?.transpose(0, 1)?;
            out.reshape((tokens, heads * head_dim))?.to_dtype(queries.dtype())
        }
        _ => attention_reference(queries, cache, scale, sinks),
    }
}

/// Whether candle has a Metal kernel for so many queries with heads of this length: the one for a single query was
/// written for fewer lengths.
fn has_metal_kernel(tokens: usize, head_dim: usize) -> bool {
    matches!(head_dim, 32 | 64 | 96 | 128 | 256) || (tokens > 1 && matches!(head_dim, 72 | 80))
}

/// Queries of a tile of candle's Metal kernel for several.
const METAL_TILE: usize = 32;

/// Scores that exist at once are at most so many, 64 MiB, where one query doesn't have more: over a long cache fewer
/// queries are run at once.
pub const MOST_SCORES: usize = 1 << 24;

/// Bytes that [`attention`] takes beside its cache and its output, for `tokens` queries over `stored` tokens.
pub fn attention_scratch_bytes(tokens: usize, heads: usize, stored: usize, shape: &KvShape, has_sinks: bool) -> u64 {
    if !cfg!(any(feature = "metal", feature = "cuda")) {
        // What is made of the values, before it is divided by its sum.
        return (tokens as u64).saturating_mul((heads * shape.value_dim) as u64).saturating_mul(4);
    }
    let sees_all = shape.span.most_seen().is_none_or(|seen| seen >= stored);
    let has_kernel = !cfg!(feature = "cuda") && has_metal_kernel(tokens, shape.key_dim);
    if has_kernel && shape.key_dim == shape.value_dim && sees_all && !has_sinks {
        return 0;
    }
    let [tokens, heads, stored] = [tokens, heads, stored].map(|count| count as u64);
    let copies = stored.saturating_mul((shape.kv_heads * (shape.key_dim + shape.value_dim)) as u64);
    let row = heads.saturating_mul(stored);
    let scores = tokens.saturating_mul(row).min(row.max(MOST_SCORES as u64));
    // Of the scores two versions at a time, with sinks three, and the mask that all heads share.
    let versions = scores.saturating_mul(2 + u64::from(has_sinks)).saturating_add(scores / heads.max(1));
    versions.saturating_add(copies).saturating_mul(4)
}

/// [`attention`] in plain candle ops.
///
/// # Errors
/// When the cache has fewer tokens than there are queries, or the shapes don't fit together.
pub fn attention_reference(queries: &Tensor, cache: &KvLayer, scale: f32, sinks: Option<&Tensor>) -> Result<Tensor> {
    let scores_per_query = queries.dim(1)? * (cache.len() - cache.start());
    attention_in_steps(queries, cache, scale, sinks, (MOST_SCORES / scores_per_query.max(1)).max(1))
}

/// [`attention_reference`] with `step` queries at once.
pub(crate) fn attention_in_steps(
    queries: &Tensor,
    cache: &KvLayer,
    scale: f32,
    sinks: Option<&Tensor>,
    step: usize,
) -> Result<Tensor> {
    let (tokens, heads, key_dim) = queries.dims3()?;
    let (keys, values) = cache.heads_first()?;
    let (keys, values) = (keys.to_dtype(DType::F32)?.contiguous()?, values.to_dtype(DType::F32)?.contiguous()?);
    let (kv_heads, stored, value_dim) = values.dims3()?;
    let group = heads / kv_heads;
    let part = |start: usize, tokens: usize, first: usize| {
        // The heads that share a head of the cache become more rows of the same product.
        let rows = queries.narrow(0, start, tokens)?.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous()?;
        let rows = (rows.reshape((kv_heads, group * tokens, key_dim))? * f64::from(scale))?;
        let scores = rows.matmul(&keys.transpose(1, 2)?)?.reshape((heads, tokens, stored))?;
        let mask = span_mask(first..first + tokens, cache.start()..cache.len(), cache.shape().span, queries.device())?;
        let scores = if let Some(mask) = mask { scores.broadcast_add(&mask)? } else { scores };
        let weights = match sinks {
            None => softmax(&scores, 2)?,
            Some(sinks) => {
                let sinks = sinks.to_dtype(DType::F32)?.reshape((heads, 1, 1))?.broadcast_as((heads, tokens, 1))?;
                let with_sink = Tensor::cat(&[scores, sinks.contiguous()?], 2)?;
                softmax(&with_sink, 2)?.narrow(2, 0, stored)?.contiguous()?
            }
        };
        let out = weights.reshape((kv_heads, group * tokens, stored))?.matmul(&values)?;
        let out = out.reshape((heads, tokens, value_dim))?.transpose(0, 1)?;
        out.reshape((tokens, heads * value_dim))?.to_dtype(queries.dtype())
    };
    let first = cache.len() - tokens;
    let starts = (0..tokens).step_by(step);
    let outs: Vec<Tensor> =
        starts.map(|start| part(start, step.min(tokens - start), first + start)).collect::<Result<_>>()?;
    Tensor::cat(&outs, 0)
}

/// What the positions `queries` see of the positions `stored`: 0 or −∞, `(1, queries, stored)`; `None` where one query
/// sees all. It is made where it is used: there are as many values as queries times keys.
fn span_mask(queries: Range<usize>, stored: Range<usize>, span: Span, device: &Device) -> Result<Option<Tensor>> {
    if queries.len() == 1 && stored.end == queries.end && span.first_seen(queries.start) <= stored.start {
        return Ok(None);
    }
    let shape = (1, queries.len(), stored.len());
    let positions = |positions: Range<usize>| Tensor::arange(positions.start as u32, positions.end as u32, device);
    let keys = positions(stored.clone())?.reshape((1, 1, stored.len()))?.broadcast_as(shape)?;
    let last = positions(queries.clone())?.reshape((1, queries.len(), 1))?.broadcast_as(shape)?;
    let mut is_seen = keys.le(&last)?;
    if span != Span::All {
        let first: Vec<u32> = queries.clone().map(|query| span.first_seen(query) as u32).collect();
        let first = Tensor::from_vec(first, (1, queries.len(), 1), device)?.broadcast_as(shape)?;
        is_seen = (is_seen * keys.ge(&first)?)?;
    }
    let [seen, hidden] = [0.0, f32::NEG_INFINITY].map(|value| Tensor::new(value, device)?.broadcast_as(shape));
    is_seen.where_cond(&seen?, &hidden?).map(Some)
}
