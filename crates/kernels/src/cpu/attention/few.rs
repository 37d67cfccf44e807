//! Few queries, such as the one of a token that is decoded: their vectors would be nearly empty, so a lane is a key while
//! scores are computed, and a number of a value while values are mixed. Every sum is made in the same order as
//! [`super::many`] makes it, and has the same bits.

use super::super::tiles::Simd;
use super::{BLOCK, LOWEST, Lanes, Mixed, PART, Partial, Task, WIDTH, cut, exp_differences, flat, flat_mut, products};

/// Vectors of values that are mixed at once: with eight rows, as many sums as registers hold.
const VECTORS: usize = 4;

/// Of `R` rows. Keys and values are whole vectors.
#[inline(always)]
pub(super) fn attend<S: Simd, const R: usize>(task: &Task<'_>) -> Option<Partial> {
    let Task { attention, kv_head, rows, keys } = task;
    let (key_dim, value_dim, head) = (attention.key_dim, attention.value_dim, (attention.kv_heads, *kv_head));
    let mut queries = vec![[0.0; R]; key_dim];
    let mut seen = [(0, 0); R];
    for (r, row) in rows.clone().enumerate() {
        for (queries, x) in queries.iter_mut().zip(attention.query(*kv_head, row)) {
            queries[r] = x * attention.scale;
        }
        seen[r] = attention.seen_by(row);
    }
    let all_see = seen.iter().fold(0..usize::MAX, |all, (first, end)| all.start.max(*first)..all.end.min(*end));

    let mut whole: Option<Partial> = None;
    let mut unpacked = vec![Lanes::ZERO; key_dim.max(value_dim)];
    let first = keys.start - attention.stored.start..keys.end.min(keys.start + BLOCK) - attention.stored.start;
    attention.keys.prefetch::<S>(first.clone(), head, key_dim);
    attention.values.prefetch::<S>(first, head, attention.value_width);
    for part in cut(keys, PART) {
        let (mut most, mut sum) = (Lanes([LOWEST; WIDTH]), Lanes::ZERO);
        // Each row's values, one row after the other.
        let mut mixed = vec![Lanes::ZERO; R * value_dim / WIDTH];
        for block in cut(&part, BLOCK) {
            let tokens = block.start - attention.stored.start..block.end - attention.stored.start;
            let pieces = || tokens.clone().step_by(WIDTH).map(|start| start..tokens.end.min(start + WIDTH));
            let mut weights = [[Lanes([f32::NEG_INFINITY; WIDTH]); BLOCK / WIDTH]; R];
            // Memory delivers the next block's values while scores are computed, and its keys while values are mixed.
            for (v, tokens) in pieces().enumerate() {
                let next = tokens.start + BLOCK;
                attention.values.prefetch::<S>(next..next + WIDTH, head, attention.value_width);
                attention.keys.unpack::<S>(tokens, head, (key_dim, key_dim), flat_mut(&mut unpacked));
                for (weights, scores) in weights.iter_mut().zip(scores::<S, R>(&unpacked, &queries)) {
                    weights[v] = scores;
                }
            }
            if block.len() < BLOCK || block.start < all_see.start || block.end > all_see.end {
                for (weights, (first, end)) in weights.iter_mut().zip(seen) {
                    for (key, score) in (block.start..).zip(flat_mut(weights)) {
                        *score = if (first..end.min(block.end)).contains(&key) { *score } else { f32::NEG_INFINITY };
                    }
                }
            }
            let mut highest = most;
            for (highest, scores) in highest.0.iter_mut().zip(&weights) {
                *highest = highest_of(scores, *highest);
            }
            let kept = exp_differences(most, highest);
            most = highest;
            sum = products(sum, kept);
            for (r, weights) in weights.iter_mut().enumerate() {
                for weights in weights.iter_mut() {
                    *weights = exp_differences(*weights, Lanes([highest.0[r]; WIDTH]));
                }
            }
            for key in 0..BLOCK {
                for (sum, weights) in sum.0.iter_mut().zip(&weights) {
                    *sum += flat(weights)[key];
                }
            }
            for (mixed, kept) in mixed.chunks_exact_mut(value_dim / WIDTH).zip(kept.0) {
                if kept != 1.0 {
                    mixed.iter_mut().for_each(|mixed| *mixed = products(*mixed, Lanes([kept; WIDTH])));
                }
            }
            for (v, tokens) in pieces().enumerate() {
                let next = tokens.start + BLOCK;
                attention.keys.prefetch::<S>(next..next + WIDTH, head, key_dim);
                let values = &mut unpacked[..tokens.len() * value_dim / WIDTH];
                attention.values.unpack::<S>(tokens, head, (attention.value_width, value_dim), flat_mut(values));
                mix::<S, R>(&mut mixed, values, &weights.each_ref().map(|weights| weights[v]));
            }
        }
        let partial = Partial { most: vec![most], sum: vec![sum], mixed: Mixed::Rows(mixed, R) };
        match &mut whole {
            Some(whole) => whole.add(&partial),
            None => whole = Some(partial),
        }
    }
    whole
}

