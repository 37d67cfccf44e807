//! The compute thread: it owns the model and its slots, and moves all running answers on together, step by step, in plain
//! synchronous code.

mod resident;

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use chat::{Bytes, ChatEvent, Progress, SamplingParams, Written};
use tokio::sync::{mpsc, oneshot, watch};

use self::resident::{Resident, Running, Stage};
use crate::condition::{Notes, NotesDeath};
use crate::device::KvType;
use crate::draft::{DraftFile, DraftModel};
use crate::gain::Gain;
use crate::handle::{EngineConfig, LoadedModel, Unloaded};
use crate::header::Footprint;
use crate::model_text::{ModelFile, ModelText, Prompt, TextCache};
use crate::models::Loaded;
use crate::relief::Relief;
use crate::sampling::{Constraint, Sampler};
use crate::saved_caches::CacheFolder;
use crate::slot::FreeSlots;
use crate::wiring::{WiredWeights, Wiring};
use crate::{GenerateError, LoadError, device, models};

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
    pub(crate) notes: Notes,
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

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, config: &EngineConfig, loader: Loader) -> Self {
        Self {
            shared,
            idle_unload: config.idle_unload,
            wiring: config.wiring.clone(),
            own_footprint: config.own_footprint,
            cache_folder: config.cache_dir.clone().map(|path| CacheFolder::new(path, config.cache_dir_limit)),
            loader,
            waiting: VecDeque::new(),
            resident: None,
            idle_since: Instant::now(),
        }
    }

    /// Serves commands until it is told to stop, or nobody can send any more and all is done.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        let shared = self.shared.clone();
        let _notes = NotesDeath(&shared.notes);
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

    fn most_slots(&self) -> usize {
        self.shared.notes.slots.load(Ordering::Relaxed)
    }

    fn is_running(&self) -> bool {
        self.resident.as_ref().is_some_and(|resident| !resident.running.is_empty())
    }

    /// Whether `job` can run beside what runs: with the same model, in a slot of its own, and with all caches within its
    /// budget. Alone it always can; what fits was decided before.
    fn has_room_for(&mut self, job: &Job) -> bool {
        let most_slots = self.most_slots();
        let Some(resident) = self.resident.as_mut().filter(|resident| !resident.running.is_empty()) else {
            return true;
        };
        if !resident.is_of(&job.text.file, job.kv_type) || resident.running.len() >= most_slots {
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
        let most_slots = self.most_slots();
        self.resident_for(&job.text.file, job.context_len, job.kv_type, &job.events)?;
        self.set_draft(&job)?;
        let resident = self.resident.as_mut().expect("it was loaded above");
        resident.recall(&job, most_slots);
        // There may have been more slots before.
        while resident.running.len() + resident.free.len() > most_slots && resident.free.forget_one() {}
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
            let loading = self.shared.notes.begin_loading();
            let loaded = (self.loader)(file, &mut on_progress);
            self.shared.notes.note_load(loaded.is_ok());
            drop(loading);
            let Loaded { model, in_use } = loaded?;
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
