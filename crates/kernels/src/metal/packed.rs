use candle_core::backend::BackendStorage;
use candle_core::quantized::GgmlDType;
use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, MetalDevice, MetalError, MetalStorage, Result, Shape};
use candle_core::{Tensor, bail};
use candle_metal_kernels::{call_quantized_matmul_mm_t, call_quantized_matmul_mv_t};

use super::compiled::{Source, codebook};
use super::launch::{Launch, SIMD_GROUP, narrow};
use crate::packed::Packing;

/// As in `packed.metal`: rows of a threadgroup, of a SIMD-group each, and tokens for which weights are unpacked once.
pub(super) const ROWS: usize = 4;
pub(super) const TOKENS: usize = 4;
/// Weights that a thread unpacks at a time.
const AT_ONCE: usize = 8;

/// A matrix that stays packed in the GPU's memory.
pub struct PackedTensor {
    blocks: Tensor,
    codebook: Tensor,
    packing: Packing,
    rows: usize,
    columns: usize,
}

impl PackedTensor {
    /// Copies `blocks` to `device`.
    ///
    /// # Errors
    /// When a row isn't a whole number of blocks, `blocks` isn't `rows` rows, or there is no memory for them.
    pub fn new(blocks: &[u8], packing: Packing, rows: usize, columns: usize, device: &MetalDevice) -> Result<Self> {
        packing.check_rows(blocks.len(), rows, columns)?;
        let blocks = Tensor::from_slice(blocks, blocks.len(), &Device::Metal(device.clone()))?;
        Ok(Self { blocks, codebook: codebook(device, packing)?, packing, rows, columns })
    }

    /// The blocks as they lie in the GPU's memory.
    pub const fn blocks(&self) -> &Tensor {
        &self.blocks
    }

    /// `x` `(tokens, columns)` → `(tokens, rows)` of f32: by candle's kernels where they are right, which round to f16 for
    /// several tokens, else by ours, in f32.
    ///
    /// # Errors
    /// When `x` has another shape, or isn't on the GPU.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = self.tokens(x)?;
        match self.packing {
            Packing::Candle(dtype) if candle_is_right(dtype, self.rows, self.columns, tokens) => {
                let op = CandleProduct { dtype, rows: self.rows };
                x.to_dtype(DType::F32)?.contiguous()?.apply_op2_no_bwd(&self.blocks, &op)
            }
            _ => self.own_product(x),
        }
    }

    /// [`Self::product`] by our own kernel, whatever the packing is.
    ///
    /// # Errors
    /// As there.
    pub fn own_product(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = self.tokens(x)?;
        let groups = (self.rows.div_ceil(ROWS), tokens.div_ceil(TOKENS));
        self.launch("packed_product", &x.to_dtype(DType::F32)?, (tokens, self.rows), groups, SIMD_GROUP * ROWS)
    }

    /// The rows `ids`, `(…)` → `(…, columns)`, as f32; zeros for an id that is no row.
    ///
    /// # Errors
    /// When `ids` isn't on the GPU.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.columns);
        let ids = ids.to_dtype(DType::U32)?.flatten_all()?;
        let groups = (self.columns.div_ceil(AT_ONCE).div_ceil(SIMD_GROUP), ids.elem_count());
        self.launch("packed_rows", &ids, (ids.elem_count(), self.columns), groups, SIMD_GROUP)?.reshape(shape)
    }

    fn tokens(&self, x: &Tensor) -> Result<usize> {
        let (tokens, columns) = x.dims2()?;
        if columns != self.columns {
            bail!("{tokens} tokens of {columns} values for rows of {} weights", self.columns);
        }
        Ok(tokens)
    }

    fn launch(
        &self,
        kernel: &str,
        input: &Tensor,
        output: (usize, usize),
        threadgroups: (usize, usize),
        threads: usize,
    ) -> Result<Tensor> {
        let launch = Launch {
            source: Source::Packed,
            kernel: &format!("{kernel}_{}", self.packing.kernel_name()),
            shape: [narrow(self.columns)?, narrow(self.rows)?, narrow(output.0)?],
            inputs: &[&self.blocks, &self.codebook, &input.contiguous()?],
            output,
            dtype: DType::F32,
            threadgroups,
            threads,
            scratch: 0,
        };
        launch.run()
    }
}

/// Whether candle's kernels compute the product with so many tokens, and read and write nothing else. For several they store
/// four rows at once and read 32 columns at once. The one for one token stores whole tiles of rows, twice as many of Q2_K
/// as there are, and has too few threads for plain weights.
fn candle_is_right(dtype: GgmlDType, rows: usize, columns: usize, tokens: usize) -> bool {
    const TILE: usize = 8;
    match tokens {
        1 => !matches!(dtype, GgmlDType::F16 | GgmlDType::BF16 | GgmlDType::Q2K) && rows.is_multiple_of(TILE),
        _ => rows.is_multiple_of(4) && columns.is_multiple_of(32),
    }
}

/// The product by candle's kernels, called past `QTensor`, which forgets where in its buffer the input of several tokens
/// begins.
struct CandleProduct {
    dtype: GgmlDType,
    rows: usize,
}

impl CustomOp2 for CandleProduct {
    fn name(&self) -> &'static str {
        "candle-product"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a packed tensor is on the GPU, but what it is multiplied with is not")
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        layout: &Layout,
        blocks: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let (device, rows) = (x.device(), self.rows);
        let (tokens, columns) = layout.shape().dims2()?;
        let offset = layout.start_offset() * DType::F32.size_in_bytes();
        let out = device.new_buffer(tokens * rows, DType::F32, "candle-product")?;
        let encoder = device.command_encoder()?;
        let (metal, kernels, dtype) = (device.device(), device.kernels(), self.dtype.into());
        if tokens == 1 {
            let shape = (1, 1, rows, columns);
            call_quantized_matmul_mv_t(
                metal,
                &encoder,
                kernels,
                dtype,
                shape,
                x.buffer(),
                offset,
                blocks.buffer(),
                0,
                &out,
            )
        } else {
            let strides = |row: usize, of_element: usize, rows: usize| [row * rows, row * rows, row, of_element];
            let row_bytes = columns / self.dtype.block_size() * self.dtype.type_size();
            let size = DType::F32.size_in_bytes();
            call_quantized_matmul_mm_t(
                metal,
                &encoder,
                kernels,
                dtype,
                &[1, 1, rows, columns],
                &strides(row_bytes, self.dtype.type_size(), rows),
                blocks.buffer(),
                &[1, 1, tokens, columns],
                &strides(columns * size, size, tokens),
                x.buffer(),
                offset,
                &[tokens, rows],
                0,
                &out,
            )
        }
        .map_err(MetalError::from)?;
        Ok((MetalStorage::new(out, device.clone(), tokens * rows, DType::F32), Shape::from((tokens, rows))))
    }
}
