//! Many queries: a lane is a query's head, and lanes stand side by side in vectors.

use super::super::tiles::Simd;
use super::{
    Attention, BLOCK, LOWEST, Lanes, Mixed, PART, Partial, SUMS, Task, WIDTH, cut, exp_differences, flat_mut, larger,
    products, sums,
};

/// With `L` vectors of lanes.
#[inline(always)]
pub(super) fn attend<S: Simd, const L: usize>(task: &Task<'_>) -> Option<Partial> {
    let Task { attention, kv_head, rows, keys } = task;
    let Attention { key_dim, value_dim, value_width, kv_heads, scale, .. } = **attention;
    // Each dimension of all lanes' queries side by side. Lanes that aren't there are zeros.
    let mut queries = vec![[Lanes::ZERO; L]; key_dim];
    // What each lane sees.
    let mut seen = [[(0, 0); WIDTH]; L];
    for (lane, row) in rows.clone().enumerate() {
        for (lanes, x) in queries.iter_mut().zip(attention.query(*kv_head, row)) {
            lanes[lane / WIDTH].0[lane % WIDTH] = x * scale;
        }
        seen[lane / WIDTH][lane % WIDTH] = attention.seen_by(row);
    }
    let lanes_seen = seen.as_flattened()[..rows.len()].iter();
    let all_see = lanes_seen.fold(0..usize::MAX, |all, (first, end)| all.start.max(*first)..all.end.min(*end));

    let mut whole: Option<Partial> = None;
    let mut scores = [[Lanes::ZERO; L]; BLOCK];
    let mut unpacked = vec![Lanes::ZERO; (BLOCK * key_dim.max(value_dim)).div_ceil(WIDTH)];
    let unpacked = flat_mut(&mut unpacked);
    for part in cut(keys, PART) {
        let (mut most, mut sum) = ([Lanes([LOWEST; WIDTH]); L], [Lanes::ZERO; L]);
        let mut mixed = vec![[Lanes::ZERO; L]; value_dim];
        for block in cut(&part, BLOCK) {
            let tokens = block.start - attention.stored.start..block.end - attention.stored.start;
            let head = (kv_heads, *kv_head);
            attention.keys.unpack::<S>(tokens.clone(), head, (key_dim, key_dim), unpacked);
            let scores = &mut scores[..block.len()];
            scores.fill([Lanes::ZERO; L]);
            // Memory delivers the values while scores are computed, and the next keys while values are mixed.
            for ((scores, keys), tokens) in
                scores.chunks_mut(SUMS).zip(unpacked.chunks(SUMS * key_dim)).zip(tokens.clone().step_by(SUMS))
            {
                attention.values.prefetch::<S>(tokens..tokens + SUMS, head, value_width);
                add_products::<S, L>(scores, keys, (key_dim, 1), &queries);
            }
            if block.start < all_see.start || block.end > all_see.end {
                for (key, scores) in block.clone().zip(scores.iter_mut()) {
                    for (score, (first, end)) in flat_mut(scores).iter_mut().zip(seen.as_flattened()) {
                        *score = if (*first..*end).contains(&key) { *score } else { f32::NEG_INFINITY };
                    }
                }
            }
            for l in 0..L {
                let mut highest = most[l];
                for scores in scores.iter() {
                    highest = larger(highest, scores[l]);
                }
                let kept = exp_differences(most[l], highest);
                most[l] = highest;
                sum[l] = products(sum[l], kept);
                for scores in scores.iter_mut() {
                    scores[l] = exp_differences(scores[l], highest);
                    sum[l] = sums(sum[l], scores[l]);
                }
                if kept.0 != [1.0; WIDTH] {
                    for mixed in &mut mixed {
                        mixed[l] = products(mixed[l], kept);
                    }
                }
            }
            attention.values.unpack::<S>(tokens.clone(), head, (value_width, value_dim), unpacked);
            let next = (BLOCK * SUMS).div_ceil(value_dim);
            for (i, mixed) in mixed.chunks_mut(SUMS).enumerate() {
                let from = tokens.end + i * next;
                attention.keys.prefetch::<S>(from..from + next, head, key_dim);
                add_products::<S, L>(mixed, &unpacked[i * SUMS..], (1, value_dim), scores);
            }
        }
        let partial = Partial { most: most.to_vec(), sum: sum.to_vec(), mixed: Mixed::Lanes(mixed.into_flattened()) };
        match &mut whole {
            Some(whole) => whole.add(&partial),
            None => whole = Some(partial),
        }
    }
    whole
}

/// `out[n] += Σₖ a[n · stride + k · step] · b[k]`, each `b[k]` and `out[n]` being `L` vectors.
#[inline(always)]
fn add_products<S: Simd, const L: usize>(
    out: &mut [[Lanes; L]],
    a: &[f32],
    (stride, step): (usize, usize),
    b: &[[Lanes; L]],
) {
    let (chunks, rest) = out.as_chunks_mut::<SUMS>();
    let rest_at = chunks.len() * SUMS * stride;
    for (i, out) in chunks.iter_mut().enumerate() {
        add_products_to::<S, L, SUMS>(out, &a[i * SUMS * stride..], (stride, step), b);
    }
    for (i, out) in rest.as_chunks_mut::<1>().0.iter_mut().enumerate() {
        add_products_to::<S, L, 1>(out, &a[rest_at + i * stride..], (stride, step), b);
    }
}

#[expect(clippy::needless_range_loop, reason = "several arrays are walked through side by side")]
#[inline(always)]
fn add_products_to<S: Simd, const L: usize, const N: usize>(
    out: &mut [[Lanes; L]; N],
    a: &[f32],
    (stride, step): (usize, usize),
    b: &[[Lanes; L]],
) {
    assert!(b.is_empty() || (N - 1) * stride + (b.len() - 1) * step < a.len());
    // Loops without closures, which would be functions without the processor's instructions.
    let mut sums = [[S::floats(0.0); L]; N];
    for n in 0..N {
        for l in 0..L {
            sums[n][l] = S::from_array(&out[n][l].0);
        }
    }
    for (k, b) in b.iter().enumerate() {
        let mut factors = [S::floats(0.0); L];
        for l in 0..L {
            factors[l] = S::from_array(&b[l].0);
        }
        for n in 0..N {
            // SAFETY: the largest index was looked at above.
            let a = S::floats(unsafe { *a.get_unchecked(n * stride + k * step) });
            for l in 0..L {
                sums[n][l] = S::multiply_add(a, factors[l], sums[n][l]);
            }
        }
    }
    for n in 0..N {
        for l in 0..L {
            out[n][l] = Lanes(S::to_array(sums[n][l]));
        }
    }
}
