//! The compute thread: it owns the model and its slots, and moves all running answers on together, step by step, in plain
//! synchronous code.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use chat::{Bytes, ChatEvent, FinishReason, Progress, SamplingParams, Written};
use tokio::sync::{mpsc, oneshot, watch};

use crate::answer::Answer;
use crate::device::KvType;
use crate::draft::{DraftFile, DraftModel, Guessed};
use crate::gain::{Gain, MOST_DECODED};
use crate::handle::{EngineConfig, LoadedModel, Unloaded};
use crate::header::Footprint;
use crate::lookup::Lookup;
use crate::model_text::{ModelFile, ModelText, Prompt, TextCache};
use crate::models::{Loaded, Model, Part, TokenId};
use crate::relief::{Guesses, Relief};
use crate::sampling::{Constraint, Sampler};
use crate::saved_caches::{CacheFolder, LEAST_SAVED, SavedCaches};
use crate::slot::{FreeSlots, Slot};
use crate::wiring::{WiredWeights, Wiring};
use crate::{DeviceFault, GenerateError, LoadError, device, models};

/// Prompt tokens that run at once: a request that is cancelled waits for no more than these.
pub(crate) const PREFILL_CHUNK: usize = 256;
/// The same while answers are being written, which wait for these between two of their tokens.
const PREFILL_BESIDE_DECODE: usize = 64;

pub(crate) type EventSender = mpsc::UnboundedSender<Result<ChatEvent, GenerateError>>;

/// Turns a file's weights into a model; another one in tests.
pub(crate) type Loader = Box<dyn FnMut(&ModelFile, &mut dyn FnMut(Bytes, Bytes)) -> Result<Loaded, LoadError> + Send>;

/// What the compute thread is told to do.
pub(crate) enum Command {
    Load(Box<Ahead>),
    Generate(Box<Job>),
    Unload(oneshot::Sender<Option<Unloaded>>),
    ForgetCaches(oneshot::Sender<()>),
    TrimCaches(oneshot::Sender<()>),
    ShutDown(oneshot::Sender<()>),
}

/// A model for which a request is on its way: its weights can be loaded while the prompt is made.
pub(crate) struct Ahead {
    pub(crate) file: Arc<ModelFile>,
    pub(crate) context_len: usize,
    pub(crate) kv_type: KvType,
    /// Of whoever asked.
    pub(crate) events: EventSender,
}

/// One request, with its prompt made.
pub(crate) struct Job {
    pub(crate) text: Arc<ModelText>,
    pub(crate) prompt: Prompt,
    pub(crate) context_len: usize,
    pub(crate) kv_type: KvType,
    /// A smaller model that guesses.
    pub(crate) draft: Option<DraftFile>,
    /// What the caches of all answers together may take; `None` is no limit.
    pub(crate) cache_budget: Option<Bytes>,
    pub(crate) sampling: SamplingParams,
    /// What was told of the answer elsewhere.
    pub(crate) written: Written,
    pub(crate) tells_tokens: bool,
    pub(crate) sampler: Sampler,
    /// Taken when the answer begins.
    pub(crate) constraint: Cell<Option<Constraint>>,
    pub(crate) accepted: Instant,
    /// Unbounded, since a slow reader must not stall the other requests; an answer is bounded by its context.
    pub(crate) events: EventSender,
    pub(crate) relief: Arc<Relief>,
    /// Given back before the last event, so that whoever reads that one and asks again is not told to wait.
    pub(crate) queued: Cell<Option<Queued>>,
}

/// What the threads and the handles share.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) loaded: Mutex<Option<LoadedModel>>,
    pub(crate) unloaded: watch::Sender<Option<Unloaded>>,
    pub(crate) texts: TextCache,
    pub(crate) waiting: Arc<AtomicUsize>,
    pub(crate) stopping: AtomicBool,
    pub(crate) relief: Arc<Relief>,
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
    Box::new(|file, on_progress| models::load(&file.gguf, &device::open(), on_progress))
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    idle_unload: Option<Duration>,
    wiring: Option<Wiring>,
    own_footprint: fn() -> Option<Bytes>,
    most_slots: usize,
    cache_folder: Option<CacheFolder>,
    loader: Loader,
    waiting: VecDeque<Waiting>,
    resident: Option<Resident>,
    /// The end of the last step, or of what else there was to do.
    idle_since: Instant,
}

