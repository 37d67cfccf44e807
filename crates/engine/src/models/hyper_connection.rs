use candle_core::Tensor;

use super::linear::Linear;
use super::norm::Norm;
use crate::LoadError;
use crate::gguf::Weights;
use crate::spec::StreamsSpec;

/// What stands in the place of a residual connection where the residual has several streams: a block reads a mix of
/// them, and writes into all of them, which are mixed anew. Every token has mixes of its own.
/// <https://arxiv.org/abs/2512.24880>
pub(super) struct HyperConnection {
    spec: StreamsSpec,
    mixes: Mixes,
}

/// Collapses the streams into one at the end.
pub(super) struct HyperHead {
    epsilon: f32,
    mixes: Mixes,
}

/// Makes the mixes of a token from its streams, by one layer over all of them.
struct Mixes {
    norm: Norm,
    proj: Linear,
    /// Of what reads, what writes and what mixes anew.
    scales: Vec<f32>,
    base: Vec<f32>,
    streams: usize,
}

/// How what a block makes goes into the streams: `(tokens, streams, streams + 1)`, the block's output last.
pub(super) struct WriteBack(Tensor);

impl HyperConnection {
    /// Loads `NAME_fn`, `NAME_scale` and `NAME_base`.
    pub(super) fn load(
        spec: StreamsSpec,
        weights: &mut Weights<'_>,
        name: &str,
        hidden: usize,
        norm_epsilon: f32,
    ) -> Result<Self, LoadError> {
        let outputs = (2 + spec.count) * spec.count;
        Ok(Self { spec, mixes: Mixes::load(weights, name, (outputs, 3), spec.count, hidden, norm_epsilon)? })
    }

    /// `streams` `(tokens, streams, hidden)` → what a block reads `(tokens, hidden)`, and how to write what it makes.
    pub(super) fn read(&self, streams: &Tensor) -> candle_core::Result<(Tensor, WriteBack)> {
        let (tokens, count, _) = streams.dims3()?;
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for mut token in self.mixes.forward(streams)? {
            let (read, rest) = token.split_at_mut(count);
            let (write, again) = rest.split_at_mut(count);
            reads.extend(read.iter().map(|x| sigmoid(*x) + self.spec.epsilon));
            doubly_stochastic(again, count, &self.spec);
            for (to, write) in write.iter().enumerate() {
                writes.extend((0..count).map(|from| again[from * count + to]));
                writes.push(2.0 * sigmoid(*write));
            }
        }
        let writes = Tensor::from_vec(writes, (tokens, count, count + 1), streams.device())?;
        Ok((collapse(streams, reads)?, WriteBack(writes)))
    }
}

impl WriteBack {
    /// The streams after the block that made `output` `(tokens, hidden)`.
    pub(super) fn write(&self, streams: &Tensor, output: &Tensor) -> candle_core::Result<Tensor> {
        self.0.matmul(&Tensor::cat(&[streams, &output.unsqueeze(1)?], 1)?)
    }
}

impl HyperHead {
    pub(super) fn load(
        spec: StreamsSpec,
        weights: &mut Weights<'_>,
        name: &str,
        hidden: usize,
        norm_epsilon: f32,
    ) -> Result<Self, LoadError> {
        let mixes = Mixes::load(weights, name, (spec.count, 1), spec.count, hidden, norm_epsilon)?;
        Ok(Self { epsilon: spec.epsilon, mixes })
    }

    /// `(tokens, streams, hidden)` → `(tokens, hidden)`.
    pub(super) fn forward(&self, streams: &Tensor) -> candle_core::Result<Tensor> {
        let mixes = self.mixes.forward(streams)?;
        collapse(streams, mixes.into_iter().flatten().map(|x| sigmoid(x) + self.epsilon).collect())
    }
}

impl Mixes {
    fn load(
        weights: &mut Weights<'_>,
        name: &str,
        (outputs, scales): (usize, usize),
        streams: usize,
        hidden: usize,
        norm_epsilon: f32,
    ) -> Result<Self, LoadError> {
        let width = streams * hidden;
        let proj = Linear::load(weights, &format!("{name}_fn"), outputs, width)?;
        let mut list = |part: &str, len: usize| {
            weights.vector(&format!("{name}_{part}.weight"), len)?.to_vec1().map_err(LoadError::Device)
        };
        let (scales, base) = (list("scale", scales)?, list("base", outputs)?);
        Ok(Self { norm: Norm::plain(weights, width, norm_epsilon)?, proj, scales, base, streams })
    }

    /// Of each token. On the host: the numbers are few, and become the mixes in many small steps.
    fn forward(&self, streams: &Tensor) -> candle_core::Result<Vec<Vec<f32>>> {
        let mut mixes = self.proj.forward(&self.norm.forward(&streams.flatten_from(1)?)?)?.to_vec2::<f32>()?;
        for token in &mut mixes {
            for (i, (x, base)) in token.iter_mut().zip(&self.base).enumerate() {
                let scale = self.scales[(i / self.streams).min(self.scales.len() - 1)];
                *x = *x * scale + base;
            }
        }
        Ok(mixes)
    }
}

/// The sum of each token's streams by its weights.
fn collapse(streams: &Tensor, weights: Vec<f32>) -> candle_core::Result<Tensor> {
    let (tokens, count, _) = streams.dims3()?;
    Tensor::from_vec(weights, (tokens, 1, count), streams.device())?.matmul(streams)?.squeeze(1)
}

/// Softmax of each row; then rows and columns are made to sum to one in turns, which is Sinkhorn's iteration.
fn doubly_stochastic(matrix: &mut [f32], count: usize, spec: &StreamsSpec) {
    for row in matrix.chunks_exact_mut(count) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|x| *x = (*x - most).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|x| *x = *x / sum + spec.epsilon);
    }
    for iteration in 0..spec.sinkhorn_iterations {
        // The softmax was the rows' first turn.
        if iteration > 0 {
            for row in matrix.chunks_exact_mut(count) {
                let sum = row.iter().sum::<f32>() + spec.epsilon;
                row.iter_mut().for_each(|x| *x /= sum);
            }
        }
        for column in 0..count {
            let cells = || (column..count * count).step_by(count);
            let sum = cells().map(|cell| matrix[cell]).sum::<f32>() + spec.epsilon;
            cells().for_each(|cell| matrix[cell] /= sum);
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_sum_to_one() {
        let mut matrix = [1.0, 0.0, -1.0, 3.0, 0.5, 0.0, 0.0, 0.0, -2.0];
        doubly_stochastic(&mut matrix, 3, &StreamsSpec { count: 3, sinkhorn_iterations: 20, epsilon: 1e-6 });
        for i in 0..3 {
            let row: f32 = matrix[3 * i..][..3].iter().sum();
            let column: f32 = matrix.iter().skip(i).step_by(3).sum();
            assert!((row - 1.0).abs() < 1e-3 && (column - 1.0).abs() < 1e-4, "row {row}, column {column}");
        }
    }
}
