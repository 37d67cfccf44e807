//! Our own kernels against their references, under all checks and in several lane orders, and every line of them must have
//! run.
#![cfg(target_os = "linux")]

#[path = "../../kernels/tests/quant_fixture/mod.rs"]
mod quant_fixture;

use anyhow::ensure;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use kernels::packed::Packing;
use kernels::{DeltaSteps, Gating, Routing, delta_rule_reference};
use metal_emulator::{Buffer, Checks, Launch, Order, coverage, library};
use quant_fixture::{QuantFixture, packings};

const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Shuffled(7)];

/// One test, since what ran is counted for the whole process.
#[test]
fn kernels_of_ours_are_their_references() -> anyhow::Result<()> {
    let mut worst = Worst::default();
    for packing in packings() {
        rows(packing)?;
        for (rows, columns, tokens) in [(6, 256, 1), (5, 768, 6), (1, 512, 3)] {
            products(packing, rows, columns, tokens, &mut worst)?;
        }
    }
    for dtype in [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16] {
        products(Packing::Candle(dtype), 7, 33, 3, &mut worst)?;
        products(Packing::Candle(dtype), 2, 5, 5, &mut worst)?;
    }
    for tokens in [1, 3] {
        routing(tokens, &mut worst)?;
    }
    experts_are_chosen_whatever_the_logits_are()?;
    add_weighted(&mut worst)?;
    for (tokens, heads, key_dim, value_dim) in [(1, 1, 1, 1), (5, 3, 8, 33), (2, 2, 16, 64)] {
        delta_rule(tokens, heads, key_dim, value_dim, &mut worst)?;
    }
    println!("worst errors: {worst:?}");
    let report = coverage::report(|name| name.starts_with("kernels/"));
    println!("{report}");
    ensure!(report.idle_kernels.values().all(Vec::is_empty), "kernels that never ran: {report}");
    ensure!(report.idle_lines.is_empty(), "lines that never ran: {report}");
    Ok(())
}

/// Of sums, relative to the largest that there could have been; of weights and the delta rule, as they are.
#[derive(Debug, Default)]
struct Worst {
    packed_product: f32,
    packed_experts: f32,
    weigh_experts: f32,
    add_weighted: f32,
    delta_rule: f32,
}

/// A kernel with its arguments as [`Launch`] of `kernels` gives them.
struct Call<'a, S> {
    library: &'a str,
    kernel: &'a str,
    shape: S,
    inputs: &'a [&'a Buffer],
    /// Values of four bytes.
    output: usize,
    threadgroups: (usize, usize),
    threads: usize,
    scratch: usize,
}

impl<S: Copy> Call<'_, S> {
    /// Runs it in every order, with the same outcome.
    fn run(&self) -> anyhow::Result<Buffer> {
        let (width, height) = self.threadgroups;
        let mut outcome: Option<Buffer> = None;
        for order in ORDERS {
            let output = Buffer::new(4 * self.output);
            let mut launch = Launch::new(library(self.library).expect("it is compiled"), self.kernel)
                .threadgroups([width as u32, height as u32, 1], [self.threads as u32, 1, 1])
                .value(0, &self.shape)
                .order(order)
                .checks(Checks::Full);
            for (input, index) in self.inputs.iter().zip(1..) {
                launch = launch.buffer(index, input, 0);
            }
            if self.scratch > 0 {
                launch = launch.threadgroup_memory(0, self.scratch);
            }
            launch.buffer(self.inputs.len() as u32 + 1, &output, 0).run()?;
            let is_same = outcome.as_ref().is_none_or(|other| other.read::<u32>() == output.read::<u32>());
            ensure!(is_same, "{} depends on the order of its threads", self.kernel);
            outcome = Some(output);
        }
        Ok(outcome.expect("there are orders"))
    }
}

/// The worst error, each relative to the size that stands beside what is expected.
fn worst_error(what: &str, found: &[f32], expected: &[(f32, f32)]) -> anyhow::Result<f32> {
    ensure!(found.len() == expected.len(), "{what}: {} values instead of {}", found.len(), expected.len());
    let mut worst = 0_f32;
    for (found, (expected, size)) in found.iter().zip(expected) {
        let error = (found - expected).abs() / size.max(f32::MIN_POSITIVE);
        ensure!(error < 1e-5, "{what}: {found} is not {expected}");
        worst = worst.max(error);
    }
    Ok(worst)
}

/// The weights by the CPU.
fn unpacked(packing: Packing, blocks: &[u8], len: usize) -> anyhow::Result<Vec<f32>> {
    match packing {
        Packing::Candle(dtype) => {
            let blocks = QTensor::new(QStorage::from_data(blocks.into(), &Device::Cpu, dtype)?, len)?;
            Ok(blocks.dequantize(&Device::Cpu)?.to_vec1()?)
        }
        Packing::Ours(packed_type) => {
            let mut weights = vec![f32::NAN; len];
            packed_type.unpack(blocks, &mut weights);
            Ok(weights)
        }
    }
}

