//! ggml's blocks of quantized weights, unpacked by the formulas of `ggml-quants.c`.

use crate::Random;
use half::f16;

/// Name, weights and bytes in a block, and where its half-precision scales are.
pub(crate) struct Format {
    pub(crate) name: &'static str,
    pub(crate) weights: usize,
    pub(crate) bytes: usize,
    scales: (usize, usize),
    unpack: fn(&[u8]) -> Vec<f32>,
}

const fn format(
    name: &'static str,
    weights: usize,
    bytes: usize,
    scales: (usize, usize),
    unpack: fn(&[u8]) -> Vec<f32>,
) -> Format {
    Format { name, weights, bytes, scales, unpack }
}

pub(crate) const FORMATS: [Format; 10] = [
    format("q4_0", 32, 18, (0, 1), |b| nibbles(&b[2..], 0, |q| half(b, 0) * (q - 8.0))),
    format("q4_1", 32, 20, (0, 2), |b| nibbles(&b[4..], 0, |q| half(b, 0) * q + half(b, 2))),
    format("q5_0", 32, 22, (0, 1), |b| nibbles(&b[6..], fifth_bits(&b[2..]), |q| half(b, 0) * (q - 16.0))),
    format("q5_1", 32, 24, (0, 2), |b| nibbles(&b[8..], fifth_bits(&b[4..]), |q| half(b, 0) * q + half(b, 2))),
    format("q8_0", 32, 34, (0, 1), |b| b[2..].iter().map(|q| half(b, 0) * f32::from(*q as i8)).collect()),
    format("q2_K", 256, 84, (80, 2), q2_k),
    format("q3_K", 256, 110, (108, 1), q3_k),
    format("q4_K", 256, 144, (0, 2), |b| q4_or_5_k(b, None, &b[16..])),
    format("q5_K", 256, 176, (0, 2), |b| q4_or_5_k(b, Some(&b[16..48]), &b[48..])),
    format("q6_K", 256, 210, (208, 1), q6_k),
];

impl Format {
    /// Random blocks for a matrix of `rows` × `len`, and its weights.
    pub(crate) fn random(&self, rows: usize, len: usize) -> (Vec<u8>, Vec<f32>) {
        let mut random = Random::new((rows + len) as u64);
        let mut bytes: Vec<u8> =
            (0..rows * len / self.weights * self.bytes).map(|_| (random.next() >> 32) as u8).collect();
        for block in bytes.chunks_mut(self.bytes) {
            for scale in 0..self.scales.1 {
                let value = f16::from_f64(0.015 + 0.01 * random.number());
                block[self.scales.0 + 2 * scale..][..2].copy_from_slice(&value.to_le_bytes());
            }
        }
        let weights = bytes.chunks(self.bytes).flat_map(self.unpack).collect();
        (bytes, weights)
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn fifth_bits(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn nibbles(quants: &[u8], fifth: u32, value: impl Fn(f32) -> f32) -> Vec<f32> {
    let quant = |i: usize| {
        let nibble = if i < 16 { quants[i] & 15 } else { quants[i - 16] >> 4 };
        value(f32::from(nibble | (((fifth >> i) & 1) as u8) << 4))
    };
    (0..32).map(quant).collect()
}

fn q2_k(block: &[u8]) -> Vec<f32> {
    let (scale, min) = (half(block, 80), half(block, 82));
    let value = |i: usize| {
        let (part, shift, column) = (i / 128, i % 128 / 32 * 2, i % 32);
        let scales = block[i / 16];
        let quant = (block[16 + 32 * part + column] >> shift) & 3;
        scale * f32::from(scales & 15) * f32::from(quant) - min * f32::from(scales >> 4)
    };
    (0..256).map(value).collect()
}

fn q3_k(block: &[u8]) -> Vec<f32> {
    let (high, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = |k: usize| {
        let low = if k < 8 { scales[k] & 15 } else { scales[k - 8] >> 4 };
        f32::from(low | ((scales[8 + k % 4] >> (2 * (k / 4))) & 3) << 4) - 32.0
    };
    let value = |i: usize| {
        let (part, shift, column) = (i / 128, i % 128 / 32 * 2, i % 32);
        let quant = f32::from((quants[32 * part + column] >> shift) & 3);
        let has_high = high[column] >> (i / 32) & 1 == 1;
        half(block, 108) * scale(i / 16) * (quant - if has_high { 0.0 } else { 4.0 })
    };
    (0..256).map(value).collect()
}

fn q4_or_5_k(block: &[u8], fifth: Option<&[u8]>, quants: &[u8]) -> Vec<f32> {
    let packed = &block[4..16];
    let scale_and_min = |j: usize| {
        if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            ((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4)
        }
    };
    let value = |i: usize| {
        let (group, column) = (i / 32, i % 32);
        let (scale, min) = scale_and_min(group);
        let nibble = quants[32 * (group / 2) + column] >> (4 * (group % 2)) & 15;
        let high = fifth.map_or(0, |fifth| (fifth[column] >> group & 1) << 4);
        half(block, 0) * f32::from(scale) * f32::from(nibble | high) - half(block, 2) * f32::from(min)
    };
    (0..256).map(value).collect()
}

fn q6_k(block: &[u8]) -> Vec<f32> {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let value = |i: usize| {
        let (part, quarter, column) = (i / 128, i % 128 / 32, i % 32);
        let nibble = low[64 * part + 32 * (quarter % 2) + column] >> (4 * (quarter / 2)) & 15;
        let top = high[32 * part + column] >> (2 * quarter) & 3;
        half(block, 208) * f32::from(scales[i / 16] as i8) * (f32::from(nibble | top << 4) - 32.0)
    };
    (0..256).map(value).collect()
}
