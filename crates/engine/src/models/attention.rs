use candle_core::Tensor;
use kernels::{Turn, attention, rope, sigmoid};

use super::batch::{Batch, Part, rows};
use super::linear::Linear;
use super::norm::{Norm, normed_by};
use super::rope::RopeTable;
use crate::LoadError;
use crate::gguf::Weights;
use crate::kv_cache::LayerState;
use crate::spec::{AttentionSpec, Spec};

/// Grouped-query attention with what families add to it: norms of queries and keys, biases, windows, sinks, a gate,
/// temperature by position, keys and values of another layer.
pub(super) struct Attention {
    spec: AttentionSpec,
    /// The layer whose keys and values are used.
    cached_in: usize,
    projections: Projections,
    o_proj: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    value_norm: Option<Norm>,
    turned_norm: Option<Norm>,
    sinks: Option<Tensor>,
}

enum Projections {
    Separate {
        q_proj: Linear,
        /// `None` where another layer's keys and values are used.
        k_proj: Option<Linear>,
        /// `None` where values are made from the key matrix, before its norm.
        v_proj: Option<Linear>,
    },
    Fused(Linear),
}

impl Attention {
    pub(super) fn load(
        model: &Spec,
        spec: &AttentionSpec,
        weights: &mut Weights<'_>,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (hidden, head_dim, epsilon) = (model.hidden, spec.head_dim, model.norm_epsilon);
        let (q_width, kv_width) = (spec.heads * head_dim, spec.kv_heads * head_dim);
        let projections = if weights.has(&name("attn_qkv.weight")) {
            Projections::Fused(Linear::load(weights, &name("attn_qkv"), q_width + 2 * kv_width, hidden)?)
        } else {
            let has_own = spec.kv_from.is_none();
            let has_values = has_own && weights.has(&name("attn_v.weight"));
            let q_rows = if spec.is_gated { 2 * q_width } else { q_width };
            let mut optional = |is_there: bool, part: &str| {
                is_there.then(|| Linear::load(weights, &name(part), kv_width, hidden)).transpose()
            };
            let (k_proj, v_proj) = (optional(has_own, "attn_k")?, optional(has_values, "attn_v")?);
            Projections::Separate { q_proj: Linear::load(weights, &name("attn_q"), q_rows, hidden)?, k_proj, v_proj }
        };
        let plain = |wanted: bool| wanted.then(|| Norm::plain(weights, head_dim, epsilon)).transpose();
        let (value_norm, turned_norm) = (plain(spec.plain_value_norm)?, plain(spec.plain_qk_norm)?);
        let sinks = name("attn_sinks.weight");
        Ok(Self {
            spec: spec.clone(),
            cached_in: spec.kv_from.unwrap_or(layer),
            projections,
            o_proj: Linear::load(weights, &name("attn_output"), hidden, q_width)?,
            q_norm: Norm::load_optional(weights, &name("attn_q_norm"), head_dim, epsilon)?,
            k_norm: Norm::load_optional(weights, &name("attn_k_norm"), head_dim, epsilon)?,
            value_norm,
            turned_norm,
            sinks: if spec.has_sinks { Some(weights.vector(&sinks, spec.heads)?) } else { None },
        })
    }

    /// `x` `(tokens, hidden)` → `(tokens, hidden)`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        batch: &Batch,
        ropes: &[RopeTable],
        parts: &mut [Part<'_>],
    ) -> candle_core::Result<Tensor> {
        let spec = &self.spec;
        let (queries, gate, keys_and_values) = self.project(x)?;
        let queries = self.place(normed_by(self.q_norm.as_ref(), queries)?, batch, ropes)?;
        let queries = self.scaled_by_position(queries, batch)?;
        let turn = self.turn(batch, ropes);
        let keys_and_values = match keys_and_values {
            None => None,
            Some((keys, values)) => {
                let values = normed_by(self.value_norm.as_ref(), values)?;
                let keys = normed_by(self.k_norm.as_ref(), keys)?;
                // The CPU turns them on their way into the cache.
                let keys = if turn.is_some() { keys } else { self.place(keys, batch, ropes)? };
                Some((keys, values))
            }
        };
        let mixed = batch.by_part(parts, |span, cache| {
            let LayerState::Tokens(cached) = &mut cache.layers[self.cached_in] else {
                candle_core::bail!("layer {} has no keys and values", self.cached_in)
            };
            if let Some((keys, values)) = &keys_and_values {
                let (keys, values) = (rows(keys, &span)?, rows(values, &span)?);
                match turn {
                    Some(Turn { cos, sin, pairing }) => {
                        let turn = Turn { cos: &rows(cos, &span)?, sin: &rows(sin, &span)?, pairing };
                        cached.append_turned(&keys, Some(&turn), &values)?;
                    }
                    None => cached.append(&keys, &values)?,
                }
            }
            attention(&rows(&queries, &span)?, cached, spec.scale, self.sinks.as_ref())
        })?;
        let mixed = match gate {
            Some(gate) => (mixed * sigmoid(&gate)?)?,
            None => mixed,
        };
        self.o_proj.forward(&mixed)
    }

