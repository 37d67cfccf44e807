//! Guesses tokens by a second, smaller model of the same vocabulary, the draft (speculative decoding, Leviathan et al. 2023,
//! <https://arxiv.org/abs/2211.17192>). It draws as the answer does, with the answer's own seed and penalties, and whatever it
//! guesses is checked in the pass that makes the next token: a guess is right where the model draws the same token itself, so
//! that the text is the same with any draft, only sooner.

use std::path::{Path, PathBuf};
use std::time::Instant;

use chat::Bytes;

use crate::device::KvType;
use crate::gain::Gain;
use crate::gguf::{Gguf, same_vocabulary};
use crate::header::Footprint;
use crate::model_text::ModelFile;
use crate::models::{Loaded, Model, Part, TokenId};
use crate::sampling::Sampler;
use crate::slot::{FreeSlots, Slot};
use crate::{GenerateError, LoadError};

/// Tokens that a draft reads at once of what was written without it: answers wait meanwhile.
const CHUNK: usize = 64;
/// A token this much less probable than the one that was drawn adds nothing to the sum of all.
const NEGLIGIBLE: f32 = 16.0;

/// A draft that is in memory.
pub(crate) struct DraftModel {
    model: Box<dyn Model>,
    vocabulary: usize,
    context_len: usize,
    footprint: Footprint,
    /// Of sequences that no answer is written in now.
    pub(crate) free: FreeSlots,
}

/// A draft as a request names it.
#[derive(Clone, Debug)]
pub(crate) struct DraftFile {
    pub(crate) path: PathBuf,
    /// With the context of the request.
    pub(crate) footprint: Footprint,
    /// By the user, who hears of it where it can't be used.
    pub(crate) is_named: bool,
}

/// An answer that is guessed on.
pub(crate) struct Guessed<'a> {
    /// The draft's own, with whatever it has read of the answer.
    pub(crate) slot: &'a mut Slot,
    /// The whole sequence.
    pub(crate) tokens: &'a [TokenId],
    /// A copy of the answer's.
    pub(crate) sampler: Sampler,
    pub(crate) most: usize,
    pub(crate) guess: &'a mut Vec<TokenId>,
    /// How probable the draft takes each guess to be.
    pub(crate) sure: &'a mut Vec<f64>,
}

/// How far the draft has come with one answer.
struct Run<'a> {
    ahead: Guessed<'a>,
    /// What it runs next.
    next: Vec<TokenId>,
    /// That the guesses so far are right, up to each of them.
    chances: Vec<f64>,
    /// Nothing more is to be guessed.
    is_over: bool,
}

impl DraftModel {
    /// Loads the model at `path`, which is to guess for the one of `main`.
    ///
    /// # Errors
    /// Where the file cannot be used, its tokens mean something else, or it can't take a token back.
    pub(crate) fn load(
        path: &Path,
        main: &Gguf,
        kv_type: KvType,
        footprint: Footprint,
        load: impl FnOnce(&ModelFile) -> Result<Loaded, LoadError>,
    ) -> Result<Self, LoadError> {
        let file = ModelFile::open(path)?;
        let ModelFile { gguf, header, .. } = &file;
        header.check_supported()?;
        let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !same_vocabulary(main, gguf) {
            return Err(LoadError::WrongDraft { file: name(), why: "its vocabulary is another" });
        }
        let Loaded { model, .. } = load(&file)?;
        if !model.new_cache(kv_type).rewinds() {
            return Err(LoadError::WrongDraft { file: name(), why: "its layers can't take a token back" });
        }
        let vocabulary = gguf.metadata().array("tokenizer.ggml.tokens").map_or(0, |tokens| tokens.len());
        let context_len = header.usable_context(usize::MAX);
        Ok(Self { model, vocabulary, context_len, footprint, free: FreeSlots::default() })
    }

