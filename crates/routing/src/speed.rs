//! How fast a model is here: as measured, or forecast from what this machine was measured to do.
//!
//! Decode reads all weights that a token uses and the keys and values of all tokens before it, and little else takes
//! time: decode ≈ η · bandwidth / (weights read + KV read). η is the part of the bandwidth that decode really reaches,
//! measured with another model. Prefill computes rather than reads: throughput / operations of one token.

use chat::Bytes;

use crate::LocalModel;

/// What this machine was measured to do, by running any model on it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Calibration {
    /// How fast memory can be read, in bytes per second.
    pub bandwidth_bytes_per_sec: f64,
    /// The part (0–1) of it that decode reached.
    pub eta: f64,
    /// Floating-point operations per second that prefill reached.
    pub prefill_flops_per_sec: Option<f64>,
}

/// A speed, and how it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Tokens per second; finite and above zero.
    pub tokens_per_sec: f64,
    /// Worked out, because this model never ran here.
    pub is_forecast: bool,
}

/// How fast a model prefills and decodes here; what can't be said is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SpeedForecast {
    /// Tokens of prompt.
    pub prefill: Option<Speed>,
    /// Tokens of answer.
    pub decode: Option<Speed>,
}

impl SpeedForecast {
    /// For answers that begin after `depth` tokens. What was measured is taken as it is, because it was measured at the
    /// depths that this user's conversations have.
    pub fn of(model: &LocalModel, depth: usize) -> Self {
        let calibration = model.calibration;
        let decode_forecast = || {
            let Calibration { bandwidth_bytes_per_sec, eta, .. } = calibration?;
            let bytes = bytes_touched(model, model.bytes_per_token?, depth);
            speed(eta * bandwidth_bytes_per_sec / bytes, true)
        };
        let prefill_forecast = || speed(calibration?.prefill_flops_per_sec? / model.flops_per_token?, true);
        let measured = |tokens_per_sec: Option<f64>| tokens_per_sec.and_then(|value| speed(value, false));
        Self {
            prefill: measured(model.prefill_tokens_per_sec).or_else(prefill_forecast),
            decode: measured(model.decode_tokens_per_sec).or_else(decode_forecast),
        }
    }
}

/// What one token of decode reads after `depth` tokens. Layers that look back over a window only read less than this:
/// the forecast is then on the careful side.
pub(crate) fn bytes_touched(model: &LocalModel, weights: Bytes, depth: usize) -> f64 {
    weights.0 as f64 + model.kv_per_token.0 as f64 * depth as f64
}

fn speed(tokens_per_sec: f64, is_forecast: bool) -> Option<Speed> {
    (tokens_per_sec.is_finite() && tokens_per_sec > 0.0).then_some(Speed { tokens_per_sec, is_forecast })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture() -> LocalModel {
        LocalModel {
            weights: Bytes(16_000_000_000),
            kv_per_token: Bytes(100_000),
            bytes_per_token: Some(Bytes(2_000_000_000)),
            flops_per_token: Some(6e9),
            calibration: Some(Calibration {
                bandwidth_bytes_per_sec: 100e9,
                eta: 0.6,
                prefill_flops_per_sec: Some(3e12),
            }),
            ..LocalModel::default()
        }
    }

    #[test]
    fn a_forecast_counts_the_experts_in_use_and_the_tokens_before() {
        let decode = |depth| SpeedForecast::of(&mixture(), depth).decode.unwrap();
        assert_eq!(decode(0), Speed { tokens_per_sec: 30.0, is_forecast: true });
        assert_eq!(decode(20_000).tokens_per_sec, 15.0);
        let prefill = SpeedForecast::of(&mixture(), 0).prefill.unwrap();
        assert_eq!(prefill, Speed { tokens_per_sec: 500.0, is_forecast: true });
    }

    #[test]
    fn what_was_measured_is_believed() {
        let measured = LocalModel { decode_tokens_per_sec: Some(22.0), ..mixture() };
        let decode = SpeedForecast::of(&measured, 20_000).decode;
        assert_eq!(decode, Some(Speed { tokens_per_sec: 22.0, is_forecast: false }));
        let stopped = LocalModel { decode_tokens_per_sec: Some(0.0), ..mixture() };
        assert!(SpeedForecast::of(&stopped, 0).decode.unwrap().is_forecast);
    }

    #[test]
    fn nothing_is_forecast_from_nothing_or_garbage() {
        assert_eq!(SpeedForecast::of(&LocalModel::default(), 0), SpeedForecast::default());
        for eta in [f64::NAN, f64::NEG_INFINITY, -1.0, 0.0] {
            let calibration = Calibration { eta, bandwidth_bytes_per_sec: 100e9, prefill_flops_per_sec: Some(eta) };
            let garbage = LocalModel { calibration: Some(calibration), ..mixture() };
            assert_eq!(SpeedForecast::of(&garbage, 10), SpeedForecast::default(), "{eta}");
        }
        let empty = LocalModel { bytes_per_token: Some(Bytes::ZERO), ..mixture() };
        assert_eq!(SpeedForecast::of(&empty, 0).decode, None);
    }
}
