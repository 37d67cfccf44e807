use candle_core::{D, Device, Result, Tensor};

use crate::cpu;

/// Which two values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Value 2i with value 2i + 1.
    Interleaved,
    /// Value i of the first half with value i of the second.
    Halves,
}

/// By how much each token's heads turn: the angles whose `cos` and `sin` are `(tokens, pairs)`.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Of each token's angles.
    pub cos: &'a Tensor,
    /// Of each token's angles.
    pub sin: &'a Tensor,
    /// Which values of a head turn together.
    pub pairing: Pairing,
}

/// Turns every head of `x` `(tokens, heads, head_dim)` by the angles whose `cos` and `sin` are `(tokens, pairs)`. The
/// first `2 · pairs` values of a head turn, the others stay.
///
/// # Errors
/// When the shapes don't fit together.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, pairing: Pairing) -> Result<Tensor> {
    if let Device::Cpu = x.device() {
        return x.contiguous()?.apply_op3_no_bwd(cos, sin, &cpu::Rope(pairing));
    }
    if 2 * cos.dim(1)? < x.dim(2)? {
        return turn_first_part(x, cos, sin, pairing, rope);
    }
    // candle's kernels want (batch, heads, tokens, head_dim).
    let heads_first = x.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
    let turned = match pairing {
        Pairing::Interleaved => candle_nn::rotary_emb::rope_i(&heads_first, cos, sin)?,
        Pairing::Halves => candle_nn::rotary_emb::rope(&heads_first, cos, sin)?,
    };
    turned.squeeze(0)?.transpose(0, 1)
}

/// [`rope`] in plain candle ops.
///
/// # Errors
/// When the shapes don't fit together.
pub fn rope_reference(x: &Tensor, cos: &Tensor, sin: &Tensor, pairing: Pairing) -> Result<Tensor> {
    let (tokens, heads, head_dim) = x.dims3()?;
    if 2 * cos.dim(1)? < head_dim {
        return turn_first_part(x, cos, sin, pairing, rope_reference);
    }
    let half = head_dim / 2;
    let (cos, sin) = (cos.reshape((tokens, 1, half))?, sin.reshape((tokens, 1, half))?);
    let (a, b) = match pairing {
        Pairing::Interleaved => {
            let pairs = x.reshape((tokens, heads, half, 2))?;
            (pairs.narrow(D::Minus1, 0, 1)?.squeeze(D::Minus1)?, pairs.narrow(D::Minus1, 1, 1)?.squeeze(D::Minus1)?)
        }
        Pairing::Halves => (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?),
    };
    let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let turned_b = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
    match pairing {
        Pairing::Interleaved => Tensor::stack(&[turned_a, turned_b], 3)?.reshape((tokens, heads, head_dim)),
        Pairing::Halves => Tensor::cat(&[turned_a, turned_b], 2),
    }
}

fn turn_first_part(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    pairing: Pairing,
    turn: impl Fn(&Tensor, &Tensor, &Tensor, Pairing) -> Result<Tensor>,
) -> Result<Tensor> {
    let turned = 2 * cos.dim(1)?;
    let rest = x.narrow(2, turned, x.dim(2)? - turned)?;
    Tensor::cat(&[turn(&x.narrow(2, 0, turned)?, cos, sin, pairing)?, rest], 2)
}
