use std::cmp::Ordering;

use candle_core::{Result, Tensor, bail};

/// How router logits become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// A sigmoid for each.
    Sigmoid,
    /// `√softplus` for each.
    SqrtSoftplus,
    /// Softmax over the chosen.
    SoftmaxOfChosen,
}

/// How a router chooses among `experts` and weighs those that it chose.
pub struct Routing {
    /// How many there are.
    pub experts: usize,
    /// How many each token gets.
    pub used: usize,
    /// What makes logits scores.
    pub gating: Gating,
    /// Experts stand in so many groups of equal length, of which the best are chosen from: those whose two best experts
    /// sum to the most.
    pub groups: usize,
    /// How many groups that is.
    pub groups_used: usize,
    /// The weights of the chosen are made to sum to one.
    pub norms_weights: bool,
    /// The weights are multiplied by this.
    pub weight_scale: f32,
    /// `(experts)` of f32: added to the scores for the choice, not to the weights.
    pub choice_bias: Option<Tensor>,
    /// `(experts)` of f32: multiplies each expert's weight.
    pub expert_scale: Option<Tensor>,
}

impl Routing {
    /// `logits` `(tokens, experts)` of f32 → the chosen experts `(tokens, used)` of u32, the best first; of equals the first.
    /// Whatever the logits are, NaN too, these are experts that exist.
    ///
    /// # Errors
    /// When `logits` has another shape or type.
    pub fn choose(&self, logits: &Tensor) -> Result<Tensor> {
        self.check(logits)?;
        match logits.device() {
            #[cfg(feature = "metal")]
            candle_core::Device::Metal(_) => crate::metal::choose_experts(self, logits),
            _ => self.choose_reference(logits),
        }
    }

    /// `logits` `(tokens, experts)` of f32, `ids` `(tokens, used)` of u32 → the weights of these experts `(tokens, used)`.
    ///
    /// # Errors
    /// When a tensor has another shape or type, or, except on Metal, an id is no expert.
    pub fn weigh(&self, logits: &Tensor, ids: &Tensor) -> Result<Tensor> {
        self.check(logits)?;
        if ids.dims() != [logits.dim(0)?, self.used] {
            bail!("{:?} experts for {:?} scores", ids.dims(), logits.dims());
        }
        match logits.device() {
            #[cfg(feature = "metal")]
            candle_core::Device::Metal(_) => crate::metal::weigh_experts(self, logits, ids),
            _ => self.weigh_reference(logits, ids),
        }
    }

    /// [`Self::choose`] on the CPU, from wherever `logits` is.
    ///
    /// # Errors
    /// As there.
    pub fn choose_reference(&self, logits: &Tensor) -> Result<Tensor> {
        let bias = self.choice_bias.as_ref().map(Tensor::to_vec1::<f32>).transpose()?;
        let rows = logits.to_vec2::<f32>()?;
        let tokens = rows.len();
        let ids: Vec<u32> = rows.into_iter().flat_map(|row| self.chosen(row, bias.as_deref())).collect();
        Tensor::from_vec(ids, (tokens, self.used), logits.device())
    }

    /// [`Self::weigh`] on the CPU, from wherever `logits` is.
    ///
    /// # Errors
    /// As there.
    pub fn weigh_reference(&self, logits: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let scale = self.expert_scale.as_ref().map(Tensor::to_vec1::<f32>).transpose()?;
        let mut weights = Vec::with_capacity(ids.elem_count());
        for (mut scores, ids) in logits.to_vec2::<f32>()?.into_iter().zip(ids.to_vec2::<u32>()?) {
            if let Some(id) = ids.iter().find(|id| **id as usize >= self.experts) {
                bail!("expert {id} of {}", self.experts);
            }
            self.gate(&mut scores);
            weights.extend(self.weights(&scores, &ids, scale.as_deref()));
        }
        Tensor::from_vec(weights, ids.dims(), logits.device())
    }

    fn check(&self, logits: &Tensor) -> Result<()> {
        let (_, experts) = logits.dims2()?;
        let Self { used, groups, groups_used, .. } = *self;
        let are_groups = groups_used <= groups && groups > 0 && self.experts.is_multiple_of(groups);
        if experts != self.experts || !are_groups || used > self.experts / groups * groups_used {
            bail!("{used} of {} experts, in {groups_used} of {groups} groups, by {experts} scores", self.experts);
        }
        Ok(())
    }

    fn gate(&self, scores: &mut [f32]) {
        match self.gating {
            Gating::Softmax => softmax(scores),
            Gating::Sigmoid => scores.iter_mut().for_each(|score| *score = 1.0 / (1.0 + (-*score).exp())),
            Gating::SqrtSoftplus => scores.iter_mut().for_each(|score| *score = softplus(*score).sqrt()),
            Gating::SoftmaxOfChosen => {}
        }
    }

    fn chosen(&self, mut by: Vec<f32>, bias: Option<&[f32]>) -> impl Iterator<Item = u32> + use<> {
        self.gate(&mut by);
        by.iter_mut().zip(bias.into_iter().flatten()).for_each(|(score, bias)| *score += bias);
        if self.groups_used < self.groups {
            let len = self.experts / self.groups;
            let sums: Vec<f32> =
                by.chunks(len).map(|group| best(group, 2).into_iter().map(|expert| group[expert]).sum()).collect();
            let kept = best(&sums, self.groups_used);
            for (group, scores) in by.chunks_mut(len).enumerate() {
                if !kept.contains(&group) {
                    scores.fill(f32::NEG_INFINITY);
                }
            }
        }
        best(&by, self.used).into_iter().map(|expert| expert as u32)
    }

    fn weights(&self, scores: &[f32], chosen: &[u32], scale: Option<&[f32]>) -> Vec<f32> {
        let mut weights: Vec<f32> = chosen.iter().map(|expert| scores[*expert as usize]).collect();
        if self.gating == Gating::SoftmaxOfChosen {
            softmax(&mut weights);
        }
        if self.norms_weights {
            let sum = weights.iter().sum::<f32>() + 1e-20;
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        for (weight, expert) in weights.iter_mut().zip(chosen) {
            *weight *= self.weight_scale * scale.map_or(1.0, |scale| scale[*expert as usize]);
        }
        weights
    }
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
pub fn best(scores: &[f32], count: usize) -> Vec<usize> {
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
