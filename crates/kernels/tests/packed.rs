//! The packed types against the reference's bits, and their products against plain ones.

#[expect(dead_code, reason = "what only a GPU has products for is left out")]
mod quant_fixture;

use candle_core::{Device, Tensor};
use kernels::packed::{PackedMatrix, PackedType, Packing};
use proptest::prelude::*;
use quant_fixture::QuantFixture;

#[test]
fn weights_have_the_bits_of_the_reference() {
    for packed_type in PackedType::ALL {
        let fixture = QuantFixture::of(Packing::Ours(packed_type));
        let mut weights = vec![f32::NAN; fixture.blocks * packed_type.block_len()];
        packed_type.unpack(&fixture.packed, &mut weights);
        fixture.check(&weights);
    }
}

#[test]
fn a_matrix_of_another_size_is_refused() {
    for packed_type in PackedType::ALL {
        let (len, bytes) = (packed_type.block_len(), packed_type.block_bytes());
        let is_ok =
            |len_of_bytes, rows, columns| PackedMatrix::new(vec![0; len_of_bytes], packed_type, rows, columns).is_ok();
        assert!(is_ok(6 * bytes, 3, 2 * len));
        assert!(!is_ok(6 * bytes - 1, 3, 2 * len));
        assert!(!is_ok(6 * bytes, 3, 2 * len - 1));
        assert!(!is_ok(6 * bytes, usize::MAX, 2 * len));
        assert!(!is_ok(0, 3, 0));
    }
}

#[test]
fn rows_are_looked_up_and_unknown_ones_refused() {
    let packed_type = PackedType::IQ4NL;
    let fixture = QuantFixture::of(Packing::Ours(packed_type));
    let matrix = PackedMatrix::new(fixture.packed[..6 * 18].to_vec(), packed_type, 3, 64).unwrap();
    let mut weights = vec![0.0; 3 * 64];
    packed_type.unpack(&fixture.packed, &mut weights);
    let ids = Tensor::new(&[[2_u32], [0]], &Device::Cpu).unwrap();
    let found = matrix.embedding(&ids).unwrap();
    assert_eq!(found.dims(), [2, 1, 64]);
    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(found, [&weights[128..], &weights[..64]].concat());
    assert!(matrix.embedding(&Tensor::new(&[3_u32], &Device::Cpu).unwrap()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Sums of f32 may differ from the exact one by their rounding: 2⁻²² of the sum of the magnitudes, for rows of so few
    /// weights.
    #[test]
    fn a_product_is_that_of_the_unpacked_weights(
        type_index in 0..PackedType::ALL.len(),
        (rows, row_blocks, tokens) in (1_usize..20, 1_usize..6, 1_usize..5),
        seed in any::<u64>(),
    ) {
        let packed_type = PackedType::ALL[type_index];
        let columns = row_blocks * packed_type.block_len();
        let fixture = QuantFixture::of(Packing::Ours(packed_type));
        // The blocks with scales of the size that weights have, in another order each time.
        let usual: Vec<&[u8]> = fixture.usual().collect();
        let block = |i: usize| usual[(seed as usize).wrapping_add(i * 7) % usual.len()];
        let packed: Vec<u8> = (0..rows * row_blocks).flat_map(|i| block(i).to_vec()).collect();
        let mut weights = vec![0.0; rows * columns];
        packed_type.unpack(&packed, &mut weights);
        let x: Vec<f32> = (0..tokens * columns).map(|i| ((seed as usize).wrapping_add(i * i) % 997) as f32 / 500.0 - 1.0).collect();

        let matrix = PackedMatrix::new(packed, packed_type, rows, columns).unwrap();
        let x_tensor = Tensor::from_slice(&x, (tokens, columns), &Device::Cpu).unwrap();
        let product = matrix.product(&x_tensor).unwrap().to_vec2::<f32>().unwrap();
        for (x, product) in x.chunks(columns).zip(&product) {
            prop_assert_eq!(product.len(), rows);
            for (weights, found) in weights.chunks(columns).zip(product) {
                let terms = || x.iter().zip(weights).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
                let (exact, magnitude) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                prop_assert!((f64::from(*found) - exact).abs() <= magnitude * 2_f64.powi(-22), "{found} is not {exact}");
            }
        }
    }
}
