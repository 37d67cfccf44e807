/// Bytes of a block of 32 weights: a scale in f16, the fifth bits, the lower four bits.
const Q5_0_BLOCK: usize = 2 + 4 + 16;
/// Bytes of a block of 32 weights: a scale in f16, a byte each.
const Q8_0_BLOCK: usize = 2 + 32;

/// The same weights in Q8_0, exactly: a Q5_0 weight is its scale times an integer of -16 to 15, which fits in a byte.
/// Costs half as much memory again. Bytes after the last whole block are dropped.
pub fn q5_0_as_q8_0(blocks: &[u8]) -> Vec<u8> {
    let mut wide = Vec::with_capacity(blocks.len() / Q5_0_BLOCK * Q8_0_BLOCK);
    for block in blocks.chunks_exact(Q5_0_BLOCK) {
        let fifth_bits = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
        let lower = &block[6..];
        let weight = |bits: u8, index: usize| (bits | ((fifth_bits >> index & 1) as u8) << 4).wrapping_sub(16);
        wide.extend_from_slice(&block[..2]);
        wide.extend(lower.iter().enumerate().map(|(i, byte)| weight(byte & 0x0f, i)));
        wide.extend(lower.iter().enumerate().map(|(i, byte)| weight(byte >> 4, i + 16)));
    }
    wide
}
