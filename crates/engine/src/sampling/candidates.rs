//! Which tokens can still be drawn, and the draw among them. No vocabulary is ever sorted as a whole: what is cut off
//! is found by selection, and only what is left is put in order.

use std::cmp::Ordering;

use crate::models::TokenId;

/// A token that can still be drawn: its logit is a number above −∞.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: TokenId,
    pub(super) logit: f32,
}

/// What keeps a token from being drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cuts {
    /// Only so many of the most probable tokens; 0 is all of them.
    pub(super) top_k: usize,
    /// Only the smallest set of those whose probabilities, with theirs as the whole, reach this.
    pub(super) top_p: f32,
    /// Only those with at least so much of the probability of the best one.
    pub(super) min_p: f32,
}

/// Logits that are compared at once before any of them is looked at: enough to fill the widest registers.
const BLOCK: usize = 64;

/// How many of the most probable candidates are put in order first; nearly every nucleus is smaller.
const FIRST_SORTED: usize = 256;

/// The most probable first; ties by number, so that the order never depends on how it was found.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The highest of `logits`, −∞ where none is a number.
pub(super) fn highest(logits: &[f32]) -> f32 {
    // Lanes that don't depend on each other become vector instructions. A NaN is never greater.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let blocks = logits.chunks_exact(lanes.len());
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, logit) in lanes.iter_mut().zip(block) {
            *lane = if *logit > *lane { *logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |best, logit| if *logit > best { *logit } else { best })
}

/// The token with the highest logit, the first of equals.
pub(super) fn best(logits: &[f32]) -> Option<TokenId> {
    let highest = highest(logits);
    let is_drawable = highest > f32::NEG_INFINITY;
    is_drawable.then(|| logits.iter().position(|logit| *logit == highest)).flatten().map(|index| index as TokenId)
}

/// How probable a logit is beside the highest one, which weighs 1, at this temperature.
pub(super) fn weight(logit: f32, highest: f32, temperature: f32) -> f64 {
    // Without the first case, two infinite ones would make a NaN.
    if logit == highest { 1.0 } else { f64::from((logit - highest) / temperature).exp() }
}

/// The `count` tokens with the highest logits, the best first.
pub(super) fn most_probable(logits: &[f32], count: usize) -> Vec<Candidate> {
    if count == 0 {
        return Vec::new();
    }
    let mut kept: Vec<Candidate> = Vec::with_capacity((2 * count).min(logits.len()));
    // Whatever isn't above the bar can't be among them: later equals lose to earlier ones, and −∞ and NaN to all.
    let mut bar = f32::NEG_INFINITY;
    for (block_index, block) in logits.chunks(BLOCK).enumerate() {
        if !block.iter().fold(false, |any, logit| any | (*logit > bar)) {
            continue;
        }
        for (index, logit) in block.iter().enumerate() {
            if *logit > bar {
                kept.push(Candidate { token: (block_index * BLOCK + index) as TokenId, logit: *logit });
                if kept.len() == 2 * count {
                    kept.select_nth_unstable_by(count - 1, best_first);
                    kept.truncate(count);
                    bar = kept[count - 1].logit;
                }
            }
        }
    }
    kept.sort_unstable_by(best_first);
    kept.truncate(count);
    kept
}

/// The tokens that the cuts leave, in the order of their numbers. At least one where any logit is above −∞.
pub(super) fn survivors(logits: &[f32], cuts: &Cuts) -> Vec<Candidate> {
    let mut candidates = if cuts.top_k > 0 && cuts.top_k < logits.len() {
        most_probable(logits, cuts.top_k)
    } else {
        let all = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        all.map(|(index, logit)| Candidate { token: index as TokenId, logit: *logit }).collect()
    };
    let highest = highest(logits);
    // The share that `top_p` asks for is one of what `top_k` has left. `min_p` and `top_p` both keep the front of one
    // order, so it is the same in which turn they cut.
    let wanted = (cuts.top_p < 1.0).then(|| {
        f64::from(cuts.top_p) * candidates.iter().map(|candidate| weight(candidate.logit, highest, 1.0)).sum::<f64>()
    });
    if cuts.min_p > 0.0 {
        let least = highest + cuts.min_p.ln();
        candidates.retain(|candidate| candidate.logit >= least);
    }
    if let Some(wanted) = wanted {
        keep_nucleus(&mut candidates, wanted, highest);
    }
    candidates.sort_unstable_by_key(|candidate| candidate.token);
    candidates
}

/// Keeps the fewest candidates whose weights reach `wanted`: the most probable ones, and always the best.
fn keep_nucleus(candidates: &mut Vec<Candidate>, wanted: f64, highest: f32) {
    let (mut sorted, mut reached, mut step) = (0, 0.0, FIRST_SORTED);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let next = step.min(rest.len());
        if next < rest.len() {
            rest.select_nth_unstable_by(next - 1, best_first);
        }
        rest[..next].sort_unstable_by(best_first);
        for (index, candidate) in rest[..next].iter().enumerate() {
            reached += weight(candidate.logit, highest, 1.0);
            if reached >= wanted {
                candidates.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += next;
        step *= 4;
    }
}

/// The candidate on which `unit`, between 0 and 1, falls when each takes as much room as it is probable.
///
/// They are walked in the order given. In the order of their numbers, two that are nearly equal and swap places in the
/// ranking, as they do between devices and batch sizes, leave the draw as it was.
pub(super) fn draw(candidates: &[Candidate], temperature: f32, unit: f64) -> Option<TokenId> {
    let highest = candidates.iter().map(|candidate| candidate.logit).max_by(f32::total_cmp)?;
    let weights: Vec<f64> = candidates.iter().map(|candidate| weight(candidate.logit, highest, temperature)).collect();
    let mut left = unit * weights.iter().sum::<f64>();
    let drawn = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    // Rounding may leave a rest; it belongs to the last that weighs anything.
    let drawn = drawn.or_else(|| weights.iter().rposition(|weight| *weight > 0.0))?;
    Some(candidates[drawn].token)
}
