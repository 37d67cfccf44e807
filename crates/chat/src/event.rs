use std::time::Duration;

use crate::{Bytes, ToolCall};

/// What a backend says while it answers. A stream is any number of `Progress` and text, then one `Finished`; a stream
/// that ends without `Finished` was cut off.
#[derive(Clone, Debug, PartialEq)]
pub enum ChatEvent {
    /// What is happening before the first token, and how far it is.
    Progress(Progress),
    /// Text of the answer, to be appended: always whole UTF-8, never a part of a stop string.
    Text(String),
    /// Text of the model's thinking, to be appended.
    Thinking(String),
    /// The model asks for a call; whole, never a part of one.
    ToolCall {
        /// Counts the calls of one answer, from 0.
        index: usize,
        /// The call.
        call: ToolCall,
    },
    /// How probable the tokens were that the next `Text` or `Thinking` is made of, where the request asks for it.
    Logprobs(Vec<TokenLogprob>),
    /// Tokens of the answer, where the request asks for them: before the text that they make, which may come much later
    /// or never.
    Tokens {
        /// How many tokens of the answer come before these. Where that is fewer than were told already, these take the
        /// place of what follows.
        from: usize,
        /// Their ids in the model's vocabulary.
        ids: Vec<u32>,
    },
    /// The answer is whole.
    Finished(Finish),
}

/// What happens before the first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Weights are being read.
    Loading {
        /// Read so far.
        done: Bytes,
        /// Of so many.
        total: Bytes,
    },
    /// Another request is being served first.
    Waiting {
        /// How many requests are before this one.
        ahead: usize,
    },
    /// The prompt is running through the model.
    Prefill {
        /// Tokens that are in the cache.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
}

/// One token of an answer, as probable as the model itself took it to be: before penalties, cuts, temperature and
/// constraints.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token that was drawn.
    pub drawn: ScoredToken,
    /// The most probable tokens in its place, the best first; the drawn one is not always among them.
    pub top: Vec<ScoredToken>,
}

/// A token and the natural logarithm of its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    /// What it stands for; not always whole UTF-8. Of a control token, its name.
    pub bytes: Vec<u8>,
    /// Never above 0, up to rounding.
    pub logprob: f32,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// Whoever asked went away.
    Cancelled,
}

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the rendered prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in a cache already.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
}

/// How long the parts of one answer took. `None` where the backend doesn't say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Request accepted → first visible token.
    pub ttft: Option<Duration>,
    /// Prompt tokens run through the model per second, cached ones not counted.
    pub prefill_tokens_per_sec: Option<f64>,
    /// Tokens written per second after the first.
    pub decode_tokens_per_sec: Option<f64>,
    /// Tokens written that cost no pass of their own, because they had been guessed.
    pub guessed_tokens: usize,
}

/// The end of a whole answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens read and written; `None` where a node doesn't tell.
    pub usage: Option<Usage>,
    /// How fast it was.
    pub timings: Timings,
}

impl Finish {
    /// Passes over the weights per second while it was written: the machine's own speed, which guesses don't change.
    /// `None` where more than a tenth of the tokens was guessed: a pass that checks guesses takes longer than one for a
    /// single token.
    pub fn passes_per_sec(&self) -> Option<f64> {
        let speed = self.timings.decode_tokens_per_sec?;
        let (guessed, tokens) = (self.timings.guessed_tokens, self.usage.map_or(0, |usage| usage.completion_tokens));
        let is_plain = guessed == 0 || guessed.saturating_mul(10) <= tokens;
        is_plain.then(|| if guessed == 0 { speed } else { speed * (tokens - guessed) as f64 / tokens as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_guessed_says_nothing_of_the_machine() {
        let passes = |completion_tokens, guessed_tokens| {
            let timings = Timings { decode_tokens_per_sec: Some(50.0), guessed_tokens, ..Timings::default() };
            let usage = Some(Usage { completion_tokens, ..Usage::default() });
            Finish { reason: FinishReason::Stop, usage, timings }.passes_per_sec()
        };
        assert_eq!(passes(100, 0), Some(50.0));
        assert_eq!(passes(100, 10), Some(45.0));
        assert_eq!(passes(100, 11), None);
        assert_eq!(passes(0, 3), None);
    }
}
