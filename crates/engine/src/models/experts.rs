use std::cmp::Ordering;

use candle_core::Tensor;
use kernels::sigmoid;

use super::TokenId;
use super::feed_forward::FeedForward;
use super::linear::Linear;
use super::norm::Norm;
use crate::LoadError;
use crate::gguf::Weights;
use crate::spec::{ExpertsSpec, Gating};

/// A mixture of experts: a router chooses a few for each token and weighs what they make of it.
pub(super) struct Experts {
    spec: ExpertsSpec,
    router: Router,
    experts: Vec<FeedForward>,
    shared: Option<Shared>,
}

struct Router {
    /// Gemma 4 norms what its router sees, with a weight of its own.
    norm: Option<(Norm, Tensor)>,
    proj: Linear,
    /// Added to the scores for the choice, not to the weights.
    choice_bias: Option<Vec<f32>>,
    /// Multiplies each expert's weight.
    expert_scale: Option<Vec<f32>>,
    /// The experts of each token of the vocabulary, one row after the other.
    by_token: Option<Vec<usize>>,
}

/// The expert that every token uses.
struct Shared {
    feed_forward: FeedForward,
    gate: Option<Linear>,
}

/// The tokens of one expert.
#[derive(Clone, Default)]
struct Assigned {
    rows: Vec<u32>,
    weights: Vec<f32>,
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
        Ok(Self {
            router: Router::load(hidden, epsilon, spec, weights, layer)?,
            experts: FeedForward::load_experts(weights, layer, spec.experts, hidden, spec.width, spec.activation)?,
            shared,
            spec: spec.clone(),
        })
    }

    /// `x` `(tokens, hidden)` → `(tokens, hidden)`; `seen` is what the router judges by, `tokens` are those of the rows.
    pub(super) fn forward(&self, x: &Tensor, seen: &Tensor, tokens: &[TokenId]) -> candle_core::Result<Tensor> {
        let mut sum = match &self.shared {
            None => x.zeros_like()?,
            Some(Shared { feed_forward, gate }) => match gate {
                None => feed_forward.forward(x)?,
                Some(gate) => feed_forward.forward(x)?.broadcast_mul(&sigmoid(&gate.forward(x)?)?)?,
            },
        };
        let assigned = self.router.assign(&self.spec, seen, tokens)?;
        for (expert, assigned) in self.experts.iter().zip(assigned) {
            let count = assigned.rows.len();
            if count == 0 {
                continue;
            }
            let rows = Tensor::from_vec(assigned.rows, count, x.device())?;
            let weights = Tensor::from_vec(assigned.weights, (count, 1), x.device())?;
            let input = x.index_select(&rows, 0)?;
            let output = if self.spec.weighs_input {
                expert.forward(&input.broadcast_mul(&weights)?)?
            } else {
                expert.forward(&input)?.broadcast_mul(&weights)?
            };
            sum = sum.index_add(&rows, &output, 0)?;
        }
        Ok(sum)
    }
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
        let mut list = |name: String| -> Result<Option<Vec<f32>>, LoadError> {
            if !weights.has(&name) {
                return Ok(None);
            }
            weights.vector(&name, spec.experts)?.to_vec1().map(Some).map_err(LoadError::Device)
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
        Ok(Self { norm, proj, choice_bias, expert_scale, by_token })
    }

    /// Which tokens of `x` `(tokens, hidden)` each expert gets, and with which weight.
    fn assign(&self, spec: &ExpertsSpec, x: &Tensor, tokens: &[TokenId]) -> candle_core::Result<Vec<Assigned>> {
        let x = match &self.norm {
            Some((norm, scale)) => norm.forward(x)?.broadcast_mul(scale)?,
            None => x.clone(),
        };
        let mut assigned = vec![Assigned::default(); spec.experts];
        let scores = self.proj.forward(&x)?.to_vec2::<f32>()?;
        for (row, (mut scores, token)) in scores.into_iter().zip(tokens).enumerate() {
            match spec.gating {
                Gating::Softmax => softmax(&mut scores),
                Gating::Sigmoid => scores.iter_mut().for_each(|score| *score = 1.0 / (1.0 + (-*score).exp())),
                Gating::SqrtSoftplus => scores.iter_mut().for_each(|score| *score = softplus(*score).sqrt()),
                Gating::SoftmaxOfChosen => {}
            }
            let chosen = match &self.by_token {
                None => self.choose(spec, &scores),
                Some(table) => match table.chunks_exact(spec.used).nth(*token as usize) {
                    Some(experts) => experts.to_vec(),
                    None => candle_core::bail!("token {token} has no experts"),
                },
            };
            for (expert, weight) in chosen.iter().zip(self.weigh(spec, &scores, &chosen)) {
                assigned[*expert].rows.push(row as u32);
                assigned[*expert].weights.push(weight);
            }
        }
        Ok(assigned)
    }

    /// The experts with the best scores; where they stand in groups, of the groups whose two best sum to the most.
    fn choose(&self, spec: &ExpertsSpec, scores: &[f32]) -> Vec<usize> {
        let mut by: Vec<f32> = match &self.choice_bias {
            Some(bias) => scores.iter().zip(bias).map(|(score, bias)| score + bias).collect(),
            None => scores.to_vec(),
        };
        if spec.groups_used < spec.groups {
            let len = spec.experts / spec.groups;
            let sums: Vec<f32> =
                by.chunks(len).map(|group| best(group, 2).into_iter().map(|expert| group[expert]).sum()).collect();
            let kept = best(&sums, spec.groups_used);
            for (group, scores) in by.chunks_mut(len).enumerate() {
                if !kept.contains(&group) {
                    scores.fill(f32::NEG_INFINITY);
                }
            }
        }
        best(&by, spec.used)
    }

    fn weigh(&self, spec: &ExpertsSpec, scores: &[f32], chosen: &[usize]) -> Vec<f32> {
        let mut weights: Vec<f32> = chosen.iter().map(|expert| scores[*expert]).collect();
        if spec.gating == Gating::SoftmaxOfChosen {
            softmax(&mut weights);
        }
        if spec.norms_weights {
            let sum = weights.iter().sum::<f32>() + 1e-20;
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        for (weight, expert) in weights.iter_mut().zip(chosen) {
            *weight *= spec.weight_scale * self.expert_scale.as_ref().map_or(1.0, |scale| scale[*expert]);
        }
        weights
    }
}

