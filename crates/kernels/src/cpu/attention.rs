//! Attention over the cache in one pass: keys and values are read once for all queries that share them, block by block,
//! and scores exist for one block at a time (Dao et al., “FlashAttention”, 2022: a running maximum and sum). The work is
//! split over heads, queries, and, where these are few, along the context.
//!
//! A lane is a query's head; lanes stand side by side in vectors, so that nothing is ever summed across a vector. What a
//! query gets has the same bits whatever is computed beside it: keys are taken by blocks, and these by parts, that begin at
//! the same positions for all.

#![expect(unsafe_code, reason = "several threads write different parts of an output, and f16 are read as bytes")]

use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::exp::exp;
#[cfg(target_arch = "aarch64")]
use super::tiles::Neon;
#[cfg(target_arch = "x86_64")]
use super::tiles::{Avx2, Avx512};
use super::tiles::{Isa, Scalar, Simd};
use super::{Parts, team, values};
use crate::kv_q8::{ZERO, scales};
use crate::{KvLayer, Span};

/// Keys whose scores exist at once.
const BLOCK: usize = 64;
/// Lanes of a vector.
const WIDTH: usize = 16;
/// Sums that stay in registers.
const SUMS: usize = 8;
/// Keys of which the sums are made apart, by several threads where there are few queries.
const PART: usize = 4 * BLOCK;
/// Stands for the maximum of no scores: no score is below it, and differences to it are numbers.
const LOWEST: f32 = -1e30;

/// One vector of lanes.
type Lanes = [f32; WIDTH];

/// Keys or values as they are stored: `(tokens, kv_heads, width)`.
enum Stored<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    /// With a scale for as many of them each.
    Q8(&'a [u8], &'a [f32]),
}

/// What all tasks share.
struct Attention<'a> {
    queries: &'a [f32],
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    /// Of a value's storage, which is a key where values are a part of the keys.
    value_width: usize,
    keys: Stored<'a>,
    values: Stored<'a>,
    /// Positions that are stored.
    stored: Range<usize>,
    span: Span,
    scale: f32,
}

/// What lanes made of some keys.
#[derive(Clone)]
struct Partial {
    most: Vec<Lanes>,
    sum: Vec<Lanes>,
    /// `(value_dim)` of all vectors of lanes.
    mixed: Vec<Lanes>,
}

/// [`crate::attention()`] of f32 queries over a cache on the CPU, whatever it has.
pub(crate) fn attention(queries: &Tensor, cache: &KvLayer, scale: f32, sinks: Option<&Tensor>) -> Result<Tensor> {
    let (tokens, heads, key_dim) = queries.dims3()?;
    let shape = *cache.shape();
    if key_dim != shape.key_dim || !heads.is_multiple_of(shape.kv_heads) || tokens > cache.len() - cache.start() {
        candle_core::bail!("queries ({tokens}, {heads}, {key_dim}) over {} tokens of {shape:?}", cache.len());
    }
    let queries = queries.contiguous()?;
    let (queries, queries_layout) = queries.storage_and_layout();
    let planes = cache.rows()?.planes;
    let planes: Vec<_> = planes.iter().map(Tensor::storage_and_layout).collect();
    let stored = |plane: usize| -> Result<Stored<'_>> {
        let (Some((storage, layout)), rest) = (planes.get(plane), planes.get(plane + 1)) else {
            candle_core::bail!("attention over an empty cache");
        };
        match (&**storage, rest) {
            (Storage::Cpu(numbers @ CpuStorage::F32(_)), _) => Ok(Stored::F32(values(numbers, layout)?)),
            (Storage::Cpu(numbers @ CpuStorage::F16(_)), _) => Ok(Stored::F16(values(numbers, layout)?)),
            (Storage::Cpu(codes @ CpuStorage::U8(_)), Some((scales, scales_layout))) => match &**scales {
                Storage::Cpu(scales) => Ok(Stored::Q8(values(codes, layout)?, values(scales, scales_layout)?)),
                _ => candle_core::bail!("scales that aren't on the CPU"),
            },
            _ => candle_core::bail!("a cache of another type or device"),
        }
    };
    let keys = stored(0)?;
    let own_values = stored(if matches!(keys, Stored::Q8(..)) { 2 } else { 1 });
    let Storage::Cpu(queries) = &*queries else { candle_core::bail!("queries that aren't on the CPU") };
    let attention = Attention {
        queries: values(queries, queries_layout)?,
        tokens,
        heads,
        kv_heads: shape.kv_heads,
        key_dim,
        value_dim: shape.value_dim,
        value_width: if shape.values_in_keys { key_dim } else { shape.value_dim },
        values: if shape.values_in_keys { stored(0)? } else { own_values? },
        keys,
        stored: cache.start()..cache.len(),
        span: shape.span,
        scale,
    };
    let sinks = match sinks {
        Some(sinks) => sinks.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?,
        None => vec![f32::NEG_INFINITY; heads],
    };
    if sinks.len() != heads {
        candle_core::bail!("{} sinks for {heads} heads", sinks.len());
    }
    Tensor::from_vec(attention.run(Isa::chosen(), &sinks), (tokens, heads * shape.value_dim), &Device::Cpu)
}

