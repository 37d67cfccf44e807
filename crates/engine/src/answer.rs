use std::time::{Duration, Instant};

use chat::{ChatEvent, Finish, FinishReason, ScoredToken, Timings, TokenLogprob, Usage};

use crate::GenerateError;
use crate::answer_text::AnswerText;
use crate::models::TokenId;
use crate::sampling::{Constraint, Draw, Logprobs, Sampler};
use crate::tokenizer::{Detokenizer, Tokenizer};
use crate::told::Told;
use crate::worker::Job;

/// The answer as far as it is written.
pub(crate) struct Answer {
    sampler: Sampler,
    constraint: Option<Constraint>,
    /// The thinking that the template opened, as long as it isn't closed: there the constraint is suspended.
    open_thinking: Option<String>,
    /// Of tokens whose text isn't told yet.
    logprobs: Vec<TokenLogprob>,
    detokenizer: Detokenizer,
    text: AnswerText,
    told: Told,
    most_tokens: usize,
    completion_tokens: usize,
    /// Those of them that were drawn here.
    drawn: usize,
    /// Those of them that needed no pass of their own.
    guessed: usize,
    first_token: Option<Instant>,
    first_visible: Option<Instant>,
    last_token: Option<Instant>,
}

impl Answer {
    /// Begins the answer, with what was written of it elsewhere; gives the reason where that was all of it. Everything
    /// that an answer has a state for is a function of its tokens, so that these are taken as if they were drawn.
    ///
    /// # Errors
    /// When what was written can't be the beginning of this answer.
    pub(crate) fn begin(job: &Job) -> Result<(Self, Option<FinishReason>), GenerateError> {
        let mut answer = Self::new(job);
        let written = &job.prompt.tokens[job.prompt.answer_at..];
        if job.tells_tokens && !written.is_empty() {
            job.send(ChatEvent::Tokens { from: 0, ids: written.to_vec() });
        }
        for token in written {
            if job.text.tokenizer.ends_generation(*token) {
                return Ok((answer, Some(FinishReason::Stop)));
            }
            // It may be more tokens here than where it was written, and more than are wanted; but it is written.
            if let Some(FinishReason::Stop) = answer.accept(job, *token)? {
                return Ok((answer, Some(FinishReason::Stop)));
            }
        }
        let is_full = !written.is_empty() && answer.is_full(job);
        Ok((answer, is_full.then_some(FinishReason::Length)))
    }

    fn new(job: &Job) -> Self {
        let room = job.context_len - job.prompt.answer_at;
        let mut constraint = job.constraint.take();
        let open_thinking = (constraint.is_some() && job.prompt.starts_thinking).then(String::new);
        if let Some(constraint) = constraint.as_mut().filter(|_| open_thinking.is_some()) {
            constraint.suspend();
        }
        Self {
            sampler: job.sampler.clone(),
            constraint,
            open_thinking,
            logprobs: Vec::new(),
            detokenizer: job.text.tokenizer.detokenizer(),
            text: job.text.answer_text(&job.prompt, &job.sampling),
            told: Told::new(&job.written),
            most_tokens: job.sampling.max_tokens.map_or(room, |most| most.min(room)),
            completion_tokens: 0,
            drawn: 0,
            guessed: 0,
            first_token: None,
            first_visible: None,
            last_token: None,
        }
    }

    /// What its tokens are drawn by.
    pub(crate) const fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Draws the next token.
    ///
    /// # Errors
    /// When no logit is a number, or the constraint allows nothing.
    pub(crate) fn draw(&mut self, logits: &mut [f32]) -> Result<Draw, GenerateError> {
        self.sampler.sample(logits, self.constraint.as_mut())
    }

    /// Takes a drawn token; gives the reason where it is the last.
    ///
    /// # Errors
    /// When the constraint fails, or the text isn't what was told elsewhere.
    pub(crate) fn take(&mut self, job: &Job, draw: Draw) -> Result<Option<FinishReason>, GenerateError> {
        let token = draw.token;
        if let Some(reason) = self.end_before(job, token) {
            return Ok(Some(reason));
        }
        if job.tells_tokens {
            job.send(ChatEvent::Tokens { from: self.completion_tokens, ids: vec![token] });
        }
        self.logprobs.extend(draw.logprobs.map(|logprobs| token_logprob(&job.text.tokenizer, token, logprobs)));
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.drawn += 1;
        self.accept(job, token)
    }

