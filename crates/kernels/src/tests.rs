use std::sync::LazyLock;

use candle_core::{D, DType, Device, Result, Tensor};
use proptest::prelude::*;

use super::kv_q8::{pack, unpack, unpack_reference};
use super::*;
use crate::attention::attention_in_steps;

const F32: KvFormat = KvFormat::float(DType::F32);
const Q8: KvFormat = KvFormat { keys: KvNumbers::Q8, values: KvNumbers::Q8 };
/// Where everything here is computed: on the GPU that this was built for, which `cargo xtask metal-test` emulates.
fn device() -> Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(|| match cfg!(feature = "metal") {
        true => Device::new_metal(0).unwrap(),
        false => Device::Cpu,
    });
    DEVICE.clone()
}

fn random(shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::randn(0_f32, 1.0, shape, &Device::Cpu)?.to_device(&device())
}

/// Keys and values of one length.
fn plain(kv_heads: usize, head_dim: usize, span: Span) -> KvShape {
    KvShape { kv_heads, key_dim: head_dim, value_dim: head_dim, values_in_keys: false, span }
}

#[track_caller]
fn assert_close(fast: &Tensor, reference: &Tensor) {
    assert_within(1e-4, fast, reference);
}

#[track_caller]
fn assert_within(tolerance: f32, fast: &Tensor, reference: &Tensor) {
    assert_eq!(fast.dims(), reference.dims());
    let difference = (fast - reference).and_then(|d| d.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()).unwrap();
    assert!(difference < tolerance, "differs by {difference}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rms_norm_is_its_reference(tokens in 1_usize..9, width in 1_usize..200) {
        let (x, weight) = (random((tokens, width)).unwrap(), random(width).unwrap());
        assert_close(&rms_norm(&x, &weight, 1e-5).unwrap(), &rms_norm_reference(&x, &weight, 1e-5).unwrap());
    }

    #[test]
    fn a_sum_is_candles(tokens in 1_usize..9, width in 1_usize..9_000) {
        let (a, b) = (random((tokens, width)).unwrap(), random((tokens, width)).unwrap());
        assert_close(&add(&a, &b).unwrap(), &(a + b).unwrap());
    }

    #[test]
    fn rope_is_its_reference(
        tokens in 1_usize..9, heads in 1_usize..5, half in 1_usize..40, rest in 0_usize..9, interleaved: bool,
    ) {
        let pairing = if interleaved { Pairing::Interleaved } else { Pairing::Halves };
        let angles = random((tokens, half)).unwrap();
        let x = random((tokens, heads, 2 * half + rest)).unwrap();
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        assert_close(&rope(&x, &cos, &sin, pairing).unwrap(), &rope_reference(&x, &cos, &sin, pairing).unwrap());
    }

    /// Over several growths, from inputs that are parts of larger tensors.
    #[test]
    fn keys_turn_on_their_way_into_the_cache(
        steps in prop::collection::vec(1_usize..40, 1..4), kv_heads in 1_usize..4, half in 1_usize..20,
        rest in 0_usize..5, interleaved: bool,
        numbers in prop_oneof![
            Just(KvNumbers::Float(DType::F32)), Just(KvNumbers::Float(DType::F16)), Just(KvNumbers::Q8),
        ],
    ) {
        let pairing = if interleaved { Pairing::Interleaved } else { Pairing::Halves };
        let shape = plain(kv_heads, 2 * half + rest, Span::All);
        let format = KvFormat { keys: numbers, values: numbers };
        let [mut fused, mut plain] = [(); 2].map(|()| KvLayer::new(shape, 16, format, &device()));
        for tokens in steps {
            let angles = random((tokens + 2, half)).unwrap().narrow(0, 1, tokens).unwrap();
            let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
            let vectors = || random((tokens + 2, kv_heads, shape.key_dim)).unwrap().narrow(0, 1, tokens).unwrap();
            let (keys, values) = (vectors(), vectors());
            let turn = Turn { cos: &cos, sin: &sin, pairing };
            fused.append_turned(&keys, Some(&turn), &values).unwrap();
            plain.append(&rope_reference(&keys, &cos, &sin, pairing).unwrap(), &values).unwrap();
        }
        prop_assert_eq!(fused.len(), plain.len());
        let ((keys, values), (plain_keys, plain_values)) = (fused.heads_first().unwrap(), plain.heads_first().unwrap());
        // In 8 bits a value on the edge may fall to either side.
        let tolerance = match numbers {
            KvNumbers::Float(DType::F32) => 1e-5,
            KvNumbers::Float(_) => 5e-3,
            KvNumbers::Q8 => 0.1,
        };
        let f32 = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
        assert_within(tolerance, &f32(&keys), &f32(&plain_keys));
        assert_within(1e-6, &f32(&values), &f32(&plain_values));
    }

    #[test]
    fn an_activation_is_its_reference(
        tokens in 1_usize..5, width in 1_usize..20_000,
        activation in prop_oneof![
            Just(Activation::Silu), Just(Activation::Gelu), Just(Activation::ClampedSilu { limit: 1.5 }),
            Just(Activation::ClampedSwiglu { alpha: 1.702, limit: 1.5 }),
        ],
    ) {
        let (gate, up) = (random((tokens, width)).unwrap(), random((tokens, width)).unwrap());
        assert_close(
            &gated(activation, &gate, &up).unwrap(),
            &gated_reference(activation, &gate, &up).unwrap(),
        );
    }

    #[test]
    fn attention_is_its_reference(
        past in 0_usize..40, tokens in 1_usize..20, kv_heads in 1_usize..4, group in 1_usize..4, eighths in 1_usize..17,
        span in prop_oneof![Just(Span::All), (1_usize..50).prop_map(Span::Window), (1_usize..50).prop_map(Span::Chunk)],
        is_half: bool,
    ) {
        // Candle's product on the CPU wants the type of the queries.
        let (dtype, tolerance) =
            if is_half && !device().is_cpu() { (DType::F16, 1e-2) } else { (DType::F32, 1e-4) };
        let head_dim = 8 * eighths;
        let mut cache = KvLayer::new(plain(kv_heads, head_dim, span), 16, KvFormat::float(dtype), &device());
        for part in [past, tokens].into_iter().filter(|part| *part > 0) {
            let shape = (part, kv_heads, head_dim);
            cache.append(&random(shape).unwrap(), &random(shape).unwrap()).unwrap();
        }
        let queries = random((tokens, kv_heads * group, head_dim)).unwrap();
        assert_within(
            tolerance,
            &attention(&queries, &cache, 0.3, None).unwrap(),
            &attention_reference(&queries, &cache, 0.3, None).unwrap(),
        );
    }

    /// Over every way in which the CPU stores a cache, with sinks, and with values that are a part of the keys.
    #[test]
    fn attention_on_the_cpu_is_its_reference(
        past in 0_usize..700, tokens in 1_usize..40, (kv_heads, group) in (1_usize..3, 1_usize..9),
        (key_dim, value_dim) in (1_usize..9, 1_usize..9), has_sinks: bool, values_in_keys: bool, is_long: bool,
        format in prop::sample::select(vec![F32, KvFormat::float(DType::F16), Q8]),
        span in prop_oneof![Just(Span::All), (1_usize..300).prop_map(Span::Window), (1_usize..300).prop_map(Span::Chunk)],
    ) {
        let past = if is_long { past } else { past % 50 };
        let (key_dim, value_dim) = (8 * key_dim, 8 * if values_in_keys { value_dim.min(key_dim) } else { value_dim });
        // A part of a key doesn't have its scales.
        let format = if values_in_keys && format == Q8 { F32 } else { format };
        let shape = KvShape { kv_heads, key_dim, value_dim, values_in_keys, span };
        let mut cache = KvLayer::new(shape, 16, format, &Device::Cpu);
        let random = |shape| Tensor::randn(0_f32, 1.0, shape, &Device::Cpu).unwrap();
        for part in [past, tokens].into_iter().filter(|part| *part > 0) {
            cache.append(&random((part, kv_heads, key_dim)), &random((part, kv_heads, value_dim))).unwrap();
        }
        let queries = random((tokens, kv_heads * group, key_dim));
        let sinks = Tensor::randn(0_f32, 1.0, kv_heads * group, &Device::Cpu).unwrap();
        let sinks = has_sinks.then_some(&sinks);
        let found = attention(&queries, &cache, 0.3, sinks).unwrap();
        assert_close(&found, &attention_reference(&queries, &cache, 0.3, sinks).unwrap());
        // A guess is checked beside others and drawn alone: to the same bits.
        let last = queries.narrow(0, tokens - 1, 1).unwrap();
        let alone = attention(&last, &cache, 0.3, sinks).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(found.narrow(0, tokens - 1, 1).unwrap().to_vec2::<f32>().unwrap(), alone);
    }

    /// However many queries are run at once, the answer is the same.
    #[test]
    fn attention_in_steps_is_attention_at_once(
        past in 1_usize..40, tokens in 1_usize..20, step in 1_usize..9, has_sinks: bool,
        span in prop_oneof![Just(Span::All), (1_usize..50).prop_map(Span::Window), (1_usize..50).prop_map(Span::Chunk)],
    ) {
        let mut cache = KvLayer::new(plain(2, 8, span), 16, F32, &device());
        let shape = (past + tokens, 2, 8);
        cache.append(&random(shape).unwrap(), &random(shape).unwrap()).unwrap();
        let (queries, sinks) = (random((tokens, 4, 8)).unwrap(), random(4).unwrap());
        let sinks = has_sinks.then_some(&sinks);
        assert_close(
            &attention_in_steps(&queries, &cache, 0.3, sinks, step).unwrap(),
            &attention_reference(&queries, &cache, 0.3, sinks).unwrap(),
        );
    }

    /// Keys in two sets, the second chosen anew for each token, are the same keys in one layer.
    #[test]
    fn sets_of_keys_are_one_layer(past in 1_usize..20, tokens in 1_usize..9, heads in 1_usize..5) {
        let shape = KvShape { values_in_keys: true, ..plain(1, 8, Span::All) };
        let mut cache = KvLayer::new(shape, 16, F32, &device());
        let keys = random((past + tokens, 1, 8)).unwrap();
        cache.append(&keys, &keys).unwrap();
        let (queries, sinks) = (random((tokens, heads, 8)).unwrap(), random(heads).unwrap());
        let stored = cache.heads_first().unwrap().0;
        let causal = (0..tokens).flat_map(|token| (0..tokens).map(move |key| if key > token { f32::NEG_INFINITY } else { 0.0 }));
        let own = KeySet {
            keys: stored.narrow(1, past, tokens).unwrap(),
            mask: Tensor::from_vec(causal.collect::<Vec<_>>(), (tokens, 1, tokens), &device()).unwrap(),
        };
        let earlier = KeySet {
            keys: stored.narrow(1, 0, past).unwrap().repeat((tokens, 1, 1)).unwrap(),
            mask: Tensor::zeros((tokens, 1, past), DType::F32, &device()).unwrap(),
        };
        let found = attention_over_sets(&queries, &[own, earlier], 0.3, &sinks).unwrap().flatten_from(1).unwrap();
        assert_close(&found, &attention_reference(&queries, &cache, 0.3, Some(&sinks)).unwrap());
    }

    /// In one go, and with the state handed on between two parts.
    #[test]
    fn the_delta_rule_is_its_reference(
        tokens in 1_usize..20, first in 0_usize..20, heads in 1_usize..5, key_dim in 1_usize..40, value_dim in 1_usize..70,
    ) {
        let unit = |shape: (usize, usize)| candle_nn::ops::sigmoid(&random(shape).unwrap()).unwrap();
        let keys = random((tokens, heads, key_dim)).unwrap();
        let size = keys.sqr().unwrap().sum_keepdim(2).unwrap().sqrt().unwrap();
        let (keys, queries) = (keys.broadcast_div(&size).unwrap(), random((tokens, heads, key_dim)).unwrap());
        let (values, state) = (random((tokens, heads, value_dim)).unwrap(), random((heads, key_dim, value_dim)).unwrap());
        let (decay, beta) = (unit((tokens, heads)), unit((tokens, heads)));
        let steps = DeltaSteps { queries: &queries, keys: &keys, values: &values, decay: &decay, beta: &beta };
        let (expected, expected_state) = delta_rule_reference(&steps, &state).unwrap();
        let (mut after, mut outputs) = (state, Vec::new());
        for (from, len) in [(0, first.min(tokens)), (first.min(tokens), tokens - first.min(tokens))] {
            if len == 0 {
                continue;
            }
            let part = |x: &Tensor| x.narrow(0, from, len).unwrap();
            let [queries, keys, values, decay, beta] = [&queries, &keys, &values, &decay, &beta].map(part);
            let steps = DeltaSteps { queries: &queries, keys: &keys, values: &values, decay: &decay, beta: &beta };
            let (output, state) = delta_rule(&steps, &after).unwrap();
            (after, _) = (state, outputs.push(output));
        }
        assert_close(&Tensor::cat(&outputs, 0).unwrap(), &expected);
        assert_close(&after, &expected_state);
    }

    /// Half a step is the most that a value is off.
    #[test]
    fn eight_bits_are_half_a_step_off_at_most(
        rows in 1_usize..40, dim in prop_oneof![1_usize..100, Just(128), Just(512)], zeros: bool,
    ) {
        let x = random((rows, 2, dim)).unwrap();
        let x = if zeros { x.zeros_like().unwrap() } else { x };
        let [codes, scales] = pack(&x).unwrap();
        let unpacked = unpack(&codes, &scales).unwrap().to_dtype(DType::F32).unwrap();
        // A GPU unpacks to f16, which rounds 127 steps by up to 2⁻¹¹ of them.
        let (rounding, most) = if device().is_cpu() { (1e-4, 0.501) } else { (1e-2, 0.57) };
        assert_within(rounding, &unpacked, &unpack_reference(&codes, &scales).unwrap());
        let groups = (rows, 2, scales.dim(2).unwrap(), dim / scales.dim(2).unwrap());
        let off = (unpacked - &x).unwrap().abs().unwrap().reshape(groups).unwrap().max(D::Minus1).unwrap();
        let steps = off.div(&scales).unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        prop_assert!(steps <= most, "{steps} steps");
    }

    /// What a span leaves out may be forgotten: the same as over everything with a mask.
    #[test]
    fn a_layer_that_forgets_is_one_that_masks(
        parts in prop::collection::vec(1_usize..30, 1..12), window in 1_usize..20, is_chunk: bool,
    ) {
        let span = if is_chunk { Span::Chunk(window) } else { Span::Window(window) };
        let mut forgets = KvLayer::new(plain(1, 8, span), 4, F32, &device());
        let mut keeps = KvLayer::new(plain(1, 8, span), 1024, F32, &device());
        for tokens in parts {
            let (keys, values) = (random((tokens, 1, 8)).unwrap(), random((tokens, 1, 8)).unwrap());
            forgets.append(&keys, &values).unwrap();
            keeps.append(&keys, &values).unwrap();
            let queries = random((tokens, 2, 8)).unwrap();
            assert_close(
                &attention(&queries, &forgets, 0.3, None).unwrap(),
                &attention_reference(&queries, &keeps, 0.3, None).unwrap(),
            );
        }
        assert!(forgets.allocated_bytes() <= keeps.allocated_bytes());
    }
}

