//! Matrices, caches and tensors of numbers that are the same in each run.

use candle_core::{DType, Device, Result, Tensor};
use kernels::cpu::{Tiles, tile, tiled_bytes};
use kernels::packed::Packing;
use kernels::{KvFormat, KvLayer, KvNumbers, KvShape, Span};

/// Numbers from −1 to 1.
pub(crate) fn random(shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product();
    let numbers: Vec<f32> = words(count).map(|word| (word >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

/// Blocks of any packing: all bytes are valid, and speed doesn't depend on what they mean.
pub(crate) fn bytes(count: usize) -> Vec<u8> {
    words(count.div_ceil(8)).flat_map(u64::to_le_bytes).take(count).collect()
}

/// A matrix in tiles.
pub(crate) fn matrix(packing: Packing, rows: usize, columns: usize) -> Result<Tiles<Vec<u8>>> {
    let blocks = bytes(rows * columns / packing.block_len() * packing.block_bytes());
    let Some(len) = tiled_bytes(packing, rows, columns) else {
        candle_core::bail!("there are no tiles of {packing:?}")
    };
    let mut tiles = vec![0; len as usize];
    tile(&blocks, packing, columns, &mut tiles)?;
    Tiles::new(tiles, packing, rows, columns)
}

/// A cache that has `tokens` tokens.
pub(crate) fn cache(tokens: usize, kv_heads: usize, head_dim: usize, numbers: KvNumbers) -> Result<KvLayer> {
    let shape = KvShape { kv_heads, key_dim: head_dim, value_dim: head_dim, values_in_keys: false, span: Span::All };
    let mut cache = KvLayer::new(shape, tokens, KvFormat { keys: numbers, values: numbers }, &Device::Cpu);
    let [keys, values] = [random(&[tokens, kv_heads, head_dim])?, random(&[tokens, kv_heads, head_dim])?];
    let dtype = match numbers {
        KvNumbers::Float(dtype) => dtype,
        KvNumbers::Q8 => DType::F32,
    };
    cache.append(&keys.to_dtype(dtype)?, &values.to_dtype(dtype)?)?;
    Ok(cache)
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn words(count: usize) -> impl Iterator<Item = u64> {
    (1..=count as u64).map(|index| {
        let state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}
