//! From logits to a token.
//!
//! The steps are those of llama.cpp's default chain, in its order: logit bias, penalties, top-k, top-p, min-p,
//! temperature, draw. The cuts look at the model's own probabilities, before the temperature bends them
//! (`transformers` bends first). A constraint comes before them all, so that the cuts choose among what it allows.

mod candidates;
mod constraint;
mod logprobs;

use std::collections::{HashMap, VecDeque};

use chat::SamplingParams;

pub(crate) use constraint::{Constraint, ConstraintVocabulary};
pub(crate) use logprobs::Logprobs;

use crate::GenerateError;
use crate::gguf::Metadata;
use crate::models::TokenId;
use candidates::Cuts;

/// The most alternatives that a request may ask for beside each token; OpenAI's limit.
const MOST_TOP_LOGPROBS: usize = 20;

/// How far back the repetition penalty looks where the file doesn't say: llama.cpp's default.
const PENALTY_WINDOW: usize = 64;

/// What a model's own file recommends. Values that can't be are left out: the file is untrusted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct SamplingDefaults {
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    penalty_window: Option<usize>,
}

impl SamplingDefaults {
    pub(crate) fn read(metadata: &Metadata) -> Self {
        let number = |key: &str| metadata.float(&format!("general.sampling.{key}"));
        let float = |key: &str| number(key).map(|x| x as f32).filter(|x| x.is_finite());
        // A negative count is how llama.cpp says "all of them".
        let count = |key: &str, all: usize| number(key).map(|n| if n < 0.0 { all } else { n as usize });
        Self {
            temperature: float("temp"),
            top_k: count("top_k", 0),
            top_p: float("top_p"),
            min_p: float("min_p"),
            repetition_penalty: float("penalty_repeat").filter(|penalty| *penalty > 0.0),
            penalty_window: count("penalty_last_n", usize::MAX),
        }
    }
}

/// Draws the tokens of one answer. What it draws depends on its parameters, its state and the logits, and on nothing
/// else: not on what other answers run in the same batch.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    settings: Settings,
    state: SamplerState,
}

/// What holds for a whole answer.
#[derive(Clone, Debug)]
struct Settings {
    temperature: f32,
    cuts: Cuts,
    repetition_penalty: f32,
    penalty_window: usize,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: Vec<(TokenId, f32)>,
    top_logprobs: Option<usize>,
}

/// What changes from token to token: with the same parameters, all that another machine needs to go on.
#[derive(Clone, Debug, PartialEq)]
struct SamplerState {
    seed: u64,
    /// Tokens of the answer so far. Each takes one random number, whether it needs it or not.
    position: u64,
    /// The last tokens of prompt and answer, the oldest first: what the repetition penalty looks at.
    window: VecDeque<TokenId>,
    /// How often each token is in the answer: what the other two penalties look at.
    counts: HashMap<TokenId, u32>,
}

/// A token that was drawn.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Draw {
    pub(crate) token: TokenId,
    /// Where the request asks for them.
    pub(crate) logprobs: Option<Logprobs>,
}

impl Sampler {
    /// A sampler for the answer to `prompt`; `fresh_seed` is used where the request brings none.
    ///
    /// The repetition penalty counts the tokens of the prompt too, as llama.cpp and `transformers` do, within
    /// llama.cpp's window: over a whole long prompt it would forbid a model its own subject. Presence and frequency
    /// penalties count what was sampled, as OpenAI defines them.
    ///
    /// # Errors
    /// [`GenerateError::InvalidRequest`] for a parameter that isn't a number or has no meaning. One that is merely
    /// too large or too small is clamped.
    pub(crate) fn new(
        params: &SamplingParams,
        defaults: &SamplingDefaults,
        fresh_seed: u64,
        prompt: &[TokenId],
    ) -> Result<Self, GenerateError> {
        let settings = Settings::new(params, defaults)?;
        let mut window = VecDeque::new();
        window.extend(&prompt[prompt.len().saturating_sub(settings.penalty_window)..]);
        let seed = params.seed.unwrap_or(fresh_seed);
        Ok(Self { settings, state: SamplerState { seed, position: 0, window, counts: HashMap::new() } })
    }

