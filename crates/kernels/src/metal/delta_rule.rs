use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, bail};
use candle_metal_kernels::metal::ComputeCommandEncoder;
use objc2_metal::MTLSize;

use super::compiled::{SIMD_GROUP, Source, narrow, pipeline};
use crate::delta_rule::DeltaShape;

/// The gated delta rule, one launch for all tokens.
pub(crate) struct DeltaRule;

impl CustomOp2 for DeltaRule {
    fn name(&self) -> &'static str {
        "delta-rule-metal"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("the state is on the GPU, but the steps are not")
    }

    fn metal_fwd(
        &self,
        rows: &MetalStorage,
        rows_layout: &Layout,
        state: &MetalStorage,
        state_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let shape = DeltaShape::of(rows_layout, state_layout)?;
        let DeltaShape { tokens, heads, key_dim, value_dim } = shape;
        if rows.dtype() != DType::F32 || state.dtype() != DType::F32 {
            bail!("the delta rule is computed in f32");
        }
        let device = rows.device();
        let both = device.new_buffer(shape.both(), DType::F32, "delta-rule")?;
        let pipeline = pipeline(device, Source::DeltaRule, "delta_rule")?;
        let offset = |layout: &Layout| layout.start_offset() * DType::F32.size_in_bytes();
        let encoder = device.command_encoder()?;
        let encoder: &ComputeCommandEncoder = encoder.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        encoder.set_bytes(0, &[narrow(tokens)?, narrow(heads)?, narrow(key_dim)?, narrow(value_dim)?]);
        encoder.set_input_buffer(1, Some(rows.buffer()), offset(rows_layout));
        encoder.set_input_buffer(2, Some(state.buffer()), offset(state_layout));
        encoder.set_output_buffer(3, Some(&both), 0);
        encoder.dispatch_thread_groups(
            MTLSize { width: value_dim.div_ceil(SIMD_GROUP), height: heads, depth: 1 },
            MTLSize { width: SIMD_GROUP, height: 1, depth: 1 },
        );
        Ok((MetalStorage::new(both, device.clone(), shape.both(), DType::F32), Shape::from(shape.both())))
    }
}