/// Every block of the fixture, bit by bit.
fn rows(packing: Packing) -> anyhow::Result<()> {
    let fixture = QuantFixture::of(packing);
    let columns = packing.block_len();
    let ids: Vec<u32> = (0..=fixture.blocks as u32).collect();
    let found = Call {
        library: "kernels/packed",
        kernel: &format!("packed_rows_{}", packing.kernel_name()),
        shape: [columns as u32, fixture.blocks as u32, ids.len() as u32],
        inputs: &[&Buffer::from_slice(&fixture.packed), &codebook(packing), &Buffer::from_slice(&ids)],
        output: ids.len() * columns,
        threadgroups: (columns.div_ceil(8).div_ceil(32), ids.len()),
        threads: 32,
        scratch: 0,
    };
    let found = found.run()?.read::<f32>();
    let (weights, beyond) = found.split_at(fixture.blocks * columns);
    fixture.check(weights);
    ensure!(beyond.iter().all(|weight| *weight == 0.0), "there is no such row");
    Ok(())
}

/// What `x` makes with a row of weights, and how large it could have been.
fn dot(x: &[f32], weights: &[f32]) -> (f32, f32) {
    let terms = || x.iter().zip(weights).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
    (terms().sum::<f64>() as f32, terms().map(f64::abs).sum::<f64>() as f32)
}