impl Attention<'_> {
    /// Heads that share a head of the cache.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn run(&self, isa: Isa, sinks: &[f32]) -> Vec<f32> {
        let rows = self.tokens * self.group();
        let vectors = if rows > WIDTH { 2 } else { 1 };
        let lanes = vectors * WIDTH;
        let tiles = self.kv_heads * rows.div_ceil(lanes);
        let tile = |index: usize| {
            let first = index / self.kv_heads * lanes;
            (index % self.kv_heads, first..rows.min(first + lanes))
        };
        // Enough tasks for every thread, of a size that is worth handing out.
        let parts: Vec<Range<usize>> =
            if tiles < 16 { cut(&self.stored, PART).collect() } else { vec![self.stored.clone()] };
        let mut partials: Vec<Option<Partial>> = (0..tiles * parts.len()).map(|_| None).collect();
        let to = Parts::new(&mut partials);
        team::for_each(tiles * parts.len(), |index| {
            // The heads of the same keys one after the other, since they lie side by side.
            let ((kv_head, rows), part) = (tile(index % tiles), &parts[index / tiles]);
            let seen = self.seen(&rows);
            let keys = seen.start.max(part.start)..seen.end.min(part.end);
            let task = Task { attention: self, kv_head, rows, keys };
            let partial = if task.keys.is_empty() { None } else { attend(isa, vectors, &task) };
            // SAFETY: there is a place for each index.
            unsafe { *to.at(index) = partial };
        });
        let mut out = vec![0_f32; self.tokens * self.heads * self.value_dim];
        let to = Parts::new(&mut out);
        team::for_each(tiles, |index| {
            let (kv_head, rows) = tile(index);
            let mut partials = partials.iter().skip(index).step_by(tiles).flatten();
            let mut whole = partials.next().expect("a query sees itself").clone();
            partials.for_each(|partial| whole.add(partial));
            for (lane, row) in rows.enumerate() {
                let (token, head) = (row / self.group(), kv_head * self.group() + row % self.group());
                let at = (token * self.heads + head) * self.value_dim;
                // SAFETY: each token's head is a row of one tile, and the output has all of them.
                let out = unsafe { std::slice::from_raw_parts_mut(to.at(at), self.value_dim) };
                whole.write(lane, vectors, sinks[head], out);
            }
        });
        out
    }
}

/// Some lanes of one head of the cache, and some keys.
struct Task<'a> {
    attention: &'a Attention<'a>,
    kv_head: usize,
    /// Queries that see the head: each token's, one after the other.
    rows: Range<usize>,
    keys: Range<usize>,
}

impl Attention<'_> {
    /// What is seen of one query of `rows` or another.
    fn seen(&self, rows: &Range<usize>) -> Range<usize> {
        let [first, last] = [rows.start, rows.end - 1].map(|row| self.position(row));
        self.span.first_seen(first).max(self.stored.start)..last + 1
    }

    fn position(&self, row: usize) -> usize {
        self.stored.end - self.tokens + row / self.group()
    }
}

/// `keys` by pieces that end at multiples of `len`.
fn cut(keys: &Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let keys = keys.clone();
    (keys.start / len..keys.end.div_ceil(len))
        .map(move |piece| keys.start.max(piece * len)..keys.end.min((piece + 1) * len))
}

