//! How fast prefill and decode are behind a context of some depth, and whether decode stays as fast as it begins.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use chat::{ChatEvent, ChatRequest, Finish, Message, Role, SamplingParams};
use engine::{Draft, Guesses, LoadSpec};
use futures::StreamExt;
use vitals::ThermalState;

use crate::App;
use crate::answer::generate_error;
use crate::error::{AppError, ErrorCode};
use crate::model_list::ModelEntry;

/// Each is one token of nearly every vocabulary. Their order is random, so that nothing can be guessed from what was before.
const WORDS: [&str; 32] = [
    "time", "water", "house", "light", "day", "hand", "work", "night", "river", "stone", "green", "world", "road",
    "music", "paper", "train", "field", "voice", "table", "glass", "letter", "winter", "summer", "bridge", "garden",
    "market", "window", "island", "forest", "silver", "horse", "ship",
];
/// A prompt gets as many tokens as are wanted in two or three tries, unless a word is more than one token.
const TRIES: usize = 8;
/// A cache that lacks more tokens than a template has after the last message could not be gone back in.
pub(crate) const TEMPLATE_TOKENS: usize = 64;

/// What is to be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DepthPlan {
    /// Tokens of a prefill that is timed; 0 times none.
    pub prefill_tokens: usize,
    /// Tokens of a decode that is timed; 0 times none.
    pub decode_tokens: usize,
    /// Tokens that are in the cache before: the instructions of the model's template at least.
    pub depths: Vec<usize>,
    /// How often each is timed, after once that isn't.
    pub runs: usize,
}

/// How fast the model is behind a context of some depth.
#[derive(Clone, Debug, PartialEq)]
pub struct DepthSpeed {
    /// Tokens in the cache.
    pub depth: usize,
    /// Prefill, in tokens per second. `None` where none was asked for, or the model can't go back in its cache to there.
    pub prefill: Option<Spread>,
    /// Decode, in tokens per second, over all that an answer needs: the forward pass, the draw of a token and its text.
    pub decode: Option<Spread>,
    /// Bytes that decode reads, by the model's header, as a part of what the memory could give in that time.
    pub bandwidth_ratio: Option<f64>,
}

/// The median of some figures, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Of an even number, the upper of the two in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

/// One answer of a sustained run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SustainedSpeed {
    /// From the start of the run to the end of the answer.
    pub at: Duration,
    /// Decode of this answer.
    pub decode_tokens_per_sec: f64,
    /// The machine's heat then.
    pub thermal: Option<ThermalState>,
}

impl Spread {
    /// `None` of no figures.
    pub fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        Some(Self { median: figures[figures.len() / 2], least, most })
    }
}

impl App {
    /// Times prefill and decode of `entry` at each depth of the plan, whatever the policy says about this machine. What
    /// memory could give is `bandwidth`, in bytes per second. The caches of other conversations may be given up for it.
    ///
    /// # Errors
    /// Where the model can't be loaded or its context is too short for the plan.
    pub async fn measure_depths(
        &self,
        entry: &ModelEntry,
        plan: &DepthPlan,
        bandwidth: f64,
        mut on_depth: impl FnMut(&DepthSpeed),
    ) -> Result<Vec<DepthSpeed>, AppError> {
        let deepest = plan.depths.iter().copied().max().unwrap_or(0);
        let needed = deepest + plan.prefill_tokens.max(plan.decode_tokens) + TEMPLATE_TOKENS;
        let bench = DepthBench::new(self, entry, needed).await?;
        let mut speeds = Vec::new();
        for depth in &plan.depths {
            let speed = bench.measure(*depth, plan, bandwidth).await?;
            on_depth(&speed);
            speeds.push(speed);
        }
        Ok(speeds)
    }

