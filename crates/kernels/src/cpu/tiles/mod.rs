//! Matrices repacked into tiles of sixteen rows, and their products with tokens rounded to eight bits. The same numbers as
//! in the file, in as many bytes, in the order in which a vector unit takes them; the last tile is filled up with rows of
//! zeros.
//!
//! Start at [`Tiles`]; [`blocks`] says how each packing lies in a tile, [`product`] is the computation, and [`simd`] what
//! it needs of a processor.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod panels;
mod product;
mod scalar;
mod simd;
#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Result, Storage, Tensor};

use self::activations::{GROUP, Group};
pub(crate) use self::isa::Isa;
#[cfg(target_arch = "aarch64")]
pub(crate) use self::neon::Neon;
use self::pack::Kind;
use self::panels::{PANEL, Panel, TILES, TOKENS};
use self::product::{Output, Task};
pub(crate) use self::scalar::Scalar;
use self::simd::ROWS;
pub(crate) use self::simd::Simd;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::{avx2::Avx2, avx512::Avx512};
use super::{Parts, bias, team, values};
use crate::packed::Packing;

/// Rows of a tile.
pub const TILE_ROWS: usize = ROWS;

/// The instruction set that products and attention are computed with, by the name that `TIDEGATE_CPU` takes for it.
pub fn instruction_set() -> &'static str {
    Isa::chosen().name()
}

/// A matrix `(rows, columns)` in tiles. `B` owns their bytes, or maps them.
pub struct Tiles<B> {
    bytes: B,
    kind: Kind,
    rows: usize,
    columns: usize,
    tile_bytes: usize,
}

/// Bytes of a matrix in tiles; `None` where the packing has none, or rows aren't whole blocks.
pub fn tiled_bytes(packing: Packing, rows: usize, columns: usize) -> Option<u64> {
    let is_whole = columns > 0 && columns.is_multiple_of(packing.block_len());
    (Kind::of(packing).is_some() && is_whole).then(|| {
        let row = (columns / packing.block_len() * packing.block_bytes()) as u64;
        (rows as u64).next_multiple_of(ROWS as u64).saturating_mul(row)
    })
}

/// Writes the file's `blocks` of a matrix, or of some of its rows from a multiple of sixteen on, to `tiles`, which has
/// [`tiled_bytes`] of them. What one of them lacks is left out.
///
/// # Errors
/// When the packing has no tiles, or rows aren't whole blocks.
pub fn tile(blocks: &[u8], packing: Packing, columns: usize, tiles: &mut [u8]) -> Result<()> {
    let (Some(kind), Some(tile_bytes)) = (Kind::of(packing), tiled_bytes(packing, ROWS, columns)) else {
        candle_core::bail!("no tiles of {columns} columns of {packing:?}");
    };
    let tile_bytes = tile_bytes as usize;
    let count = tiles.len() / tile_bytes;
    let to = Parts::new(tiles);
    team::for_each(count, |index| {
        let from = &blocks[(index * tile_bytes).min(blocks.len())..];
        #[expect(unsafe_code, reason = "several threads write different parts of a slice")]
        // SAFETY: the slice has `count` tiles, and each is one index's.
        let tile = unsafe { std::slice::from_raw_parts_mut(to.at(index * tile_bytes), tile_bytes) };
        let from = &from[..from.len().min(tile_bytes)];
        pack::pack(kind, from, tile_bytes / ROWS, packing.block_bytes(), tile);
    });
    Ok(())
}

impl<B: AsRef<[u8]> + Send + Sync> Tiles<B> {
    /// A matrix of what [`tile`] wrote.
    ///
    /// # Errors
    /// When the packing has no tiles, or `bytes` aren't [`tiled_bytes`].
    pub fn new(bytes: B, packing: Packing, rows: usize, columns: usize) -> Result<Self> {
        match (Kind::of(packing), tiled_bytes(packing, rows, columns)) {
            (Some(kind), Some(len)) if len == bytes.as_ref().len() as u64 && rows > 0 => {
                let tile_bytes = bytes.as_ref().len() / rows.div_ceil(ROWS);
                Ok(Self { bytes, kind, rows, columns, tile_bytes })
            }
            _ => {
                candle_core::bail!("{} bytes for {rows} rows of {columns} weights of {packing:?}", bytes.as_ref().len())
            }
        }
    }