/// The largest of `scores` and `least`: of whole vectors first, since each comparison waits for the one before.
#[inline(always)]
fn highest_of(scores: &[Lanes], least: f32) -> f32 {
    let mut highest = [least; WIDTH];
    for scores in scores {
        for (highest, score) in highest.iter_mut().zip(scores.0) {
            *highest = if score > *highest { score } else { *highest };
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            highest[i] = if highest[i + half] > highest[i] { highest[i + half] } else { highest[i] };
        }
    }
    highest[0]
}

/// The products of sixteen keys `(16, key_dim)` with each of the `queries` `(key_dim, R)`.
#[inline(always)]
fn scores<S: Simd, const R: usize>(keys: &[Lanes], queries: &[[f32; R]]) -> [Lanes; R] {
    let vectors = queries.len() / WIDTH;
    let mut sums = [S::floats(0.0); R];
    for (v, queries) in queries.as_chunks::<WIDTH>().0.iter().enumerate() {
        let mut numbers = [S::floats(0.0); WIDTH];
        for key in 0..WIDTH {
            numbers[key] = S::from_array(&keys[key * vectors + v].0);
        }
        let numbers = S::transpose(numbers);
        for i in 0..WIDTH {
            for r in 0..R {
                sums[r] = S::multiply_add(numbers[i], S::floats(queries[i][r]), sums[r]);
            }
        }
    }
    let mut scores = [Lanes::ZERO; R];
    for r in 0..R {
        scores[r] = Lanes(S::to_array(sums[r]));
    }
    scores
}

/// Adds `values` `(keys, value_dim)` to `mixed` `(R, value_dim)`, each with its weight for each row.
#[inline(always)]
fn mix<S: Simd, const R: usize>(mixed: &mut [Lanes], values: &[Lanes], weights: &[Lanes; R]) {
    let vectors = mixed.len() / R;
    let whole = vectors - vectors % VECTORS;
    for v in (0..whole).step_by(VECTORS) {
        mix_vectors::<S, R, VECTORS>(mixed, values, weights, v);
    }
    for v in whole..vectors {
        mix_vectors::<S, R, 1>(mixed, values, weights, v);
    }
}

#[inline(always)]
fn mix_vectors<S: Simd, const R: usize, const V: usize>(
    mixed: &mut [Lanes],
    values: &[Lanes],
    weights: &[Lanes; R],
    first: usize,
) {
    let vectors = mixed.len() / R;
    let mut sums = [[S::floats(0.0); V]; R];
    for r in 0..R {
        for v in 0..V {
            sums[r][v] = S::from_array(&mixed[r * vectors + first + v].0);
        }
    }
    for (key, values) in values.chunks_exact(vectors).take(WIDTH).enumerate() {
        let values = &values[first..first + V];
        for r in 0..R {
            let weight = S::floats(weights[r].0[key]);
            for v in 0..V {
                sums[r][v] = S::multiply_add(S::from_array(&values[v].0), weight, sums[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            mixed[r * vectors + first + v] = Lanes(S::to_array(sums[r][v]));
        }
    }
}