#[test]
fn a_trimmed_layer_is_a_fresh_one() -> Result<()> {
    let shape = |tokens| (tokens, 2, 8);
    let (kept, dropped, new) = (random(shape(5))?, random(shape(20))?, random(shape(3))?);
    let mut trimmed = KvLayer::new(plain(2, 8, Span::All), 4, F32, &device());
    trimmed.append(&kept, &kept)?;
    trimmed.append(&dropped, &dropped)?;
    trimmed.trim(5);
    trimmed.append(&new, &new)?;
    let mut fresh = KvLayer::new(plain(2, 8, Span::All), 64, F32, &device());
    fresh.append(&Tensor::cat(&[&kept, &new], 0)?, &Tensor::cat(&[&kept, &new], 0)?)?;
    assert_eq!(trimmed.len(), 8);
    let queries = random((1, 4, 8))?;
    assert_close(&attention(&queries, &trimmed, 1.0, None)?, &attention(&queries, &fresh, 1.0, None)?);
    Ok(())
}

#[test]
fn a_layer_goes_on_from_its_tail() -> Result<()> {
    let shape = |tokens| (tokens, 1, 8);
    let (first, dropped, new) = (random(shape(30))?, random(shape(20))?, random(shape(3))?);
    let mut layer = KvLayer::new(plain(1, 8, Span::Window(6)), 4, F32, &device());
    layer.append(&first, &first)?;
    let mut straight = KvLayer::new(plain(1, 8, Span::Window(6)), 4, F32, &device());
    straight.append(&first, &first)?;
    straight.append(&new, &new)?;
    let tail = layer.tail()?;
    let queries = random((3, 2, 8))?;
    // Twice: what is appended after the tail must not be written into it.
    for _ in 0..2 {
        // The first of them keeps the window that it sees, the second forgets it.
        layer.append(&dropped, &dropped)?;
        layer.append(&dropped, &dropped)?;
        layer.append(&dropped, &dropped)?;
        assert!(!layer.can_trim(30));
        layer.restore(&tail);
        layer.append(&new, &new)?;
        assert_eq!(layer.len(), 33);
        assert_close(&attention(&queries, &layer, 1.0, None)?, &attention(&queries, &straight, 1.0, None)?);
    }
    Ok(())
}