/// The table of the experts that each token of the vocabulary gets.
fn table(spec: &ExpertsSpec, weights: &mut Weights<'_>, name: &str) -> Result<Vec<usize>, LoadError> {
    let vocabulary = weights.rows("token_embd.weight")?;
    let experts = weights.integers(name, &[vocabulary, spec.used])?.into_iter().map(|expert| {
        let expert = usize::try_from(expert).ok().filter(|expert| *expert < spec.experts);
        expert.ok_or_else(|| LoadError::UnsupportedFeature(format!("an expert in `{name}` that the model lacks")))
    });
    experts.collect()
}

/// `ln(1 + eˣ)`, without overflow.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn softmax(scores: &mut [f32]) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - most).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// Indices of the `count` largest, the largest first; of equals the first.
pub(super) fn best(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let by_score = |a: &usize, b: &usize| -> Ordering { scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)) };
    if count < order.len() {
        order.select_nth_unstable_by(count, by_score);
        order.truncate(count);
    }
    order.sort_unstable_by(by_score);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_ties_go_to_the_first() {
        assert_eq!(best(&[1.0, 3.0, 3.0, 2.0], 2), [1, 2]);
        assert_eq!(best(&[1.0, f32::NAN], 1), [1]);
        assert_eq!(best(&[1.0], 1), [0]);
    }
}
