//! The model that is in memory, and the answers that it runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chat::{FinishReason, Progress};

use super::{Job, Loader, PREFILL_BESIDE_DECODE, PREFILL_CHUNK};
use crate::answer::Answer;
use crate::device::KvType;
use crate::draft::{DraftFile, DraftModel, Guessed};
use crate::gain::{Gain, MOST_DECODED};
use crate::lookup::Lookup;
use crate::model_text::ModelFile;
use crate::models::{Model, Part, TokenId};
use crate::relief::Guesses;
use crate::saved_caches::{LEAST_SAVED, SavedCaches};
use crate::slot::{FreeSlots, Slot};
use crate::wiring::WiredWeights;
use crate::{DeviceFault, GenerateError, LoadError};

/// The model that is in memory, and what it runs.
pub(super) struct Resident {
    pub(super) file: Arc<ModelFile>,
    pub(super) kv_type: KvType,
    pub(super) wired: Option<WiredWeights>,
    pub(super) model: Box<dyn Model>,
    pub(super) running: Vec<Running>,
    pub(super) free: FreeSlots,
    pub(super) guesses: bool,
    pub(super) gain: Gain,
    pub(super) draft: Option<DraftModel>,
    /// The last that was asked for. It stays out of memory once it was let go.
    pub(super) draft_file: Option<PathBuf>,
    /// Of earlier times when the model was in memory.
    pub(super) saved: Option<SavedCaches>,
}

/// One answer on its way.
pub(super) struct Running {
    pub(super) job: Box<Job>,
    pub(super) slot: Slot,
    /// The draft's, where there is one.
    pub(super) draft: Option<Slot>,
    /// Prompt tokens that were in the slot already.
    pub(super) cached: usize,
    pub(super) prefill_started: Instant,
    pub(super) stage: Stage,
    pub(super) has_ended: bool,
}

pub(super) enum Stage {
    Prefill,
    /// `lookup` has the sequence, the next token to be run at its end; `guess` is what may follow that one, and where the
    /// draft made it, how `sure` of each token that is.
    Decode {
        answer: Box<Answer>,
        prefill: Duration,
        lookup: Lookup,
        guess: Vec<TokenId>,
        sure: Vec<f64>,
    },
}

impl Resident {
    /// Whether it is the model of `file`, with its caches kept so.
    pub(super) fn is_of(&self, file: &ModelFile, kv_type: KvType) -> bool {
        self.file.is_same_as(file) && self.kv_type == kv_type
    }

    /// Takes the draft that the job asks for into memory, and lets another one go.
    pub(super) fn set_draft(&mut self, job: &Job, loader: &mut Loader) -> Result<(), LoadError> {
        let wanted = job.draft.as_ref();
        if wanted.map(|draft| &draft.path) == self.draft_file.as_ref() {
            return Ok(());
        }
        self.let_draft_go();
        self.draft_file = None;
        if let Some(DraftFile { path, footprint, is_named }) = wanted {
            let mut on_progress = |done, total| job.progress(Progress::Loading { done, total });
            let load = |file: &ModelFile| loader(file, &mut on_progress);
            match DraftModel::load(path, &self.file.gguf, self.kv_type, *footprint, load) {
                Ok(draft) => (self.draft, self.gain) = (Some(draft), Gain::new()),
                Err(error) if *is_named => return Err(error),
                Err(error) => tracing::info!(%error, "no draft"),
            }
        }
        self.draft_file = wanted.map(|draft| draft.path.clone());
        Ok(())
    }

    pub(super) fn let_draft_go(&mut self) {
        self.running.iter_mut().for_each(|running| running.draft = None);
        self.draft = None;
    }

    pub(super) fn save_free(&mut self) {
        if let Some(saved) = &mut self.saved {
            saved.save(self.free.iter().rev().map(Slot::content), SystemTime::now());
        }
    }

    /// Takes a cache out of its file where it has clearly more of the job's prompt than any slot; it becomes a free
    /// slot.
    pub(super) fn recall(&mut self, job: &Job, most_slots: usize) {
        let Some(saved) = &mut self.saved else { return };
        let prompt = &job.prompt.tokens;
        let slots = self.running.iter().map(|running| &running.slot).chain(self.free.iter());
        let in_memory = slots.map(|slot| slot.common_prefix(prompt)).max().unwrap_or(0);
        let least = in_memory + LEAST_SAVED;
        let empty = || self.model.new_cache(job.kv_type);
        let recalled = saved.recall(prompt, least, job.context_len, empty);
        let Some((sequence, cache)) = recalled else { return };
        if self.running.len() + self.free.len() >= most_slots {
            self.free.forget_one();
        }
        self.free.put(Slot::restored(sequence, cache));
    }

