use candle_core::{Device, Tensor};
#[cfg(feature = "metal")]
use kernels::metal::{ChosenExperts, PackedExperts, add_weighted};
use kernels::{Routing, add_rows, sigmoid};

use super::TokenId;
use super::feed_forward::FeedForward;
use super::linear::Linear;
use super::norm::Norm;
use crate::LoadError;
use crate::gguf::Weights;
use crate::spec::ExpertsSpec;

/// A mixture of experts: a router chooses a few for each token and weighs what they make of it.
pub(super) struct Experts {
    router: Router,
    matrices: Matrices,
    shared: Option<Shared>,
    /// The weight multiplies what goes into an expert, not what comes out.
    weighs_input: bool,
}

enum Matrices {
    /// On the CPU or with CUDA, where the router's choice is known: each expert runs with its tokens.
    Each(Box<FeedForward<Vec<Linear>>>),
    /// Run together, and nothing is read back.
    #[cfg(feature = "metal")]
    Packed(Box<FeedForward<PackedExperts>>),
}

struct Router {
    /// Gemma 4 norms what its router sees, with a weight of its own.
    norm: Option<(Norm, Tensor)>,
    proj: Linear,
    /// Its tensors are where the choice is made: on the CPU, or an Apple GPU.
    routing: Routing,
    /// The experts of each token of the vocabulary, one row after the other.
    by_token: Option<Vec<u32>>,
}

/// The expert that every token uses.
struct Shared {
    feed_forward: FeedForward,
    gate: Option<Linear>,
}

/// The tokens that experts get, one expert's after the other's.
struct Assigned {
    rows: Vec<u32>,
    weights: Vec<f32>,
    /// How many each expert gets.
    counts: Vec<usize>,
}

impl Experts {
    pub(super) fn load(
        hidden: usize,
        epsilon: f32,
        spec: &ExpertsSpec,
        weights: &mut Weights<'_>,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let shared = match spec.shared_width {
            0 => None,
            width => {
                let feed_forward = FeedForward::load(weights, layer, "_shexp", hidden, width, spec.activation)?;
                let gate = name("ffn_gate_inp_shexp.weight");
                let gate = match weights.has(&gate) {
                    // Some files have it as a vector, some as a matrix of one row.
                    true => Some(Linear::load_row(weights, &name("ffn_gate_inp_shexp"), hidden)?),
                    false => None,
                };
                Some(Shared { feed_forward, gate })
            }
        };
        let router = Router::load(hidden, epsilon, spec, weights, layer)?;
        let matrices = match weights.device().clone() {
            #[cfg(feature = "metal")]
            Device::Metal(device) => {
                let shape = (spec.experts, hidden, spec.width);
                let experts = FeedForward::load_packed_experts(weights, layer, shape, spec.activation, &device)?;
                Matrices::Packed(Box::new(experts))
            }
            _ => {
                let shape = (spec.experts, hidden, spec.width);
                Matrices::Each(Box::new(FeedForward::load_experts(weights, layer, shape, spec.activation)?))
            }
        };
        Ok(Self { router, matrices, shared, weighs_input: spec.weighs_input })
    }

    /// `x` `(tokens, hidden)` → `(tokens, hidden)`; `seen` is what the router judges by, `tokens` are those of the rows.
    pub(super) fn forward(&self, x: &Tensor, seen: &Tensor, tokens: &[TokenId]) -> candle_core::Result<Tensor> {
        let shared = match &self.shared {
            None => x.zeros_like()?,
            Some(Shared { feed_forward, gate }) => match gate {
                None => feed_forward.forward(x)?,
                Some(gate) => feed_forward.forward(x)?.broadcast_mul(&sigmoid(&gate.forward(x)?)?)?,
            },
        };
        let logits = self.router.logits(seen)?;
        match &self.matrices {
            Matrices::Each(experts) => {
                let (ids, weights) = self.router.route(&logits.to_device(&Device::Cpu)?, tokens)?;
                let Assigned { rows, weights, counts } = assign(self.router.routing.experts, &ids, &weights)?;
                if !self.weighs_input {
                    return add_rows(&shared, &experts.forward(x, Some(&rows), &counts)?, &rows, &weights);
                }
                let x = x.index_select(&Tensor::new(rows.as_slice(), x.device())?, 0)?;
                let x = x.broadcast_mul(&Tensor::new(weights.as_slice(), x.device())?.unsqueeze(1)?)?;
                add_rows(&shared, &experts.forward(&x, None, &counts)?, &rows, &vec![1.0; rows.len()])
            }
            #[cfg(feature = "metal")]
            Matrices::Packed(experts) => {
                let (ids, weights) = self.router.route(&logits, tokens)?;
                let chosen = ChosenExperts::new(&ids)?;
                if !self.weighs_input {
                    return add_weighted(&shared, &experts.forward(x, &chosen)?, &weights);
                }
                let x = x.unsqueeze(1)?.broadcast_mul(&weights.unsqueeze(2)?)?.flatten_to(1)?;
                add_weighted(&shared, &experts.forward(&x, &chosen)?, &weights.ones_like()?)
            }
        }
    }
}

