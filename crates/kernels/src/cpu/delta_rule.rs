use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape};
use rayon::prelude::*;

use super::values;
use crate::delta_rule::DeltaShape;

/// The gated delta rule, a head on a core. Its state stays in the core's cache from token to token.
pub(crate) struct DeltaRule;

impl CustomOp2 for DeltaRule {
    fn name(&self) -> &'static str {
        "delta-rule"
    }

    fn cpu_fwd(
        &self,
        rows: &CpuStorage,
        rows_layout: &Layout,
        state: &CpuStorage,
        state_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = DeltaShape::of(rows_layout, state_layout)?;
        let DeltaShape { heads, key_dim, value_dim, .. } = shape;
        let (rows, before) = (values::<f32>(rows, rows_layout)?, values::<f32>(state, state_layout)?);
        let mut both = vec![0_f32; shape.outputs()];
        both.extend_from_slice(before);
        let (outputs, after) = both.split_at_mut(shape.outputs());
        // A head's outputs lie apart, one row for each token.
        let mut of_heads: Vec<Vec<&mut [f32]>> = (0..heads).map(|_| Vec::with_capacity(shape.tokens)).collect();
        for (index, output) in outputs.chunks_exact_mut(value_dim).enumerate() {
            of_heads[index % heads].push(output);
        }
        let width = 2 * key_dim + value_dim + 2;
        of_heads.into_par_iter().zip(after.par_chunks_exact_mut(key_dim * value_dim)).enumerate().for_each(
            |(head, (outputs, state))| {
                let mut correction = vec![0_f32; value_dim];
                let rows = rows.chunks_exact(width).skip(head).step_by(heads);
                for (row, output) in rows.zip(outputs) {
                    step(row, key_dim, state, &mut correction, output);
                }
            },
        );
        Ok((CpuStorage::F32(both), Shape::from(shape.both())))
    }
}

fn step(row: &[f32], key_dim: usize, state: &mut [f32], correction: &mut [f32], output: &mut [f32]) {
    let (query, rest) = row.split_at(key_dim);
    let (key, rest) = rest.split_at(key_dim);
    let (value, rest) = rest.split_at(correction.len());
    let (decay, beta) = (rest[0], rest[1]);
    correction.fill(0.0);
    for (state, key) in state.chunks_exact_mut(value.len()).zip(key) {
        for (state, known) in state.iter_mut().zip(correction.iter_mut()) {
            *state *= decay;
            *known += *state * key;
        }
    }
    for (known, value) in correction.iter_mut().zip(value) {
        *known = beta * (value - *known);
    }
    for ((state, key), query) in state.chunks_exact_mut(value.len()).zip(key).zip(query) {
        for ((state, correction), output) in state.iter_mut().zip(correction.iter()).zip(output.iter_mut()) {
            *state += key * correction;
            *output += *state * query;
        }
    }
}