    /// Moves every answer on: each that is being written by a token, and the prompts, the oldest first, by a chunk
    /// together. All of it is one pass over the weights.
    ///
    /// # Errors
    /// When the device failed, which costs all of them.
    pub(super) fn step(&mut self, is_stopping: bool) -> Result<(), DeviceFault> {
        self.release(|running| is_stopping || running.job.is_cancelled());
        let guessing = self.guess()?;
        let inputs = self.inputs();
        if inputs.is_empty() {
            return Ok(());
        }
        let result = self.forward(&inputs, guessing);
        // After the step, which may be the first and allocate what counts against the memory that is free.
        if let Some(wired) = &mut self.wired {
            wired.keep();
        }
        match (result, inputs.as_slice()) {
            (Ok(()), _) => {}
            (Err(GenerateError::Device(fault)), _) => return Err(fault),
            (Err(error), [(only, _)]) => self.running[*only].fail(error),
            (Err(error), _) => {
                tracing::warn!(%error, "a step of {} answers failed; each runs by itself now", inputs.len());
                for input in &inputs {
                    match self.forward(std::slice::from_ref(input), 0.0) {
                        Ok(()) => {}
                        Err(GenerateError::Device(fault)) => return Err(fault),
                        Err(error) => self.running[input.0].fail(error),
                    }
                }
            }
        }
        self.release(|running| running.has_ended);
        Ok(())
    }

    fn decoding(&self) -> usize {
        self.running.iter().filter(|running| matches!(running.stage, Stage::Decode { .. })).count()
    }

    /// Guesses what follows in each answer: by what it says already, or else by the draft. Gives the seconds that the draft
    /// took.
    ///
    /// # Errors
    /// When the device failed. A draft that fails otherwise is let go.
    fn guess(&mut self) -> Result<f64, DeviceFault> {
        let decoding = self.decoding();
        let most = if self.guesses { (MOST_DECODED / decoding.max(1)).saturating_sub(1) } else { 0 };
        let tries_draft = self.draft.is_some() && most > 0 && self.gain.tries_draft(decoding);
        let mut ahead = Vec::new();
        for running in &mut self.running {
            let Stage::Decode { answer, lookup, guess, sure, .. } = &mut running.stage else { continue };
            let room = running.job.context_len.saturating_sub(lookup.tokens().len());
            let most = if running.slot.rewinds() { most.min(room) } else { 0 };
            let may = |by| running.job.relief.guesses(by);
            *guess = lookup.guess(if may(Guesses::Lookup) { most } else { 0 }).to_vec();
            sure.clear();
            if let Some(slot) =
                running.draft.as_mut().filter(|_| guess.is_empty() && tries_draft && may(Guesses::Draft))
            {
                let (tokens, sampler) = (lookup.tokens(), answer.sampler().clone());
                ahead.push(Guessed { slot, tokens, sampler, most, guess, sure });
            }
        }
        let Some(draft) = self.draft.as_ref().filter(|_| !ahead.is_empty()) else { return Ok(0.0) };
        match draft.guess(ahead, decoding, &mut self.gain) {
            Ok(time) => Ok(time),
            Err(GenerateError::Device(fault)) => Err(fault),
            Err(error) => {
                tracing::warn!(%error, "the draft failed; answers go on without");
                self.let_draft_go();
                Ok(0.0)
            }
        }
    }

    /// What each answer runs next, by its index.
    fn inputs(&self) -> Vec<(usize, Vec<TokenId>)> {
        let mut left = if self.decoding() > 0 { PREFILL_BESIDE_DECODE } else { PREFILL_CHUNK };
        let input = |running: &Running| match &running.stage {
            // One token, or more where the cache could not be wound back to it.
            Stage::Decode { lookup, guess, .. } => [&lookup.tokens()[running.slot.len()..], guess].concat(),
            Stage::Prefill => {
                let rest = &running.job.prompt.tokens[running.slot.len()..];
                let chunk = &rest[..rest.len().min(left)];
                left -= chunk.len();
                chunk.to_vec()
            }
        };
        self.running.iter().map(input).enumerate().filter(|(_, input)| !input.is_empty()).collect()
    }

