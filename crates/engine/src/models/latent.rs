use candle_core::Tensor;
use kernels::{attention, rope};

use super::batch::{Batch, Part, rows};
use super::linear::Linear;
use super::norm::Norm;
use super::rope::RopeTable;
use crate::LoadError;
use crate::gguf::Weights;
use crate::kv_cache::LayerState;
use crate::spec::{LatentSpec, Spec};

/// Multi-head latent attention with the key and value matrices taken into queries and output: all heads attend over one
/// compressed head, whose values are the first part of its keys.
pub(super) struct Latent {
    spec: LatentSpec,
    layer: usize,
    query: Query,
    /// To the compressed head and the rotated part of the keys.
    kv_proj: Linear,
    kv_norm: Norm,
    /// `(heads, key_dim − rope_dim, kv_rank)`: queries into the compressed space.
    query_in: Tensor,
    /// `(heads, kv_rank, value_dim)`: what was attended to out of it.
    value_out: Tensor,
    o_proj: Linear,
}

enum Query {
    Direct(Linear),
    ThroughRank { down: Linear, norm: Norm, up: Linear },
}

impl Latent {
    pub(super) fn load(
        model: &Spec,
        spec: &LatentSpec,
        weights: &mut Weights<'_>,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (hidden, epsilon) = (model.hidden, model.norm_epsilon);
        let LatentSpec { heads, q_rank, kv_rank, key_dim, rope_dim, value_dim, .. } = *spec;
        let query = match q_rank {
            None => Query::Direct(Linear::load(weights, &name("attn_q"), heads * key_dim, hidden)?),
            Some(rank) => Query::ThroughRank {
                down: Linear::load(weights, &name("attn_q_a"), rank, hidden)?,
                norm: Norm::load(weights, &name("attn_q_a_norm"), rank, epsilon)?,
                up: Linear::load(weights, &name("attn_q_b"), heads * key_dim, rank)?,
            },
        };
        // The converter stores W_UK transposed for each head: (heads, kv_rank, key_dim − rope_dim).
        let k_b = weights.unpacked(&name("attn_k_b.weight"), &[heads, kv_rank, key_dim - rope_dim])?;
        let v_b = weights.unpacked(&name("attn_v_b.weight"), &[heads, value_dim, kv_rank])?;
        let turned = |x: &Tensor| x.transpose(1, 2)?.contiguous();
        Ok(Self {
            spec: spec.clone(),
            layer,
            query,
            kv_proj: Linear::load(weights, &name("attn_kv_a_mqa"), kv_rank + rope_dim, hidden)?,
            kv_norm: Norm::load(weights, &name("attn_kv_a_norm"), kv_rank, epsilon)?,
            query_in: turned(&k_b).map_err(LoadError::Device)?,
            value_out: turned(&v_b).map_err(LoadError::Device)?,
            o_proj: Linear::load(weights, &name("attn_output"), hidden, heads * value_dim)?,
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
        let LatentSpec { heads, kv_rank, key_dim, rope_dim, value_dim, .. } = self.spec;
        let tokens = batch.len();
        let (angles, pairing) = (&batch.angles[self.spec.rope], ropes[self.spec.rope].pairing());
        let queries = match &self.query {
            Query::Direct(proj) => proj.forward(x)?,
            Query::ThroughRank { down, norm, up } => up.forward(&norm.forward(&down.forward(x)?)?)?,
        };
        let queries = queries.reshape((tokens, heads, key_dim))?;
        let straight = queries.narrow(2, 0, key_dim - rope_dim)?;
        let turned = queries.narrow(2, key_dim - rope_dim, rope_dim)?.contiguous()?;
        let turned = rope(&turned, &angles.cos, &angles.sin, pairing)?;
        let compressed = straight.transpose(0, 1)?.contiguous()?.matmul(&self.query_in)?.transpose(0, 1)?;
        let queries = Tensor::cat(&[compressed, turned], 2)?;

        let kv = self.kv_proj.forward(x)?;
        let latent = self.kv_norm.forward(&kv.narrow(1, 0, kv_rank)?.contiguous()?)?.unsqueeze(1)?;
        let turned = kv.narrow(1, kv_rank, rope_dim)?.contiguous()?.unsqueeze(1)?;
        let turned = rope(&turned, &angles.cos, &angles.sin, pairing)?;
        let keys = Tensor::cat(&[&latent, &turned], 2)?;

        let mixed = batch.by_part(parts, |span, cache| {
            let LayerState::Tokens(cached) = &mut cache.layers[self.layer] else {
                candle_core::bail!("layer {} has no keys and values", self.layer)
            };
            cached.append(&rows(&keys, &span)?, &rows(&latent, &span)?)?;
            attention(&rows(&queries, &span)?, cached, self.spec.scale, None)
        })?;
        let mixed = mixed.reshape((tokens, heads, kv_rank))?.transpose(0, 1)?.contiguous()?;
        let values = mixed.matmul(&self.value_out)?.transpose(0, 1)?.reshape((tokens, heads * value_dim))?;
        self.o_proj.forward(&values)
    }
}
