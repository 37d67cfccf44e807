use candle_core::{Device, Result, Tensor};

use crate::cpu;

/// What the gated delta rule takes of each token, for each value head. All are f32.
pub struct DeltaSteps<'a> {
    /// `(tokens, heads, key_dim)`, scaled as they are to be.
    pub queries: &'a Tensor,
    /// `(tokens, heads, key_dim)`, normed.
    pub keys: &'a Tensor,
    /// `(tokens, heads, value_dim)`
    pub values: &'a Tensor,
    /// `(tokens, heads)`: what stays of the memory, 0 to 1.
    pub decay: &'a Tensor,
    /// `(tokens, heads)`: how far a key's value is replaced, 0 to 1.
    pub beta: &'a Tensor,
}

/// The gated delta rule (Yang et al., “Gated Delta Networks”, 2024), token by token: `S ← d·S; S ← S + k ⊗ β(v − Sᵀk);
/// o = Sᵀq`. `state` is S before, `(heads, key_dim, value_dim)`. Gives the outputs `(tokens, heads, value_dim)` and S after.
///
/// # Errors
/// When the shapes don't fit together.
pub fn delta_rule(steps: &DeltaSteps<'_>, state: &Tensor) -> Result<(Tensor, Tensor)> {
    match state.device() {
        Device::Cpu => fused(steps, state, |steps| steps.apply_op2_no_bwd(state, &cpu::DeltaRule)),
        #[cfg(feature = "metal")]
        Device::Metal(_) => fused(steps, state, |steps| crate::metal::delta_rule(steps, state)),
        _ => delta_rule_reference(steps, state),
    }
}

/// Puts all that is taken of a token's head into one row, and takes outputs and state out of what `run` gives: first these,
/// then that.
fn fused(
    steps: &DeltaSteps<'_>,
    state: &Tensor,
    run: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (tokens, heads, value_dim) = steps.values.dims3()?;
    let [decay, beta] = [steps.decay, steps.beta].map(|each| each.unsqueeze(2));
    let rows = Tensor::cat(&[steps.queries, steps.keys, steps.values, &decay?, &beta?], 2)?;
    let both = run(&rows.contiguous()?)?;
    let outputs = tokens * heads * value_dim;
    let after = both.narrow(0, outputs, state.elem_count())?.force_contiguous()?.reshape(state.shape())?;
    Ok((both.narrow(0, 0, outputs)?.reshape((tokens, heads, value_dim))?, after))
}

/// [`delta_rule`] in plain candle ops.
///
/// # Errors
/// When the shapes don't fit together.
pub fn delta_rule_reference(steps: &DeltaSteps<'_>, state: &Tensor) -> Result<(Tensor, Tensor)> {
    let (tokens, heads, _) = steps.values.dims3()?;
    let mut state = state.clone();
    let mut outputs = Vec::with_capacity(tokens);
    for token in 0..tokens {
        let key = steps.keys.get(token)?.unsqueeze(2)?;
        let (query, value) = (steps.queries.get(token)?.unsqueeze(2)?, steps.values.get(token)?);
        state = state.broadcast_mul(&steps.decay.get(token)?.reshape((heads, 1, 1))?)?;
        let known = state.broadcast_mul(&key)?.sum(1)?;
        let correction = (value - known)?.broadcast_mul(&steps.beta.get(token)?.unsqueeze(1)?)?;
        state = (state + key.broadcast_mul(&correction.unsqueeze(1)?)?)?;
        outputs.push(state.broadcast_mul(&query)?.sum(1)?);
    }
    Ok((Tensor::stack(&outputs, 0)?, state))
}

/// Tokens, heads, and the lengths of keys and values, of one row for each token and head, and a state.
#[derive(Clone, Copy)]
pub(crate) struct DeltaShape {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
}

impl DeltaShape {
    pub(crate) fn of(rows: &candle_core::Layout, state: &candle_core::Layout) -> Result<Self> {
        let ((tokens, heads, width), (of_state, key_dim, value_dim)) = (rows.shape().dims3()?, state.shape().dims3()?);
        if heads != of_state || width != 2 * key_dim + value_dim + 2 || !rows.is_contiguous() || !state.is_contiguous()
        {
            candle_core::bail!("{heads} heads of {width} values for a state of {of_state}x{key_dim}x{value_dim}");
        }
        Ok(Self { tokens, heads, key_dim, value_dim })
    }

    /// Values of the outputs.
    pub(crate) const fn outputs(&self) -> usize {
        self.tokens * self.heads * self.value_dim
    }

    /// Values of the outputs and the state.
    pub(crate) const fn both(&self) -> usize {
        self.outputs() + self.heads * self.key_dim * self.value_dim
    }
}
