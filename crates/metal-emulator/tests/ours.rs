//! Our own kernels against their references, under all checks and in several lane orders, and every line of them must have
//! run.
#![cfg(target_os = "linux")]

#[expect(dead_code, reason = "what it checks bits with is for the CPU")]
#[path = "../../kernels/tests/quant_fixture/mod.rs"]
mod quant_fixture;

use candle_core::{Device, Tensor};
use kernels::packed::{PackedMatrix, PackedType};
use kernels::{DeltaSteps, delta_rule_reference};
use metal_emulator::{Buffer, Checks, Launch, Order, coverage, library};
use quant_fixture::QuantFixture;

const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Shuffled(7)];

/// One test, since what ran is counted for the whole process.
#[test]
fn kernels_of_ours_are_their_references() -> anyhow::Result<()> {
    let mut worst = 0_f32;
    for packed_type in PackedType::ALL {
        for (rows, columns, tokens) in [(6, 256, 1), (5, 768, 6), (1, 512, 3)] {
            worst = worst.max(packed(packed_type, rows, columns, tokens)?);
        }
    }
    println!("packed_product: worst error {worst:.1e} of the largest product");
    for (tokens, heads, key_dim, value_dim) in [(1, 1, 1, 1), (5, 3, 8, 33), (2, 2, 16, 64)] {
        delta_rule(tokens, heads, key_dim, value_dim)?;
    }
    let report = coverage::report(|name| name.starts_with("kernels/"));
    println!("{report}");
    anyhow::ensure!(report.idle_kernels.values().all(Vec::is_empty), "kernels that never ran: {report}");
    anyhow::ensure!(report.idle_lines.is_empty(), "lines that never ran: {report}");
    Ok(())
}

/// Gives the worst error of the product.
fn packed(packed_type: PackedType, rows: usize, columns: usize, tokens: usize) -> anyhow::Result<f32> {
    let fixture = QuantFixture::of(packed_type);
    let bytes = columns / packed_type.block_len() * packed_type.block_bytes() * rows;
    let blocks: Vec<u8> = fixture.usual().flatten().copied().cycle().take(bytes).collect();
    let matrix = PackedMatrix::new(&blocks, packed_type, rows, columns)?;
    let x = Tensor::randn(0_f32, 1.0, (tokens, columns), &Device::Cpu)?;
    let expected = matrix.product(&x)?.flatten_all()?.to_vec1::<f32>()?;
    let ids: Vec<u32> = (0..=rows as u32).collect();
    let weights = matrix.embedding(&Tensor::arange(0, rows as u32, &Device::Cpu)?)?.flatten_all()?.to_vec1::<f32>()?;
    let size = weights.iter().fold(0_f32, |most, weight| most.max(weight.abs())) * columns as f32;
    // Some blocks are nothing but zeros.
    let size = size.max(f32::MIN_POSITIVE);

    let (blocks, codebook) = (Buffer::from_slice(&blocks), codebook(packed_type));
    let library = library("kernels/packed").expect("it is compiled");
    let mut worst = 0_f32;
    for order in ORDERS {
        let y = Buffer::new(4 * tokens * rows);
        Launch::new(library, &format!("packed_product_{packed_type:?}"))
            .threadgroups([rows.div_ceil(4) as u32, tokens.div_ceil(4) as u32, 1], [128, 1, 1])
            .value(0, &[columns as u32, rows as u32, tokens as u32])
            .buffer(1, &blocks, 0)
            .buffer(2, &codebook, 0)
            .buffer(3, &Buffer::from_slice(&x.flatten_all()?.to_vec1::<f32>()?), 0)
            .buffer(4, &y, 0)
            .order(order)
            .checks(Checks::Full)
            .run()?;
        for (found, expected) in y.read::<f32>().into_iter().zip(&expected) {
            let error = (found - expected).abs() / size;
            anyhow::ensure!(error < 1e-5, "{packed_type:?} {rows}x{columns}: {found} is not {expected}");
            worst = worst.max(error);
        }

        let y = Buffer::new(4 * (rows + 1) * columns);
        Launch::new(library, &format!("packed_rows_{packed_type:?}"))
            .threadgroups([(columns / 8).div_ceil(32) as u32, rows as u32 + 1, 1], [32, 1, 1])
            .value(0, &[columns as u32, rows as u32, rows as u32 + 1])
            .buffer(1, &blocks, 0)
            .buffer(2, &codebook, 0)
            .buffer(3, &Buffer::from_slice(&ids), 0)
            .buffer(4, &y, 0)
            .order(order)
            .checks(Checks::Full)
            .run()?;
        let found = y.read::<f32>();
        anyhow::ensure!(found[..weights.len()] == weights, "{packed_type:?} {rows}x{columns}: other weights");
        anyhow::ensure!(found[weights.len()..].iter().all(|weight| *weight == 0.0), "there is no such row");
    }
    Ok(worst)
}

fn delta_rule(tokens: usize, heads: usize, key_dim: usize, value_dim: usize) -> anyhow::Result<()> {
    let random = |dims: &[usize]| Tensor::rand(0_f32, 1.0, dims, &Device::Cpu);
    let [queries, keys] = [(); 2].map(|()| random(&[tokens, heads, key_dim]).and_then(|x| x / key_dim as f64));
    let (queries, keys, values) = (queries?, keys?, random(&[tokens, heads, value_dim])?);
    let (decay, beta) = (random(&[tokens, heads])?, random(&[tokens, heads])?);
    let before = random(&[heads, key_dim, value_dim])?;
    let steps = DeltaSteps { queries: &queries, keys: &keys, values: &values, decay: &decay, beta: &beta };
    let (outputs, after) = delta_rule_reference(&steps, &before)?;
    let expected = Tensor::cat(&[outputs.flatten_all()?, after.flatten_all()?], 0)?.to_vec1::<f32>()?;
    let rows = Tensor::cat(&[&queries, &keys, &values, &decay.unsqueeze(2)?, &beta.unsqueeze(2)?], 2)?;
    let flat = |x: &Tensor| -> anyhow::Result<Buffer> { Ok(Buffer::from_slice(&x.flatten_all()?.to_vec1::<f32>()?)) };
    for order in ORDERS {
        let both = Buffer::new(4 * expected.len());
        Launch::new(library("kernels/delta_rule").expect("it is compiled"), "delta_rule")
            .threadgroups([value_dim.div_ceil(32) as u32, heads as u32, 1], [32, 1, 1])
            .value(0, &[tokens as u32, heads as u32, key_dim as u32, value_dim as u32])
            .buffer(1, &flat(&rows)?, 0)
            .buffer(2, &flat(&before)?, 0)
            .buffer(3, &both, 0)
            .order(order)
            .checks(Checks::Full)
            .run()?;
        for (found, expected) in both.read::<f32>().into_iter().zip(&expected) {
            anyhow::ensure!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        }
    }
    Ok(())
}

/// No buffer is empty.
fn codebook(packed_type: PackedType) -> Buffer {
    let mut codebook = packed_type.codebook();
    codebook.resize(codebook.len().max(1), 0);
    Buffer::from_slice(&codebook)
}
