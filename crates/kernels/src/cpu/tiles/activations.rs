//! What weights are multiplied with, in eight bits: each 32 values of a token have a scale of their own.

/// Values that share a scale.
pub(crate) const GROUP: usize = 32;

/// 32 values of a token: `x ≈ code · scale`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Group {
    pub(crate) scale: f32,
    /// Of what the codes stand for.
    pub(crate) sum: f32,
    /// Of the codes, by halves.
    pub(crate) code_sums: [i16; 2],
    /// Four signed bytes each, in the order of a little-endian number.
    pub(crate) codes: [i32; 8],
}

/// Below this largest magnitude a group is zeros: 127 divided by it would be infinite.
const LEAST: f32 = 1e-35;

/// Rounds `x` to `groups`. A group with a NaN or an infinity has a scale that is none, so that products have none either.
#[inline(always)]
pub(crate) fn quantize(x: &[f32], groups: &mut [Group]) {
    /// Added to a number of less than 23 bits, leaves its nearest whole number (ties to even) in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    for (x, group) in x.as_chunks::<GROUP>().0.iter().zip(groups) {
        // As whole numbers, in which a maximum is one instruction and NaN is the largest.
        let mut most = 0;
        for x in x {
            most = (x.to_bits() & 0x7fff_ffff).max(most);
        }
        let most = f32::from_bits(most);
        if most < LEAST {
            *group = Group::default();
            continue;
        }
        let (scale, inverse) = (most / 127.0, 127.0 / most);
        let mut codes = [0_i8; GROUP];
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x * inverse + ROUND).to_bits() as i8;
        }
        let mut code_sums = [0; 2];
        for (i, code) in codes.iter().enumerate() {
            code_sums[i / (GROUP / 2)] += i16::from(*code);
        }
        group.scale = scale;
        group.sum = scale * f32::from(code_sums[0] + code_sums[1]);
        group.code_sums = code_sums;
        for (word, codes) in group.codes.iter_mut().zip(codes.as_chunks::<4>().0) {
            let [a, b, c, d] = *codes;
            *word = i32::from_le_bytes([a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()]);
        }
    }
}