#[test]
fn a_filled_layer_is_the_one_that_its_rows_are_of() -> Result<()> {
    let (first, new) = (random((30, 1, 8))?, random((3, 1, 8))?);
    let layer = || KvLayer::new(plain(1, 8, Span::Window(6)), 4, F32, &device());
    let (mut source, mut filled) = (layer(), layer());
    for _ in 0..2 {
        source.append(&first, &first)?;
    }
    filled.fill(&source.rows()?)?;
    assert_eq!((filled.start(), filled.len()), (source.start(), 60));
    let queries = random((3, 2, 8))?;
    for layer in [&mut source, &mut filled] {
        layer.append(&new, &new)?;
    }
    let out = |layer: &KvLayer| attention(&queries, layer, 1.0, None)?.to_vec2::<f32>();
    assert_eq!(out(&filled)?, out(&source)?);
    let mut keys_alone = KvLayer::new(KvShape { values_in_keys: true, ..*layer().shape() }, 4, F32, &device());
    assert!(keys_alone.fill(&source.rows()?).is_err());
    assert!(keys_alone.is_empty());
    Ok(())
}

/// In eight bits a layer grows, forgets, is trimmed, copied and restored as in f32, and takes what it says.
#[test]
fn an_eight_bit_layer_is_a_layer_of_what_its_values_round_to() -> Result<()> {
    let rounded = |x: Tensor| {
        let [codes, scales] = pack(&x)?;
        unpack(&codes, &scales)
    };
    let shape = plain(2, 16, Span::Window(6));
    let mut packed = KvLayer::new(shape, 4, Q8, &device());
    let mut plain = KvLayer::new(shape, 4, F32, &device());
    let queries = random((1, 4, 16))?;
    // At least one is new each time: a tail has what later tokens see, which is less than the last one did.
    for tokens in [3, 9, 2, 2, 20, 3] {
        let (keys, values) = (random((tokens, 2, 16))?, random((tokens, 2, 16))?);
        packed.append(&keys, &values)?;
        plain.append(&rounded(keys)?, &rounded(values)?)?;
        packed.trim(packed.len() - 1);
        plain.trim(plain.len() - 1);
        let out = |layer: &KvLayer| attention(&queries, layer, 1.0, None);
        assert_close(&out(&packed)?, &out(&plain)?);
        let tail = packed.tail()?;
        packed.restore(&tail);
        packed = packed.copy(packed.len())?;
    }
    assert_eq!(shape.bytes_per_token(Q8), 2 * 2 * (16 + 4));
    assert_eq!(packed.allocated_bytes(), 8 * 80);
    Ok(())
}

/// In the order of the rows, each by its weight, on several threads where there are many columns.
#[test]
fn rows_are_added_in_order() {
    let [sum, x] = [3, 4].map(|rows| Tensor::randn(0_f32, 1.0, (rows, 700), &Device::Cpu).unwrap());
    let (rows, weights) = ([2_u32, 0, 2, 2], [0.5_f32, -1.0, 2.0, 1e-3]);
    let mut expected = sum.to_vec2::<f32>().unwrap();
    for ((row, weight), x) in rows.iter().zip(weights).zip(x.to_vec2::<f32>().unwrap()) {
        expected[*row as usize].iter_mut().zip(x).for_each(|(sum, x)| *sum += x * weight);
    }
    assert_eq!(add_rows(&sum, &x, &rows, &weights).unwrap().to_vec2::<f32>().unwrap(), expected);
    assert!(add_rows(&sum, &x, &[0, 1, 2, 3], &weights).is_err(), "a row that is none");
    assert!(add_rows(&sum, &x, &rows[..3], &weights[..3]).is_err());
}
