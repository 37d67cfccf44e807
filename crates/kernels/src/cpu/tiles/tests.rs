use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use proptest::prelude::*;

use super::*;
use crate::packed::PackedType;

const PACKINGS: [Packing; 13] = [
    Packing::Candle(GgmlDType::Q4_0),
    Packing::Candle(GgmlDType::Q4_1),
    Packing::Candle(GgmlDType::Q5_0),
    Packing::Candle(GgmlDType::Q5_1),
    Packing::Candle(GgmlDType::Q8_0),
    Packing::Candle(GgmlDType::Q4K),
    Packing::Candle(GgmlDType::Q5K),
    Packing::Candle(GgmlDType::Q6K),
    Packing::Ours(PackedType::IQ4NL),
    Packing::Ours(PackedType::MXFP4),
    Packing::Candle(GgmlDType::Q2K),
    Packing::Candle(GgmlDType::Q3K),
    Packing::Ours(PackedType::IQ4XS),
];

/// The weights of `blocks` as whoever reads the file's order unpacks them.
fn unpacked(packing: Packing, blocks: &[u8], columns: usize) -> Vec<Vec<f32>> {
    let rows = blocks.len() / (columns / packing.block_len() * packing.block_bytes());
    match packing {
        Packing::Candle(dtype) => {
            let storage = QStorage::from_data(blocks.into(), &Device::Cpu, dtype).unwrap();
            QTensor::new(storage, (rows, columns)).unwrap().dequantize(&Device::Cpu).unwrap().to_vec2().unwrap()
        }
        Packing::Ours(packed_type) => {
            let mut weights = vec![0.0; rows * columns];
            packed_type.unpack(blocks, &mut weights);
            weights.chunks(columns).map(<[f32]>::to_vec).collect()
        }
    }
}

/// Blocks of random codes with scales of a sane size, a row of zeros among them.
fn blocks(packing: Packing, rows: usize, columns: usize, seed: u64) -> Vec<u8> {
    let count = rows * columns / packing.block_len();
    let mut state = seed;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut blocks: Vec<u8> = (0..count * packing.block_bytes()).map(|_| byte()).collect();
    for block in blocks.chunks_exact_mut(packing.block_bytes()) {
        // Small numbers in f16, denormal ones among them.
        let mut scale = |at: usize| block[at..at + 2].copy_from_slice(&(u16::from(byte()) << 5 | 1).to_le_bytes());
        match packing {
            Packing::Candle(GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K) => {
                (scale(0), scale(2)).0
            }
            Packing::Candle(GgmlDType::Q2K) => (scale(80), scale(82)).0,
            Packing::Candle(GgmlDType::Q3K) => scale(108),
            Packing::Candle(GgmlDType::Q6K) => scale(208),
            Packing::Ours(PackedType::MXFP4) => block[0] = 120 + block[0] % 10,
            _ => scale(0),
        }
    }
    let row = blocks.len() / rows;
    blocks[..row].fill(0);
    blocks
}

fn tiled(packing: Packing, blocks: &[u8], rows: usize, columns: usize) -> Tiles<Vec<u8>> {
    let mut tiles = vec![0; tiled_bytes(packing, rows, columns).unwrap() as usize];
    tile(blocks, packing, columns, &mut tiles).unwrap();
    Tiles::new(tiles, packing, rows, columns).unwrap()
}

fn random(count: usize) -> Vec<f32> {
    Tensor::randn(0_f32, 1.0, count, &Device::Cpu).unwrap().to_vec1().unwrap()
}

