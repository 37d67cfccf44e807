//! Matrices of f32, f16 or bf16 as they lie in the file, and their products with tokens in f32. A row is one run of
//! memory, so nothing is repacked: for one token its weights are read once, in order.

#![expect(
    unsafe_code,
    reason = "the processor's instructions, and several threads that write different parts of an output"
)]

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};

use super::team;
#[cfg(target_arch = "aarch64")]
use super::tiles::Neon;
#[cfg(target_arch = "x86_64")]
use super::tiles::{Avx2, Avx512};
use super::tiles::{Isa, Scalar, Simd};
use crate::packed::Packing;

/// A matrix `(rows, columns)` of f32, f16 or bf16. `B` owns its little-endian bytes, or maps them; they need no alignment.
pub struct FloatMatrix<B> {
    bytes: B,
    dtype: DType,
    rows: usize,
    columns: usize,
}

/// Weights of a row that are taken at once.
const LANES: usize = 16;

impl<B: AsRef<[u8]> + Send + Sync> FloatMatrix<B> {
    /// Whether matrices of `packing` are such ones.
    pub const fn can_hold(packing: Packing) -> bool {
        dtype(packing).is_some()
    }

    /// # Errors
    /// When weights of `packing` are no floats, or `bytes` aren't `rows` rows of `columns`.
    pub fn new(bytes: B, packing: Packing, rows: usize, columns: usize) -> Result<Self> {
        packing.check_rows(bytes.as_ref().len(), rows, columns)?;
        match dtype(packing) {
            Some(dtype) => Ok(Self { bytes, dtype, rows, columns }),
            None => candle_core::bail!("{packing:?} are no floats"),
        }
    }

    /// The products of all `matrices` with `x` `(tokens, columns)` of f32, each `(tokens, rows)` with its bias added to
    /// every token. A row and a token have the same product whatever is beside them.
    ///
    /// # Errors
    /// When `x` has another shape or type, or isn't contiguous, or a bias has another shape.
    pub fn products(matrices: &[(&Self, Option<&Tensor>)], x: &Tensor) -> Result<Vec<Tensor>> {
        let shape = |matrix: &Self| (matrix.rows, matrix.columns);
        super::products(matrices, shape, x, |matrices, x, tokens| multiply(Isa::chosen(), matrices, x, tokens))
    }

    /// The rows `ids`, `(…)` → `(…, columns)`, as f32.
    ///
    /// # Errors
    /// When an id is no row.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.columns);
        let ids = ids.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?;
        let row_bytes = self.row_bytes();
        let mut out = Vec::with_capacity(ids.len() * self.columns);
        for id in ids {
            let row = id as usize;
            if row >= self.rows {
                candle_core::bail!("row {row} of {}", self.rows);
            }
            let row = &self.bytes.as_ref()[row * row_bytes..][..row_bytes];
            match self.dtype {
                DType::F16 => out.extend(row.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32())),
                DType::BF16 => out.extend(row.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32())),
                _ => out.extend(row.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            }
        }
        Tensor::from_vec(out, shape, &Device::Cpu)
    }
}

impl<B> FloatMatrix<B> {
    fn row_bytes(&self) -> usize {
        self.columns * self.dtype.size_in_bytes()
    }
}

const fn dtype(packing: Packing) -> Option<DType> {
    match packing {
        Packing::Candle(GgmlDType::F32) => Some(DType::F32),
        Packing::Candle(GgmlDType::F16) => Some(DType::F16),
        Packing::Candle(GgmlDType::BF16) => Some(DType::BF16),
        _ => None,
    }
}

/// Some rows of one matrix, with all tokens.
pub(super) struct Task<'a> {
    pub(super) dtype: DType,
    /// The weights of these rows.
    pub(super) rows: &'a [u8],
    pub(super) row_bytes: usize,
    pub(super) x: &'a [f32],
    pub(super) columns: usize,
    pub(super) tokens: usize,
    /// For the first token and the first of these rows.
    pub(super) output: *mut f32,
    /// From one token to the next.
    pub(super) stride: usize,
    /// For each of these rows.
    pub(super) bias: Option<&'a [f32]>,
}

// SAFETY: each task's rows are its own, and so is what it writes.
unsafe impl Sync for Task<'_> {}

