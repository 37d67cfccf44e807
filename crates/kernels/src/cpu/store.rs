#![expect(unsafe_code, reason = "several threads write different parts of a cache")]

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::rope::Angles;
use super::{Parts, team, values};
use crate::Turn;

/// Values that are worth another thread.
const VALUES: usize = 16 << 10;

/// Writes `vectors` `(tokens, heads, width)` of f32 into `plane` from its token `at` on, in the plane's type, turned on
/// their way where there is a `turn`: one pass, in which nothing is allocated for a token.
pub(crate) fn store(plane: &Tensor, at: usize, vectors: &Tensor, turn: Option<&Turn<'_>>) -> Result<()> {
    let vectors = vectors.contiguous()?;
    let (tokens, heads, width) = vectors.dims3()?;
    let (room, stored_heads, stored_width) = plane.dims3()?;
    if (heads, width) != (stored_heads, stored_width) || at + tokens > room {
        candle_core::bail!("{:?} into a cache {:?} at {at}", vectors.shape(), plane.shape());
    }
    let (storage, layout) = vectors.storage_and_layout();
    let Storage::Cpu(from) = &*storage else { candle_core::bail!("keys that aren't on the CPU") };
    let from = values::<f32>(from, layout)?;
    let angles = turn.map(|turn| (turn.cos.storage_and_layout(), turn.sin.storage_and_layout(), turn.pairing));
    let angles = match &angles {
        Some(((cos, cos_layout), (sin, sin_layout), pairing)) => {
            let (Storage::Cpu(cos), Storage::Cpu(sin)) = (&**cos, &**sin) else {
                candle_core::bail!("angles that aren't on the CPU");
            };
            Some(Angles::new((cos, cos_layout), (sin, sin_layout), *pairing, (tokens, width))?)
        }
        None => None,
    };
    plane.inplace_op1(&Store { from, at: at * heads * width, heads, width, angles })
}

struct Store<'a> {
    from: &'a [f32],
    /// The first value of the plane that is written.
    at: usize,
    heads: usize,
    width: usize,
    angles: Option<Angles<'a>>,
}

impl InplaceOp1 for Store<'_> {
    fn name(&self) -> &'static str {
        "store"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let start = layout.start_offset() + self.at;
        let part = start..start + self.from.len();
        match storage {
            CpuStorage::F32(all) => self.write(&mut all[part], <[f32]>::copy_from_slice),
            CpuStorage::F16(all) => self.write(&mut all[part], <[f16]>::convert_from_f32_slice),
            _ => candle_core::bail!("a cache of another type than f32 or f16"),
        }
        Ok(())
    }
}

impl Store<'_> {
    fn write<T: Send>(&self, to: &mut [T], convert: impl Fn(&mut [T], &[f32]) + Sync) {
        let token = self.heads * self.width;
        let at_once = (VALUES / token).max(1);
        let tokens = self.from.len() / token;
        let to = Parts::new(to);
        team::for_each(tokens.div_ceil(at_once), |index| {
            let tokens = index * at_once..tokens.min((index + 1) * at_once);
            let from = &self.from[tokens.start * token..tokens.end * token];
            // SAFETY: these tokens are one index's, and the slice has all of them.
            let to = unsafe { std::slice::from_raw_parts_mut(to.at(tokens.start * token), from.len()) };
            let Some(angles) = &self.angles else { return convert(to, from) };
            let mut turned = vec![0.0; self.width];
            let vectors = from.chunks_exact(self.width).zip(to.chunks_exact_mut(self.width));
            for (i, (from, to)) in vectors.enumerate() {
                turned.copy_from_slice(from);
                angles.turn(tokens.start + i / self.heads, &mut turned);
                convert(to, &turned);
            }
        });
    }
}
