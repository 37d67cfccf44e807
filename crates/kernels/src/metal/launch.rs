use std::ops::Deref;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, DType, Layout, MetalError, MetalStorage, Result, Shape, Storage, Tensor, bail,
};
use candle_metal_kernels::metal::ComputeCommandEncoder;
use objc2_metal::MTLSize;

use super::compiled::{Source, pipeline};

/// Threads of a SIMD-group, on every GPU of Apple's.
pub(super) const SIMD_GROUP: usize = 32;

/// A kernel of ours on its way to the GPU. It takes `shape` at index 0, then `inputs`, and writes `(rows, columns)` of
/// `dtype` to the buffer after them.
pub(super) struct Launch<'a, S> {
    pub(super) source: Source,
    pub(super) kernel: &'a str,
    pub(super) shape: S,
    /// Contiguous, and all on the GPU of the first.
    pub(super) inputs: &'a [&'a Tensor],
    pub(super) output: (usize, usize),
    pub(super) dtype: DType,
    pub(super) threadgroups: (usize, usize),
    /// Threads of a threadgroup.
    pub(super) threads: usize,
    /// Bytes of threadgroup memory.
    pub(super) scratch: usize,
}

impl<S> Launch<'_, S> {
    /// # Errors
    /// When an input isn't on the GPU or isn't contiguous, or there is no memory for the output.
    pub(super) fn run(&self) -> Result<Tensor> {
        self.inputs[0].apply_op1_no_bwd(self)
    }
}

impl<S> CustomOp1 for Launch<'_, S> {
    fn name(&self) -> &'static str {
        "kernel-of-ours"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("{} is for a GPU, but what it is given is not there", self.kernel)
    }

    fn metal_fwd(&self, first: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        let device = first.device();
        let (rows, columns) = self.output;
        let output = device.new_buffer(rows * columns, self.dtype, self.kernel)?;
        let pipeline = pipeline(device, self.source, self.kernel)?;
        let inputs: Vec<_> = self.inputs.iter().map(|input| input.storage_and_layout()).collect();
        let encoder = device.command_encoder()?;
        let encoder: &ComputeCommandEncoder = encoder.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        encoder.set_bytes(0, &self.shape);
        for (index, (storage, layout)) in inputs.iter().enumerate() {
            let (Storage::Metal(storage), true) = (storage.deref(), layout.is_contiguous()) else {
                bail!("input {index} of {} is not on the GPU, or not contiguous", self.kernel);
            };
            let offset = layout.start_offset() * storage.dtype().size_in_bytes();
            encoder.set_input_buffer(index + 1, Some(storage.buffer()), offset);
        }
        encoder.set_output_buffer(inputs.len() + 1, Some(&output), 0);
        if self.scratch > 0 {
            encoder.set_threadgroup_memory_length(0, self.scratch.next_multiple_of(16));
        }
        let (width, height) = self.threadgroups;
        let threads = MTLSize { width: self.threads, height: 1, depth: 1 };
        encoder.dispatch_thread_groups(MTLSize { width, height, depth: 1 }, threads);
        Ok((MetalStorage::new(output, device.clone(), rows * columns, self.dtype), Shape::from(self.output)))
    }
}

/// A length as kernels take it.
pub(super) fn narrow(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| MetalError::from(format!("{len} is too many")).into())
}
