use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp3, DType, Device, Layout, MetalDevice, MetalStorage, Result, Shape, Tensor, bail,
};
use candle_metal_kernels::metal::ComputeCommandEncoder;
use objc2_metal::MTLSize;

use super::compiled::{SIMD_GROUP, Source, codebook, narrow, pipeline};
use crate::packed::PackedType;

/// As in `packed.metal`: rows of a threadgroup, of a SIMD-group each, and tokens for which weights are unpacked once.
const ROWS: usize = 4;
const TOKENS: usize = 4;
/// Weights that a thread unpacks at a time.
const AT_ONCE: usize = 8;

/// A matrix in a packing that candle lacks, which stays packed in the GPU's memory.
pub struct PackedTensor {
    blocks: Tensor,
    codebook: Tensor,
    packed_type: PackedType,
    rows: usize,
    columns: usize,
}

impl PackedTensor {
    /// Copies `blocks` to `device`.
    ///
    /// # Errors
    /// When a row isn't a whole number of blocks, `blocks` isn't `rows` rows, or there is no memory for them.
    pub fn new(
        blocks: &[u8],
        packed_type: PackedType,
        rows: usize,
        columns: usize,
        device: &MetalDevice,
    ) -> Result<Self> {
        packed_type.check_rows(blocks.len(), rows, columns)?;
        let blocks = Tensor::from_slice(blocks, blocks.len(), &Device::Metal(device.clone()))?;
        Ok(Self { blocks, codebook: codebook(device, packed_type)?, packed_type, rows, columns })
    }

    /// The blocks as they lie in the GPU's memory.
    pub const fn blocks(&self) -> &Tensor {
        &self.blocks
    }

    /// `x` `(tokens, columns)` of f32 → `(tokens, rows)`, computed in f32.
    ///
    /// # Errors
    /// When `x` has another shape or type, or isn't on the GPU.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, columns) = x.dims2()?;
        if columns != self.columns {
            bail!("{tokens} tokens of {columns} values for rows of {} weights", self.columns);
        }
        self.run(Kernel::Product, &x.to_dtype(DType::F32)?)
    }

    /// The rows `ids`, `(…)` → `(…, columns)`, as f32; zeros for an id that is no row.
    ///
    /// # Errors
    /// When `ids` isn't on the GPU.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.columns);
        self.run(Kernel::Rows, &ids.to_dtype(DType::U32)?.flatten_all()?)?.reshape(shape)
    }

    fn run(&self, kernel: Kernel, input: &Tensor) -> Result<Tensor> {
        let op = PackedOp { kernel, packed_type: self.packed_type, rows: self.rows, columns: self.columns };
        input.contiguous()?.apply_op3_no_bwd(&self.blocks, &self.codebook, &op)
    }
}

#[derive(Clone, Copy)]
enum Kernel {
    Product,
    Rows,
}

struct PackedOp {
    kernel: Kernel,
    packed_type: PackedType,
    rows: usize,
    columns: usize,
}

impl CustomOp3 for PackedOp {
    fn name(&self) -> &'static str {
        "packed-product-metal"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("a packed tensor is on the GPU, but what it is multiplied with is not")
    }

    fn metal_fwd(
        &self,
        input: &MetalStorage,
        layout: &Layout,
        blocks: &MetalStorage,
        _: &Layout,
        codebook: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let device = input.device();
        let count = layout.shape().dims()[0];
        let (kernel, width) = match self.kernel {
            Kernel::Product => ("packed_product", self.rows),
            Kernel::Rows => ("packed_rows", self.columns),
        };
        let out = device.new_buffer(count * width, DType::F32, "packed")?;
        let pipeline = pipeline(device, Source::Packed, &format!("{kernel}_{:?}", self.packed_type))?;
        let shape = [narrow(self.columns)?, narrow(self.rows)?, narrow(count)?];
        let encoder = device.command_encoder()?;
        let encoder: &ComputeCommandEncoder = encoder.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        encoder.set_bytes(0, &shape);
        encoder.set_input_buffer(1, Some(blocks.buffer()), 0);
        encoder.set_input_buffer(2, Some(codebook.buffer()), 0);
        encoder.set_input_buffer(3, Some(input.buffer()), layout.start_offset() * input.dtype().size_in_bytes());
        encoder.set_output_buffer(4, Some(&out), 0);
        let size = |width, height| MTLSize { width, height, depth: 1 };
        match self.kernel {
            Kernel::Product => encoder.dispatch_thread_groups(
                size(self.rows.div_ceil(ROWS), count.div_ceil(TOKENS)),
                size(SIMD_GROUP * ROWS, 1),
            ),
            Kernel::Rows => encoder.dispatch_thread_groups(
                size((self.columns / AT_ONCE).div_ceil(SIMD_GROUP), count),
                size(SIMD_GROUP, 1),
            ),
        }
        Ok((MetalStorage::new(out, device.clone(), count * width, DType::F32), Shape::from((count, width))))
    }
}
