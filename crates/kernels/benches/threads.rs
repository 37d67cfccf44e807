//! What counts of instructions don't show: how long it takes to hand work to the team of threads, and how fast weights
//! come from memory. `cargo bench --package kernels --bench threads`, on a quiet machine.

mod inputs;

use std::hint::black_box;

use candle_core::Result;
use candle_core::quantized::GgmlDType;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use inputs::{cache, matrix, random};
use kernels::cpu::{Tiles, tiled_bytes};
use kernels::packed::Packing;
use kernels::{KvNumbers, attention};

const PACKING: Packing = Packing::Candle(GgmlDType::Q8_0);
/// More than a processor's caches.
const ROWS: usize = 64 << 10;
const COLUMNS: usize = 2048;

/// The smallest products on one thread and on all: what the second takes more than its part of the first is the hand-over.
fn hand_over(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("hand-over");
    let x = random(&[1, COLUMNS])?;
    for rows in [16, 512] {
        let tiles = matrix(PACKING, rows, COLUMNS)?;
        group.throughput(Throughput::Bytes(tiled_bytes(PACKING, rows, COLUMNS).unwrap_or(0)));
        group.bench_function(format!("{rows} rows"), |bencher| {
            bencher.iter(|| black_box(Tiles::products(&[(&tiles, None)], &x)));
        });
    }
    group.finish();
    Ok(())
}

fn bandwidth(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("bandwidth");
    group.sample_size(20);
    let (tiles, x) = (matrix(PACKING, ROWS, COLUMNS)?, random(&[1, COLUMNS])?);
    group.throughput(Throughput::Bytes(tiled_bytes(PACKING, ROWS, COLUMNS).unwrap_or(0)));
    group.bench_function("weights, 1 token", |bencher| {
        bencher.iter(|| black_box(Tiles::products(&[(&tiles, None)], &x)));
    });
    // Qwen 2.5 1.5B's, Qwen 2.5 0.5B's and SmolLM2 135M's.
    for (heads, kv_heads, head_dim) in [(12, 2, 128), (14, 2, 64), (9, 3, 64)] {
        let tokens = 64 << 10;
        let numbers = KvNumbers::Float(candle_core::DType::F16);
        let (cache, queries) = (cache(tokens, kv_heads, head_dim, numbers)?, random(&[1, heads, head_dim])?);
        group.throughput(Throughput::Bytes((tokens * kv_heads * head_dim * 2 * 2) as u64));
        group.bench_function(format!("keys and values of {heads} heads, 1 token"), |bencher| {
            bencher.iter(|| black_box(attention(&queries, &cache, 0.1, None)));
        });
    }
    group.finish();
    Ok(())
}

fn all(criterion: &mut Criterion) {
    hand_over(criterion).and_then(|()| bandwidth(criterion)).expect("the shapes fit together");
}

criterion_group!(benches, all);
criterion_main!(benches);
