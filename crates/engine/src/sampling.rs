use std::collections::HashMap;

use chat::SamplingParams;

use crate::gguf::Metadata;
use crate::models::TokenId;

/// Draws tokens from logits. Same seed and same logits: same tokens.
pub(crate) struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    random: SplitMix64,
    /// How often each token was drawn in this answer.
    drawn: HashMap<TokenId, u32>,
}

/// What a model's own file recommends.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct SamplingDefaults {
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    pub(crate) fn read(metadata: &Metadata) -> Self {
        let float = |key: &str| metadata.float(&format!("general.sampling.{key}")).map(|x| x as f32);
        Self {
            temperature: float("temp"),
            top_k: metadata.unsigned("general.sampling.top_k").and_then(|k| usize::try_from(k).ok()),
            top_p: float("top_p"),
            min_p: float("min_p"),
            repetition_penalty: float("penalty_repeat"),
        }
    }
}

/// A token that can still be drawn.
#[derive(Clone, Copy)]
struct Candidate {
    token: TokenId,
    logit: f32,
}

impl Sampler {
    /// A sampler for one answer; `fresh_seed` is used where the request brings none.
    pub(crate) fn new(params: &SamplingParams, defaults: &SamplingDefaults, fresh_seed: u64) -> Self {
        let penalty = params.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0);
        Self {
            temperature: params.temperature.or(defaults.temperature).unwrap_or(0.7).max(0.0),
            top_k: params.top_k.or(defaults.top_k).unwrap_or(40),
            top_p: params.top_p.or(defaults.top_p).unwrap_or(0.95),
            min_p: params.min_p.or(defaults.min_p).unwrap_or(0.0),
            repetition_penalty: if penalty > 0.0 { penalty } else { 1.0 },
            presence_penalty: params.presence_penalty.unwrap_or(0.0),
            frequency_penalty: params.frequency_penalty.unwrap_or(0.0),
            random: SplitMix64(params.seed.unwrap_or(fresh_seed)),
            drawn: HashMap::new(),
        }
    }

    /// Draws the next token; `None` where no logit is a number.
    pub(crate) fn sample(&mut self, logits: &mut [f32]) -> Option<TokenId> {
        self.penalize(logits);
        let token = if self.temperature == 0.0 || self.top_k == 1 { best(logits)?.token } else { self.draw(logits)? };
        *self.drawn.entry(token).or_default() += 1;
        Some(token)
    }

    fn penalize(&self, logits: &mut [f32]) {
        for (token, times) in &self.drawn {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / self.repetition_penalty } else { *logit * self.repetition_penalty };
            *logit -= self.presence_penalty + self.frequency_penalty * *times as f32;
        }
    }

    fn draw(&mut self, logits: &[f32]) -> Option<TokenId> {
        let mut candidates = self.most_probable(logits);
        let highest = candidates.first()?.logit;
        // The cuts look at the model's own probabilities, before the temperature bends them, as llama.cpp's do.
        let weights = |temperature: f32, candidates: &[Candidate]| -> Vec<f64> {
            candidates.iter().map(|c| f64::from((c.logit - highest) / temperature).exp()).collect()
        };
        let plain = weights(1.0, &candidates);
        let total: f64 = plain.iter().sum();
        let mut keep = candidates.len();
        if self.top_p < 1.0 {
            let mut sum = 0.0;
            let reached = plain.iter().position(|weight| {
                sum += weight / total;
                sum >= f64::from(self.top_p)
            });
            keep = reached.map_or(keep, |last| last + 1);
        }
        if self.min_p > 0.0 {
            // The most probable one has the weight 1.
            keep = keep.min(plain.iter().take_while(|weight| **weight >= f64::from(self.min_p)).count());
        }
        candidates.truncate(keep.max(1));
        let weights = weights(self.temperature, &candidates);
        let mut left = self.random.next_unit() * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        Some(candidates[drawn.unwrap_or(candidates.len() - 1)].token)
    }

    /// The `top_k` most probable tokens, the best first; ties by number, so that the order never depends on the sort.
    fn most_probable(&self, logits: &[f32]) -> Vec<Candidate> {
        let all = logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan());
        let mut candidates: Vec<_> = all.map(|(i, logit)| Candidate { token: i as TokenId, logit: *logit }).collect();
        let order = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token));
        if self.top_k > 0 && self.top_k < candidates.len() {
            candidates.select_nth_unstable_by(self.top_k, order);
            candidates.truncate(self.top_k);
        }
        candidates.sort_unstable_by(order);
        candidates
    }
}

