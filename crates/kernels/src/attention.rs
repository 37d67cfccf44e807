use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::attention::AttnMask;

use crate::KvLayer;

/// Causal attention of `queries` `(tokens, heads, head_dim)` over a cache whose last tokens are theirs. Several heads
/// share one head of the cache, which is never repeated in memory. Gives `(tokens, heads · head_dim)`.
///
/// # Errors
/// When the cache has fewer tokens than there are queries, or the shapes don't fit together.
pub fn attention(queries: &Tensor, cache: &KvLayer, scale: f32) -> Result<Tensor> {
    let (tokens, heads, head_dim) = queries.dims3()?;
    match queries.device() {
        Device::Cpu if queries.dtype() == DType::F32 => {
            let (keys, values) = cache.stored()?;
            let mask = AttnMask::causal_with_offset(cache.len() - tokens);
            let (queries, keys, values) =
                (queries.contiguous()?.unsqueeze(0)?, keys.unsqueeze(0)?, values.unsqueeze(0)?);
            let out = candle_nn::attention::flash_attn::<f32>(&queries, &keys, &values, scale, mask, None, None)?;
            out.squeeze(0)?.transpose(0, 1)?.reshape((tokens, heads * head_dim))
        }
        // The head lengths that candle's Metal kernel was written for.
        Device::Metal(_) if matches!(head_dim, 32 | 64 | 72 | 80 | 96 | 128 | 256) => {
            let (keys, values) = cache.heads_first()?;
            let heads_first = queries.transpose(0, 1)?.to_dtype(keys.dtype())?.contiguous()?.unsqueeze(0)?;
            let (keys, values) = (keys.unsqueeze(0)?, values.unsqueeze(0)?);
            let out = candle_nn::ops::sdpa(&heads_first, &keys, &values, None, tokens > 1, scale, 1.0)?;
            out.squeeze(0)?.transpose(0, 1)?.reshape((tokens, heads * head_dim))?.to_dtype(queries.dtype())
        }
        _ => attention_reference(queries, cache, scale),
    }
}

/// [`attention`] in plain candle ops.
///
/// # Errors
/// When the cache has fewer tokens than there are queries, or the shapes don't fit together.
pub fn attention_reference(queries: &Tensor, cache: &KvLayer, scale: f32) -> Result<Tensor> {
    let (tokens, heads, head_dim) = queries.dims3()?;
    let (keys, values) = cache.heads_first()?;
    let (keys, values) = (keys.to_dtype(DType::F32)?.contiguous()?, values.to_dtype(DType::F32)?.contiguous()?);
    let (kv_heads, past_and_new, _) = keys.dims3()?;
    let group = heads / kv_heads;
    // The heads that share a head of the cache become more rows of the same product.
    let rows = queries.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous()?;
    let rows = (rows.reshape((kv_heads, group * tokens, head_dim))? * f64::from(scale))?;
    let scores = rows.matmul(&keys.transpose(1, 2)?)?.reshape((heads, tokens, past_and_new))?;
    let mask = causal_mask(tokens, past_and_new, queries.device())?;
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
    let out = weights.reshape((kv_heads, group * tokens, past_and_new))?.matmul(&values)?;
    let out = out.reshape((heads, tokens, head_dim))?.transpose(0, 1)?;
    out.reshape((tokens, heads * head_dim))?.to_dtype(queries.dtype())
}

fn causal_mask(tokens: usize, past_and_new: usize, device: &Device) -> Result<Tensor> {
    let past = past_and_new - tokens;
    let mask: Vec<f32> = (0..tokens)
        .flat_map(|i| (0..past_and_new).map(move |j| if j > past + i { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_vec(mask, (1, tokens, past_and_new), device)
}
