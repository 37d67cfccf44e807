//! The packed products on a Mac's GPU, or on the one that `cargo xtask metal-test` emulates, against those of the CPU; and
//! the layer of experts that is made of them.
#![cfg(feature = "metal")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic")]

#[expect(dead_code, reason = "what it checks bits with is for the CPU")]
mod quant_fixture;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use kernels::metal::{ChosenExperts, PackedExperts, PackedTensor, add_weighted};
use kernels::packed::Packing;
use kernels::{Gating, Routing};
use quant_fixture::{QuantFixture, packings};

/// Rows and tokens that fill no tile, and a row of fewer parts than a SIMD-group has threads.
const SHAPES: [(usize, usize, usize); 3] = [(6, 256, 1), (5, 768, 6), (1, 512, 3)];

/// `(rows, columns)` by the CPU.
fn unpacked(packing: Packing, blocks: &[u8], rows: usize, columns: usize) -> Tensor {
    match packing {
        Packing::Candle(dtype) => {
            let blocks = QStorage::from_data(blocks.into(), &Device::Cpu, dtype).unwrap();
            QTensor::new(blocks, (rows, columns)).unwrap().dequantize(&Device::Cpu).unwrap()
        }
        Packing::Ours(packed_type) => {
            let mut weights = vec![f32::NAN; rows * columns];
            packed_type.unpack(blocks, &mut weights);
            Tensor::from_vec(weights, (rows, columns), &Device::Cpu).unwrap()
        }
    }
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares to what `weights` make with `x`, relative to the largest sum that there could be.
#[track_caller]
fn check(what: &str, found: &Tensor, x: &Tensor, weights: &Tensor, tolerance: f32) {
    let expected = x.matmul(&weights.t().unwrap()).unwrap();
    let sizes = x.abs().unwrap().matmul(&weights.abs().unwrap().t().unwrap()).unwrap();
    assert_eq!(found.dims(), expected.dims(), "{what}");
    for ((found, expected), size) in values(found).iter().zip(values(&expected)).zip(values(&sizes)) {
        assert!((found - expected).abs() <= tolerance * size, "{what}: {found} is not {expected}");
    }
}

#[test]
fn a_packed_tensor_is_its_weights() {
    let device = Device::new_metal(0).unwrap();
    let metal = device.as_metal_device().unwrap();
    let of_blocks = packings().flat_map(|packing| SHAPES.map(|shape| (packing, shape)));
    let plain = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16].map(|dtype| (Packing::Candle(dtype), (7, 33, 3)));
    for (packing, (rows, columns, tokens)) in of_blocks.chain(plain) {
        let what = format!("{packing:?} {rows}x{columns} by {tokens}");
        let blocks = QuantFixture::matrix(packing, rows, columns);
        let packed = PackedTensor::new(&blocks, packing, rows, columns, metal).unwrap();
        let weights = unpacked(packing, &blocks, rows, columns);

        // All, and one that isn't there.
        let ids = Tensor::arange(0, rows as u32 + 1, &device).unwrap();
        let found = packed.embedding(&ids).unwrap();
        assert_eq!(values(&found.narrow(0, 0, rows).unwrap()), values(&weights), "{what}");
        assert!(values(&found.get(rows).unwrap()).iter().all(|weight| *weight == 0.0), "there is no such row");

        // From the middle of a buffer.
        let x = Tensor::randn(0_f32, 1.0, (tokens + 2, columns), &Device::Cpu).unwrap();
        let [x, on_device] = [x.clone(), x.to_device(&device).unwrap()].map(|x| x.narrow(0, 2, tokens).unwrap());
        check(&what, &packed.own_product(&on_device).unwrap(), &x, &weights, 1e-5);
        // candle rounds weights and activations to f16 or bf16.
        check(&what, &packed.product(&on_device).unwrap(), &x, &weights, 1e-2);
    }
}

#[test]
fn matrices_of_another_size_are_refused() {
    let device = Device::new_metal(0).unwrap();
    let metal = device.as_metal_device().unwrap();
    let q4_0 = Packing::Candle(GgmlDType::Q4_0);
    assert!(PackedTensor::new(&[0; 6 * 18], q4_0, 3, 64, metal).is_ok());
    assert!(PackedTensor::new(&[0; 6 * 18], q4_0, 3, 63, metal).is_err());
    assert!(PackedExperts::new(&[0; 6 * 18], q4_0, (3, 1, 64), metal).is_ok());
    assert!(PackedExperts::new(&[0; 6 * 18], q4_0, (usize::MAX, 3, 64), metal).is_err());
    assert!(PackedExperts::new(&[], q4_0, (0, 3, 64), metal).is_err());
}

