use std::f32::consts::PI;

use candle_core::{Device, Tensor};

use crate::LoadError;
use crate::gguf::Weights;
use crate::spec::{RopeScaling, RopeSpec, Yarn};

/// One kind of rotary positions: how far each pair of a head turns per token.
pub(super) struct RopeTable {
    spec: RopeSpec,
    inverse_frequencies: Vec<f32>,
    /// For sequences longer than this, with LongRoPE.
    longer: Option<(usize, Vec<f32>)>,
    /// Sine and cosine are multiplied by this.
    magnitude: f32,
}

/// Cosine and sine `(tokens, pairs)` of the positions of one forward.
pub(super) struct Angles {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl RopeTable {
    pub(super) fn load(spec: &RopeSpec, weights: &mut Weights<'_>) -> Result<Self, LoadError> {
        let half = spec.dims / 2;
        let mut factors = |name: &str| -> Result<Vec<f32>, LoadError> {
            weights.vector(name, half)?.to_vec1::<f32>().map_err(LoadError::Device)
        };
        let plain: Vec<f32> = (0..half).map(|i| spec.base.powf(-(2.0 * i as f32) / spec.dims as f32)).collect();
        let divided = |by: Vec<f32>| plain.iter().zip(by).map(|(frequency, factor)| frequency / factor).collect();
        let (inverse_frequencies, longer, magnitude): (Vec<f32>, _, _) = match spec.scaling {
            RopeScaling::Linear(factor) => {
                let base: Vec<f32> = plain.iter().map(|frequency| frequency / factor).collect();
                let scaled = match spec.uses_factors {
                    true => base.iter().zip(factors("rope_freqs.weight")?).map(|(a, factor)| a / factor).collect(),
                    false => base,
                };
                (scaled, None, 1.0)
            }
            RopeScaling::Yarn(yarn) => (yarn.frequencies(spec.base, &plain), None, yarn.attention_factor),
            RopeScaling::Long { original_context, attention_factor } => (
                divided(factors("rope_factors_short.weight")?),
                Some((original_context, divided(factors("rope_factors_long.weight")?))),
                attention_factor,
            ),
        };
        Ok(Self { spec: *spec, inverse_frequencies, longer, magnitude })
    }

    pub(super) const fn pairing(&self) -> kernels::Pairing {
        self.spec.pairing
    }

    /// Turns the last values of every head of `x` `(tokens, heads, head_dim)`; the first stay.
    pub(super) fn turn_end(&self, x: &Tensor, angles: &Angles) -> candle_core::Result<Tensor> {
        let still = x.dim(2)? - self.spec.dims;
        let end = x.narrow(2, still, self.spec.dims)?.contiguous()?;
        let turned = kernels::rope(&end, &angles.cos, &angles.sin, self.spec.pairing)?;
        Tensor::cat(&[x.narrow(2, 0, still)?, turned], 2)
    }

    /// The angles of tokens at `positions`.
    pub(super) fn angles(&self, positions: &[usize], device: &Device) -> candle_core::Result<Angles> {
        let last = positions.iter().copied().max().unwrap_or(0);
        let frequencies = match &self.longer {
            Some((original, longer)) if last >= *original => longer,
            _ => &self.inverse_frequencies,
        };
        let turns = positions.iter().flat_map(|at| frequencies.iter().map(move |frequency| *at as f32 * frequency));
        let (sin, cos): (Vec<f32>, Vec<f32>) =
            turns.map(f32::sin_cos).map(|(sin, cos)| (sin * self.magnitude, cos * self.magnitude)).unzip();
        let shape = (positions.len(), frequencies.len());
        Ok(Angles { cos: Tensor::from_vec(cos, shape, device)?, sin: Tensor::from_vec(sin, shape, device)? })
    }
}

impl Angles {
    /// Those that turn back.
    pub(super) fn reversed(&self) -> candle_core::Result<Self> {
        Ok(Self { cos: self.cos.clone(), sin: self.sin.neg()? })
    }
}

impl Yarn {
    /// Fast pairs keep their frequency, slow ones are stretched by the whole factor, a ramp lies between.
    fn frequencies(&self, base: f32, plain: &[f32]) -> Vec<f32> {
        let dims = 2.0 * plain.len() as f32;
        // The pair that turns so many times within the original context.
        let pair_of = |turns: f32| dims * (self.original_context as f32 / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        let (mut low, mut high) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let stretched = |i: usize| ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
        plain
            .iter()
            .enumerate()
            .map(|(i, frequency)| {
                let ramp = stretched(i);
                frequency / self.factor * ramp + frequency * (1.0 - ramp)
            })
            .collect()
    }
}
