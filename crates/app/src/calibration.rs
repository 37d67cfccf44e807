//! What this machine was measured to do: how fast its memory is and how much of that decode reaches, from which the speed
//! of models that never ran here is forecast.

use std::time::{Duration, Instant};

use chat::{Bytes, Finish};
use engine::{KvType, ModelHeader};
use serde::{Deserialize, Serialize};
use store::{Store, StoreError};
use vitals::machine;

use crate::App;
use crate::depth_bench::DepthBench;
use crate::error::{AppError, ErrorCode};

const SETTING: &str = "calibration";
/// Larger than the caches of nearly every processor, and read in a tenth of a second by the slowest.
const BUFFER: Bytes = Bytes::mib(512);
/// A smaller one measures caches.
const LEAST_BUFFER: Bytes = Bytes::mib(64);
/// Answers that are timed, of which the median counts, as long as they took less than `LIMIT` together.
const RUNS: usize = 3;
const LIMIT: Duration = Duration::from_secs(6);
const PROMPT_TOKENS: usize = 256;
const ANSWER_TOKENS: usize = 48;
/// Asks for an answer that takes long.
pub(crate) const LONG_ANSWER: &str = "Write all numbers from 1 to 500, one on each line, and nothing else.";
/// Prompts and answers with fewer tokens say little about speed.
const LEAST_PROMPT: usize = 64;
const LEAST_ANSWER: usize = 16;
/// Weight of the newest answer in what is learnt from real use.
const NEWEST_WEIGHT: f64 = 0.1;

/// What this machine was measured to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Where it holds.
    pub measured_on: MeasuredOn,
    /// The model that it was measured with.
    pub model: String,
    /// How fast the memory is read from which models are computed.
    pub bandwidth_bytes_per_sec: f64,
    /// η: bytes that decode reads, by the model's header, as a part of what the memory could give in that time. Above 1
    /// where a small model's weights are read from caches.
    pub eta: f64,
    /// Decode, of that model.
    pub decode_tokens_per_sec: f64,
    /// Prefill, of that model.
    pub prefill_tokens_per_sec: f64,
    /// Prefill in operations of any model: two for each weight that a token is multiplied with.
    pub prefill_flops_per_sec: f64,
}

/// Where a [`Calibration`] holds: with anything of this changed, it is measured anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredOn {
    /// The machine, and what models run on in it.
    pub machine: String,
    /// The operating system and its version.
    pub os: String,
    /// The version of the engine.
    pub engine: String,
}

impl Calibration {
    /// What forecasts for other models need of it.
    pub(crate) fn for_forecasts(&self) -> routing::Calibration {
        routing::Calibration {
            bandwidth_bytes_per_sec: self.bandwidth_bytes_per_sec,
            eta: self.eta,
            prefill_flops_per_sec: Some(self.prefill_flops_per_sec),
        }
    }
}

