//! The weights of every type as they are loaded, against the reference's bits, and the products with them.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use kernels::packed::{PackedMatrix, PackedType, Packing};
use proptest::prelude::*;
use testkit::gguf::{GgufBuilder, tiny_model};

use super::tensor_type::TensorType;
use super::*;
use crate::device;
use crate::models::linear::Linear;

#[expect(dead_code, reason = "types are named by the file here")]
#[path = "../../../kernels/tests/quant_fixture/mod.rs"]
mod quant_fixture;
use quant_fixture::QuantFixture;

/// Types that weights can have.
fn types() -> Vec<(u32, TensorType)> {
    let known = (0..64).filter_map(|id| Some((id, TensorType::from_id(id)?)));
    known.filter(|(_, tensor_type)| tensor_type.packing().is_some()).collect()
}

fn fixture(tensor_type: TensorType) -> QuantFixture {
    QuantFixture::read(tensor_type.name(), tensor_type.block_bytes() as usize)
}

fn open(file: &GgufBuilder) -> (tempfile::TempDir, Gguf) {
    let folder = tempfile::tempdir().unwrap();
    let path = file.write(folder.path(), "m.gguf").unwrap();
    let gguf = Gguf::open(&path).unwrap();
    (folder, gguf)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn weights_of_every_type_have_the_bits_of_the_reference() {
    for (id, tensor_type) in types() {
        let fixture = fixture(tensor_type);
        let (rows, columns) = (fixture.blocks, tensor_type.block_len() as usize);
        let (_folder, gguf) = open(&GgufBuilder::new().raw_tensor("w", &[rows, columns], id, fixture.packed.clone()));
        let mut ignore = |_, _| {};
        let mut weights = Weights::new(&gguf, &Device::Cpu, &mut ignore);
        let ids = Tensor::arange(0, rows as u32, &Device::Cpu).unwrap();
        fixture.check(&values(&weights.unpacked("w", &[rows, columns]).unwrap()));
        fixture.check(&values(&weights.table("w", rows, columns).unwrap().embedding(&ids).unwrap()));
        // What is multiplied with is Q8_0 for Q5_0, which has the same numbers.
        fixture.check(&values(&weights.matrix("w", rows, columns).unwrap().embedding(&ids).unwrap()));
    }
}

#[test]
fn nvfp4_products_are_scaled_where_the_file_says_so() {
    let nvfp4 = TensorType::from_id(40).unwrap();
    let packed = fixture(nvfp4).packed[..8 * 36].to_vec();
    let file = GgufBuilder::new()
        .raw_tensor("plain.weight", &[8, 64], 40, packed.clone())
        .raw_tensor("scaled.weight", &[8, 64], 40, packed.clone())
        .tensor("scaled.scale", &[1], &[0.25])
        .raw_tensor("experts.weight", &[2, 4, 64], 40, packed)
        .tensor("experts.scale", &[2], &[0.5, 2.0]);
    let (_folder, gguf) = open(&file);
    let mut ignore = |_, _| {};
    let mut weights = Weights::new(&gguf, &Device::Cpu, &mut ignore);
    let x = Tensor::arange(0_f32, 64.0, &Device::Cpu).unwrap().reshape((1, 64)).unwrap();
    let plain = values(&Linear::load(&mut weights, "plain", 8, 64).unwrap().forward(&x).unwrap());
    let scaled = values(&Linear::load(&mut weights, "scaled", 8, 64).unwrap().forward(&x).unwrap());
    assert_eq!(scaled, plain.iter().map(|value| value * 0.25).collect::<Vec<_>>());
    let experts = Linear::load_experts(&mut weights, "experts", 2, 4, 64).unwrap();
    assert_eq!(
        values(&experts[0].forward(&x).unwrap()),
        plain[..4].iter().map(|value| value * 0.5).collect::<Vec<_>>()
    );
    assert_eq!(
        values(&experts[1].forward(&x).unwrap()),
        plain[4..].iter().map(|value| value * 2.0).collect::<Vec<_>>()
    );
}

/// Scaled and with a bias, as one tensor and as one for each.
#[cfg(feature = "metal")]
#[test]
fn experts_in_one_buffer_are_those_of_the_cpu() {
    let device = device::open();
    let packed = fixture(TensorType::from_id(40).unwrap()).packed[..8 * 36].to_vec();
    let (first, second) = packed.split_at(4 * 36);
    let file = GgufBuilder::new()
        .raw_tensor("together.weight", &[2, 4, 64], 40, packed.clone())
        .tensor("together.scale", &[2], &[0.5, 2.0])
        .tensor("together.bias", &[2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
        .raw_tensor("each.0.weight", &[4, 64], 40, first.to_vec())
        .raw_tensor("each.1.weight", &[4, 64], 40, second.to_vec())
        .raw_tensor("mixed.0.weight", &[4, 64], 40, first.to_vec())
        .tensor("mixed.1.weight", &[4, 64], &[0.0; 256]);
    let (_folder, gguf) = open(&file);
    let x = Tensor::arange(0_f32, 192.0, &Device::Cpu).unwrap().affine(0.01, -1.0).unwrap().reshape((3, 64)).unwrap();
    let ids = Tensor::new(&[[0_u32, 1], [1, 0], [1, 9]], &device).unwrap();
    let chosen = kernels::metal::ChosenExperts::new(&ids).unwrap();
    let (mut ignore, mut ignore_too) = (|_, _| {}, |_, _| {});
    let mut weights = Weights::new(&gguf, &device, &mut ignore);
    let mut of_cpu = Weights::new(&gguf, &Device::Cpu, &mut ignore_too);
    for name in ["together", "each"] {
        let metal = device.as_metal_device().unwrap();
        let experts = Linear::load_packed_experts(&mut weights, name, (2, 4, 64), metal).unwrap();
        let found = values(&experts.product(&x.to_device(&device).unwrap(), &chosen).unwrap());
        let experts = Linear::load_experts(&mut of_cpu, name, 2, 4, 64).unwrap();
        let [first, second] = [0, 1].map(|expert| experts[expert].forward(&x).unwrap().to_vec2::<f32>().unwrap());
        let expected = [&first[0][..], &second[0], &second[1], &first[1], &second[2], &[0.0; 4]];
        for (found, expected) in found.iter().zip(expected.concat()) {
            assert!((found - expected).abs() <= 1e-3 * (1.0 + expected.abs()), "{name}: {found} is not {expected}");
        }
    }
    let metal = device.as_metal_device().unwrap();
    let Err(error) = Linear::load_packed_experts(&mut weights, "mixed", (2, 4, 64), metal) else {
        panic!("it is mixed")
    };
    assert_eq!(error.to_string(), "tensor `mixed.1.weight` is packed as F32, which is not supported yet");
}

#[test]
fn f16_stands_in_for_blocks_where_the_device_lacks_products() {
    let fixture = fixture(TensorType::from_id(20).unwrap());
    let blocks = PackedMatrix::new(fixture.packed[16 * 18..32 * 18].to_vec(), PackedType::IQ4NL, 4, 128).unwrap();
    let plain = Matrix::Plain(blocks.to_f16().unwrap());
    let ids = Tensor::new(&[[3_u32, 0]], &Device::Cpu).unwrap();
    let (found, exact) = (plain.embedding(&ids).unwrap(), blocks.embedding(&ids).unwrap());
    assert_eq!((found.dims(), found.dtype()), (&[1, 2, 128][..], DType::F32));
    assert!(
        values(&found).iter().zip(values(&exact)).all(|(found, exact)| (found - exact).abs() <= exact.abs() / 1024.0)
    );
    let x = Tensor::arange(0_f32, 256.0, &Device::Cpu).unwrap().affine(0.01, -1.0).unwrap().reshape((2, 128)).unwrap();
    let (found, exact) = (plain.product(&x).unwrap(), blocks.product(&x).unwrap());
    assert_eq!((found.dims(), found.dtype()), (&[2, 4][..], DType::F32));
    // Both factors are rounded to eleven bits, and so is the sum.
    let scale = values(&exact).iter().fold(0.0, |most: f32, value| most.max(value.abs()));
    assert!(values(&found).iter().zip(values(&exact)).all(|(found, exact)| (found - exact).abs() <= scale / 100.0));
}

#[test]
fn whole_numbers_and_activations_are_refused_by_name() {
    for (id, name) in [(9, "Q8_1"), (15, "Q8_K"), (24, "I8"), (25, "I16"), (27, "I64"), (28, "F64")] {
        let tensor_type = TensorType::from_id(id).unwrap();
        let (len, bytes) = (tensor_type.block_len() as usize, tensor_type.block_bytes() as usize);
        let folder = tempfile::tempdir().unwrap();
        let file = tiny_model(1).raw_tensor("extra", &[len], id, vec![0; bytes]);
        let header = crate::read_header(&file.write(folder.path(), "m.gguf").unwrap()).unwrap();
        let error = header.check_supported().unwrap_err().to_string();
        assert_eq!(error, format!("tensor `extra` is packed as {name}, which is not supported yet"));
    }
}

#[test]
fn every_type_of_weights_is_supported_and_so_is_a_table_of_whole_numbers() {
    let mut file = tiny_model(1).raw_tensor("table", &[3], 26, vec![0; 12]);
    for (id, tensor_type) in types() {
        let bytes = vec![0; tensor_type.block_bytes() as usize];
        file = file.raw_tensor(tensor_type.name(), &[tensor_type.block_len() as usize], id, bytes);
    }
    let (_folder, gguf) = open(&file);
    crate::header::ModelHeader::from_gguf(&gguf).unwrap().check_supported().unwrap();
}

/// Of every shape, for one token and for several: a GPU has another kernel for each.
#[test]
fn products_with_plain_weights_are_right_in_every_shape() {
    type Pack = fn(f32) -> Vec<u8>;
    let weight = |i: usize| (i * i % 61) as f32 / 32.0 - 1.0;
    let types: [(u32, Pack); 3] = [
        (0, |weight| weight.to_le_bytes().to_vec()),
        (1, |weight| half::f16::from_f32(weight).to_le_bytes().to_vec()),
        (30, |weight| half::bf16::from_f32(weight).to_le_bytes().to_vec()),
    ];
    for ((id, packed), rows, columns, tokens) in types.into_iter().flat_map(|kind| {
        let shapes = [(8, 64), (12, 64), (5, 64), (64, 48), (7, 33)];
        shapes.into_iter().flat_map(move |(rows, columns)| [1, 3].map(|tokens| (kind, rows, columns, tokens)))
    }) {
        let bytes = (0..rows * columns).flat_map(|i| packed(weight(i))).collect();
        let (_folder, gguf) = open(&GgufBuilder::new().raw_tensor("w.weight", &[rows, columns], id, bytes));
        let mut ignore = |_, _| {};
        let mut weights = Weights::new(&gguf, &device::open(), &mut ignore);
        let x: Vec<f32> = (0..tokens * columns).map(|i| (i * 7 % 41) as f32 / 20.0 - 1.0).collect();
        let linear = Linear::load(&mut weights, "w", rows, columns).unwrap();
        let product = linear.forward(&Tensor::from_slice(&x, (tokens, columns), &device::open()).unwrap()).unwrap();
        for (i, found) in values(&product).into_iter().enumerate() {
            let (token, row) = (i / rows, i % rows);
            let terms = (0..columns).map(|column| x[token * columns + column] * weight(row * columns + column));
            let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            assert!(
                (found - exact).abs() <= size / 100.0,
                "{id}: {rows}x{columns} by {tokens}: {found} is not {exact}"
            );
        }
    }
}

/// A matrix of the blocks of a fixture that have scales of the size that weights have.
fn packed_matrix(tensor_type: TensorType, blocks: usize, seed: usize) -> Vec<u8> {
    let fixture = fixture(tensor_type);
    let usual: Vec<&[u8]> = fixture.usual().collect();
    (0..blocks).flat_map(|i| usual[seed.wrapping_add(i * 7) % usual.len()].to_vec()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Products of rows that are unpacked round like any sum of f32: by at most 2⁻²² of the sum of the magnitudes, for rows
    /// of this length. Those of tiles, and candle's, round the activations too, to eight bits at the coarsest, relative to
    /// the largest of them. A GPU rounds weights or activations to f16 or bf16.
    #[test]
    fn a_product_is_that_of_the_unpacked_weights(
        type_index in 0..types().len(),
        (experts, rows, row_blocks, tokens) in (1_usize..3, 1_usize..20, 1_usize..4, 1_usize..5),
        seed in 0_usize..1000,
    ) {
        let (id, tensor_type) = types()[type_index];
        prop_assume!(tensor_type.block_len() > 1);
        // A debug assertion of candle wants an even number of blocks; without it, an odd one is right as well.
        let needs_even = matches!(tensor_type.packing(), Some(Packing::Candle(GgmlDType::Q4_1 | GgmlDType::Q5_1)));
        let row_blocks = if needs_even { 2 * row_blocks } else { row_blocks };
        let columns = row_blocks * tensor_type.block_len() as usize;
        let packed = packed_matrix(tensor_type, experts * rows * row_blocks, seed);
        let (_folder, gguf) = open(&GgufBuilder::new().raw_tensor("w.weight", &[experts, rows, columns], id, packed));
        let mut ignore = |_, _| {};
        let mut weights = Weights::new(&gguf, &device::open(), &mut ignore);
        let unpacked = values(&weights.unpacked("w.weight", &[experts, rows, columns]).unwrap());
        let linears = Linear::load_experts(&mut weights, "w", experts, rows, columns).unwrap();

        let x: Vec<f32> = (0..tokens * columns).map(|i| ((seed + i * i) % 997) as f32 / 500.0 - 1.0).collect();
        let x_tensor = Tensor::from_slice(&x, (tokens, columns), &device::open()).unwrap();
        let is_tiled = |packing| kernels::cpu::tiled_bytes(packing, rows, columns).is_some();
        let is_unpacked = matches!(tensor_type.packing(), Some(packing @ Packing::Ours(_)) if !is_tiled(packing))
            && !crate::computes_on_gpu();
        for (linear, weights) in linears.iter().zip(unpacked.chunks(rows * columns)) {
            let product = linear.forward(&x_tensor).unwrap().to_vec2::<f32>().unwrap();
            for (x, product) in x.chunks(columns).zip(&product) {
                let largest = x.iter().fold(0.0, |most: f64, x| most.max(f64::from(x.abs())));
                for (weights, found) in weights.chunks(columns).zip(product) {
                    let terms = || x.iter().zip(weights).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
                    let exact: f64 = terms().sum();
                    let tolerance = if is_unpacked {
                        terms().map(f64::abs).sum::<f64>() * 2_f64.powi(-22)
                    } else {
                        // Below 2⁻²⁴, f16 has nothing but zero.
                        let least = if crate::computes_on_gpu() { 2_f64.powi(-24) } else { 0.0 };
                        weights.iter().map(|weight| f64::from(weight.abs()) / 100.0 + least).sum::<f64>() * largest + least
                    };
                    let name = tensor_type.name();
                    prop_assert!((f64::from(*found) - exact).abs() <= tolerance, "{name}: {found} is not {exact}");
                }
            }
        }
    }
}