fn products(packing: Packing, rows: usize, columns: usize, tokens: usize, worst: &mut Worst) -> anyhow::Result<()> {
    const EXPERTS: usize = 3;
    let name = packing.kernel_name();
    let x = Tensor::randn(0_f32, 1.0, (tokens, columns), &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let blocks = QuantFixture::matrix(packing, EXPERTS * rows, columns);
    let weights = unpacked(packing, &blocks, EXPERTS * rows * columns)?;
    let weights: Vec<&[f32]> = weights.chunks(columns).collect();
    let (codebook, x_buffer) = (codebook(packing), Buffer::from_slice(&x));
    let found = Call {
        library: "kernels/packed",
        kernel: &format!("packed_product_{name}"),
        shape: [columns, rows, tokens].map(|len| len as u32),
        inputs: &[&Buffer::from_slice(&blocks[..blocks.len() / EXPERTS]), &codebook, &x_buffer],
        output: tokens * rows,
        threadgroups: (rows.div_ceil(4), tokens.div_ceil(4)),
        threads: 128,
        scratch: 0,
    };
    let found = found.run()?.read::<f32>();
    let expected: Vec<_> = x.chunks(columns).flat_map(|x| weights[..rows].iter().map(|row| dot(x, row))).collect();
    worst.packed_product = worst.packed_product.max(worst_error(&name, &found, &expected)?);

    let affine: Vec<f32> = (0..EXPERTS * (1 + rows)).map(|i| 0.5 + i as f32).collect();
    // Two experts for each token, or one for each row of x; the last doesn't exist.
    for (share, is_affine, tile) in [(2, false, 4), (1, true, 3), (1, false, 1)] {
        let count = share * tokens;
        let ids: Vec<u32> = (0..count).map(|i| if i + 1 == count { 7 } else { (i * i) as u32 % 3 }).collect();
        let ids_buffer = Buffer::from_slice(&ids);
        let order = Call {
            library: "kernels/experts",
            kernel: "order_by_expert",
            shape: count as u32,
            inputs: &[&ids_buffer],
            output: count,
            threadgroups: (count.div_ceil(32), 1),
            threads: 32,
            scratch: 0,
        };
        let order = order.run()?;
        let mut sorted: Vec<u32> = (0..count as u32).collect();
        sorted.sort_by_key(|at| ids[*at as usize]);
        ensure!(order.read::<u32>() == sorted, "{ids:?} are in another order");
        let found = Call {
            library: "kernels/packed",
            kernel: &format!("packed_experts_{name}"),
            shape: [columns, rows, count, EXPERTS, share, usize::from(is_affine), tile].map(|len| len as u32),
            inputs: &[
                &Buffer::from_slice(&blocks),
                &codebook,
                &x_buffer,
                &ids_buffer,
                &order,
                &Buffer::from_slice(&affine),
            ],
            output: count * rows,
            threadgroups: (rows.div_ceil(4), count.div_ceil(tile)),
            threads: 128,
            scratch: 0,
        };
        let found = found.run()?.read::<f32>();
        let of_expert = |(i, expert): (usize, &u32)| -> Vec<(f32, f32)> {
            let Some(weights) = weights.chunks(rows).nth(*expert as usize) else { return vec![(0.0, 1.0); rows] };
            let affine = &affine[*expert as usize * (1 + rows)..][..1 + rows];
            let x = &x[i / share * columns..][..columns];
            let products = weights.iter().zip(&affine[1..]).map(|(row, bias)| match (is_affine, dot(x, row)) {
                (true, (sum, size)) => (sum * affine[0] + bias, size * affine[0] + bias),
                (false, product) => product,
            });
            products.collect()
        };
        let expected: Vec<_> = ids.iter().enumerate().flat_map(of_expert).collect();
        worst.packed_experts = worst.packed_experts.max(worst_error(&name, &found, &expected)?);
    }
    Ok(())
}

/// As `Shape` of `kernels` has it.
fn shape(routing: &Routing, has_values: bool) -> [u32; 8] {
    let counts = [routing.experts, routing.used, routing.gating as usize, routing.groups, routing.groups_used];
    let [experts, used, gating, groups, groups_used] = counts.map(|count| count as u32);
    let (norms_weights, weight_scale) = (routing.norms_weights.into(), routing.weight_scale.to_bits());
    [experts, used, gating, groups, groups_used, has_values.into(), norms_weights, weight_scale]
}

fn chosen(routing: &Routing, logits: &[f32], bias: Option<&[f32]>) -> anyhow::Result<Vec<u32>> {
    let tokens = logits.len() / routing.experts;
    let call = Call {
        library: "kernels/experts",
        kernel: "choose_experts",
        shape: shape(routing, bias.is_some()),
        inputs: &[&Buffer::from_slice(logits), &Buffer::from_slice(bias.unwrap_or(&[0.0]))],
        output: tokens * routing.used,
        threadgroups: (tokens, 1),
        threads: 32,
        scratch: (4 * (routing.experts + routing.groups)).next_multiple_of(16),
    };
    Ok(call.run()?.read())
}

fn routing(tokens: usize, worst: &mut Worst) -> anyhow::Result<()> {
    for (gating, experts, used, (groups, groups_used), is_plain) in [
        (Gating::Softmax, 5, 2, (1, 1), true),
        (Gating::Softmax, 130, 8, (1, 1), false),
        (Gating::Sigmoid, 64, 6, (8, 3), false),
        (Gating::Sigmoid, 40, 3, (40, 4), true),
        (Gating::SqrtSoftplus, 33, 33, (1, 1), false),
        (Gating::SoftmaxOfChosen, 32, 4, (4, 2), true),
        (Gating::SoftmaxOfChosen, 7, 1, (1, 1), false),
    ] {
        // Wide enough that softplus meets both its ends, and with ties.
        let logits: Vec<f32> = (0..tokens * experts).map(|i| (i * 37 % 101) as f32 / 5.0 - 10.0).collect();
        let bias: Vec<f32> = (0..experts).map(|i| (i % 7) as f32 / 100.0).collect();
        let scale: Vec<f32> = (0..experts).map(|i| 0.5 + i as f32 / 64.0).collect();
        let values = |values: &[f32]| (!is_plain).then(|| Tensor::new(values, &Device::Cpu)).transpose();
        let routing = Routing {
            experts,
            used,
            gating,
            groups,
            groups_used,
            norms_weights: !is_plain,
            weight_scale: 2.5,
            choice_bias: values(&bias)?,
            expert_scale: values(&scale)?,
        };
        let tensor = Tensor::from_slice(&logits, (tokens, experts), &Device::Cpu)?;
        let ids = chosen(&routing, &logits, (!is_plain).then_some(&bias))?;
        let expected = routing.choose_reference(&tensor)?;
        ensure!(ids == expected.flatten_all()?.to_vec1::<u32>()?, "{gating:?}: {ids:?} is not {expected}");

        let weights = Call {
            library: "kernels/experts",
            kernel: "weigh_experts",
            shape: shape(&routing, !is_plain),
            inputs: &[&Buffer::from_slice(&logits), &Buffer::from_slice(&ids), &Buffer::from_slice(&scale)],
            output: tokens * used,
            threadgroups: (tokens, 1),
            threads: 32,
            scratch: 0,
        };
        let weights = weights.run()?.read::<f32>();
        let expected = routing.weigh_reference(&tensor, &expected)?.flatten_all()?.to_vec1::<f32>()?;
        let expected: Vec<_> = expected.into_iter().map(|weight| (weight, weight)).collect();
        let error = worst_error(&format!("{gating:?}"), &weights, &expected)?;
        worst.weigh_experts = worst.weigh_experts.max(error);
    }
    Ok(())
}

/// Each of the chosen exists, and none is chosen twice.
fn experts_are_chosen_whatever_the_logits_are() -> anyhow::Result<()> {
    let strange = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::from_bits(!0)];
    for gating in [Gating::Softmax, Gating::Sigmoid, Gating::SqrtSoftplus, Gating::SoftmaxOfChosen] {
        let (experts, used, groups, groups_used) = (36, 9, 4, 2);
        let (choice_bias, expert_scale) = (None, None);
        let (norms_weights, weight_scale) = (true, 1.0);
        let routing = Routing {
            experts,
            used,
            gating,
            groups,
            groups_used,
            norms_weights,
            weight_scale,
            choice_bias,
            expert_scale,
        };
        for logits in strange.iter().map(|all| vec![*all; experts]).chain([strange.repeat(5)[..experts].to_vec()]) {
            let mut ids = chosen(&routing, &logits, None)?;
            ids.sort_unstable();
            ids.dedup();
            let are_experts = ids.len() == used && ids.iter().all(|id| (*id as usize) < experts);
            ensure!(are_experts, "{gating:?} of {logits:?}: {ids:?}");
        }
    }
    Ok(())
}

