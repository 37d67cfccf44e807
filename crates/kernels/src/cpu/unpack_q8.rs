use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};
use rayon::prelude::*;

use super::values;
use crate::kv_q8::ZERO;

/// One pass over the integers and the scales of as many of them each, whereas the reference makes three tensors.
pub(crate) struct UnpackQ8;

/// Below this many values, waking other threads costs more than it saves.
const VALUES_PER_TASK: usize = 16 * 1024;

impl CustomOp2 for UnpackQ8 {
    fn name(&self) -> &'static str {
        "unpack-q8"
    }

    fn cpu_fwd(
        &self,
        codes: &CpuStorage,
        codes_layout: &Layout,
        scales: &CpuStorage,
        scales_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (codes, scales) = (values::<u8>(codes, codes_layout)?, values::<f32>(scales, scales_layout)?);
        let group = codes.len() / scales.len().max(1);
        if group == 0 || codes.len() != scales.len() * group {
            candle_core::bail!("{} scales for {} values", scales.len(), codes.len());
        }
        let mut out = vec![0.0; codes.len()];
        let groups = (VALUES_PER_TASK / group).max(1);
        let tasks = out.par_chunks_mut(groups * group).zip(codes.par_chunks(groups * group));
        tasks.zip(scales.par_chunks(groups)).for_each(|((out, codes), scales)| {
            for ((out, codes), scale) in out.chunks_exact_mut(group).zip(codes.chunks_exact(group)).zip(scales) {
                for (x, code) in out.iter_mut().zip(codes) {
                    *x = (f32::from(*code) - f32::from(ZERO)) * scale;
                }
            }
        });
        Ok((CpuStorage::F32(out), codes_layout.shape().clone()))
    }
}