/// The tokens of each expert, of the experts `(tokens, used)` of each token and their weights.
fn assign(experts: usize, ids: &Tensor, weights: &Tensor) -> candle_core::Result<Assigned> {
    let used = ids.dim(1)?;
    let (ids, weights) = (ids.flatten_all()?.to_vec1::<u32>()?, weights.flatten_all()?.to_vec1::<f32>()?);
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|index| ids[*index]);
    let mut counts = vec![0; experts];
    ids.iter().for_each(|expert| counts[*expert as usize] += 1);
    Ok(Assigned {
        rows: order.iter().map(|index| (index / used) as u32).collect(),
        weights: order.iter().map(|index| weights[*index]).collect(),
        counts,
    })
}

impl Router {
    fn load(
        hidden: usize,
        epsilon: f32,
        spec: &ExpertsSpec,
        weights: &mut Weights<'_>,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let device = match weights.device() {
            Device::Metal(device) => Device::Metal(device.clone()),
            _ => Device::Cpu,
        };
        let mut list = |name: String| -> Result<Option<Tensor>, LoadError> {
            if !weights.has(&name) {
                return Ok(None);
            }
            weights.vector(&name, spec.experts)?.to_device(&device).map(Some).map_err(LoadError::Device)
        };
        let choice_bias = list(name("exp_probs_b.bias"))?;
        let expert_scale = list(name("ffn_down_exps.scale"))?;
        // With NVFP4 the matrices have taken it in already.
        let expert_scale = match weights.scales(&name("ffn_down_exps"), spec.experts)? {
            Some(_) => None,
            None => expert_scale,
        };
        let scale = name("ffn_gate_inp.scale");
        let norm = if weights.has(&scale) {
            let scale = weights.vector(&scale, hidden)?;
            let scale = (scale / (hidden as f64).sqrt()).map_err(LoadError::Device)?;
            Some((Norm::plain(weights, hidden, epsilon)?, scale))
        } else {
            None
        };
        let proj = Linear::load(weights, &name("ffn_gate_inp"), spec.experts, hidden)?;
        let by_token = match spec.is_by_token {
            true => Some(table(spec, weights, &name("ffn_gate_tid2eid.weight"))?),
            false => None,
        };
        let routing = Routing {
            experts: spec.experts,
            used: spec.used,
            gating: spec.gating,
            groups: spec.groups,
            groups_used: spec.groups_used,
            norms_weights: spec.norms_weights,
            weight_scale: spec.weight_scale,
            choice_bias,
            expert_scale,
        };
        Ok(Self { norm, proj, routing, by_token })
    }

    /// `x` `(tokens, hidden)` → logits `(tokens, experts)`.
    fn logits(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.norm {
            Some((norm, scale)) => self.proj.forward(&norm.forward(x)?.broadcast_mul(scale)?),
            None => self.proj.forward(x),
        }
    }

    /// The experts of each token and their weights, both `(tokens, used)`, where the logits are.
    fn route(&self, logits: &Tensor, tokens: &[TokenId]) -> candle_core::Result<(Tensor, Tensor)> {
        let ids = match &self.by_token {
            None => self.routing.choose(logits)?,
            Some(table) => {
                let used = self.routing.used;
                let mut ids = Vec::with_capacity(tokens.len() * used);
                for token in tokens {
                    match table.chunks_exact(used).nth(*token as usize) {
                        Some(experts) => ids.extend_from_slice(experts),
                        None => candle_core::bail!("token {token} has no experts"),
                    }
                }
                Tensor::from_vec(ids, (tokens.len(), used), logits.device())?
            }
        };
        let weights = self.routing.weigh(logits, &ids)?;
        Ok((ids, weights))
    }
}

/// The table of the experts that each token of the vocabulary gets.
fn table(spec: &ExpertsSpec, weights: &mut Weights<'_>, name: &str) -> Result<Vec<u32>, LoadError> {
    let vocabulary = weights.rows("token_embd.weight")?;
    let experts = weights.integers(name, &[vocabulary, spec.used])?.into_iter().map(|expert| {
        let expert = u32::try_from(expert).ok().filter(|expert| (*expert as usize) < spec.experts);
        expert.ok_or_else(|| LoadError::UnsupportedFeature(format!("an expert in `{name}` that the model lacks")))
    });
    experts.collect()
}
