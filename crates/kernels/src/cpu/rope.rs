use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};

use super::{Parts, team, values};
use crate::Pairing;

/// One pass over `(tokens, heads, head_dim)`, whereas the reference makes eight tensors.
pub(crate) struct Rope(pub(crate) Pairing);

/// Values that are worth another thread.
const VALUES: usize = 16 << 10;

/// Cosines and sines of every token's pairs.
pub(crate) struct Angles<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
    pairing: Pairing,
}

impl<'a> Angles<'a> {
    /// Those of `tokens` tokens whose heads have `head_dim` values.
    pub(crate) fn new(
        (cos, cos_layout): (&'a CpuStorage, &Layout),
        (sin, sin_layout): (&'a CpuStorage, &Layout),
        pairing: Pairing,
        (tokens, head_dim): (usize, usize),
    ) -> Result<Self> {
        let half = cos_layout.shape().dims2()?.1;
        let (cos, sin) = (values::<f32>(cos, cos_layout)?, values::<f32>(sin, sin_layout)?);
        if cos.len() != tokens * half || sin.len() != cos.len() || 2 * half > head_dim {
            candle_core::bail!("angles of {} values for {tokens} tokens of {half} pairs", cos.len());
        }
        Ok(Self { cos, sin, half, pairing })
    }

    /// Turns a head of `token`.
    pub(crate) fn turn(&self, token: usize, head: &mut [f32]) {
        let Self { half, .. } = *self;
        let head = &mut head[..2 * half];
        let (cos, sin) = (&self.cos[token * half..][..half], &self.sin[token * half..][..half]);
        match self.pairing {
            Pairing::Interleaved => {
                for (pair, (c, s)) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                    *pair = [pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c];
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
}

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
        let angles = Angles::new((cos, cos_layout), (sin, sin_layout), self.0, (tokens, head_dim))?;
        let mut out = values::<f32>(x, x_layout)?.to_vec();
        let token_len = heads * head_dim;
        let at_once = (VALUES / token_len.max(1)).max(1);
        let to = Parts::new(&mut out);
        team::for_each(tokens.div_ceil(at_once), |index| {
            for token in index * at_once..tokens.min((index + 1) * at_once) {
                #[expect(unsafe_code, reason = "several threads write different parts of an output")]
                // SAFETY: each token is one index's.
                let out = unsafe { std::slice::from_raw_parts_mut(to.at(token * token_len), token_len) };
                out.chunks_exact_mut(head_dim).for_each(|head| angles.turn(token, head));
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}
