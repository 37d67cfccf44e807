use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};

use super::values;
use crate::Pairing;

/// One pass over `(tokens, heads, head_dim)`, whereas the reference makes eight tensors.
pub(crate) struct Rope(pub(crate) Pairing);

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, heads, head_dim) = x_layout.shape().dims3()?;
        let half = cos_layout.shape().dims2()?.1;
        let (cos, sin) = (values::<f32>(cos, cos_layout)?, values::<f32>(sin, sin_layout)?);
        if cos.len() != tokens * half || sin.len() != cos.len() || 2 * half > head_dim {
            candle_core::bail!("angles of {} values for {tokens} tokens of {half} pairs", cos.len());
        }
        let mut out = values::<f32>(x, x_layout)?.to_vec();
        for (i, head) in out.chunks_exact_mut(head_dim).enumerate() {
            let (token, head) = (i / heads, &mut head[..2 * half]);
            let (cos, sin) = (&cos[token * half..][..half], &sin[token * half..][..half]);
            match self.0 {
                Pairing::Interleaved => {
                    for (pair, (c, s)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                        (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c);
                    }
                }
                Pairing::Halves => {
                    let (first, second) = head.split_at_mut(half);
                    for ((a, b), (c, s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
                    }
                }
            }
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}
