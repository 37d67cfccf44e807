use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;

use super::*;

fn random(shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::randn(0_f32, 1.0, shape, &Device::Cpu)
}

fn assert_close(fast: &Tensor, reference: &Tensor) {
    assert_eq!(fast.dims(), reference.dims());
    let difference = (fast - reference).and_then(|d| d.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()).unwrap();
    assert!(difference < 1e-4, "differs by {difference}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rms_norm_is_its_reference(tokens in 1_usize..9, width in 1_usize..200) {
        let (x, weight) = (random((tokens, width)).unwrap(), random(width).unwrap());
        assert_close(&rms_norm(&x, &weight, 1e-5).unwrap(), &rms_norm_reference(&x, &weight, 1e-5).unwrap());
    }

    #[test]
    fn rope_is_its_reference(tokens in 1_usize..9, heads in 1_usize..5, half in 1_usize..40, interleaved: bool) {
        let pairing = if interleaved { Pairing::Interleaved } else { Pairing::Halves };
        let angles = random((tokens, half)).unwrap();
        let (x, cos, sin) = (random((tokens, heads, 2 * half)).unwrap(), angles.cos().unwrap(), angles.sin().unwrap());
        assert_close(&rope(&x, &cos, &sin, pairing).unwrap(), &rope_reference(&x, &cos, &sin, pairing).unwrap());
    }

    #[test]
    fn silu_gate_is_its_reference(tokens in 1_usize..5, width in 1_usize..20_000) {
        let (gate, up) = (random((tokens, width)).unwrap(), random((tokens, width)).unwrap());
        assert_close(&silu_gate(&gate, &up).unwrap(), &silu_gate_reference(&gate, &up).unwrap());
    }

    #[test]
    fn attention_is_its_reference(
        past in 0_usize..40, tokens in 1_usize..20, kv_heads in 1_usize..4, group in 1_usize..4, eighths in 1_usize..9,
    ) {
        let head_dim = 8 * eighths;
        let mut cache = KvLayer::new(kv_heads, head_dim, 16, DType::F32, &Device::Cpu);
        for part in [past, tokens].into_iter().filter(|part| *part > 0) {
            let shape = (part, kv_heads, head_dim);
            cache.append(&random(shape).unwrap(), &random(shape).unwrap()).unwrap();
        }
        let queries = random((tokens, kv_heads * group, head_dim)).unwrap();
        assert_close(&attention(&queries, &cache, 0.3).unwrap(), &attention_reference(&queries, &cache, 0.3).unwrap());
    }
}

#[test]
fn a_trimmed_layer_is_a_fresh_one() -> Result<()> {
    let shape = |tokens| (tokens, 2, 8);
    let (kept, dropped, new) = (random(shape(5))?, random(shape(20))?, random(shape(3))?);
    let mut trimmed = KvLayer::new(2, 8, 4, DType::F32, &Device::Cpu);
    trimmed.append(&kept, &kept)?;
    trimmed.append(&dropped, &dropped)?;
    trimmed.trim(5);
    trimmed.append(&new, &new)?;
    let mut fresh = KvLayer::new(2, 8, 64, DType::F32, &Device::Cpu);
    fresh.append(&Tensor::cat(&[&kept, &new], 0)?, &Tensor::cat(&[&kept, &new], 0)?)?;
    assert_eq!(trimmed.len(), 8);
    let queries = random((1, 4, 8))?;
    assert_close(&attention(&queries, &trimmed, 1.0)?, &attention(&queries, &fresh, 1.0)?);
    Ok(())
}

#[test]
fn widened_weights_are_the_same_weights() -> Result<()> {
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};
    let packed = QTensor::quantize(&random((4, 64))?, GgmlDType::Q5_0)?;
    let wide = cpu::q5_0_as_q8_0(&packed.data()?);
    let wide = QTensor::new(QStorage::from_data(wide.into(), &Device::Cpu, GgmlDType::Q8_0)?, (4, 64))?;
    let (packed, wide) = (packed.dequantize(&Device::Cpu)?, wide.dequantize(&Device::Cpu)?);
    assert_eq!(packed.to_vec2::<f32>()?, wide.to_vec2::<f32>()?);
    Ok(())
}
