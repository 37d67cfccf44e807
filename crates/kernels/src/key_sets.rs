use candle_core::{Result, Tensor};

/// Keys that are their own values, shared by all heads.
#[derive(Clone, Debug)]
pub struct KeySet {
    /// `(1, keys, dim)`, the same for all tokens, or `(tokens, keys, dim)`.
    pub keys: Tensor,
    /// What each token sees of them: 0 or −∞, `(tokens, 1, keys)`.
    pub mask: Tensor,
}

/// Attention of `queries` `(tokens, heads, dim)` over the keys of all sets at once. `sinks` `(heads)` are scores of a
/// key that has no value. Gives `(tokens, heads, dim)`.
///
/// # Errors
/// When the shapes don't fit together.
pub fn attention_over_sets(queries: &Tensor, sets: &[KeySet], scale: f32, sinks: &Tensor) -> Result<Tensor> {
    let (tokens, heads, dim) = queries.dims3()?;
    let queries = (queries * f64::from(scale))?;
    let score = |set: &KeySet| {
        // Over keys that all tokens share, every head of every token is a row of one product.
        let (own, keys, _) = set.keys.dims3()?;
        let rows = queries.reshape((own, tokens / own * heads, dim))?;
        rows.matmul(&set.keys.transpose(1, 2)?)?.reshape((tokens, heads, keys))?.broadcast_add(&set.mask)
    };
    let mut scores = sets.iter().map(score).collect::<Result<Vec<_>>>()?;
    scores.push(sinks.reshape((1, heads, 1))?.broadcast_as((tokens, heads, 1))?.contiguous()?);
    let weights = softmax(&Tensor::cat(&scores, 2)?, 2)?;
    let (mut sum, mut at) = (queries.zeros_like()?, 0);
    for set in sets {
        let (own, keys, _) = set.keys.dims3()?;
        let weights = weights.narrow(2, at, keys)?.contiguous()?.reshape((own, tokens / own * heads, keys))?;
        sum = (sum + weights.matmul(&set.keys)?.reshape((tokens, heads, dim))?)?;
        at += keys;
    }
    Ok(sum)
}

/// Softmax over one dimension.
///
/// # Errors
/// When there is no such dimension.
pub fn softmax(x: &Tensor, dim: usize) -> Result<Tensor> {
    if dim + 1 == x.rank() {
        candle_nn::ops::softmax_last_dim(&x.contiguous()?)
    } else {
        candle_nn::ops::softmax(x, dim)
    }
}