    /// Queries `(tokens, heads, head_dim)`, their gate `(tokens, heads · head_dim)`, and keys and values.
    #[expect(clippy::type_complexity, reason = "named in the doc")]
    fn project(&self, x: &Tensor) -> candle_core::Result<(Tensor, Option<Tensor>, Option<(Tensor, Tensor)>)> {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.spec;
        let tokens = x.dim(0)?;
        let by_head = |x: Tensor, heads: usize| x.reshape((tokens, heads, head_dim));
        match &self.projections {
            Projections::Fused(qkv_proj) => {
                let qkv = qkv_proj.forward(x)?.reshape((tokens, heads + 2 * kv_heads, head_dim))?;
                let part = |from: usize, heads: usize| qkv.narrow(1, from, heads)?.contiguous();
                let keys_and_values = (part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?);
                Ok((part(0, heads)?, None, Some(keys_and_values)))
            }
            Projections::Separate { q_proj, k_proj, v_proj } => {
                let linears = [Some(q_proj), k_proj.as_ref(), v_proj.as_ref()];
                let linears: Vec<&Linear> = linears.into_iter().flatten().collect();
                let mut products = Linear::forward_all(&linears, x)?.into_iter();
                let queries = products.next().expect("there is a query matrix");
                let (queries, gate) = if self.spec.is_gated {
                    let both = queries.reshape((tokens, heads, 2 * head_dim))?;
                    let gate = both.narrow(2, head_dim, head_dim)?.reshape((tokens, heads * head_dim))?;
                    (both.narrow(2, 0, head_dim)?.contiguous()?, Some(gate))
                } else {
                    (by_head(queries, heads)?, None)
                };
                let Some(keys) = products.next() else { return Ok((queries, gate, None)) };
                let keys = by_head(keys, kv_heads)?;
                let values = match products.next() {
                    Some(values) => by_head(values, kv_heads)?,
                    None => keys.clone(),
                };
                Ok((queries, gate, Some((keys, values))))
            }
        }
    }

    /// How keys turn where they do so on their way into the cache: on the CPU, unless there is a norm after it.
    fn turn<'a>(&self, batch: &'a Batch, ropes: &[RopeTable]) -> Option<Turn<'a>> {
        let index = self.spec.rope.filter(|_| batch.device.is_cpu() && self.turned_norm.is_none())?;
        let angles = &batch.angles[index];
        Some(Turn { cos: &angles.cos, sin: &angles.sin, pairing: ropes[index].pairing() })
    }

    /// Rotation, and the norm after it.
    fn place(&self, heads: Tensor, batch: &Batch, ropes: &[RopeTable]) -> candle_core::Result<Tensor> {
        let Some(index) = self.spec.rope else { return Ok(heads) };
        let angles = &batch.angles[index];
        let turned = rope(&heads, &angles.cos, &angles.sin, ropes[index].pairing())?;
        normed_by(self.turned_norm.as_ref(), turned)
    }

    fn scaled_by_position(&self, queries: Tensor, batch: &Batch) -> candle_core::Result<Tensor> {
        let Some(temperature) = self.spec.temperature else { return Ok(queries) };
        let scale = |position: &usize| {
            let steps = (position + temperature.offset) / temperature.floor;
            1.0 + temperature.scale * (1.0 + steps as f32).ln()
        };
        let scales: Vec<f32> = batch.positions.iter().map(scale).collect();
        queries.broadcast_mul(&Tensor::from_vec(scales, (batch.len(), 1, 1), &batch.device)?)
    }
}