/// What is done in the order in which it was asked for.
enum Waiting {
    Ahead(Box<Ahead>),
    Job(Box<Job>),
    Unload(oneshot::Sender<Option<Unloaded>>),
}

/// The model that is in memory, and what it runs.
struct Resident {
    file: Arc<ModelFile>,
    kv_type: KvType,
    wired: Option<WiredWeights>,
    model: Box<dyn Model>,
    running: Vec<Running>,
    free: FreeSlots,
    guesses: bool,
    gain: Gain,
    draft: Option<DraftModel>,
    /// The last that was asked for. It stays out of memory once it was let go.
    draft_file: Option<PathBuf>,
    /// Of earlier times when the model was in memory.
    saved: Option<SavedCaches>,
}

/// One answer on its way.
struct Running {
    job: Box<Job>,
    slot: Slot,
    /// The draft's, where there is one.
    draft: Option<Slot>,
    /// Prompt tokens that were in the slot already.
    cached: usize,
    prefill_started: Instant,
    stage: Stage,
    has_ended: bool,
}

enum Stage {
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

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, config: &EngineConfig, loader: Loader) -> Self {
        Self {
            shared,
            idle_unload: config.idle_unload,
            wiring: config.wiring.clone(),
            own_footprint: config.own_footprint,
            most_slots: config.slots.max(1),
            cache_folder: config.cache_dir.clone().map(|path| CacheFolder::new(path, config.cache_dir_limit)),
            loader,
            waiting: VecDeque::new(),
            resident: None,
            idle_since: Instant::now(),
        }
    }

    /// Serves commands until it is told to stop, or nobody can send any more and all is done.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        if let Some(folder) = &self.cache_folder {
            folder.tidy(SystemTime::now());
        }
        loop {
            let received = if self.is_idle() {
                match self.next_rest() {
                    Some(idle) => commands.recv_timeout(idle.saturating_sub(self.idle_since.elapsed())),
                    None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                }
            } else {
                // Between two steps only what is there already is looked at.
                commands.try_recv().map_err(|error| match error {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            };
            match received {
                Ok(Command::Load(ahead)) => self.waiting.push_back(Waiting::Ahead(ahead)),
                Ok(Command::Generate(job)) => self.waiting.push_back(Waiting::Job(job)),
                Ok(Command::Unload(done)) => self.waiting.push_back(Waiting::Unload(done)),
                Ok(Command::ForgetCaches(done)) => {
                    self.forget_caches();
                    let _ = done.send(());
                }
                Ok(Command::TrimCaches(done)) => {
                    self.trim_caches();
                    let _ = done.send(());
                }
                Ok(Command::ShutDown(done)) => {
                    self.unload(None);
                    // Whoever asked may have gone.
                    let _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) if self.is_idle() => self.rest(),
                Err(RecvTimeoutError::Disconnected) if self.is_idle() => {
                    self.unload(None);
                    return;
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.work(),
            }
        }
    }

    /// How long after the last step there is something to give back.
    fn next_rest(&self) -> Option<Duration> {
        let resident = self.resident.as_ref()?;
        let kept = resident.wired.as_ref().filter(|wired| wired.is_kept());
        let release = kept.and(self.wiring.as_ref()).map(|wiring| wiring.release_after);
        release.into_iter().chain(self.idle_unload).min()
    }

    /// Gives back what was not needed for long enough: the hold on the weights first, then the model.
    fn rest(&mut self) {
        let idle = self.idle_since.elapsed();
        let wired = self.resident.as_mut().and_then(|resident| resident.wired.as_mut());
        if let (Some(wired), Some(wiring)) = (wired, &self.wiring)
            && idle >= wiring.release_after
        {
            wired.release();
        }
        if self.idle_unload.is_some_and(|unload| idle >= unload) {
            self.unload(None);
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.resident.as_ref().is_none_or(|resident| resident.running.is_empty())
    }

    /// One step, come what may: a panic costs what runs and the loaded model, not the thread.
    fn work(&mut self) {
        let began = Instant::now();
        let worked = catch_unwind(AssertUnwindSafe(|| {
            self.admit();
            let is_stopping = self.shared.stopping.load(Ordering::Relaxed);
            self.resident.as_mut().map_or(Ok(()), |resident| resident.step(is_stopping))
        }));
        match worked {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => self.start_anew(|| GenerateError::Device(fault)),
            Err(_) => self.start_anew(|| GenerateError::Crashed),
        }
        self.note_caches();
        if let Some(step) = self.shared.relief.step().filter(|_| self.is_running()) {
            thread::sleep(step.saturating_sub(began.elapsed()));
        }
        self.idle_since = Instant::now();
    }

    fn note_caches(&self) {
        let Some(resident) = &self.resident else { return self.shared.relief.set_caches(Bytes::ZERO, Bytes::ZERO) };
        let sum = |bytes: &mut dyn Iterator<Item = Bytes>| bytes.fold(Bytes::ZERO, Bytes::saturating_add);
        let idle = resident.free.allocated();
        let running = sum(&mut resident.running.iter().map(|running| running.slot.allocated()));
        let drafts = resident.running.iter().filter_map(|running| Some(running.draft.as_ref()?.allocated()));
        let drafts = sum(&mut drafts.chain(resident.draft.as_ref().map(|draft| draft.free.allocated())));
        let weights = resident.draft.as_ref().map_or(Bytes::ZERO, DraftModel::weights);
        let caches = sum(&mut [idle, running, drafts].into_iter());
        self.shared.relief.set_caches(caches, sum(&mut [idle, drafts, weights].into_iter()));
    }

    /// Gives back the memory of the draft, which answers do without, and of the caches that no answer is written with now;
    /// they go on in files, where those are kept.
    fn trim_caches(&mut self) {
        if let Some(resident) = &mut self.resident {
            resident.let_draft_go();
            resident.save_free();
            resident.free = FreeSlots::default();
            give_memory_back();
        }
        self.note_footprint();
        self.note_caches();
    }

    /// Ends what runs with `error`, and begins again without a model and on a device that is opened anew.
    fn start_anew(&mut self, error: impl Fn() -> GenerateError) {
        tracing::error!(error = %error(), "the engine failed in a step; the model is unloaded");
        let ended: Vec<Running> = self.resident.iter_mut().flat_map(|resident| resident.running.drain(..)).collect();
        // First what is told, so that whoever hears of it finds it so.
        self.discard(None);
        device::forget();
        ended.iter().for_each(|running| running.job.fail(error()));
    }

    /// Starts what waits, in its order, as far as there is room.
    fn admit(&mut self) {
        while let Some(first) = self.waiting.pop_front() {
            match first {
                Waiting::Unload(done) if self.is_running() => {
                    return self.waiting.push_front(Waiting::Unload(done));
                }
                Waiting::Unload(done) => {
                    // Whoever asked may have gone.
                    let _ = done.send(self.unload(None));
                }
                Waiting::Ahead(ahead) => self.load_ahead(&ahead),
                Waiting::Job(job) if job.is_cancelled() || self.shared.stopping.load(Ordering::Relaxed) => {}
                Waiting::Job(job) => {
                    if !self.has_room_for(&job) {
                        return self.waiting.push_front(Waiting::Job(job));
                    }
                    // Kept out of the way of a panic, so that it can be told.
                    let events = job.events.clone();
                    let started = catch_unwind(AssertUnwindSafe(|| self.start(job)));
                    let error = match started {
                        Ok(result) => result.err(),
                        Err(_) => Some(GenerateError::Crashed),
                    };
                    match &error {
                        Some(GenerateError::Device(fault)) => self.start_anew(|| GenerateError::Device(*fault)),
                        Some(GenerateError::Crashed) => self.start_anew(|| GenerateError::Crashed),
                        _ => {}
                    }
                    if let Some(error) = error {
                        // Whoever asked may have gone.
                        let _ = events.send(Err(error));
                    }
                }
            }
        }
    }

    fn is_running(&self) -> bool {
        self.resident.as_ref().is_some_and(|resident| !resident.running.is_empty())
    }

    /// Whether `job` can run beside what runs: with the same model, in a slot of its own, and with all caches within its
    /// budget. Alone it always can; what fits was decided before.
    fn has_room_for(&mut self, job: &Job) -> bool {
        let Some(resident) = self.resident.as_mut().filter(|resident| !resident.running.is_empty()) else {
            return true;
        };
        if !resident.is_of(&job.text.file, job.kv_type) || resident.running.len() >= self.most_slots {
            return false;
        }
        let Some(budget) = job.cache_budget else { return true };
        let of = |job: &Job| {
            let draft = job.draft.as_ref().map_or(0, |draft| draft.footprint.kv_cache.0);
            job.text.file.header.footprint(job.context_len, job.kv_type).kv_cache.0.saturating_add(draft)
        };
        let needed: u64 = resident.running.iter().map(|running| of(&running.job)).sum::<u64>().saturating_add(of(job));
        while needed.saturating_add(resident.free.allocated().0) > budget.0 && resident.free.forget_one() {}
        needed <= budget.0
    }

    fn start(&mut self, job: Box<Job>) -> Result<(), GenerateError> {
        let prompt = &job.prompt.tokens;
        if prompt.len() >= job.context_len {
            return Err(GenerateError::ContextFull { prompt_tokens: prompt.len(), context_len: job.context_len });
        }
        let most_slots = self.most_slots;
        self.resident_for(&job.text.file, job.context_len, job.kv_type, &job.events)?;
        self.set_draft(&job)?;
        let resident = self.resident.as_mut().expect("it was loaded above");
        resident.recall(&job, most_slots);
        let room_for_more = resident.running.len() + resident.free.len() < most_slots;
        let in_use = resident.running.iter().map(|running| &running.slot);
        let empty = || resident.model.new_cache(job.kv_type);
        let slot = resident.free.take(empty, prompt, in_use, room_for_more)?;
        let draft = match &mut resident.draft {
            Some(draft) => {
                let in_use = resident.running.iter().filter_map(|running| running.draft.as_ref());
                let room_for_more = resident.running.len() + draft.free.len() < most_slots;
                Some(draft.slot(prompt, job.kv_type, in_use, room_for_more)?)
            }
            None => None,
        };
        let cached = slot.len();
        job.progress(Progress::Prefill { done: cached, total: job.prompt.tokens.len() });
        let prefill_started = Instant::now();
        let stage = Stage::Prefill;
        resident.running.push(Running { job, slot, draft, cached, prefill_started, stage, has_ended: false });
        Ok(())
    }

    /// Loads a model whose request is on its way, unless another one would have to go: the request may turn out to make no
    /// sense. What is wrong with the model is told to the request when it comes.
    fn load_ahead(&mut self, ahead: &Ahead) {
        if self.resident.is_some() || ahead.events.is_closed() || self.shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        let Ahead { file, context_len, kv_type, events } = ahead;
        if let Err(GenerateError::Device(fault)) = self.resident_for(file, *context_len, *kv_type, events) {
            self.start_anew(|| GenerateError::Device(fault));
        }
    }

    /// Takes the draft that the job asks for into memory, and lets another one go.
    fn set_draft(&mut self, job: &Job) -> Result<(), LoadError> {
        let Some(resident) = &mut self.resident else { return Ok(()) };
        let set = resident.set_draft(job, &mut self.loader);
        self.note_footprint();
        set
    }

    fn note_footprint(&self) {
        let Some(resident) = &self.resident else { return };
        let draft = resident.draft.as_ref().map_or(Footprint::default(), DraftModel::footprint);
        let mut loaded = self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = loaded.as_mut() {
            loaded.footprint = resident.file.header.footprint(loaded.context_len, resident.kv_type).with(draft);
        }
    }

    /// The model of `file`, loaded where it isn't.
    fn resident_for(
        &mut self,
        file: &Arc<ModelFile>,
        context_len: usize,
        kv_type: KvType,
        events: &EventSender,
    ) -> Result<&mut Resident, GenerateError> {
        if self.resident.as_ref().is_none_or(|resident| !resident.is_of(file, kv_type)) {
            // First out, then in: two models at once may not fit.
            self.unload(Some(file));
            let mut on_progress = |done, total| {
                // Whoever asked may have gone; the next step notices.
                let _ = events.send(Ok(ChatEvent::Progress(Progress::Loading { done, total })));
            };
            let Loaded { model, in_use } = (self.loader)(file, &mut on_progress)?;
            let pieces = self.wiring.as_ref().and_then(|wiring| Some((wiring, in_use.pieces(&device::open())?)));
            let wired = pieces.map(|(wiring, pieces)| WiredWeights::new(wiring, pieces));
            let file = file.clone();
            let saved = self.cache_folder.as_ref().map(|folder| folder.of_model(&file.gguf, kv_type));
            self.resident = Some(Resident {
                file,
                kv_type,
                wired,
                model,
                running: Vec::new(),
                free: FreeSlots::default(),
                guesses: device::open().is_cpu(),
                gain: Gain::new(),
                draft: None,
                draft_file: None,
                saved,
            });
        }
        let header = &file.header;
        let footprint = header.footprint(context_len, kv_type);
        let loaded = LoadedModel { path: PathBuf::from(&header.path), context_len, footprint };
        *self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(loaded);
        Ok(self.resident.as_mut().expect("it was set above"))
    }

    /// Keeps the caches of the model that is loaded, and gives its memory back, and that of all text parts but that of
    /// `next`. What runs ends here, without a word.
    fn unload(&mut self, next: Option<&ModelFile>) -> Option<Unloaded> {
        self.save_caches();
        self.discard(next)
    }

    /// [`Self::unload`] without keeping anything: after a bug nothing of it is worth it.
    fn discard(&mut self, next: Option<&ModelFile>) -> Option<Unloaded> {
        let before = self.resident.as_ref().and_then(|_| (self.own_footprint)());
        let resident = self.resident.take();
        *self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.note_caches();
        self.shared.texts.clear(next);
        let path = resident.as_ref()?.file.header.path.clone();
        drop(resident);
        give_memory_back();
        let given_back = before.zip((self.own_footprint)()).map(|(before, after)| before.saturating_sub(after));
        let unloaded = Unloaded { path, given_back };
        self.shared.unloaded.send_replace(Some(unloaded.clone()));
        Some(unloaded)
    }

    /// Forgets the caches that no answer is written with now, in memory and on disk.
    fn forget_caches(&mut self) {
        if let Some(folder) = &self.cache_folder {
            folder.clear();
        }
        if let Some(resident) = &mut self.resident {
            resident.free = FreeSlots::default();
            if let Some(draft) = &mut resident.draft {
                draft.free = FreeSlots::default();
            }
            resident.saved =
                self.cache_folder.as_ref().map(|folder| folder.of_model(&resident.file.gguf, resident.kv_type));
        }
    }

    fn save_caches(&mut self) {
        if let Some(resident) = &mut self.resident {
            resident.release(|_| true);
            resident.save_free();
        }
    }
}

impl Resident {
    /// Whether it is the model of `file`, with its caches kept so.
    fn is_of(&self, file: &ModelFile, kv_type: KvType) -> bool {
        self.file.is_same_as(file) && self.kv_type == kv_type
    }

    /// Takes the draft that the job asks for into memory, and lets another one go.
    fn set_draft(&mut self, job: &Job, loader: &mut Loader) -> Result<(), LoadError> {
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

    fn let_draft_go(&mut self) {
        self.running.iter_mut().for_each(|running| running.draft = None);
        self.draft = None;
    }

    fn save_free(&mut self) {
        if let Some(saved) = &mut self.saved {
            saved.save(self.free.iter().rev().map(Slot::content), SystemTime::now());
        }
    }

    /// Takes a cache out of its file where it has clearly more of the job's prompt than any slot; it becomes a free
    /// slot.
    fn recall(&mut self, job: &Job, most_slots: usize) {
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
    fn step(&mut self, is_stopping: bool) -> Result<(), DeviceFault> {
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
    fn release(&mut self, is_done: impl Fn(&Running) -> bool) {
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

impl Job {
    fn progress(&self, progress: Progress) {
        self.send(ChatEvent::Progress(progress));
    }

    /// Whoever asked may have gone; the next step notices.
    pub(crate) fn send(&self, event: ChatEvent) {
        let _ = self.events.send(Ok(event));
    }

    fn fail(&self, error: GenerateError) {
        let _ = self.events.send(Err(error));
    }

    fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }
}

/// Freed memory goes back to the system now, not when the allocators find it convenient.
fn give_memory_back() {
    // candle gives buffers on a GPU back when it has waited for what was asked of it.
    if let Err(error) = device::open().synchronize() {
        tracing::warn!(%error, "the device did not finish");
    }
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "glibc's only way to return free memory")]
        // SAFETY: `malloc_trim` takes no pointer and may be called at any time from any thread.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