    /// The products of all `matrices` with `x` `(tokens, columns)` of f32, each `(tokens, rows)` with its bias added to
    /// every token. `x` is rounded once for all of them.
    ///
    /// # Errors
    /// When `x` has another shape or type, or isn't contiguous, or a bias has another shape.
    pub fn products(matrices: &[(&Self, Option<&Tensor>)], x: &Tensor) -> Result<Vec<Tensor>> {
        let shape = |matrix: &Self| (matrix.rows, matrix.columns);
        super::products(matrices, shape, x, |matrices, x, tokens| multiply(Isa::chosen(), matrices, x, tokens))
    }

    /// The products of each expert's share of `x` `(tokens, columns)` with its matrix in each of `sets`, all at once:
    /// `counts[expert]` rows for each expert, one expert's after the other's, each set `(rows, its rows)`. The rows are
    /// those of `x` that `rows` names; without it, all in order.
    ///
    /// # Errors
    /// When `x` has another shape or type, or isn't contiguous, the matrices or biases of a set are of other shapes, or
    /// the rows don't fit `counts`.
    pub fn expert_products(
        sets: &[Vec<(&Self, Option<&Tensor>)>],
        x: &Tensor,
        rows: Option<&[u32]>,
        counts: &[usize],
    ) -> Result<Vec<Tensor>> {
        let (tokens, columns) = x.dims2()?;
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(x) = &*storage else { candle_core::bail!("tiles are multiplied on the CPU") };
        let x = values::<f32>(x, layout)?;
        let total: usize = counts.iter().sum();
        let is_there = |row: &u32| (*row as usize) < tokens;
        let is_each_there = rows.map_or(total == tokens, |rows| rows.len() == total && rows.iter().all(is_there));
        let is_shaped = |set: &Vec<(&Self, Option<&Tensor>)>| {
            set.len() == counts.len() && set.iter().all(|(it, _)| it.columns == columns && it.rows == set[0].0.rows)
        };
        if total == 0 || !is_each_there || !sets.iter().all(is_shaped) {
            candle_core::bail!("{counts:?} of {tokens} tokens of {columns} values for sets of other shapes");
        }
        let isa = Isa::chosen();
        let mut groups = rounded(isa, x, tokens);
        let per_row = columns / GROUP;
        if let Some(rows) = rows {
            groups = rows.iter().flat_map(|row| &groups[*row as usize * per_row..][..per_row]).copied().collect();
        }
        let biases = sets
            .iter()
            .flatten()
            .zip(counts.iter().cycle())
            .map(|((matrix, it), count)| it.filter(|_| *count > 0).map(|it| bias(it, matrix.rows)).transpose());
        let biases = biases.collect::<Result<Vec<_>>>()?;
        let mut tasks = Vec::new();
        let mut outputs: Vec<Vec<f32>> = Vec::with_capacity(sets.len());
        for (set, biases) in sets.iter().zip(biases.chunks(counts.len())) {
            let rows = set[0].0.rows;
            let mut output: Vec<f32> = Vec::with_capacity(total * rows);
            let mut first = 0;
            for (((matrix, _), bias), count) in set.iter().zip(biases).zip(counts).filter(|(_, count)| **count > 0) {
                let x = &groups[first * per_row..(first + count) * per_row];
                tasks.extend(matrix.work(
                    x,
                    &[],
                    *count,
                    bias.as_deref(),
                    output.as_mut_ptr().wrapping_add(first * rows),
                ));
                first += count;
            }
            outputs.push(output);
        }
        run(isa, &tasks);
        let tensor = |(mut output, set): (Vec<f32>, &Vec<(&Self, _)>)| {
            let rows = set[0].0.rows;
            #[expect(unsafe_code, reason = "outputs are not filled with zeros first")]
            // SAFETY: it has room for so many, and each was written: all rows of all tokens are some task's.
            unsafe {
                output.set_len(total * rows);
            }
            Tensor::from_vec(output, (total, rows), &Device::Cpu)
        };
        outputs.into_iter().zip(sets).map(tensor).collect()
    }

    /// The rows `ids`, `(…)` → `(…, columns)`, as f32.
    ///
    /// # Errors
    /// When an id is no row.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.columns);
        let ids = ids.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?;
        let mut out = vec![0_f32; ids.len() * self.columns];
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(self.columns)) {
            let row = *id as usize;
            if row >= self.rows {
                candle_core::bail!("row {id} of {}", self.rows);
            }
            let tile = &self.bytes.as_ref()[row / ROWS * self.tile_bytes..][..self.tile_bytes];
            Isa::unpack_row(self.kind, tile, row % ROWS, out);
        }
        Tensor::from_vec(out, shape, &Device::Cpu)
    }
}