    /// So many of the tokens that were taken had been guessed.
    pub(crate) const fn note_guessed(&mut self, tokens: usize) {
        self.guessed += tokens;
    }

    /// Why the answer ends without `token`, where it does.
    fn end_before(&self, job: &Job, token: TokenId) -> Option<FinishReason> {
        if job.text.tokenizer.ends_generation(token) {
            return Some(FinishReason::Stop);
        }
        self.is_full(job).then_some(FinishReason::Length)
    }

    fn is_full(&self, job: &Job) -> bool {
        let is_capped = job.prompt.answer_at + self.completion_tokens >= job.relief.cap();
        self.completion_tokens >= self.most_tokens || is_capped
    }

    fn accept(&mut self, job: &Job, token: TokenId) -> Result<Option<FinishReason>, GenerateError> {
        self.sampler.accept(token);
        self.completion_tokens += 1;
        let text = self.detokenizer.push(job.text.piece(&job.prompt, token));
        let events = self.text.push(&text);
        self.send(job, events)?;
        let is_whole = self.constrain(token, &text, job.text.thinking_end())?;
        if self.text.is_stopped() || is_whole {
            return Ok(Some(FinishReason::Stop));
        }
        Ok(self.is_full(job).then_some(FinishReason::Length))
    }

    /// Takes `token`, which added `text`, into the constraint; says whether nothing can follow.
    fn constrain(&mut self, token: TokenId, text: &str, thinking_end: &str) -> Result<bool, GenerateError> {
        let Some(constraint) = &mut self.constraint else { return Ok(false) };
        constraint.accept(token)?;
        if let Some(thinking) = &mut self.open_thinking {
            thinking.push_str(text);
            if thinking.contains(thinking_end) {
                self.open_thinking = None;
                constraint.resume();
            }
        }
        Ok(constraint.is_complete())
    }

    /// Tells what was held back, and the end.
    ///
    /// # Errors
    /// When the text isn't what was told elsewhere.
    pub(crate) fn finish(
        &mut self,
        job: &Job,
        reason: FinishReason,
        cached: usize,
        prefill: Duration,
    ) -> Result<(), GenerateError> {
        let rest = self.detokenizer.finish();
        let mut events = self.text.push(&rest);
        events.extend(self.text.finish());
        self.send(job, events)?;
        let reason = if self.text.is_stopped() { FinishReason::Stop } else { reason };
        let (prompt_tokens, run) = (job.prompt.answer_at, job.prompt.tokens.len() - cached);
        let cached_tokens = cached.min(prompt_tokens);
        let per_second =
            |tokens: usize, time: Duration| (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64());
        let decode_time = self.first_token.zip(self.last_token).map_or(Duration::ZERO, |(first, last)| last - first);
        drop(job.queued.take());
        job.send(ChatEvent::Finished(Finish {
            reason,
            usage: Some(Usage { prompt_tokens, cached_tokens, completion_tokens: self.completion_tokens }),
            timings: Timings {
                ttft: self.first_visible.map(|first| first - job.accepted),
                prefill_tokens_per_sec: per_second(run, prefill),
                decode_tokens_per_sec: per_second(self.drawn.saturating_sub(1), decode_time),
                guessed_tokens: self.guessed,
            },
        }));
        Ok(())
    }

    fn send(&mut self, job: &Job, events: Vec<ChatEvent>) -> Result<(), GenerateError> {
        let mut news = Vec::new();
        for event in events {
            news.extend(self.told.rest(event)?);
        }
        if !news.is_empty() {
            self.first_visible.get_or_insert_with(Instant::now);
            if !self.logprobs.is_empty() {
                job.send(ChatEvent::Logprobs(std::mem::take(&mut self.logprobs)));
            }
        }
        news.into_iter().for_each(|event| job.send(event));
        Ok(())
    }
}

fn token_logprob(tokenizer: &Tokenizer, token: TokenId, logprobs: Logprobs) -> TokenLogprob {
    let scored = |token, logprob| ScoredToken { bytes: tokenizer.name_or_piece(token).to_vec(), logprob };
    TokenLogprob {
        drawn: scored(token, logprobs.drawn),
        top: logprobs.top.into_iter().map(|(token, logprob)| scored(token, logprob)).collect(),
    }
}
