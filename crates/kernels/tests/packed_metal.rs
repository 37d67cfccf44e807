//! The packed products on a Mac's GPU, or on the one that `cargo xtask metal-test` emulates, against those of the CPU.
#![cfg(feature = "metal")]

#[expect(dead_code, reason = "what it checks bits with is for the CPU")]
mod quant_fixture;

use candle_core::{Device, Tensor};
use kernels::metal::PackedTensor;
use kernels::packed::{PackedMatrix, PackedType};
use quant_fixture::QuantFixture;

/// Rows and tokens that fill no tile, and a row of fewer parts than a SIMD-group has threads.
const SHAPES: [(usize, usize, usize); 3] = [(6, 256, 1), (5, 768, 6), (1, 512, 3)];

#[test]
fn a_packed_tensor_is_the_packed_matrix() {
    let device = Device::new_metal(0).unwrap();
    let metal = device.as_metal_device().unwrap();
    for packed_type in PackedType::ALL {
        let fixture = QuantFixture::of(packed_type);
        for (rows, columns, tokens) in SHAPES {
            let bytes = columns / packed_type.block_len() * packed_type.block_bytes() * rows;
            let blocks: Vec<u8> = fixture.usual().flatten().copied().cycle().take(bytes).collect();
            let packed = PackedTensor::new(&blocks, packed_type, rows, columns, metal).unwrap();
            let matrix = PackedMatrix::new(&blocks, packed_type, rows, columns).unwrap();

            // All, and one that isn't there.
            let ids = Tensor::arange(0, rows as u32 + 1, &device).unwrap();
            let found = packed.embedding(&ids).unwrap().to_vec2::<f32>().unwrap();
            let weights = matrix.embedding(&Tensor::arange(0, rows as u32, &Device::Cpu).unwrap()).unwrap();
            let weights = weights.to_vec2::<f32>().unwrap();
            assert_eq!(found[..rows], weights, "{packed_type:?} {rows}x{columns}");
            assert!(found[rows].iter().all(|weight| *weight == 0.0), "there is no such row");

            let x = Tensor::randn(0_f32, 1.0, (tokens, columns), &Device::Cpu).unwrap();
            let found = packed.product(&x.to_device(&device).unwrap()).unwrap().to_vec2::<f32>().unwrap();
            let expected = matrix.product(&x).unwrap().to_vec2::<f32>().unwrap();
            let largest = weights.iter().flatten().fold(0_f32, |most, weight| most.max(weight.abs()));
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                let off = (found - expected).abs();
                assert!(off <= 1e-5 * largest * columns as f32, "{packed_type:?}: {found} is not {expected}");
            }
        }
    }
}
