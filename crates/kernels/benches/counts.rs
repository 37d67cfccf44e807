//! Every kernel once, small, on one thread and on the same numbers each time: what `make bench-count` has callgrind count
//! the instructions of. Prints the instruction set, then the name of each case.
#![expect(clippy::print_stdout, reason = "the names of the cases are read by who counts")]

mod inputs;

use std::hint::black_box;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Result};
use inputs::{cache, matrix, random};
use kernels::cpu::{Tiles, instruction_set};
use kernels::packed::{PackedMatrix, PackedType, Packing};
use kernels::{Activation, DeltaSteps, KvNumbers, Pairing, add, attention, delta_rule, gated, rms_norm, rope};

const ROWS: usize = 64;
const COLUMNS: usize = 1024;
const HEADS: usize = 8;
const HEAD_DIM: usize = 64;

fn main() -> Result<()> {
    // Callgrind counts the thread that calls; with one thread in the pool, the team is that thread as well.
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    one.build_global().expect("nobody made a pool before");
    println!("{}", instruction_set());
    products()?;
    attentions()?;
    steps_between()
}

/// Runs `case` once to allocate and to find out what there is to find out, then to be counted.
fn count(name: &str, case: impl Fn() -> Result<()>) -> Result<()> {
    case()?;
    println!("{name}");
    counted_by_callgrind(&case)
}

/// Callgrind knows it by its name.
#[inline(never)]
fn counted_by_callgrind(case: &dyn Fn() -> Result<()>) -> Result<()> {
    // Not the last thing, so that it isn't a jump: callgrind must see this function end.
    let done = case();
    black_box(done)
}

fn products() -> Result<()> {
    use GgmlDType::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

    let candles = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K].map(Packing::Candle);
    let ours = [PackedType::IQ4NL, PackedType::MXFP4].map(Packing::Ours);
    for packing in candles.into_iter().chain(ours) {
        let tiles = matrix(packing, ROWS, COLUMNS)?;
        for tokens in [1, 8] {
            let x = random(&[tokens, COLUMNS])?;
            count(&format!("product, {}, {}", packing.kernel_name(), of(tokens)), || {
                black_box(Tiles::products(&[(&tiles, None)], &x)?);
                Ok(())
            })?;
        }
    }
    // Hardly anything but the rounding of `x`.
    let tiles = matrix(Packing::Candle(Q8_0), 1, COLUMNS)?;
    let x = random(&[64, COLUMNS])?;
    count("rounding, 64 tokens", || {
        black_box(Tiles::products(&[(&tiles, None)], &x)?);
        Ok(())
    })?;
    for packed_type in PackedType::ALL {
        let bytes = ROWS * COLUMNS / packed_type.block_len() * packed_type.block_bytes();
        let matrix = PackedMatrix::new(inputs::bytes(bytes), packed_type, ROWS, COLUMNS)?;
        let x = random(&[1, COLUMNS])?;
        count(&format!("product unpacked, {packed_type:?}, 1 token"), || {
            black_box(matrix.product(&x)?);
            Ok(())
        })?;
    }
    Ok(())
}

fn of(tokens: usize) -> String {
    format!("{tokens} {}", if tokens == 1 { "token" } else { "tokens" })
}

fn attentions() -> Result<()> {
    let numbers = [("f32", KvNumbers::Float(DType::F32)), ("f16", KvNumbers::Float(DType::F16)), ("q8", KvNumbers::Q8)];
    for (name, numbers) in numbers {
        let cache = cache(512, HEADS / 4, HEAD_DIM, numbers)?;
        for tokens in [1, 32] {
            let queries = random(&[tokens, HEADS, HEAD_DIM])?;
            count(&format!("attention, {name}, {} in a cache of 512", of(tokens)), || {
                black_box(attention(&queries, &cache, 0.125, None)?);
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// What lies between products.
fn steps_between() -> Result<()> {
    let (x, y, weight) = (random(&[8, COLUMNS])?, random(&[8, COLUMNS])?, random(&[COLUMNS])?);
    count("norm, 8 tokens", || {
        black_box(rms_norm(&x, &weight, 1e-6)?);
        Ok(())
    })?;
    for activation in [Activation::Silu, Activation::Gelu] {
        count(&format!("gate, {activation:?}, 8 tokens"), || {
            black_box(gated(activation, &x, &y)?);
            Ok(())
        })?;
    }
    count("add, 8 tokens", || {
        black_box(add(&x, &y)?);
        Ok(())
    })?;
    let heads = random(&[8, HEADS, HEAD_DIM])?;
    let (cos, sin) = (random(&[8, HEAD_DIM / 2])?, random(&[8, HEAD_DIM / 2])?);
    for pairing in [Pairing::Interleaved, Pairing::Halves] {
        count(&format!("rope, {pairing:?}, 8 tokens"), || {
            black_box(rope(&heads, &cos, &sin, pairing)?);
            Ok(())
        })?;
    }
    let [queries, keys, values] = [(); 3].map(|()| random(&[8, HEADS, HEAD_DIM]));
    let [decay, beta] = [(); 2].map(|()| random(&[8, HEADS]));
    let (queries, keys, values, decay, beta) = (queries?, keys?, values?, decay?, beta?);
    let steps = DeltaSteps { queries: &queries, keys: &keys, values: &values, decay: &decay, beta: &beta };
    let state = random(&[HEADS, HEAD_DIM, HEAD_DIM])?;
    count("delta rule, 8 tokens", || {
        black_box(delta_rule(&steps, &state)?);
        Ok(())
    })?;
    Ok(())
}