    /// Writes answers of `tokens` tokens one after the other until `time` is over, and tells how fast each was.
    ///
    /// # Errors
    /// Where the model can't be loaded or its context is too short.
    pub async fn measure_sustained(
        &self,
        entry: &ModelEntry,
        tokens: usize,
        time: Duration,
        mut on_answer: impl FnMut(&SustainedSpeed),
    ) -> Result<Vec<SustainedSpeed>, AppError> {
        let bench = DepthBench::new(self, entry, tokens + 2 * TEMPLATE_TOKENS).await?;
        let request = bench.random_prompt(0, TEMPLATE_TOKENS).await?;
        bench.answer(&request, 1).await?;
        let (started, mut speeds) = (Instant::now(), Vec::new());
        while started.elapsed() < time {
            let finish = bench.answer(&request, tokens).await?;
            let Some(decode_tokens_per_sec) = finish.timings.decode_tokens_per_sec else { break };
            let thermal = self.watch_vitals().borrow().snapshot.thermal;
            let speed = SustainedSpeed { at: started.elapsed(), decode_tokens_per_sec, thermal };
            on_answer(&speed);
            speeds.push(speed);
        }
        Ok(speeds)
    }
}

/// One model that is measured; no token is guessed meanwhile.
pub(crate) struct DepthBench<'a> {
    app: &'a App,
    entry: &'a ModelEntry,
    spec: LoadSpec,
    /// What ends an answer is forbidden, so that each is as long as is wanted.
    logit_bias: Vec<(u32, f32)>,
    /// Another one each time, so that no cache of an earlier run helps.
    salt: u64,
}

impl<'a> DepthBench<'a> {
    pub(crate) async fn new(app: &'a App, entry: &'a ModelEntry, context_len: usize) -> Result<Self, AppError> {
        let no_model = || AppError::new(ErrorCode::NoModel, "There is no model to measure with.");
        let trained = entry.usable().ok_or_else(no_model)?.context_len;
        // 0 is a file that doesn't say.
        if trained > 0 && trained < context_len {
            let sentence = format!("This takes a context of {context_len} tokens, and the model has {trained}.");
            return Err(AppError::new(ErrorCode::BadRequest, sentence));
        }
        let (engine, path) = (app.inner.engine.clone(), entry.path.clone());
        let ends = tokio::task::spawn_blocking(move || engine.end_tokens(&path)).await;
        let ends = ends.map_err(|error| AppError::internal("reading the tokenizer", &error))??;
        // What is guessed is the text's merit, not the machine's.
        app.inner.engine.set_guesses(Guesses::None);
        Ok(Self {
            app,
            entry,
            spec: LoadSpec { draft: Draft::None, ..app.load_spec(entry, context_len) },
            logit_bias: ends.into_iter().map(|token| (token, f32::NEG_INFINITY)).collect(),
            salt: RandomState::new().hash_one(0),
        })
    }

    async fn measure(&self, depth: usize, plan: &DepthPlan, bandwidth: f64) -> Result<DepthSpeed, AppError> {
        // The words of each depth are its own; what is prefilled behind them is another text in each run.
        let base = self.random_prompt(depth, depth).await?;
        let behind = |run: usize, words: usize| {
            let known = base.messages[0].text.expose();
            let gap = if known.is_empty() { "" } else { " " };
            format!("{known}{gap}{}", self.words(usize::MAX - run, words))
        };
        let (mut prefills, mut decodes, mut cached) = (Vec::new(), Vec::new(), depth);
        for run in 0..=plan.runs {
            if plan.decode_tokens > 0 {
                let finish = self.answer(&base, plan.decode_tokens).await?;
                decodes.push(finish.timings.decode_tokens_per_sec);
            }
            if plan.prefill_tokens > 0 {
                let request = self.prompt(cached + plan.prefill_tokens, |words| behind(run, words)).await?;
                let finish = self.answer(&request, 1).await?;
                // The first run tells how much of the template is in the cache and how much has to be run again, so that
                // those after it prefill exactly as many tokens as are wanted.
                cached = finish.usage.unwrap_or_default().cached_tokens;
                prefills.push(finish.timings.prefill_tokens_per_sec.filter(|_| cached + TEMPLATE_TOKENS >= depth));
            }
        }
        let spread = |figures: Vec<Option<f64>>| Spread::of(figures.into_iter().skip(1).flatten().collect());
        let decode = spread(decodes);
        let header = self.entry.usable().filter(|_| bandwidth > 0.0);
        let bandwidth_ratio = header.zip(decode).map(|(header, decode)| {
            // On the average token of the answer.
            let bytes = header.bytes_per_token(depth + plan.decode_tokens / 2, self.spec.kv_type);
            decode.median * bytes.0 as f64 / bandwidth
        });
        Ok(DepthSpeed { depth, prefill: spread(prefills), decode, bandwidth_ratio })
    }

