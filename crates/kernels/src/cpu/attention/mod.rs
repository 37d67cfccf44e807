//! Attention over the cache in one pass: keys and values are read once for all queries that share them, block by block,
//! and scores exist for one block at a time (Dao et al., “FlashAttention”, 2022: a running maximum and sum). The work is
//! split over heads, queries, and, where these are few, along the context.
//!
//! A lane is a query's head; lanes stand side by side in vectors, so that nothing is ever summed across a vector. What a
//! query gets has the same bits whatever is computed beside it: keys are taken by blocks, and these by parts, that begin at
//! the same positions for all.

#![expect(unsafe_code, reason = "several threads write different parts of an output, and f16 are read as bytes")]

mod few;
mod many;

use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use half::f16;

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
/// Bytes that memory delivers at once.
const LINE: usize = 64;
/// Lanes of a vector.
const WIDTH: usize = 16;
/// Sums that stay in registers.
const SUMS: usize = 8;
/// Keys of which the sums are made apart, by several threads where there are few queries.
const PART: usize = 4 * BLOCK;
/// Stands for the maximum of no scores: no score is below it, and differences to it are numbers.
const LOWEST: f32 = -1e30;

/// One vector of lanes, in one line of the processor's cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Lanes([f32; WIDTH]);

impl Lanes {
    const ZERO: Self = Self([0.0; WIDTH]);
}

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
    mixed: Mixed,
}