/// The products of `matrices`, all of as many columns, with `tokens` rows of `x`.
fn multiply<B: AsRef<[u8]> + Send + Sync>(
    isa: Isa,
    matrices: &[(&FloatMatrix<B>, Option<&[f32]>)],
    x: &[f32],
    tokens: usize,
) -> Vec<Vec<f32>> {
    let mut outputs: Vec<Vec<f32>> = matrices.iter().map(|(matrix, _)| vec![0.0; tokens * matrix.rows]).collect();
    let tasks: Vec<Task<'_>> = matrices
        .iter()
        .zip(&mut outputs)
        .flat_map(|((matrix, bias), output)| matrix.tasks(x, tokens, *bias, output.as_mut_ptr()))
        .collect();
    // SAFETY: only sets that the processor has are made; the outputs have room for all tokens' rows.
    team::for_each(tasks.len(), |index| unsafe { run(isa, &tasks[index]) });
    outputs
}

impl<B: AsRef<[u8]>> FloatMatrix<B> {
    /// The product in parts that are worth handing out.
    fn tasks<'a>(
        &'a self,
        x: &'a [f32],
        tokens: usize,
        bias: Option<&'a [f32]>,
        output: *mut f32,
    ) -> impl Iterator<Item = Task<'a>> {
        /// Bytes of weights: some microseconds for one token; with many, what stays in a cache from one to the next.
        const BYTES: usize = 64 << 10;
        let Self { dtype, rows: stride, columns, .. } = *self;
        let row_bytes = self.row_bytes();
        let at_once = (BYTES / row_bytes).clamp(16, 64) / 8 * 8;
        self.bytes.as_ref().chunks(at_once * row_bytes).enumerate().map(move |(index, rows)| {
            let first = index * at_once;
            let bias = bias.map(|bias| &bias[first..]);
            Task { dtype, rows, row_bytes, x, columns, tokens, output: output.wrapping_add(first), stride, bias }
        })
    }
}

/// # Safety
/// The processor has the instructions of `isa`; the task's output has room, and nobody else uses it.
pub(super) unsafe fn run(isa: Isa, task: &Task<'_>) {
    macro_rules! each_type {
        ($run:ident) => {
            // SAFETY: as asked of the caller.
            unsafe {
                match task.dtype {
                    DType::F16 => $run::<F16>(task),
                    DType::BF16 => $run::<Bf16>(task),
                    _ => $run::<F32>(task),
                }
            }
        };
    }
    match isa {
        Isa::Reference => each_type!(reference),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => each_type!(avx2),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => each_type!(avx512),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDot => each_type!(neon),
    }
}

unsafe fn reference<W: Weight>(task: &Task<'_>) {
    // SAFETY: as asked of the caller; the set has no instructions of its own.
    unsafe { product::<Scalar, W, 1, 1, 1>(task) }
}

// Blocks of as many rows and tokens as there are registers for the sums of; for one token, of as many rows as it takes
// to have a sum ready for the next product.

