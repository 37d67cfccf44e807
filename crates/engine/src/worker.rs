//! The compute thread: it owns the model and its slot, and runs one request after another in plain synchronous code.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::Device;
use chat::{Bytes, ChatEvent, Finish, FinishReason, Progress, SamplingParams, Timings, Usage};
use tokio::sync::{mpsc, oneshot};

use crate::answer_text::AnswerText;
use crate::handle::LoadedModel;
use crate::model_text::{ModelText, Prompt, TextCache};
use crate::models::Model;
use crate::sampling::Sampler;
use crate::slot::Slot;
use crate::{GenerateError, LoadError, device, models};

/// Prompt tokens that run at once: a request that is cancelled waits for no more than these.
pub(crate) const PREFILL_CHUNK: usize = 256;

pub(crate) type EventSender = mpsc::UnboundedSender<Result<ChatEvent, GenerateError>>;

/// Turns a file's weights into a model; another one in tests.
pub(crate) type Loader =
    Box<dyn FnMut(&ModelText, &mut dyn FnMut(Bytes, Bytes)) -> Result<Box<dyn Model>, LoadError> + Send>;

/// What the compute thread is told to do.
pub(crate) enum Command {
    Generate(Box<Job>),
    Unload(oneshot::Sender<()>),
    ShutDown(oneshot::Sender<()>),
}

/// One request, with its prompt made.
pub(crate) struct Job {
    pub(crate) text: Arc<ModelText>,
    pub(crate) prompt: Prompt,
    pub(crate) context_len: usize,
    pub(crate) sampling: SamplingParams,
    pub(crate) accepted: Instant,
    /// Unbounded, since a slow reader must not stall the other requests; an answer is bounded by its context.
    pub(crate) events: EventSender,
    /// Given back before the last event, so that whoever reads that one and asks again is not told to wait.
    pub(crate) queued: Cell<Option<Queued>>,
}

/// What the threads and the handles share.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) loaded: Mutex<Option<LoadedModel>>,
    pub(crate) texts: TextCache,
    pub(crate) waiting: Arc<AtomicUsize>,
    pub(crate) stopping: AtomicBool,
}

/// A place in the queue, given back when it is dropped.
pub(crate) struct Queued(Arc<AtomicUsize>);