    /// Draws the next token. The same until [`Self::accept`] is told of it. `logits` are changed on the way.
    ///
    /// # Errors
    /// [`GenerateError::Constraint`] where the constraint leaves no token, and [`GenerateError::Compute`] where no logit
    /// is a number.
    pub(crate) fn sample(
        &self,
        logits: &mut [f32],
        constraint: Option<&mut Constraint>,
    ) -> Result<Draw, GenerateError> {
        let settings = &self.settings;
        let plain = settings.top_logprobs.map(|count| (count, logits.to_vec()));
        let is_constrained = constraint.is_some();
        if let Some(constraint) = constraint {
            constraint.mask(logits)?;
        }
        self.add_bias(logits);
        self.penalize(logits);
        let drawn = if settings.temperature == 0.0 || settings.cuts.top_k == 1 {
            candidates::best(logits)
        } else {
            let unit = unit(self.state.seed, self.state.position);
            candidates::draw(&candidates::survivors(logits, &settings.cuts), settings.temperature, unit)
        };
        let Some(token) = drawn else {
            return Err(if is_constrained {
                GenerateError::Constraint("no token of the model can follow".to_owned())
            } else {
                candle_core::Error::Msg("the model computed no numbers".to_owned()).into()
            });
        };
        Ok(Draw { token, logprobs: plain.map(|(count, logits)| Logprobs::of(&logits, token, count)) })
    }

    /// Takes `token` into the answer: the drawn one, or one that an earlier sampler drew.
    pub(crate) fn accept(&mut self, token: TokenId) {
        let state = &mut self.state;
        state.position += 1;
        *state.counts.entry(token).or_default() += 1;
        state.window.push_back(token);
        if state.window.len() > self.settings.penalty_window {
            state.window.pop_front();
        }
    }

    fn add_bias(&self, logits: &mut [f32]) {
        for (token, bias) in &self.settings.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
    }

    fn penalize(&self, logits: &mut [f32]) {
        let Settings { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.settings;
        if repetition_penalty != 1.0 {
            // Once for each token, however often it is there.
            let mut seen: Vec<TokenId> = self.state.window.iter().copied().collect();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
                }
            }
        }
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            for (token, times) in &self.state.counts {
                if let Some(logit) = logits.get_mut(*token as usize) {
                    *logit -= presence_penalty + frequency_penalty * *times as f32;
                }
            }
        }
    }
}

impl Settings {
    fn new(params: &SamplingParams, defaults: &SamplingDefaults) -> Result<Self, GenerateError> {
        let number = |name: &str, asked: Option<f32>, otherwise: f32| match asked {
            Some(x) if !x.is_finite() => Err(GenerateError::InvalidRequest(format!("`{name}` is not a finite number"))),
            asked => Ok(asked.unwrap_or(otherwise)),
        };
        let repetition_penalty =
            number("repetition_penalty", params.repetition_penalty, defaults.repetition_penalty.unwrap_or(1.0))?;
        if repetition_penalty <= 0.0 {
            return Err(GenerateError::InvalidRequest("`repetition_penalty` must be above 0".to_owned()));
        }
        if params.logit_bias.iter().any(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            return Err(GenerateError::InvalidRequest("`logit_bias` must hold numbers below infinity".to_owned()));
        }
        if params.top_logprobs.is_some_and(|count| count > MOST_TOP_LOGPROBS) {
            return Err(GenerateError::InvalidRequest(format!("`top_logprobs` may be {MOST_TOP_LOGPROBS} at most")));
        }
        Ok(Self {
            temperature: number("temperature", params.temperature, defaults.temperature.unwrap_or(0.7))?.max(0.0),
            cuts: Cuts {
                top_k: params.top_k.or(defaults.top_k).unwrap_or(40),
                top_p: number("top_p", params.top_p, defaults.top_p.unwrap_or(0.95))?.clamp(0.0, 1.0),
                min_p: number("min_p", params.min_p, defaults.min_p.unwrap_or(0.0))?.clamp(0.0, 1.0),
            },
            repetition_penalty,
            penalty_window: defaults.penalty_window.unwrap_or(PENALTY_WINDOW),
            presence_penalty: number("presence_penalty", params.presence_penalty, 0.0)?,
            frequency_penalty: number("frequency_penalty", params.frequency_penalty, 0.0)?,
            logit_bias: params.logit_bias.clone(),
            top_logprobs: params.top_logprobs,
        })
    }
}

/// The `position`-th output of Sebastiano Vigna's SplitMix64 after `seed`, uniform in 0..1. A seed of any kind will
/// do, the output never changes between versions, and any position can be reached without those before it.
fn unit(seed: u64, position: u64) -> f64 {
    let z = seed.wrapping_add(position.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