impl MeasuredOn {
    fn here() -> Self {
        let machine = machine();
        let ram = machine.ram.map_or_else(|| "unknown memory".to_owned(), |ram| ram.to_string());
        let parts = [machine.model.unwrap_or_default(), machine.chip, ram, engine::device_name()];
        Self {
            machine: parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", "),
            os: machine.os,
            engine: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What one answer says about speed; what it is too short to say is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sample {
    decode_tokens_per_sec: Option<f64>,
    decode_bytes_per_sec: Option<f64>,
    prefill_tokens_per_sec: Option<f64>,
    prefill_flops_per_sec: Option<f64>,
}

impl Sample {
    fn of(header: &ModelHeader, kv_type: KvType, finish: &Finish) -> Self {
        let Some(usage) = finish.usage else { return Self::default() };
        let sound = |speed: &f64| speed.is_finite() && *speed > 0.0;
        let decode = finish.passes_per_sec().filter(sound);
        let decode = decode.filter(|_| usage.completion_tokens >= LEAST_ANSWER);
        let prefill = finish.timings.prefill_tokens_per_sec.filter(sound);
        let prefill = prefill.filter(|_| usage.prompt_tokens.saturating_sub(usage.cached_tokens) >= LEAST_PROMPT);
        // On the average token of the answer.
        let depth = usage.prompt_tokens + usage.completion_tokens / 2;
        Self {
            decode_tokens_per_sec: decode,
            decode_bytes_per_sec: decode.map(|speed| speed * header.bytes_per_token(depth, kv_type).0 as f64),
            prefill_tokens_per_sec: prefill,
            prefill_flops_per_sec: prefill.map(|speed| speed * header.flops_per_token()),
        }
    }
}

impl Calibration {
    /// From the medians of what was timed; `None` where no answer was long enough.
    fn of(model: String, bandwidth_bytes_per_sec: f64, samples: &[Sample]) -> Option<Self> {
        let median = |figure: fn(&Sample) -> Option<f64>| {
            let mut figures: Vec<f64> = samples.iter().filter_map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied()
        };
        Some(Self {
            measured_on: MeasuredOn::here(),
            model,
            bandwidth_bytes_per_sec,
            eta: median(|sample| sample.decode_bytes_per_sec)? / bandwidth_bytes_per_sec,
            decode_tokens_per_sec: median(|sample| sample.decode_tokens_per_sec)?,
            prefill_tokens_per_sec: median(|sample| sample.prefill_tokens_per_sec)?,
            prefill_flops_per_sec: median(|sample| sample.prefill_flops_per_sec)?,
        })
    }

    /// Moves towards what a real answer says; whether it said anything.
    fn learn(&mut self, model: &str, sample: Sample) -> bool {
        let toward = |value: &mut f64, seen: Option<f64>| {
            if let Some(seen) = seen {
                *value += NEWEST_WEIGHT * (seen - *value);
            }
        };
        toward(&mut self.eta, sample.decode_bytes_per_sec.map(|bytes| bytes / self.bandwidth_bytes_per_sec));
        toward(&mut self.prefill_flops_per_sec, sample.prefill_flops_per_sec);
        if model == self.model {
            toward(&mut self.decode_tokens_per_sec, sample.decode_tokens_per_sec);
            toward(&mut self.prefill_tokens_per_sec, sample.prefill_tokens_per_sec);
        }
        sample != Sample::default()
    }
}

/// The saved calibration, where it was made on this machine as it is now.
pub(crate) fn saved(store: &Store) -> Result<Option<Calibration>, StoreError> {
    let saved = store.get_setting(SETTING)?.and_then(|json| serde_json::from_str::<Calibration>(&json).ok());
    Ok(saved.filter(|calibration| calibration.measured_on == MeasuredOn::here()))
}

impl App {
    /// What this machine was measured to do; `None` until [`App::calibrate`] ran on it with this system and this engine.
    pub fn calibration(&self) -> Option<Calibration> {
        self.inner.calibration.borrow().clone()
    }

    /// Measures this machine: its memory's bandwidth, then prefill and decode with a listed model (`None` is the chosen
    /// one). Takes seconds once the model is loaded; whatever else runs meanwhile is in the figures. The result is saved,
    /// and moves a little with every answer that is written here.
    ///
    /// # Errors
    /// Where there is no model, too little memory is free for a buffer larger than caches, or the model can't answer.
    pub async fn calibrate(&self, model: Option<&str>) -> Result<Calibration, AppError> {
        let no_model = || AppError::new(ErrorCode::NoModel, "There is no model to measure with.");
        let entry = self.model_for(model).ok_or_else(no_model)?;
        let header = entry.usable().ok_or_else(no_model)?.clone();
        let kv_type = self.settings().kv_type();
        let bandwidth = self.measure_bandwidth().await?;
        let bench = DepthBench::new(self, &entry, PROMPT_TOKENS + ANSWER_TOKENS).await?;
        // Each run has words of its own, so that no cache helps it.
        let request = |run: usize| bench.random_prompt(run, PROMPT_TOKENS);
        // Loads the weights and wakes the clocks.
        bench.answer(&request(RUNS).await?, LEAST_ANSWER).await?;
        let (started, mut samples) = (Instant::now(), Vec::new());
        while samples.len() < RUNS && (samples.is_empty() || started.elapsed() < LIMIT) {
            let finish = bench.answer(&request(samples.len()).await?, ANSWER_TOKENS).await?;
            samples.push(Sample::of(&header, kv_type, &finish));
        }
        let calibration = Calibration::of(entry.id.clone(), bandwidth, &samples).ok_or_else(|| {
            AppError::new(ErrorCode::EngineFailed, "The model's answers were too short to measure its speed.")
                .with_hint("Choose another model, then measure again.")
        })?;
        self.inner.calibration.send_replace(Some(calibration.clone()));
        self.save_calibration().await?;
        Ok(calibration)
    }

    /// How fast memory is read that models are computed from, in bytes per second. Takes about a second.
    ///
    /// # Errors
    /// Where too little memory is free for a buffer larger than caches.
    pub async fn measure_bandwidth(&self) -> Result<f64, AppError> {
        let buffer = self.calibration_buffer()?;
        tokio::task::spawn_blocking(move || engine::measure_bandwidth(buffer))
            .await
            .map_err(|error| AppError::internal("measuring memory", &error))?
            .map_err(crate::answer::generate_error)
    }

    /// Takes the speed of an answer that the model of id `model` has just written here into the calibration, where there
    /// is one. An answer beside another says nothing: they share the machine.
    pub fn note_speed(&self, model: &str, finish: &Finish) {
        if self.inner.vitals.answers() > 1 {
            return;
        }
        let Some(entry) = self.model_for(Some(model)) else { return };
        let Some(header) = entry.usable() else { return };
        let sample = Sample::of(header, self.settings().kv_type(), finish);
        let learn = |calibration: &mut Option<Calibration>| {
            calibration.as_mut().is_some_and(|calibration| calibration.learn(&entry.id, sample))
        };
        if self.inner.calibration.send_if_modified(learn) {
            let app = self.clone();
            self.in_background(async move {
                if let Err(error) = app.save_calibration().await {
                    tracing::warn!(%error, "calibration not saved");
                }
            });
        }
    }

    async fn save_calibration(&self) -> Result<(), AppError> {
        let json = serde_json::to_string(&self.calibration())
            .map_err(|error| AppError::internal("the calibration", &error))?;
        Ok(self.with_store(move |store| store.set_setting(SETTING, &json)).await??)
    }

    /// As large as memory that nobody misses allows.
    fn calibration_buffer(&self) -> Result<Bytes, AppError> {
        let Some(memory) = self.inner.vitals.latest().snapshot.memory else { return Ok(LEAST_BUFFER) };
        let free = memory.available.saturating_sub(self.policy().reserve);
        if free < LEAST_BUFFER {
            let sentence = format!("Measuring takes {LEAST_BUFFER} and {free} can be used.");
            let error = AppError::new(ErrorCode::DoesNotFit, sentence);
            return Err(error.with_hint("Close programs that take memory, then measure again."));
        }
        Ok(free.min(BUFFER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(decode_bytes: f64, prefill_flops: Option<f64>) -> Sample {
        Sample {
            decode_tokens_per_sec: Some(decode_bytes / 1e9),
            decode_bytes_per_sec: Some(decode_bytes),
            prefill_tokens_per_sec: prefill_flops.map(|flops| flops / 1e9),
            prefill_flops_per_sec: prefill_flops,
        }
    }

    #[test]
    fn medians_count_and_real_answers_move_them_a_little() {
        let samples = [sample(30e9, Some(4e9)), sample(90e9, None), sample(20e9, Some(5e9))];
        let mut calibration = Calibration::of("m".to_owned(), 60e9, &samples).unwrap();
        assert_eq!((calibration.eta, calibration.prefill_flops_per_sec), (0.5, 5e9));

        assert!(calibration.learn("other", sample(60e9, None)));
        assert!((calibration.eta - 0.55).abs() < 1e-9);
        assert_eq!(calibration.decode_tokens_per_sec, 30.0, "that is the speed of another model");
        assert!(!calibration.learn("m", Sample::default()));

        assert_eq!(Calibration::of("m".to_owned(), 60e9, &[Sample::default()]), None);
    }

    #[test]
    fn a_calibration_of_another_system_is_none() {
        let store = Store::open_in_memory().unwrap();
        let calibration = Calibration::of("m".to_owned(), 60e9, &[sample(30e9, Some(4e9))]).unwrap();
        let keep = |calibration: &Calibration| {
            store.set_setting(SETTING, &serde_json::to_string(calibration).unwrap()).unwrap();
            saved(&store).unwrap()
        };
        assert_eq!(keep(&calibration), Some(calibration.clone()));
        let mut moved = calibration;
        moved.measured_on.os = "another".to_owned();
        assert_eq!(keep(&moved), None);
        store.set_setting(SETTING, "garbage").unwrap();
        assert_eq!(saved(&store).unwrap(), None);
    }
}
