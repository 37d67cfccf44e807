use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{PackedType, Packing};
use crate::cpu::{packed_product, values};

/// A matrix on the CPU that stays packed: a row is unpacked where it is needed and forgotten again. `B` owns the blocks,
/// or maps them.
pub struct PackedMatrix<B> {
    blocks: B,
    packed_type: PackedType,
    rows: usize,
    columns: usize,
}

/// Rows that one task unpacks; fewer, and handing them out costs more than the work.
const ROWS_PER_TASK: usize = 8;

impl<B: AsRef<[u8]> + Send + Sync> PackedMatrix<B> {
    /// # Errors
    /// When a row isn't a whole number of blocks, or `blocks` isn't `rows` rows.
    pub fn new(blocks: B, packed_type: PackedType, rows: usize, columns: usize) -> Result<Self> {
        Packing::Ours(packed_type).check_rows(blocks.as_ref().len(), rows, columns)?;
        Ok(Self { blocks, packed_type, rows, columns })
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
            if *id as usize >= self.rows {
                candle_core::bail!("row {id} of {}", self.rows);
            }
            self.unpack_row(*id as usize, out);
        }
        Tensor::from_vec(out, shape, &Device::Cpu)
    }

    /// `x` `(tokens, columns)` of f32 → `(tokens, rows)`, computed in f32.
    ///
    /// # Errors
    /// When `x` has another shape or type, or isn't contiguous.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(self)
    }

    /// All weights `(rows, columns)`, for devices that can't read the blocks. What is too large for f16 becomes infinite.
    ///
    /// # Errors
    /// When the tensor can't be made.
    pub fn to_f16(&self) -> Result<Tensor> {
        let mut out = vec![f16::ZERO; self.rows * self.columns];
        out.par_chunks_mut(self.columns).enumerate().with_min_len(ROWS_PER_TASK).for_each_init(
            || vec![0_f32; self.columns],
            |weights, (row, out)| {
                self.unpack_row(row, weights);
                out.convert_from_f32_slice(weights);
            },
        );
        Tensor::from_vec(out, (self.rows, self.columns), &Device::Cpu)
    }

    fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let bytes = self.columns / self.packed_type.block_len() * self.packed_type.block_bytes();
        self.packed_type.unpack(&self.blocks.as_ref()[row * bytes..][..bytes], out);
    }
}

impl<B: AsRef<[u8]> + Send + Sync> CustomOp1 for PackedMatrix<B> {
    fn name(&self) -> &'static str {
        "packed-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, columns) = layout.shape().dims2()?;
        let x = values(x, layout)?;
        if columns != self.columns || tokens == 0 {
            candle_core::bail!("{tokens} tokens of {columns} values for rows of {} weights", self.columns);
        }
        let shape = (self.rows, columns);
        let product = packed_product(self.packed_type, self.blocks.as_ref(), shape, x, tokens);
        Ok((CpuStorage::F32(product), Shape::from((tokens, self.rows))))
    }
}