#[cfg(target_arch = "aarch64")]
unsafe fn neon<W: Weight>(task: &Task<'_>) {
    // SAFETY: as asked of the caller; every 64-bit ARM has NEON.
    unsafe { product::<Neon<false>, W, 2, 3, 4>(task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<W: Weight>(task: &Task<'_>) {
    // SAFETY: as asked of the caller.
    unsafe { product::<Avx2, W, 2, 3, 4>(task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn avx512<W: Weight>(task: &Task<'_>) {
    // SAFETY: as asked of the caller.
    unsafe { product::<Avx512, W, 4, 6, 8>(task) }
}

/// How a weight lies in memory.
trait Weight {
    const BYTES: usize;

    /// The first [`LANES`] of `weights`, which has so many.
    fn load<S: Simd>(weights: &[u8]) -> S::Floats;
}

struct F32;
struct F16;
struct Bf16;

impl Weight for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn load<S: Simd>(weights: &[u8]) -> S::Floats {
        let mut values = [0.0; LANES];
        for (value, bytes) in values.iter_mut().zip(weights.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        S::from_array(&values)
    }
}

impl Weight for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn load<S: Simd>(weights: &[u8]) -> S::Floats {
        S::from_f16(weights.first_chunk().expect("so many weights"))
    }
}

impl Weight for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn load<S: Simd>(weights: &[u8]) -> S::Floats {
        S::from_bf16(weights.first_chunk().expect("so many weights"))
    }
}

/// In blocks of `R` rows and `T` tokens, or of `ALONE` rows and one token.
///
/// # Safety
/// The processor has the instructions of `S`; the output has room for all tokens' rows, and nobody else uses it.
#[inline(always)]
unsafe fn product<S: Simd, W: Weight, const R: usize, const T: usize, const ALONE: usize>(task: &Task<'_>) {
    let mut token = 0;
    while token < task.tokens {
        // SAFETY: as asked of the caller.
        token += unsafe {
            match task.tokens - token {
                left if left >= T && T > 1 => tokens::<S, W, R, T>(task, token),
                2.. => tokens::<S, W, R, 2>(task, token),
                _ => tokens::<S, W, ALONE, 1>(task, token),
            }
        };
    }
}

/// The products of all rows with `T` tokens; gives their number.
#[inline(always)]
unsafe fn tokens<S: Simd, W: Weight, const R: usize, const T: usize>(task: &Task<'_>, token: usize) -> usize {
    let rows = task.rows.len() / task.row_bytes;
    let mut x: [&[f32]; T] = [&[]; T];
    for (t, x) in x.iter_mut().enumerate() {
        *x = &task.x[(token + t) * task.columns..][..task.columns];
    }
    let mut row = 0;
    while row < rows {
        // SAFETY: as asked of the caller.
        row += unsafe {
            if rows - row >= R {
                block::<S, W, R, T>(task, row, token, &x)
            } else {
                block::<S, W, 1, T>(task, row, token, &x)
            }
        };
    }
    T
}

/// The products of `R` rows with `T` tokens; gives `R`. The sum of one row and one token is made in the order of the
/// columns, [`LANES`] side by side.
#[expect(clippy::needless_range_loop, reason = "closures can't be inlined where instructions are, so loops are plain")]
#[inline(always)]
unsafe fn block<S: Simd, W: Weight, const R: usize, const T: usize>(
    task: &Task<'_>,
    row: usize,
    token: usize,
    x: &[&[f32]; T],
) -> usize {
    let mut rows: [&[u8]; R] = [&[]; R];
    for (r, rows) in rows.iter_mut().enumerate() {
        *rows = &task.rows[(row + r) * task.row_bytes..][..task.row_bytes];
    }
    // Short rows end before what memory takes: then the next ones are fetched.
    let ahead = if task.row_bytes < 4096 { R * task.row_bytes } else { 1024 };
    let mut sums = [[S::floats(0.0); T]; R];
    let whole = task.columns / LANES;
    for step in 0..whole {
        let mut weights = [S::floats(0.0); R];
        for r in 0..R {
            // SAFETY: a row has at least `whole` times as many.
            let at = unsafe { rows[r].get_unchecked(step * LANES * W::BYTES..(step + 1) * LANES * W::BYTES) };
            if T == 1 {
                S::prefetch(at.as_ptr().wrapping_add(ahead));
            }
            weights[r] = W::load::<S>(at);
        }
        for t in 0..T {
            // SAFETY: so has a token.
            let x = unsafe { &*x[t].as_ptr().add(step * LANES).cast::<[f32; LANES]>() };
            let x = S::from_array(x);
            for r in 0..R {
                sums[r][t] = S::multiply_add(weights[r], x, sums[r][t]);
            }
        }
    }
    let rest = task.columns - whole * LANES;
    if rest > 0 {
        for t in 0..T {
            let mut last = [0.0; LANES];
            last[..rest].copy_from_slice(&x[t][whole * LANES..]);
            let x = S::from_array(&last);
            for r in 0..R {
                let mut last = [0; 4 * LANES];
                last[..rest * W::BYTES].copy_from_slice(&rows[r][whole * LANES * W::BYTES..]);
                sums[r][t] = S::multiply_add(W::load::<S>(&last), x, sums[r][t]);
            }
        }
    }
    for t in 0..T {
        for r in 0..R {
            let bias = if let Some(bias) = task.bias { bias[row + r] } else { 0.0 };
            // SAFETY: as asked of the caller.
            unsafe { task.output.add((token + t) * task.stride + row + r).write(S::sum(sums[r][t]) + bias) };
        }
    }
    R
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPES: [GgmlDType; 3] = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16];

    fn random(count: usize) -> Vec<f32> {
        Tensor::randn(0_f32, 1.0, count, &Device::Cpu).unwrap().to_vec1().unwrap()
    }

    /// Bytes of `weights`, and what they are rounded to.
    fn stored(weights: &[f32], dtype: GgmlDType) -> (Vec<u8>, Vec<f32>) {
        match dtype {
            GgmlDType::F16 => {
                weights.iter().map(|w| (f16::from_f32(*w).to_le_bytes(), f16::from_f32(*w).to_f32())).unzip2()
            }
            GgmlDType::BF16 => {
                weights.iter().map(|w| (bf16::from_f32(*w).to_le_bytes(), bf16::from_f32(*w).to_f32())).unzip2()
            }
            _ => weights.iter().map(|w| (w.to_le_bytes(), *w)).unzip2(),
        }
    }

    trait Unzip<const N: usize>: Iterator<Item = ([u8; N], f32)> + Sized {
        fn unzip2(self) -> (Vec<u8>, Vec<f32>) {
            let (bytes, values): (Vec<[u8; N]>, Vec<f32>) = self.unzip();
            (bytes.into_flattened(), values)
        }
    }

    impl<const N: usize, I: Iterator<Item = ([u8; N], f32)>> Unzip<N> for I {}

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Every set of instructions gives the product, and the same bits as every other, alone and among other tokens.
        #[test]
        fn a_product_is_that_of_the_weights(
            dtype in prop::sample::select(&TYPES), rows in 1_usize..90, columns in 1_usize..200, tokens in 1_usize..20,
            has_bias: bool, is_tiny: bool,
        ) {
            let mut weights = random(rows * columns);
            weights[..columns].fill(0.0);
            if is_tiny {
                // Denormal in f16, and in f32 and bf16 after the product.
                weights.iter_mut().for_each(|weight| *weight *= 1e-6);
            }
            let (bytes, weights) = stored(&weights, dtype);
            let x: Vec<f32> = random(tokens * columns).iter().map(|x| if is_tiny { x * 1e-33 } else { *x }).collect();
            let bias = has_bias.then(|| random(rows));
            let matrix = FloatMatrix::new(bytes, Packing::Candle(dtype), rows, columns).unwrap();
            let matrices = [(&matrix, bias.as_deref())];
            let reference = multiply(Isa::Reference, &matrices, &x, tokens).remove(0);
            for isa in Isa::available() {
                prop_assert!(multiply(isa, &matrices, &x, tokens).remove(0) == reference, "{isa:?} of {dtype:?}");
                let last = multiply(isa, &matrices, &x[(tokens - 1) * columns..], 1).remove(0);
                prop_assert!(last == reference[(tokens - 1) * rows..], "one token with {isa:?} of {dtype:?}");
            }
            for (x, found) in x.chunks(columns).zip(reference.chunks(rows)) {
                for (row, (weights, found)) in weights.chunks(columns).zip(found).enumerate() {
                    let terms = weights.iter().zip(x).map(|(weight, x)| f64::from(*weight) * f64::from(*x));
                    let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
                    let (sum, size) = terms.fold((bias, bias.abs()), |(sum, size), term| (sum + term, size + term.abs()));
                    prop_assert!((f64::from(*found) - sum).abs() <= 1e-5 * size + 1e-42, "{found} for {sum} of {size}");
                }
            }
        }
    }

    #[test]
    fn rows_are_looked_up_and_what_is_none_is_refused() {
        for dtype in TYPES {
            let (bytes, weights) = stored(&random(5 * 7), dtype);
            let matrix = FloatMatrix::new(bytes.clone(), Packing::Candle(dtype), 5, 7).unwrap();
            let ids = Tensor::new(&[4_u32, 0], &Device::Cpu).unwrap();
            let found = matrix.embedding(&ids).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(found, [&weights[28..], &weights[..7]]);
            assert!(matrix.embedding(&Tensor::new(&[5_u32], &Device::Cpu).unwrap()).is_err());
            let x = Tensor::zeros((2, 6), DType::F32, &Device::Cpu).unwrap();
            assert!(FloatMatrix::products(&[(&matrix, None)], &x).is_err(), "tokens of another length");
            assert!(FloatMatrix::new(bytes, Packing::Candle(dtype), 5, 8).is_err());
        }
        assert!(FloatMatrix::new(vec![0; 18], Packing::Candle(GgmlDType::Q4_0), 1, 32).is_err());
    }
}
