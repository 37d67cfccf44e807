#![expect(unsafe_code, reason = "several threads write different parts of an output")]

use candle_core::{Device, Result, Storage, Tensor};

use super::{Parts, team, values};

/// Values that are worth another thread.
const VALUES: usize = 16 << 10;

/// [`crate::rms_norm()`] of f32 on the CPU. One row is normed where it is, without a thought of other threads.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let x = x.contiguous()?;
    let ((of_x, x_layout), (of_weight, weight_layout)) = (x.storage_and_layout(), weight.storage_and_layout());
    let (Storage::Cpu(of_x), Storage::Cpu(of_weight)) = (&*of_x, &*of_weight) else {
        candle_core::bail!("a norm on the CPU of what isn't there");
    };
    let (from, weight) = (values::<f32>(of_x, x_layout)?, values::<f32>(of_weight, weight_layout)?);
    if weight.is_empty() || x_layout.dims().last() != Some(&weight.len()) {
        candle_core::bail!("a norm of {:?} with {} weights", x_layout.shape(), weight.len());
    }
    let mut out = vec![0_f32; from.len()];
    let at_once = (VALUES / weight.len()).max(1) * weight.len();
    let to = Parts::new(&mut out);
    team::for_each(from.len().div_ceil(at_once), |index| {
        let from = &from[index * at_once..];
        let from = &from[..at_once.min(from.len())];
        // SAFETY: these values are one index's.
        let out = unsafe { std::slice::from_raw_parts_mut(to.at(index * at_once), from.len()) };
        for (from, out) in from.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            norm_row(from, weight, epsilon, out);
        }
    });
    Tensor::from_vec(out, x_layout.shape().clone(), &Device::Cpu)
}

fn norm_row(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    // In sixteen sums side by side, which are a vector.
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sums = [0_f32; 16];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    let squares = sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    let scale = 1.0 / (squares / x.len() as f32 + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}