    /// So many words, the first of them the same for the same `text`.
    fn words(&self, text: usize, count: usize) -> String {
        words(self.salt ^ text as u64, count)
    }

    /// A request of `tokens` tokens, or as many more as the template alone has: random words, others for each `text`.
    pub(crate) async fn random_prompt(&self, text: usize, tokens: usize) -> Result<ChatRequest, AppError> {
        self.prompt(tokens, |words| self.words(text, words)).await
    }

    /// The request whose prompt has `tokens` tokens, or as many more as the template alone has; `text` gives one of about
    /// as many tokens as it is asked for.
    async fn prompt(&self, tokens: usize, text: impl Fn(usize) -> String) -> Result<ChatRequest, AppError> {
        let mut wanted = tokens;
        for _ in 0..TRIES {
            let request = request(text(wanted));
            let count = self.app.inner.engine.count_prompt_tokens(&self.entry.path, &request).await;
            let count = count.map_err(generate_error)?;
            let next = (wanted + tokens).saturating_sub(count);
            if next == wanted {
                return Ok(request);
            }
            wanted = next;
        }
        Ok(request(text(wanted)))
    }

    /// An answer of exactly `tokens` tokens.
    pub(crate) async fn answer(&self, request: &ChatRequest, tokens: usize) -> Result<Finish, AppError> {
        let mut request = request.clone();
        // Drawn at random, as most answers are, so that the text doesn't repeat itself for want of an end.
        request.sampling = SamplingParams {
            temperature: Some(1.0),
            seed: Some(self.salt),
            max_tokens: Some(tokens),
            logit_bias: self.logit_bias.clone(),
            ..SamplingParams::default()
        };
        let mut events = self.app.inner.engine.chat(self.spec.clone(), request);
        while let Some(event) = events.next().await {
            if let ChatEvent::Finished(finish) = event.map_err(generate_error)? {
                return Ok(finish);
            }
        }
        Err(AppError::new(ErrorCode::CutOff, "The answer ended in the middle."))
    }
}

impl Drop for DepthBench<'_> {
    fn drop(&mut self) {
        self.app.inner.engine.set_guesses(Guesses::All);
    }
}

fn request(text: String) -> ChatRequest {
    ChatRequest { messages: vec![Message::new(Role::User, text)], ..ChatRequest::default() }
}

/// Random words; fewer of them are the beginning of more.
fn words(seed: u64, count: usize) -> String {
    let mut state = seed;
    let mut next = || {
        // SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        WORDS[(mixed >> 32) as usize % WORDS.len()]
    };
    (0..count).map(|_| next()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_words_are_the_beginning_of_more() {
        let many = words(7, 300);
        assert_eq!(many.split(' ').count(), 300);
        assert!(many.starts_with(&format!("{} ", words(7, 40))));
        assert_ne!(words(8, 40), words(7, 40));
        assert_eq!(words(7, 0), "");
    }

    #[test]
    fn the_median_stands_between_the_least_and_the_most() {
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![3.0]), Some(Spread { median: 3.0, least: 3.0, most: 3.0 }));
        assert_eq!(Spread::of(vec![5.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 5.0 }));
        assert_eq!(Spread::of(vec![5.0, 1.0]).map(|spread| spread.median), Some(5.0));
    }
}