/// Sums of values, each with its weight.
#[derive(Clone)]
enum Mixed {
    /// `(value_dim)` of all vectors of lanes.
    Lanes(Vec<Lanes>),
    /// `(rows, value_dim)`, where few lanes are rows.
    Rows(Vec<Lanes>, usize),
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
                whole.write(lane, sinks[head], out);
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
        self.seen_by(rows.start).0.max(self.stored.start)..self.seen_by(rows.end - 1).1
    }

    /// The query of a row that sees `kv_head`.
    fn query(&self, kv_head: usize, row: usize) -> &[f32] {
        let (token, head) = (row / self.group(), kv_head * self.group() + row % self.group());
        &self.queries[(token * self.heads + head) * self.key_dim..][..self.key_dim]
    }

    /// The first position that a row sees, and the first that it doesn't see any more.
    fn seen_by(&self, row: usize) -> (usize, usize) {
        let position = self.position(row);
        (self.span.first_seen(position), position + 1)
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
        let (start, bytes) = match self {
            Self::F32(numbers) => (numbers.as_ptr().cast::<u8>(), 4 * width),
            Self::F16(numbers) => (numbers.as_ptr().cast(), 2 * width),
            Self::Q8(codes, _) => (codes.as_ptr(), width),
        };
        let (first, step) = (start.wrapping_add((tokens.start * heads + head) * bytes), heads * bytes);
        match bytes.div_ceil(LINE) {
            // A loop of few steps takes longer than what it does.
            4 => prefetch_lines::<S, 4>(first, step, tokens.len()),
            lines => {
                for token in 0..tokens.len() {
                    (0..lines).for_each(|line| S::prefetch(first.wrapping_add(token * step + line * LINE)));
                }
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
                    for (to, from) in to_rest.iter_mut().zip(from_rest) {
                        *to = from.to_f32();
                    }
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

/// Fetches `LINES` lines at `first` and at each of the next `step`s.
#[inline(always)]
fn prefetch_lines<S: Simd, const LINES: usize>(first: *const u8, step: usize, tokens: usize) {
    for token in 0..tokens {
        for line in 0..LINES {
            S::prefetch(first.wrapping_add(token * step + line * LINE));
        }
    }
}

fn attend(isa: Isa, vectors: usize, task: &Task<'_>) -> Option<Partial> {
    match isa {
        Isa::Reference => attend_with::<Scalar>(vectors, task),
        // SAFETY: only sets that the processor has are made.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { attend_avx2(vectors, task) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { attend_avx512(vectors, task) },
        // Nothing here needs the dot product of bytes.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDot => attend_with::<Neon<false>>(vectors, task),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn attend_avx2(vectors: usize, task: &Task<'_>) -> Option<Partial> {
    attend_with::<Avx2>(vectors, task)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn attend_avx512(vectors: usize, task: &Task<'_>) -> Option<Partial> {
    attend_with::<Avx512>(vectors, task)
}

#[inline(always)]
fn attend_with<S: Simd>(vectors: usize, task: &Task<'_>) -> Option<Partial> {
    let Attention { key_dim, value_dim, .. } = *task.attention;
    let whole = key_dim.is_multiple_of(WIDTH) && value_dim.is_multiple_of(WIDTH);
    match task.rows.len() {
        1 if whole => few::attend::<S, 1>(task),
        2 if whole => few::attend::<S, 2>(task),
        3 if whole => few::attend::<S, 3>(task),
        4 if whole => few::attend::<S, 4>(task),
        5 if whole => few::attend::<S, 5>(task),
        6 if whole => few::attend::<S, 6>(task),
        7 if whole => few::attend::<S, 7>(task),
        8 if whole => few::attend::<S, 8>(task),
        _ if vectors == 1 => many::attend::<S, 1>(task),
        _ => many::attend::<S, 2>(task),
    }
}

#[inline(always)]
fn combined(mut a: Lanes, b: Lanes, combine: impl Fn(f32, f32) -> f32) -> Lanes {
    for (a, b) in a.0.iter_mut().zip(b.0) {
        *a = combine(*a, b);
    }
    a
}

#[inline(always)]
fn larger(a: Lanes, b: Lanes) -> Lanes {
    combined(a, b, |a, b| if a > b { a } else { b })
}

#[inline(always)]
fn sums(a: Lanes, b: Lanes) -> Lanes {
    combined(a, b, |a, b| a + b)
}

#[inline(always)]
fn products(a: Lanes, b: Lanes) -> Lanes {
    combined(a, b, |a, b| a * b)
}

/// `exp(a − b)`, none of which is above one.
#[inline(always)]
fn exp_differences(a: Lanes, b: Lanes) -> Lanes {
    Lanes(exp(combined(a, b, |a, b| a - b).0))
}

/// The numbers of vectors, one after the other.
fn flat(lanes: &[Lanes]) -> &[f32] {
    // SAFETY: a vector is sixteen numbers and nothing else.
    unsafe { std::slice::from_raw_parts(lanes.as_ptr().cast(), lanes.len() * WIDTH) }
}

fn flat_mut(lanes: &mut [Lanes]) -> &mut [f32] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), lanes.len() * WIDTH) }
}

impl Partial {
    /// Adds what the same lanes made of other keys.
    #[inline(always)]
    fn add(&mut self, other: &Self) {
        let vectors = self.most.len();
        for l in 0..vectors {
            let highest = larger(self.most[l], other.most[l]);
            let kept = exp_differences(self.most[l], highest);
            let added = exp_differences(other.most[l], highest);
            self.most[l] = highest;
            self.sum[l] = sums(products(self.sum[l], kept), products(other.sum[l], added));
            self.mixed.add(&other.mixed, (kept, added), (l, vectors));
        }
    }

    /// Writes one lane's mean, with a sink among what it is the mean of.
    fn write(&self, lane: usize, sink: f32, out: &mut [f32]) {
        let vectors = self.most.len();
        let (l, i) = (lane / WIDTH, lane % WIDTH);
        let most = self.most[l].0[i].max(sink);
        let kept = (self.most[l].0[i] - most).exp();
        let share = kept / (self.sum[l].0[i] * kept + (sink - most).exp());
        match &self.mixed {
            Mixed::Lanes(mixed) => {
                for (out, mixed) in out.iter_mut().zip(mixed.iter().skip(l).step_by(vectors)) {
                    *out = mixed.0[i] * share;
                }
            }
            Mixed::Rows(mixed, _) => {
                let row = &flat(mixed)[lane * out.len()..];
                for (out, mixed) in out.iter_mut().zip(row) {
                    *out = mixed * share;
                }
            }
        }
    }
}

impl Mixed {
    /// What is kept of these sums, and what is added of `other`, of the vector of lanes `l` of `vectors`.
    #[inline(always)]
    fn add(&mut self, other: &Self, (kept, added): (Lanes, Lanes), (l, vectors): (usize, usize)) {
        match (self, other) {
            (Self::Lanes(mixed), Self::Lanes(other)) => {
                for (mixed, other) in mixed.iter_mut().zip(other).skip(l).step_by(vectors) {
                    *mixed = sums(products(*mixed, kept), products(*other, added));
                }
            }
            (Self::Rows(mixed, rows), Self::Rows(other, _)) => {
                let row = mixed.len() / *rows;
                let pairs = mixed.chunks_exact_mut(row).zip(other.chunks_exact(row));
                for ((mixed, other), (kept, added)) in pairs.zip(kept.0.into_iter().zip(added.0)) {
                    let (kept, added) = (Lanes([kept; WIDTH]), Lanes([added; WIDTH]));
                    for (mixed, other) in mixed.iter_mut().zip(other) {
                        *mixed = sums(products(*mixed, kept), products(*other, added));
                    }
                }
            }
            _ => unreachable!("the same lanes are mixed in one way"),
        }
    }
}