    /// A slot for the answer to `prompt`, beside those that are `in_use`.
    pub(crate) fn slot<'a>(
        &mut self,
        prompt: &[TokenId],
        kv_type: KvType,
        in_use: impl Iterator<Item = &'a Slot>,
        room_for_more: bool,
    ) -> Result<Slot, GenerateError> {
        self.free.take(|| self.model.new_cache(kv_type), prompt, in_use, room_for_more)
    }

    /// What it takes beside its caches.
    pub(crate) const fn weights(&self) -> Bytes {
        self.footprint.weights
    }

    /// What it takes with the context full.
    pub(crate) const fn footprint(&self) -> Footprint {
        self.footprint
    }

    /// Guesses as far as that pays, in a pass that has so many tokens without these guesses; nothing for an answer that
    /// there is more to read of first. Gives the seconds it took.
    ///
    /// # Errors
    /// When its graph fails; its caches are as before.
    pub(crate) fn guess(&self, ahead: Vec<Guessed<'_>>, pass: usize, gain: &mut Gain) -> Result<f64, GenerateError> {
        let started = Instant::now();
        let answers = pass;
        let mut pass = pass;
        let mut runs: Vec<Run<'_>> = ahead.into_iter().filter_map(|ahead| self.begin(ahead)).collect();
        let mut round = 0;
        loop {
            let mut wanted: Vec<&mut Run<'_>> = runs.iter_mut().filter(|run| !run.next.is_empty()).collect();
            if wanted.is_empty() {
                break;
            }
            let began = Instant::now();
            self.forward(&mut wanted, gain)?;
            // What is read first takes longer than a token.
            if round > 0 {
                gain.note_draft(began.elapsed().as_secs_f64());
            }
            pass += wanted.iter().filter(|run| !run.is_over).count();
            for run in wanted {
                let chance = run.chances.last().copied().unwrap_or(0.0);
                let may_more = run.ahead.guess.len() < run.ahead.most && gain.is_worth(answers, pass, chance);
                run.next = run.ahead.guess.last().copied().filter(|_| may_more && !run.is_over).into_iter().collect();
            }
            round += 1;
        }
        // They were made already; what is left to pay is their part of the pass.
        let mut pass = answers;
        for run in runs {
            run.ahead.guess.truncate(gain.best(answers, pass, &run.chances));
            run.ahead.sure.truncate(run.ahead.guess.len());
            pass += run.ahead.guess.len();
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// Winds the draft back to where it agrees with the answer; `None` where it can't go on from there.
    fn begin<'a>(&self, ahead: Guessed<'a>) -> Option<Run<'a>> {
        ahead.guess.clear();
        ahead.sure.clear();
        ahead.slot.keep(ahead.slot.common_prefix(ahead.tokens));
        let unread = &ahead.tokens[ahead.slot.len()..];
        let is_known = unread.iter().all(|token| (*token as usize) < self.vocabulary);
        if !is_known || ahead.most == 0 || ahead.tokens.len() + ahead.most > self.context_len {
            return None;
        }
        let next = unread[..unread.len().min(CHUNK)].to_vec();
        Some(Run { is_over: next.len() < unread.len(), next, chances: Vec::new(), ahead })
    }

    /// Runs what each is to run next, and draws a guess after it.
    fn forward(&self, runs: &mut [&mut Run<'_>], gain: &Gain) -> Result<(), GenerateError> {
        let mut parts: Vec<Part<'_>> =
            runs.iter_mut().map(|run| Part { tokens: &run.next, logits: 1, cache: run.ahead.slot.cache() }).collect();
        let logits = kernels::step(|| Ok(self.model.forward(&mut parts)?.to_vec2::<f32>()?));
        let logits: Vec<Vec<f32>> = match logits {
            Ok(logits) => logits,
            Err(error) => {
                runs.iter_mut().for_each(|run| run.ahead.slot.undo());
                return Err(error);
            }
        };
        for (run, mut logits) in runs.iter_mut().zip(logits) {
            run.ahead.slot.extend(&run.next);
            if !run.is_over {
                run.draw(&mut logits, self.vocabulary, gain);
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Draws as the answer would from these logits, and takes it as a guess.
    fn draw(&mut self, logits: &mut [f32], vocabulary: usize, gain: &Gain) {
        let plain = logits.to_vec();
        // Where there is nothing to draw, nothing more is guessed.
        match self.ahead.sampler.sample(logits, None) {
            Ok(draw) if (draw.token as usize) < vocabulary => {
                self.ahead.sampler.accept(draw.token);
                self.ahead.guess.push(draw.token);
                let before = self.chances.last().copied().unwrap_or(1.0);
                let sure = probability(&plain, draw.token);
                self.ahead.sure.push(sure);
                self.chances.push(before * gain.chance(sure));
            }
            _ => self.is_over = true,
        }
    }
}

/// How probable `token` is by these logits.
fn probability(logits: &[f32], token: TokenId) -> f64 {
    let own = logits[token as usize];
    // Most of a vocabulary is far from it, and an exponential takes longer than to see that.
    let all: f32 = logits.iter().filter(|logit| **logit > own - NEGLIGIBLE).map(|logit| (logit - own).exp()).sum();
    f64::from(1.0 / all).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests;