/// The products of `matrices`, all of as many columns, with `tokens` rows of `x`.
fn multiply<B: AsRef<[u8]> + Sync>(
    isa: Isa,
    matrices: &[(&Tiles<B>, Option<&[f32]>)],
    x: &[f32],
    tokens: usize,
) -> Vec<Vec<f32>> {
    let groups = rounded(isa, x, tokens);
    let panels = if isa.takes_panels(tokens) { panels::panels(&groups, tokens) } else { Vec::new() };
    let mut outputs: Vec<Vec<f32>> =
        matrices.iter().map(|(matrix, _)| Vec::with_capacity(tokens * matrix.rows)).collect();
    let tasks: Vec<Work<'_>> = matrices
        .iter()
        .zip(&mut outputs)
        .flat_map(|((matrix, bias), output)| matrix.work(&groups, &panels, tokens, *bias, output.as_mut_ptr()))
        .collect();
    run(isa, &tasks);
    for (output, (matrix, _)) in outputs.iter_mut().zip(matrices) {
        #[expect(unsafe_code, reason = "outputs are not filled with zeros first")]
        // SAFETY: it has room for so many, and each was written: the tiles' rows are all rows.
        unsafe {
            output.set_len(tokens * matrix.rows);
        }
    }
    outputs
}

/// Does all of `tasks`, whose outputs have room for all their tokens' rows, which are no other task's.
fn run(isa: Isa, tasks: &[Work<'_>]) {
    #[expect(unsafe_code, reason = "several threads write different parts of the outputs")]
    team::for_each(tasks.len(), |index| {
        let Work(kind, task) = &tasks[index];
        // SAFETY: the output has room for all tokens' rows, and each tile is one index's.
        unsafe { isa.multiply(*kind, task) }
    });
}

/// `x` rounded to eight bits.
fn rounded(isa: Isa, x: &[f32], tokens: usize) -> Vec<Group> {
    /// Values that are worth another thread.
    const VALUES: usize = 16 << 10;
    let mut groups = vec![Group::default(); x.len() / GROUP];
    let columns = x.len() / tokens;
    let at_once = (VALUES / columns).max(1).min(tokens);
    let to = Parts::new(&mut groups);
    team::for_each(tokens.div_ceil(at_once), |index| {
        let first = index * at_once;
        let tokens = at_once.min(tokens - first);
        let from = &x[first * columns..][..tokens * columns];
        #[expect(unsafe_code, reason = "several threads write different parts of a slice")]
        // SAFETY: there are as many groups as `x` has, and these tokens' are one index's.
        let to = unsafe { std::slice::from_raw_parts_mut(to.at(first * columns / GROUP), from.len() / GROUP) };
        isa.quantize(from, to);
    });
    groups
}

/// Some tiles of one matrix.
struct Work<'a>(Kind, Task<'a>);

#[expect(unsafe_code, reason = "a pointer into an output is handed to several threads")]
// SAFETY: they write different values.
unsafe impl Sync for Work<'_> {}

impl<B: AsRef<[u8]>> Tiles<B> {
    /// The product with `tokens` in parts that are worth handing out.
    fn work<'a>(
        &'a self,
        x: &'a [Group],
        panels: &'a [Panel],
        tokens: usize,
        bias: Option<&'a [f32]>,
        output: *mut f32,
    ) -> impl Iterator<Item = Work<'a>> {
        /// Bytes of weights for one token: some microseconds.
        const BYTES: usize = 64 << 10;
        let Self { kind, rows, tile_bytes, .. } = *self;
        let groups = x.len() / tokens;
        let (at_once, tokens_at_once) = if panels.is_empty() {
            ((BYTES / (tile_bytes * tokens.div_ceil(4))).max(1), tokens)
        } else {
            (TILES, TOKENS)
        };
        let tiles = self.bytes.as_ref().chunks(at_once * tile_bytes).enumerate();
        tiles.flat_map(move |(index, tiles)| {
            x.chunks(tokens_at_once * groups).enumerate().map(move |(part, x)| {
                let token = part * tokens_at_once;
                let tokens = x.len() / groups;
                let panels = panels.get(token / PANEL * groups..).unwrap_or_default();
                let panels = &panels[..panels.len().min(tokens.div_ceil(PANEL) * groups)];
                let output = Output { values: output.wrapping_add(token * rows), rows, bias };
                Work(kind, Task { tiles, tile_bytes, first: index * at_once, x, panels, tokens, output })
            })
        })
    }
}