/// What a token's values are rounded to.
fn rounded_back(x: &[f32]) -> Vec<f64> {
    let mut groups = vec![Group::default(); x.len() / GROUP];
    activations::quantize(x, &mut groups);
    let values = |group: &Group| {
        let scale = f64::from(group.scale);
        group.codes.map(|word| word.to_le_bytes().map(|code| f64::from(code.cast_signed()) * scale))
    };
    groups.iter().flat_map(|group| values(group).into_iter().flatten()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every set of instructions gives the product of the weights with the rounded tokens, and the same bits as every
    /// other, alone and among other tokens.
    #[test]
    fn a_product_is_that_of_the_unpacked_weights(
        packing in prop::sample::select(&PACKINGS), rows in 1_usize..70, blocks_per_row in 1_usize..5, tokens in 1_usize..70,
        seed: u64, has_bias: bool, is_tiny: bool,
    ) {
        let columns = blocks_per_row * packing.block_len();
        let file = blocks(packing, rows, columns, seed);
        let matrix = tiled(packing, &file, rows, columns);
        let mut x = random(tokens * columns);
        x[..columns].fill(0.0);
        if is_tiny {
            x.iter_mut().for_each(|x| *x *= 1e-37);
        }
        let bias = has_bias.then(|| random(rows));
        let matrices = [(&matrix, bias.as_deref())];
        let reference = multiply(Isa::Reference, &matrices, &x, tokens).remove(0);
        for isa in Isa::available() {
            prop_assert!(multiply(isa, &matrices, &x, tokens).remove(0) == reference, "{isa:?} of {packing:?}");
            let last = multiply(isa, &matrices, &x[(tokens - 1) * columns..], 1).remove(0);
            prop_assert!(last == reference[(tokens - 1) * rows..], "one token with {isa:?} of {packing:?}");
        }
        let weights = unpacked(packing, &file, columns);
        for (token, found) in x.chunks(columns).zip(reference.chunks(rows)) {
            let token = rounded_back(token);
            for (row, (weights, found)) in weights.iter().zip(found).enumerate() {
                let terms = weights.iter().zip(&token).map(|(weight, x)| f64::from(*weight) * x);
                let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
                let (sum, size) = terms.fold((bias, bias.abs()), |(sum, size), term| (sum + term, size + term.abs()));
                let off = (f64::from(*found) - sum).abs();
                // Offsets and minima are added apart, so sums of several times the size cancel.
                prop_assert!(off <= 1e-4 * size + 1e-30, "{packing:?}: {found} for {sum} of {size}");
            }
        }
    }

    /// No value is off by more than half a step, of which the largest of 32 has 127.
    #[test]
    fn tokens_are_half_a_step_off_at_most(groups in 1_usize..9, exponent in -30_i32..30) {
        let x: Vec<f32> = random(groups * GROUP).iter().map(|x| x * 10_f32.powi(exponent)).collect();
        for (x, back) in x.chunks(GROUP).zip(rounded_back(&x).chunks(GROUP)) {
            let step = f64::from(x.iter().fold(0_f32, |most, x| most.max(x.abs()))) / 127.0;
            for (x, back) in x.iter().zip(back) {
                prop_assert!((f64::from(*x) - back).abs() <= 0.501 * step);
            }
        }
    }
}

#[test]
fn several_matrices_share_their_input() {
    let matrices: Vec<_> = [(PACKINGS[2], 40), (PACKINGS[4], 8)]
        .map(|(packing, rows)| (packing, blocks(packing, rows, 256, 7), rows))
        .iter()
        .map(|(packing, file, rows)| tiled(*packing, file, *rows, 256))
        .collect();
    let x = Tensor::randn(0_f32, 1.0, (3, 256), &Device::Cpu).unwrap();
    let bias = Tensor::randn(0_f32, 1.0, 8, &Device::Cpu).unwrap();
    let both = Tiles::products(&[(&matrices[0], None), (&matrices[1], Some(&bias))], &x).unwrap();
    for (i, bias) in [(0, None), (1, Some(&bias))] {
        let alone = Tiles::products(&[(&matrices[i], bias)], &x).unwrap().remove(0);
        assert_eq!(alone.to_vec2::<f32>().unwrap(), both[i].to_vec2::<f32>().unwrap());
    }
    assert!(Tiles::products(&[(&matrices[0], Some(&bias))], &x).is_err(), "a bias of another length");
    assert!(Tiles::products(&[(&matrices[0], None)], &x.t().unwrap()).is_err());
}

/// Each expert's rows are multiplied with its matrix, as they would be alone; an expert may have none.
#[test]
fn experts_multiply_their_own_rows() {
    let (columns, counts, rows) = (256, [2, 0, 3, 1], [3_u32, 0, 1, 2, 3, 0]);
    let expert = |rows, seed| tiled(PACKINGS[5], &blocks(PACKINGS[5], rows, columns, seed), rows, columns);
    let sets = [20, 32].map(|rows| (0..4).map(|seed| expert(rows, seed)).collect::<Vec<_>>());
    let bias = Tensor::randn(0_f32, 1.0, 20, &Device::Cpu).unwrap();
    let with_bias = [Some(&bias), None].map(|bias| move |matrix| (matrix, bias));
    let sets: Vec<Vec<_>> = sets.iter().zip(with_bias).map(|(set, with)| set.iter().map(with).collect()).collect();
    let x = Tensor::randn(0_f32, 1.0, (4, columns), &Device::Cpu).unwrap();
    let found = Tiles::expert_products(&sets, &x, Some(&rows), &counts).unwrap();
    let gathered = x.index_select(&Tensor::new(&rows, &Device::Cpu).unwrap(), 0).unwrap();
    let in_order = Tiles::expert_products(&sets, &gathered, None, &counts).unwrap();
    for ((set, found), in_order) in sets.iter().zip(&found).zip(&in_order) {
        let mut first = 0;
        for (matrix, count) in set.iter().zip(counts).filter(|(_, count)| *count > 0) {
            let share = gathered.narrow(0, first, count).unwrap();
            let alone = Tiles::products(&[*matrix], &share).unwrap().remove(0).to_vec2::<f32>().unwrap();
            for product in [found, in_order] {
                assert_eq!(product.narrow(0, first, count).unwrap().to_vec2::<f32>().unwrap(), alone);
            }
            first += count;
        }
    }
    assert!(Tiles::expert_products(&sets, &x, None, &counts).is_err(), "fewer tokens than rows");
    assert!(Tiles::expert_products(&sets, &x, Some(&[0, 1, 2, 3, 4, 0]), &counts).is_err(), "a row that is none");
    assert!(Tiles::expert_products(&sets, &x, Some(&rows), &counts[..3]).is_err(), "experts without a count");
}

/// A row of tiles is looked up as whoever reads the file's order unpacks it.
#[test]
fn rows_have_the_bits_of_the_file() {
    for packing in PACKINGS {
        let columns = 2 * packing.block_len();
        let file = blocks(packing, 19, columns, 5);
        let matrix = tiled(packing, &file, 19, columns);
        let ids = Tensor::arange(0_u32, 19, &Device::Cpu).unwrap();
        let found = matrix.embedding(&ids).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(found, unpacked(packing, &file, columns), "{packing:?}");
    }
}

/// Whatever a file has as blocks, packing and multiplying them ends.
#[test]
fn damaged_blocks_are_multiplied() {
    for packing in PACKINGS {
        let columns = packing.block_len();
        let file = vec![0xff; 17 * packing.block_bytes()];
        let matrix = tiled(packing, &file, 17, columns);
        for isa in Isa::available() {
            let x = [random(columns), vec![f32::NAN; columns], vec![f32::INFINITY; columns]].concat();
            assert_eq!(multiply(isa, &[(&matrix, None)], &x, 3)[0].len(), 3 * 17);
        }
    }
    assert!(Tiles::new(vec![0; 17], PACKINGS[0], 1, 32).is_err());
    assert!(tiled_bytes(PACKINGS[5], 1, 128).is_none());
}