impl Stored<'_> {
    /// Has one head's vectors of `tokens` fetched: they are too short and too far apart for the processor to see them
    /// coming.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, tokens: Range<usize>, (heads, head): (usize, usize), width: usize) {
        const LINE: usize = 64;
        let (start, bytes) = match self {
            Self::F32(numbers) => (numbers.as_ptr().cast::<u8>(), 4 * width),
            Self::F16(numbers) => (numbers.as_ptr().cast(), 2 * width),
            Self::Q8(codes, _) => (codes.as_ptr(), width),
        };
        for token in tokens {
            let vector = start.wrapping_add((token * heads + head) * bytes);
            for line in 0..bytes.div_ceil(LINE) {
                S::prefetch(vector.wrapping_add(line * LINE));
            }
        }
    }

    /// Writes one head's vectors of `tokens`, `dim` each of the `width` that are stored, to `out`. Those of f32 too: where
    /// they are stored, they are a power of two apart and would have to share few lines of the cache.
    #[inline(always)]
    fn unpack<S: Simd>(
        &self,
        tokens: Range<usize>,
        (heads, head): (usize, usize),
        (width, dim): (usize, usize),
        out: &mut [f32],
    ) {
        for (token, out) in tokens.zip(out.chunks_exact_mut(dim)) {
            let at = (token * heads + head) * width;
            match self {
                Self::F32(numbers) => {
                    let (from, from_rest) = numbers[at..at + dim].as_chunks::<WIDTH>();
                    let (to, to_rest) = out.as_chunks_mut::<WIDTH>();
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = *from;
                    }
                    to_rest.copy_from_slice(from_rest);
                }
                Self::F16(numbers) => {
                    let (from, from_rest) = numbers[at..at + dim].as_chunks::<WIDTH>();
                    let (to, to_rest) = out.as_chunks_mut::<WIDTH>();
                    for (to, from) in to.iter_mut().zip(from) {
                        // SAFETY: sixteen numbers of two bytes, of which any are a number.
                        *to = S::to_array(S::from_f16(unsafe { &*from.as_ptr().cast() }));
                    }
                    from_rest.convert_to_f32_slice(to_rest);
                }
                Self::Q8(codes, all) => {
                    let group = width / scales(width);
                    let codes = codes[at..at + dim].chunks(group);
                    for ((out, codes), scale) in out.chunks_mut(group).zip(codes).zip(&all[at / group..]) {
                        for (out, code) in out.iter_mut().zip(codes) {
                            *out = (f32::from(*code) - f32::from(ZERO)) * scale;
                        }
                    }
                }
            }
        }
    }
}

fn attend(isa: Isa, vectors: usize, task: &Task<'_>) -> Option<Partial> {
    match (isa, vectors) {
        (Isa::Reference, 1) => attend_with::<Scalar, 1>(task),
        (Isa::Reference, _) => attend_with::<Scalar, 2>(task),
        // SAFETY: only sets that the processor has are made.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, 1) => unsafe { attend_avx2::<1>(task) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, _) => unsafe { attend_avx2::<2>(task) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Amx, 1) => unsafe { attend_avx512::<1>(task) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Amx, _) => unsafe { attend_avx512::<2>(task) },
        // Nothing here needs the dot product of bytes.
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon | Isa::NeonDot, 1) => attend_with::<Neon<false>, 1>(task),
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon | Isa::NeonDot, _) => attend_with::<Neon<false>, 2>(task),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn attend_avx2<const L: usize>(task: &Task<'_>) -> Option<Partial> {
    attend_with::<Avx2, L>(task)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn attend_avx512<const L: usize>(task: &Task<'_>) -> Option<Partial> {
    attend_with::<Avx512, L>(task)
}

/// With `L` vectors of lanes.
#[inline(always)]
fn attend_with<S: Simd, const L: usize>(task: &Task<'_>) -> Option<Partial> {
    let Task { attention, kv_head, rows, keys } = task;
    let Attention { key_dim, value_dim, value_width, heads, kv_heads, scale, .. } = **attention;
    let group = attention.group();
    // Each dimension of all lanes' queries side by side. Lanes that aren't there are zeros.
    let mut queries = vec![[[0.0; WIDTH]; L]; key_dim];
    // What each lane sees.
    let mut seen = [[(0, 0); WIDTH]; L];
    for (lane, row) in rows.clone().enumerate() {
        let (token, head) = (row / group, kv_head * group + row % group);
        let query = &attention.queries[(token * heads + head) * key_dim..][..key_dim];
        for (lanes, x) in queries.iter_mut().zip(query) {
            lanes[lane / WIDTH][lane % WIDTH] = x * scale;
        }
        let position = attention.position(row);
        seen[lane / WIDTH][lane % WIDTH] = (attention.span.first_seen(position), position + 1);
    }
    let lanes_seen = || seen.as_flattened()[..rows.len()].iter();
    let all_see =
        lanes_seen().map(|(first, _)| *first).max().unwrap_or(0)..lanes_seen().map(|(_, end)| *end).min().unwrap_or(0);

    let mut whole: Option<Partial> = None;
    let mut scores = [[[0.0; WIDTH]; L]; BLOCK];
    let mut unpacked = vec![0.0; BLOCK * key_dim.max(value_dim)];
    for part in cut(keys, PART) {
        let (mut most, mut sum) = ([[LOWEST; WIDTH]; L], [[0.0; WIDTH]; L]);
        let mut mixed = vec![[[0.0; WIDTH]; L]; value_dim];
        for block in cut(&part, BLOCK) {
            let tokens = block.start - attention.stored.start..block.end - attention.stored.start;
            let head = (kv_heads, *kv_head);
            attention.keys.unpack::<S>(tokens.clone(), head, (key_dim, key_dim), &mut unpacked);
            let scores = &mut scores[..block.len()];
            scores.fill([[0.0; WIDTH]; L]);
            // Memory delivers the values while scores are computed, and the next keys while values are mixed.
            for ((scores, keys), tokens) in
                scores.chunks_mut(SUMS).zip(unpacked.chunks(SUMS * key_dim)).zip(tokens.clone().step_by(SUMS))
            {
                attention.values.prefetch::<S>(tokens..tokens + SUMS, head, value_width);
                add_products::<S, L>(scores, keys, (key_dim, 1), &queries);
            }
            if block.start < all_see.start || block.end > all_see.end {
                for (key, scores) in block.clone().zip(scores.iter_mut()) {
                    for (score, (first, end)) in scores.as_flattened_mut().iter_mut().zip(seen.as_flattened()) {
                        *score = if (*first..*end).contains(&key) { *score } else { f32::NEG_INFINITY };
                    }
                }
            }
            for l in 0..L {
                let mut highest = most[l];
                for scores in scores.iter() {
                    highest = larger(highest, scores[l]);
                }
                let kept = exp(differences(most[l], highest));
                most[l] = highest;
                sum[l] = products(sum[l], kept);
                for scores in scores.iter_mut() {
                    scores[l] = exp(differences(scores[l], highest));
                    for (sum, weight) in sum[l].iter_mut().zip(scores[l]) {
                        *sum += weight;
                    }
                }
                if kept != [1.0; WIDTH] {
                    for mixed in &mut mixed {
                        mixed[l] = products(mixed[l], kept);
                    }
                }
            }
            attention.values.unpack::<S>(tokens.clone(), head, (value_width, value_dim), &mut unpacked);
            let next = (BLOCK * SUMS).div_ceil(value_dim);
            for (i, mixed) in mixed.chunks_mut(SUMS).enumerate() {
                let from = tokens.end + i * next;
                attention.keys.prefetch::<S>(from..from + next, head, key_dim);
                add_products::<S, L>(mixed, &unpacked[i * SUMS..], (1, value_dim), scores);
            }
        }
        let partial = Partial { most: most.to_vec(), sum: sum.to_vec(), mixed: mixed.into_flattened() };
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
            sums[n][l] = S::from_array(&out[n][l]);
        }
    }
    for (k, b) in b.iter().enumerate() {
        let mut factors = [S::floats(0.0); L];
        for l in 0..L {
            factors[l] = S::from_array(&b[l]);
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
            out[n][l] = S::to_array(sums[n][l]);
        }
    }
}

