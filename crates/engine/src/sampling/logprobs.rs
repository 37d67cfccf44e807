use super::candidates::{highest, most_probable, weight};
use crate::models::TokenId;

/// How probable a drawn token and the best ones beside it were, as natural logarithms.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Logprobs {
    pub(crate) drawn: f32,
    /// The best first.
    pub(crate) top: Vec<(TokenId, f32)>,
}

impl Logprobs {
    /// Of the drawn `token` and of the `count` most probable ones, from the logits as the model gave them.
    pub(super) fn of(logits: &[f32], token: TokenId, count: usize) -> Self {
        let highest = highest(logits);
        let is_drawable = |logit: &&f32| **logit > f32::NEG_INFINITY;
        let sum: f64 = logits.iter().filter(is_drawable).map(|logit| weight(*logit, highest, 1.0)).sum();
        let logprob = |logit: f32| {
            let below = if logit == highest { 0.0 } else { f64::from(logit) - f64::from(highest) };
            (below - sum.ln()) as f32
        };
        Self {
            drawn: logits.get(token as usize).map_or(f32::NEG_INFINITY, |logit| logprob(*logit)),
            top: most_probable(logits, count).into_iter().map(|best| (best.token, logprob(best.logit))).collect(),
        }
    }
}