impl Queued {
    /// Takes a place; gives it with the number of requests before it.
    pub(crate) fn enter(waiting: &Arc<AtomicUsize>) -> (Self, usize) {
        let ahead = waiting.fetch_add(1, Ordering::Relaxed);
        (Self(waiting.clone()), ahead)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The loader of the real engine.
pub(crate) fn device_loader() -> Loader {
    let mut device: Option<Device> = None;
    Box::new(move |text, on_progress| models::load(&text.gguf, device.get_or_insert_with(device::open), on_progress))
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    idle_unload: Option<Duration>,
    loader: Loader,
    resident: Option<Resident>,
}

/// The model that is in memory.
struct Resident {
    text: Arc<ModelText>,
    model: Box<dyn Model>,
    slot: Slot,
}

impl Worker {
    pub(crate) const fn new(shared: Arc<Shared>, idle_unload: Option<Duration>, loader: Loader) -> Self {
        Self { shared, idle_unload, loader, resident: None }
    }

    /// Serves commands until it is told to stop or nobody can send any more.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let command = match self.idle_unload.filter(|_| self.resident.is_some()) {
                Some(idle) => commands.recv_timeout(idle),
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match command {
                Ok(Command::Generate(job)) => self.generate_or_recover(*job),
                Ok(Command::Unload(done)) => {
                    self.unload();
                    // Whoever asked may have gone.
                    let _ = done.send(());
                }
                Ok(Command::ShutDown(done)) => {
                    self.unload();
                    let _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {
                    tracing::info!("unloading the idle model");
                    self.unload();
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.unload();
                    return;
                }
            }
        }
    }

    /// Ends one request, come what may: a panic costs this request and the loaded model, not the thread.
    fn generate_or_recover(&mut self, job: Job) {
        let events = job.events.clone();
        let result = catch_unwind(AssertUnwindSafe(|| self.generate(job))).unwrap_or_else(|_| {
            tracing::error!("the engine panicked in a request; the model is unloaded");
            self.unload();
            Err(GenerateError::Crashed)
        });
        if let Err(error) = result {
            // Whoever asked may have gone.
            let _ = events.send(Err(error));
        }
    }

    fn generate(&mut self, job: Job) -> Result<(), GenerateError> {
        let shared = self.shared.clone();
        let is_cancelled = || job.events.is_closed() || shared.stopping.load(Ordering::Relaxed);
        let prompt = &job.prompt.tokens;
        if prompt.len() >= job.context_len {
            return Err(GenerateError::ContextFull { prompt_tokens: prompt.len(), context_len: job.context_len });
        }
        if is_cancelled() {
            return Ok(());
        }
        let resident = self.resident_for(&job)?;
        let cached = resident.slot.reuse_prefix(prompt);
        let prefill_started = Instant::now();
        let mut logits = None;
        while resident.slot.len() < prompt.len() {
            if is_cancelled() {
                return Ok(());
            }
            let done = resident.slot.len();
            job.progress(Progress::Prefill { done, total: prompt.len() });
            let chunk = &prompt[done..prompt.len().min(done + PREFILL_CHUNK)];
            logits = Some(resident.slot.forward(resident.model.as_ref(), chunk)?);
        }
        // The prefix that is reused is shorter than the prompt, so the loop ran.
        let mut logits = logits.expect("a prompt has a last token").to_vec1::<f32>()?;
        job.progress(Progress::Prefill { done: prompt.len(), total: prompt.len() });
        let prefilled = Instant::now();

        let mut answer = Answer::new(&job);
        loop {
            if is_cancelled() {
                return Ok(());
            }
            let Some(token) = answer.sampler.sample(&mut logits) else {
                return Err(candle_core::Error::Msg("the model computed no numbers".to_owned()).into());
            };
            if let Some(reason) = answer.take(&job, token) {
                answer.finish(&job, reason, cached, prefilled.duration_since(prefill_started));
                return Ok(());
            }
            logits = resident.slot.forward(resident.model.as_ref(), &[token])?.to_vec1::<f32>()?;
        }
    }

    /// The model that the job asks for, loaded where it isn't.
    fn resident_for(&mut self, job: &Job) -> Result<&mut Resident, GenerateError> {
        if self.resident.as_ref().is_none_or(|resident| !resident.text.is_same_file(&job.text)) {
            // First out, then in: two models at once may not fit.
            self.forget_model();
            let mut on_progress = |done, total| job.progress(Progress::Loading { done, total });
            let model = (self.loader)(&job.text, &mut on_progress)?;
            let slot = Slot::new(model.as_ref());
            self.resident = Some(Resident { text: job.text.clone(), model, slot });
        }
        let header = &job.text.header;
        let loaded = LoadedModel {
            path: PathBuf::from(&header.path),
            context_len: job.context_len,
            footprint: header.footprint(job.context_len),
        };
        *self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(loaded);
        Ok(self.resident.as_mut().expect("it was set above"))
    }

    fn forget_model(&mut self) {
        self.resident = None;
        *self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn unload(&mut self) {
        let held_something = self.resident.is_some();
        self.forget_model();
        self.shared.texts.clear();
        if held_something {
            give_memory_back();
        }
    }
}

impl Job {
    fn progress(&self, progress: Progress) {
        self.send(ChatEvent::Progress(progress));
    }

    /// Whoever asked may have gone; the next step notices.
    fn send(&self, event: ChatEvent) {
        let _ = self.events.send(Ok(event));
    }
}

/// The answer as far as it is written.
struct Answer {
    sampler: Sampler,
    detokenizer: crate::tokenizer::Detokenizer,
    text: AnswerText,
    most_tokens: usize,
    completion_tokens: usize,
    first_token: Option<Instant>,
    first_visible: Option<Instant>,
    last_token: Option<Instant>,
}

impl Answer {
    fn new(job: &Job) -> Self {
        let room = job.context_len - job.prompt.tokens.len();
        Self {
            sampler: Sampler::new(&job.sampling, &job.text.sampling, fresh_seed()),
            detokenizer: job.text.tokenizer.detokenizer(),
            text: AnswerText::new(&job.sampling.stop, job.prompt.starts_thinking),
            most_tokens: job.sampling.max_tokens.map_or(room, |most| most.min(room)),
            completion_tokens: 0,
            first_token: None,
            first_visible: None,
            last_token: None,
        }
    }

    /// Takes a drawn token; gives the reason where it is the last.
    fn take(&mut self, job: &Job, token: models::TokenId) -> Option<FinishReason> {
        if job.text.tokenizer.ends_generation(token) {
            return Some(FinishReason::Stop);
        }
        if self.completion_tokens >= self.most_tokens {
            return Some(FinishReason::Length);
        }
        let now = Instant::now();
        self.completion_tokens += 1;
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        let text = self.detokenizer.push(job.text.tokenizer.piece(token));
        let events = self.text.push(&text);
        self.send(job, events);
        if self.text.is_stopped() {
            return Some(FinishReason::Stop);
        }
        (self.completion_tokens >= self.most_tokens).then_some(FinishReason::Length)
    }

    fn finish(&mut self, job: &Job, reason: FinishReason, cached: usize, prefill: Duration) {
        let rest = self.detokenizer.finish();
        let mut events = self.text.push(&rest);
        events.extend(self.text.finish());
        self.send(job, events);
        let reason = if self.text.is_stopped() { FinishReason::Stop } else { reason };
        let prompt_tokens = job.prompt.tokens.len();
        let per_second =
            |tokens: usize, time: Duration| (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64());
        let decode_time = self.first_token.zip(self.last_token).map_or(Duration::ZERO, |(first, last)| last - first);
        drop(job.queued.take());
        job.send(ChatEvent::Finished(Finish {
            reason,
            usage: Some(Usage { prompt_tokens, cached_tokens: cached, completion_tokens: self.completion_tokens }),
            timings: Timings {
                ttft: self.first_visible.map(|first| first - job.accepted),
                prefill_tokens_per_sec: per_second(prompt_tokens - cached, prefill),
                decode_tokens_per_sec: per_second(self.completion_tokens.saturating_sub(1), decode_time),
            },
        }));
    }

    fn send(&mut self, job: &Job, events: Vec<ChatEvent>) {
        if !events.is_empty() {
            self.first_visible.get_or_insert_with(Instant::now);
        }
        for event in events {
            job.send(event);
        }
    }
}

/// A seed that nobody chose: the process's hash keys are random, and differ from call to call.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// Freed memory goes back to the system now, not when the allocator finds it convenient.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "glibc's only way to return free memory")]
        // SAFETY: `malloc_trim` takes no pointer and may be called at any time from any thread.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