    /// Runs `inputs` in one pass, and lets each answer take its logits; `drafting`: the seconds that the draft took for it.
    fn forward(&mut self, inputs: &[(usize, Vec<TokenId>)], drafting: f64) -> Result<(), GenerateError> {
        let started = Instant::now();
        let mut running: Vec<&mut Running> = self
            .running
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| inputs.iter().any(|(wanted, _)| wanted == index))
            .map(|(_, running)| running)
            .collect();
        let mut parts: Vec<Part<'_>> = running
            .iter_mut()
            .zip(inputs)
            .map(|(running, (_, tokens))| Part { tokens, logits: running.guessed() + 1, cache: running.slot.cache() })
            .collect();
        let model = &self.model;
        let logits = kernels::step(|| Ok(model.forward(&mut parts)?.to_vec2::<f32>()?));
        let mut logits: Vec<Vec<f32>> = match logits {
            Ok(logits) => logits,
            Err(error) => {
                running.iter_mut().for_each(|running| running.slot.undo());
                return Err(error);
            }
        };
        let is_prefill = running.iter().any(|running| matches!(running.stage, Stage::Prefill));
        let (answers, rows) = (running.len(), logits.len());
        let (mut guessed, mut right) = (0, 0);
        let mut logits = logits.as_mut_slice();
        for (running, (_, tokens)) in running.into_iter().zip(inputs) {
            let (own, others) = logits.split_at_mut(running.guessed() + 1);
            logits = others;
            running.slot.extend(tokens);
            if let Err(error) = running.take(own) {
                running.fail(error);
            }
            if let Stage::Decode { guess, sure, .. } = &running.stage
                && !sure.is_empty()
            {
                // Only those that were right are left.
                (guessed, right) = (guessed + sure.len(), right + guess.len());
                self.gain.note_guesses(sure, guess.len());
            }
        }
        let time = started.elapsed().as_secs_f64();
        if is_prefill {
            self.gain.note_prefill(time);
        } else {
            self.gain.note_pass(rows, time);
        }
        if drafting > 0.0 {
            self.gain.note_drafted(answers, drafting, guessed, right);
        }
        Ok(())
    }

    /// Frees the slots of the answers of which `is_done` is true.
    pub(super) fn release(&mut self, is_done: impl Fn(&Running) -> bool) {
        let mut index = 0;
        while index < self.running.len() {
            if is_done(&self.running[index]) {
                let Running { slot, draft, .. } = self.running.remove(index);
                self.free.put(slot);
                if let Some((of, slot)) = self.draft.as_mut().zip(draft) {
                    of.free.put(slot);
                }
            } else {
                index += 1;
            }
        }
    }
}

impl Running {
    /// Tokens at the end of what is run that may be wrong.
    fn guessed(&self) -> usize {
        match &self.stage {
            Stage::Decode { guess, .. } => guess.len(),
            Stage::Prefill => 0,
        }
    }

    /// Takes the logits after what was run: nothing but progress in the middle of a prompt, else the next token, and one
    /// more for each guess that was right.
    fn take(&mut self, logits: &mut [Vec<f32>]) -> Result<(), GenerateError> {
        if let Stage::Prefill = self.stage {
            let (done, total) = (self.slot.len(), self.job.prompt.tokens.len());
            self.job.progress(Progress::Prefill { done, total });
            if done < total {
                return Ok(());
            }
            self.slot.checkpoint();
            let prefill = self.prefill_started.elapsed();
            let (answer, ended) = Answer::begin(&self.job)?;
            let lookup = Lookup::new(&self.job.prompt.tokens);
            let (guess, sure) = (Vec::new(), Vec::new());
            self.stage = Stage::Decode { answer: Box::new(answer), prefill, lookup, guess, sure };
            if let Some(reason) = ended {
                return self.finish(reason);
            }
        }
        let Stage::Decode { answer, lookup, guess, sure, .. } = &mut self.stage else { return Ok(()) };
        let (mut right, mut ended) = (0, None);
        for logits in logits {
            let draw = answer.draw(logits)?;
            let token = draw.token;
            ended = answer.take(&self.job, draw)?;
            lookup.push(token);
            if ended.is_some() || guess.get(right) != Some(&token) {
                break;
            }
            right += 1;
        }
        if sure.is_empty() {
            lookup.judge(guess.len(), right);
        }
        answer.note_guessed(right);
        let wrong = guess.split_off(right).len();
        if wrong > 0 {
            self.slot.keep(self.slot.len() - wrong);
        }
        ended.map_or(Ok(()), |reason| self.finish(reason))
    }

    fn finish(&mut self, reason: FinishReason) -> Result<(), GenerateError> {
        self.has_ended = true;
        match &mut self.stage {
            Stage::Decode { answer, prefill, .. } => answer.finish(&self.job, reason, self.cached, *prefill),
            Stage::Prefill => Ok(()),
        }
    }

    fn fail(&mut self, error: GenerateError) {
        self.job.fail(error);
        self.has_ended = true;
    }
}
