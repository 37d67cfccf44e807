//! How much sooner answers come for tokens that are guessed.

use chat::{ChatEvent, ChatRequest, Message, Role, SamplingParams};
use engine::{Draft, Guesses, LoadSpec};
use futures::StreamExt;

use crate::App;
use crate::answer::generate_error;
use crate::depth_bench::Spread;
use crate::error::{AppError, ErrorCode};
use crate::model_list::ModelEntry;

/// What is to be measured.
#[derive(Clone, Debug, PartialEq)]
pub struct GuessPlan {
    /// A name and what is asked.
    pub tasks: Vec<(String, String)>,
    /// The most tokens of each answer.
    pub tokens: usize,
    /// 0 always takes the likeliest token; else each task has its own seed.
    pub temperature: f32,
    /// How often each is timed.
    pub runs: usize,
}

/// How fast the answers to one task came.
#[derive(Clone, Debug, PartialEq)]
pub struct GuessSpeed {
    /// The name of the task.
    pub task: String,
    /// By what means tokens were guessed.
    pub guesses: Guesses,
    /// Decode, in tokens per second.
    pub decode: Spread,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Passes over the weights for each of them.
    pub passes_per_token: f64,
    /// Whether every answer was, to the letter, the first without guesses.
    pub is_same: bool,
}

impl App {
    /// Times each task without guesses, by lookup and, where `entry` has a draft, by that and by both, in turn: as often as
    /// the plan says. No answer finds a cache of another, but what the engine has learned about the draft it keeps, as it
    /// does from answer to answer.
    ///
    /// # Errors
    /// Where the model or a named draft can't be loaded, or a task is longer than the context.
    pub async fn measure_guesses(
        &self,
        entry: &ModelEntry,
        plan: &GuessPlan,
        mut on_speed: impl FnMut(&GuessSpeed),
    ) -> Result<Vec<GuessSpeed>, AppError> {
        let spec = self.load_spec(entry, self.settings().context_len);
        let ways: &[Guesses] = match spec.draft {
            Draft::None => &[Guesses::None, Guesses::Lookup],
            _ => &[Guesses::None, Guesses::Lookup, Guesses::Draft, Guesses::All],
        };
        let mut speeds = Vec::new();
        for (seed, (name, prompt)) in plan.tasks.iter().enumerate() {
            let sampling = SamplingParams {
                temperature: Some(plan.temperature),
                seed: Some(seed as u64),
                max_tokens: Some(plan.tokens),
                ..SamplingParams::default()
            };
            let request = ChatRequest {
                messages: vec![Message::new(Role::User, prompt.clone())],
                sampling,
                ..ChatRequest::default()
            };
            let mut answers: Vec<Vec<Timed>> = vec![Vec::new(); ways.len()];
            for _ in 0..plan.runs {
                for (way, answers) in ways.iter().zip(&mut answers) {
                    self.inner.engine.set_guesses(*way);
                    self.inner.engine.forget_caches().await;
                    answers.push(self.timed(&spec, &request).await?);
                }
            }
            let text = answers.first().and_then(|plain| plain.first()).map(|first| first.text.clone());
            for (guesses, answers) in ways.iter().zip(answers) {
                let is_same = answers.iter().all(|answer| Some(&answer.text) == text.as_ref());
                let decode = Spread::of(answers.iter().map(|answer| answer.tokens_per_sec).collect());
                let passes = Spread::of(answers.iter().map(|answer| answer.passes_per_token).collect());
                let (Some(decode), Some(passes)) = (decode, passes) else { continue };
                let tokens = answers.first().map_or(0, |answer| answer.tokens);
                let (task, passes_per_token) = (name.clone(), passes.median);
                let speed = GuessSpeed { task, guesses: *guesses, decode, tokens, passes_per_token, is_same };
                on_speed(&speed);
                speeds.push(speed);
            }
        }
        self.inner.engine.set_guesses(Guesses::All);
        Ok(speeds)
    }

    async fn timed(&self, spec: &LoadSpec, request: &ChatRequest) -> Result<Timed, AppError> {
        let mut events = self.inner.engine.chat(spec.clone(), request.clone());
        let mut text = String::new();
        while let Some(event) = events.next().await {
            match event.map_err(generate_error)? {
                ChatEvent::Text(piece) | ChatEvent::Thinking(piece) => text.push_str(&piece),
                ChatEvent::Finished(finish) => {
                    let tokens = finish.usage.map_or(0, |usage| usage.completion_tokens);
                    let passes = tokens.saturating_sub(finish.timings.guessed_tokens);
                    let tokens_per_sec = finish.timings.decode_tokens_per_sec.unwrap_or(0.0);
                    return Ok(Timed {
                        text,
                        tokens,
                        tokens_per_sec,
                        passes_per_token: passes as f64 / tokens.max(1) as f64,
                    });
                }
                _ => {}
            }
        }
        Err(AppError::new(ErrorCode::CutOff, "The answer ended in the middle."))
    }
}

#[derive(Clone)]
struct Timed {
    text: String,
    tokens: usize,
    tokens_per_sec: f64,
    passes_per_token: f64,
}