#[inline(always)]
fn larger(mut a: Lanes, b: Lanes) -> Lanes {
    for (a, b) in a.iter_mut().zip(b) {
        *a = if *a > b { *a } else { b };
    }
    a
}

#[inline(always)]
fn differences(mut a: Lanes, b: Lanes) -> Lanes {
    for (a, b) in a.iter_mut().zip(b) {
        *a -= b;
    }
    a
}

#[inline(always)]
fn sums(mut a: Lanes, b: Lanes) -> Lanes {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
    a
}

#[inline(always)]
fn products(mut a: Lanes, b: Lanes) -> Lanes {
    for (a, b) in a.iter_mut().zip(b) {
        *a *= b;
    }
    a
}

impl Partial {
    /// Adds what the same lanes made of other keys.
    #[inline(always)]
    fn add(&mut self, other: &Self) {
        let vectors = self.most.len();
        for l in 0..vectors {
            let highest = larger(self.most[l], other.most[l]);
            let kept = exp(differences(self.most[l], highest));
            let added = exp(differences(other.most[l], highest));
            self.most[l] = highest;
            self.sum[l] = sums(products(self.sum[l], kept), products(other.sum[l], added));
            for (mixed, other) in self.mixed.iter_mut().zip(&other.mixed).skip(l).step_by(vectors) {
                *mixed = sums(products(*mixed, kept), products(*other, added));
            }
        }
    }

    /// Writes one lane's mean, with a sink among what it is the mean of.
    fn write(&self, lane: usize, vectors: usize, sink: f32, out: &mut [f32]) {
        let (l, i) = (lane / WIDTH, lane % WIDTH);
        let most = self.most[l][i].max(sink);
        let kept = (self.most[l][i] - most).exp();
        let share = kept / (self.sum[l][i] * kept + (sink - most).exp());
        for (out, mixed) in out.iter_mut().zip(self.mixed.iter().skip(l).step_by(vectors)) {
            *out = mixed[i] * share;
        }
    }
}
