//! Products with blocks that have no tiles: a few rows are unpacked to f32 for all tokens, and forgotten again.

#![expect(
    unsafe_code,
    reason = "the processor's instructions, and several threads that write different parts of an output"
)]

use candle_core::DType;

use super::floats::{self, Task};
use super::tiles::Isa;
use super::{Parts, team};
use crate::packed::PackedType;

/// The product of `rows` rows of `columns` weights in `blocks` with `tokens` rows of `x`: `(tokens, rows)`. A row and a
/// token have the same product whatever is beside them.
pub(crate) fn packed_product(
    packed_type: PackedType,
    blocks: &[u8],
    (rows, columns): (usize, usize),
    x: &[f32],
    tokens: usize,
) -> Vec<f32> {
    /// Rows of one task, which stay in a cache while tokens go by.
    const ROWS: usize = 16;
    let isa = Isa::chosen();
    let row_bytes = columns / packed_type.block_len() * packed_type.block_bytes();
    let mut output = vec![0_f32; tokens * rows];
    let to = Parts::new(&mut output);
    team::for_each(rows.div_ceil(ROWS), |index| {
        let first = index * ROWS;
        let of_task = ROWS.min(rows - first);
        let mut weights = vec![0_f32; of_task * columns];
        unpack(isa, packed_type, &blocks[first * row_bytes..][..of_task * row_bytes], &mut weights);
        // SAFETY: any f32 is four bytes.
        let bytes = unsafe { std::slice::from_raw_parts(weights.as_ptr().cast::<u8>(), size_of_val(&*weights)) };
        let row_bytes = columns * size_of::<f32>();
        let output = to.at(first);
        let task =
            Task { dtype: DType::F32, rows: bytes, row_bytes, x, columns, tokens, output, stride: rows, bias: None };
        // SAFETY: only sets that the processor has are made; the output has room, and these rows are one index's.
        unsafe { floats::run(isa, &task) };
    });
    output
}

fn unpack(isa: Isa, packed_type: PackedType, blocks: &[u8], out: &mut [f32]) {
    match isa {
        // SAFETY: only sets that the processor has are made.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { unpack_avx2(packed_type, blocks, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { unpack_avx512(packed_type, blocks, out) },
        _ => packed_type.unpack(blocks, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_avx2(packed_type: PackedType, blocks: &[u8], out: &mut [f32]) {
    packed_type.unpack_inlined(blocks, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
fn unpack_avx512(packed_type: PackedType, blocks: &[u8], out: &mut [f32]) {
    packed_type.unpack_inlined(blocks, out);
}