fn best(logits: &[f32]) -> Option<Candidate> {
    let mut best: Option<Candidate> = None;
    for (i, logit) in logits.iter().enumerate() {
        // Of equal ones the first stays; a NaN compares with nothing.
        if best.is_none_or(|best| *logit > best.logit) && !logit.is_nan() {
            best = Some(Candidate { token: i as TokenId, logit: *logit });
        }
    }
    best
}

/// Sebastiano Vigna's SplitMix64: a seed of any kind will do, and its output never changes between versions.
struct SplitMix64(u64);

impl SplitMix64 {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    fn next_unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, f32::NAN, -1.0];

    fn drawn(params: SamplingParams, times: usize) -> Vec<TokenId> {
        let params = SamplingParams { seed: params.seed.or(Some(7)), ..params };
        let mut sampler = Sampler::new(&params, &SamplingDefaults::default(), 0);
        (0..times).map(|_| sampler.sample(&mut LOGITS.clone()).unwrap()).collect()
    }

    fn set(params: SamplingParams) -> HashSet<TokenId> {
        drawn(params, 2000).into_iter().collect()
    }

    fn hot() -> SamplingParams {
        SamplingParams { temperature: Some(5.0), top_k: Some(0), top_p: Some(1.0), ..SamplingParams::default() }
    }

    #[test]
    fn temperature_zero_is_greedy_and_the_first_of_equals() {
        assert_eq!(drawn(SamplingParams { temperature: Some(0.0), ..SamplingParams::default() }, 3), [1, 1, 1]);
        assert_eq!(best(&[2.0, 5.0, 5.0]).map(|best| best.token), Some(1));
        assert!(best(&[f32::NAN]).is_none());
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let with = |seed| drawn(SamplingParams { seed: Some(seed), ..hot() }, 50);
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }

    #[test]
    fn each_cut_leaves_what_it_says() {
        assert_eq!(set(hot()), HashSet::from([0, 1, 2, 4]));
        assert_eq!(set(SamplingParams { top_k: Some(2), ..hot() }), HashSet::from([1, 2]));
        // Probabilities are 0.66, 0.24, 0.09 and 0.01.
        assert_eq!(set(SamplingParams { top_p: Some(0.8), ..hot() }), HashSet::from([1, 2]));
        assert_eq!(set(SamplingParams { top_p: Some(0.0), ..hot() }), HashSet::from([1]));
        assert_eq!(set(SamplingParams { min_p: Some(0.1), ..hot() }), HashSet::from([0, 1, 2]));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let params = SamplingParams { temperature: Some(1.0), top_k: Some(0), top_p: Some(1.0), ..hot() };
        let best = drawn(params, 20_000).into_iter().filter(|token| *token == 1).count();
        assert!((best as f64 / 20_000.0 - 0.657).abs() < 0.015, "{best}");
    }

    #[test]
    fn penalties_make_a_drawn_token_less_probable() {
        let greedy = SamplingParams { temperature: Some(0.0), ..SamplingParams::default() };
        let presence = SamplingParams { presence_penalty: Some(1.5), ..greedy.clone() };
        assert_eq!(drawn(presence, 4), [1, 2, 1, 1]);
        let frequency = SamplingParams { frequency_penalty: Some(1.5), ..greedy.clone() };
        assert_eq!(drawn(frequency, 4), [1, 2, 1, 0]);
        let repetition = SamplingParams { repetition_penalty: Some(4.0), ..greedy };
        assert_eq!(drawn(repetition, 3), [1, 2, 0]);
    }
}