/// The router chooses and weighs as on the CPU, and what each expert makes is added up as plain operations do; a token
/// comes to the same bits whatever others are beside it.
#[test]
fn a_layer_of_experts_is_its_reference() {
    const EXPERTS: usize = 5;
    const USED: usize = 2;
    const TOKENS: usize = 7;
    let device = Device::new_metal(0).unwrap();
    let metal = device.as_metal_device().unwrap();
    let normal = |shape: &[usize]| Tensor::randn(0_f32, 1.0, shape, &Device::Cpu).unwrap();
    for (packing, rows, columns) in [
        (Packing::Candle(GgmlDType::F16), 6, 33),
        (Packing::Candle(GgmlDType::Q4K), 5, 512),
        (Packing::Ours(kernels::packed::PackedType::MXFP4), 9, 64),
    ] {
        let blocks = QuantFixture::matrix(packing, EXPERTS * rows, columns);
        let weights = unpacked(packing, &blocks, EXPERTS * rows, columns);
        let (logits, x) = (normal(&[TOKENS, EXPERTS]), normal(&[TOKENS, columns]));
        let (scale, bias) = (normal(&[EXPERTS]), normal(&[EXPERTS, rows]));
        let routing = |device: &Device| Routing {
            experts: EXPERTS,
            used: USED,
            gating: Gating::Softmax,
            groups: 1,
            groups_used: 1,
            norms_weights: true,
            weight_scale: 1.5,
            choice_bias: Some(Tensor::zeros(EXPERTS, DType::F32, device).unwrap()),
            expert_scale: None,
        };
        let layer = PackedExperts::new(&blocks, packing, (EXPERTS, rows, columns), metal).unwrap();
        let [scale_there, bias_there] = [&scale, &bias].map(|x| x.to_device(&device).unwrap());
        let layer = layer.with_affine(Some(&scale_there), Some(&bias_there)).unwrap();
        let forward = |first: usize, len: usize| {
            let [logits, x] = [&logits, &x].map(|x| x.narrow(0, first, len).unwrap().to_device(&device).unwrap());
            let routing = routing(&device);
            let ids = routing.choose(&logits).unwrap();
            let weights = routing.weigh(&logits, &ids).unwrap();
            let made = layer.product(&x, &ChosenExperts::new(&ids).unwrap()).unwrap();
            let base = Tensor::zeros((len, rows), DType::F32, &device).unwrap();
            (ids.to_vec2::<u32>().unwrap(), add_weighted(&base, &made, &weights).unwrap().to_vec2::<f32>().unwrap())
        };
        let (ids, found) = forward(0, TOKENS);
        for (first, len) in [(0, 1), (6, 1), (2, 3)] {
            let part = forward(first, len);
            assert_eq!((&part.0[..], &part.1[..]), (&ids[first..first + len], &found[first..first + len]));
        }

        let routing = routing(&Device::Cpu);
        let expected = routing.choose(&logits).unwrap();
        assert_eq!(ids, expected.to_vec2::<u32>().unwrap());
        let token_weights = routing.weigh(&logits, &expected).unwrap().to_vec2::<f32>().unwrap();
        for (token, (found, (ids, token_weights))) in found.iter().zip(ids.iter().zip(&token_weights)).enumerate() {
            let mut sum = vec![0_f32; rows];
            for (expert, weight) in ids.iter().zip(token_weights) {
                let expert = *expert as usize;
                let weights = weights.narrow(0, expert * rows, rows).unwrap();
                let made = x.narrow(0, token, 1).unwrap().matmul(&weights.t().unwrap()).unwrap();
                let scale = values(&scale)[expert];
                for ((sum, made), bias) in sum.iter_mut().zip(values(&made)).zip(values(&bias.get(expert).unwrap())) {
                    *sum += weight * (made * scale + bias);
                }
            }
            for (found, expected) in found.iter().zip(&sum) {
                assert!((found - expected).abs() <= 1e-4 * (1.0 + expected.abs()), "{found} is not {expected}");
            }
        }
    }
}