fn add_weighted(worst: &mut Worst) -> anyhow::Result<()> {
    for (tokens, used, columns) in [(1, 1, 1), (3, 5, 40), (2, 8, 33)] {
        let [base, made, weights] = [(tokens, columns), (tokens * used, columns), (tokens, used)]
            .map(|shape| Tensor::randn(0_f32, 1.0, shape, &Device::Cpu));
        let (base, made, weights) = (base?, made?, weights?);
        let weighted = made.reshape((tokens, used, columns))?.broadcast_mul(&weights.unsqueeze(2)?)?;
        let size = (weighted.abs()?.sum(1)? + base.abs()?)?.flatten_all()?.to_vec1::<f32>()?;
        let sum = (&base + weighted.sum(1)?)?.flatten_all()?.to_vec1::<f32>()?;
        let found = Call {
            library: "kernels/experts",
            kernel: "add_weighted",
            shape: [tokens, used, columns].map(|len| len as u32),
            inputs: &[&flat(&base)?, &flat(&made)?, &flat(&weights)?],
            output: tokens * columns,
            threadgroups: (columns.div_ceil(32), tokens),
            threads: 32,
            scratch: 0,
        };
        let expected: Vec<_> = sum.into_iter().zip(size).collect();
        let error = worst_error("add_weighted", &found.run()?.read::<f32>(), &expected)?;
        worst.add_weighted = worst.add_weighted.max(error);
    }
    Ok(())
}

fn delta_rule(tokens: usize, heads: usize, key_dim: usize, value_dim: usize, worst: &mut Worst) -> anyhow::Result<()> {
    let random = |dims: &[usize]| Tensor::rand(0_f32, 1.0, dims, &Device::Cpu);
    let [queries, keys] = [(); 2].map(|()| random(&[tokens, heads, key_dim]).and_then(|x| x / key_dim as f64));
    let (queries, keys, values) = (queries?, keys?, random(&[tokens, heads, value_dim])?);
    let (decay, beta) = (random(&[tokens, heads])?, random(&[tokens, heads])?);
    let before = random(&[heads, key_dim, value_dim])?;
    let steps = DeltaSteps { queries: &queries, keys: &keys, values: &values, decay: &decay, beta: &beta };
    let (outputs, after) = delta_rule_reference(&steps, &before)?;
    let expected = Tensor::cat(&[outputs.flatten_all()?, after.flatten_all()?], 0)?.to_vec1::<f32>()?;
    let rows = Tensor::cat(&[&queries, &keys, &values, &decay.unsqueeze(2)?, &beta.unsqueeze(2)?], 2)?;
    let both = Call {
        library: "kernels/delta_rule",
        kernel: "delta_rule",
        shape: [tokens, heads, key_dim, value_dim].map(|len| len as u32),
        inputs: &[&flat(&rows)?, &flat(&before)?],
        output: expected.len(),
        threadgroups: (value_dim.div_ceil(32), heads),
        threads: 32,
        scratch: 0,
    };
    let expected: Vec<_> = expected.into_iter().map(|value| (value, 1.0)).collect();
    let error = worst_error("delta_rule", &both.run()?.read::<f32>(), &expected)?;
    worst.delta_rule = worst.delta_rule.max(error);
    Ok(())
}

fn flat(x: &Tensor) -> anyhow::Result<Buffer> {
    Ok(Buffer::from_slice(&x.flatten_all()?.to_vec1::<f32>()?))
}

/// No buffer is empty.
fn codebook(packing: Packing) -> Buffer {
    let mut codebook = packing.codebook();
    codebook.resize(codebook.len().max(1), 0);
    Buffer::from_slice(&codebook)
}
