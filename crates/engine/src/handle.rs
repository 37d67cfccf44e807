use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use chat::{Bytes, ChatEvent, ChatRequest, Progress};
use futures::Stream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::condition::{Condition, NotesDeath, Occupancy};
use crate::device::{KvType, computes_on_gpu};
use crate::draft::DraftFile;
use crate::header::{Footprint, ModelHeader};
use crate::model_text::{ModelFile, ModelText};
use crate::relief::Guesses;
use crate::rendered::RenderedAnswer;
use crate::sampling::Sampler;
use crate::wiring::Wiring;
use crate::worker::{Ahead, Command, EventSender, Job, Loader, Queued, Shared, Worker, device_loader};
use crate::{GenerateError, LoadError};

/// How the engine runs.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Unload the model when nobody has asked for so long; `None` keeps it.
    pub idle_unload: Option<Duration>,
    /// Threads that compute; `None` is one for each core. The first engine of a process decides.
    pub threads: Option<usize>,
    /// Answers that are written at the same time, and conversations whose caches are kept. Default 4.
    pub slots: usize,
    /// Requests that may wait for those that are written; more are refused. Default 64.
    pub most_waiting: usize,
    /// Where the caches of conversations are kept while their model is not in memory; `None` forgets them.
    pub cache_dir: Option<PathBuf>,
    /// What the files there may take in all; the longest unused are removed. Nothing is written where less than twice
    /// as much is free. Default 1 GiB.
    pub cache_dir_limit: Bytes,
    /// Keeps the weights in RAM while answers are written; `None` leaves that to the system.
    pub wiring: Option<Wiring>,
    /// The memory that this process takes now, to measure what an unload gives back. `None` where it can't be read; the
    /// default reads nothing.
    pub own_footprint: fn() -> Option<Bytes>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            idle_unload: None,
            threads: None,
            slots: 4,
            most_waiting: 64,
            cache_dir: None,
            cache_dir_limit: Bytes(1 << 30),
            wiring: None,
            own_footprint: || None,
        }
    }
}

/// Which model is to answer, and how large its context may grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadSpec {
    /// A GGUF file, or the folder of a published model.
    pub path: PathBuf,
    /// Tokens of prompt and answer together; never more than the model was trained for.
    pub context_len: usize,
    /// How the cache is kept, in memory and on disk.
    pub kv_type: KvType,
    /// What guesses: the same text, sooner where it pays, as is measured meanwhile. Only where answers run on the CPU, and
    /// only where it fits beside the model.
    pub draft: Draft,
    /// What the caches of all answers that run together may take; more requests than that wait. `None` is no limit.
    pub cache_budget: Option<Bytes>,
    /// What the model and its cache may take in all, what they hold already included: a larger footprint is refused before
    /// anything is allocated for it. `None` is no limit.
    pub available: Option<Bytes>,
}

impl LoadSpec {
    /// The model of `path` alone, without limits, its cache as usual.
    pub const fn new(path: PathBuf, context_len: usize) -> Self {
        Self { path, context_len, kv_type: KvType::DEFAULT, draft: Draft::None, cache_budget: None, available: None }
    }
}

/// The draft of a model: a smaller one of the same vocabulary that guesses what it will write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Draft {
    /// There is none.
    #[default]
    None,
    /// The file that the user named; where it can't be used, the answer fails and says why.
    Named(PathBuf),
    /// A file that was found; where it can't be used, there is none.
    Found(PathBuf),
}

/// The model that is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedModel {
    /// Its file or folder.
    pub path: PathBuf,
    /// The context of the last request.
    pub context_len: usize,
    /// What it takes with that context full, as predicted from the header.
    pub footprint: Footprint,
}

/// A model that was unloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unloaded {
    /// Its file.
    pub path: PathBuf,
    /// The memory that the process took less afterwards, as measured by [`EngineConfig::own_footprint`]: of weights,
    /// caches and tokenizers. `None` where that could not be read.
    pub given_back: Option<Bytes>,
}

/// The async side of the engine. Clones share one engine; it stops when the last is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    front: SyncSender<Request>,
    shared: Arc<Shared>,
}

/// The events of one answer. Dropping it cancels the answer before the next prefill chunk or decode step.
pub struct ChatStream {
    events: mpsc::UnboundedReceiver<Result<ChatEvent, GenerateError>>,
}

impl Stream for ChatStream {
    type Item = Result<ChatEvent, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

/// What the preparing thread is told to do: everything that works on text, so that the compute thread needn't.
enum Request {
    Chat { model: LoadSpec, request: Box<ChatRequest>, accepted: Instant, events: EventSender, queued: Queued },
    Render { path: PathBuf, request: Box<ChatRequest>, reply: oneshot::Sender<Result<RenderedAnswer, GenerateError>> },
    Count { path: PathBuf, request: Box<ChatRequest>, reply: oneshot::Sender<Result<usize, GenerateError>> },
    Forward(Command),
}

/// Requests that may be on their way from one thread to the next.
const MOST_UNDER_WAY: usize = 64;

impl EngineHandle {
    /// Starts the engine's threads. Nothing is loaded yet.
    pub fn start(config: EngineConfig) -> Self {
        Self::start_with(&config, device_loader())
    }

    pub(crate) fn start_with(config: &EngineConfig, loader: Loader) -> Self {
        if let Some(threads) = config.threads {
            // Fails where the pool exists already, which is documented.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
        let shared = Arc::new(Shared::default());
        shared.notes.set_capacity(config.slots, config.most_waiting);
        let (front, requests) = sync_channel(MOST_UNDER_WAY);
        let (commands, received) = sync_channel(MOST_UNDER_WAY);
        let worker = Worker::new(shared.clone(), config, loader);
        spawn("engine", move || worker.run(&received));
        let preparing = shared.clone();
        spawn("engine-prompts", move || prepare(&requests, &commands, &preparing));
        Self { front, shared }
    }

    /// Answers `request` with the model in `model`, which is loaded first where it isn't in memory.
    pub fn chat(&self, model: LoadSpec, request: ChatRequest) -> ChatStream {
        let (events, stream) = mpsc::unbounded_channel();
        if self.shared.stopping.load(Ordering::Relaxed) {
            // The receiver is right here.
            let _ = events.send(Err(GenerateError::ShutDown));
            return ChatStream { events: stream };
        }
        let (queued, before) = Queued::enter(&self.shared.waiting);
        let Occupancy { slots, most_waiting, .. } = self.occupancy();
        if before >= slots {
            // The first of those before it to end makes room.
            let ahead = before + 1 - slots;
            let is_full = ahead > most_waiting;
            let event = if is_full {
                Err(GenerateError::Busy(ahead - 1))
            } else {
                Ok(ChatEvent::Progress(Progress::Waiting { ahead }))
            };
            // The receiver is right here.
            let _ = events.send(event);
            if is_full {
                return ChatStream { events: stream };
            }
        }
        let request = Box::new(request);
        let request = Request::Chat { model, request, accepted: Instant::now(), events: events.clone(), queued };
        if let Err(refused) = self.front.try_send(request) {
            let error = match refused {
                TrySendError::Full(_) => GenerateError::Busy(before.saturating_sub(slots)),
                TrySendError::Disconnected(_) => GenerateError::ShutDown,
            };
            let _ = events.send(Err(error));
        }
        ChatStream { events: stream }
    }

    /// The tokens that `request` makes as a prompt of the model at `path`. Reads the tokenizer, never the weights.
    ///
    /// # Errors
    /// When the file cannot be used, or its template refuses the messages.
    pub async fn count_prompt_tokens(&self, path: &Path, request: &ChatRequest) -> Result<usize, GenerateError> {
        let (reply, count) = oneshot::channel();
        let request = Request::Count { path: path.to_owned(), request: Box::new(request.clone()), reply };
        self.send_when_there_is_room(request).await.map_err(|_| GenerateError::ShutDown)?;
        count.await.unwrap_or(Err(GenerateError::ShutDown))
    }

    /// `request` as text for another program that has the model at `path`, with what was written of the answer, and a
    /// reader for what comes of it. Reads the tokenizer, never the weights.
    ///
    /// # Errors
    /// When the file cannot be used, its template refuses the messages, what was written can't be gone on with, or the text
    /// would say something else there: where somebody wrote the name of a control token.
    pub async fn rendered(&self, path: &Path, request: &ChatRequest) -> Result<RenderedAnswer, GenerateError> {
        let (reply, rendered) = oneshot::channel();
        let request = Request::Render { path: path.to_owned(), request: Box::new(request.clone()), reply };
        self.send_when_there_is_room(request).await.map_err(|_| GenerateError::ShutDown)?;
        rendered.await.unwrap_or(Err(GenerateError::ShutDown))
    }

    /// The tokens with which the model at `path` says that its answer is over, in no order. Reads the tokenizer, never the
    /// weights; blocks meanwhile.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn end_tokens(&self, path: &Path) -> Result<Vec<u32>, LoadError> {
        Ok(self.shared.texts.get(path)?.tokenizer.end_tokens().collect())
    }

    /// What the engine can do now.
    pub fn condition(&self) -> Condition {
        self.shared.notes.condition(self.loaded().is_some())
    }

    /// How many requests there are, of how many that are taken.
    pub fn occupancy(&self) -> Occupancy {
        self.shared.notes.occupancy(self.shared.waiting.load(Ordering::Relaxed))
    }

    /// Writes so many answers at the same time from now on, at least one, and lets so many requests wait. Answers that are
    /// being written go on, and requests that wait are not sent away.
    pub fn set_capacity(&self, slots: usize, most_waiting: usize) {
        self.shared.notes.set_capacity(slots, most_waiting);
    }

    /// The model that is in memory.
    pub fn loaded(&self) -> Option<LoadedModel> {
        self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Unloads the model once the requests before this one are done, and gives its memory back. `None` where there was
    /// none.
    pub async fn unload(&self) -> Option<Unloaded> {
        self.command(Command::Unload).await.flatten()
    }

    /// Forgets what earlier conversations left in caches, in memory and on disk: somebody deleted one.
    pub async fn forget_caches(&self) {
        self.command(Command::ForgetCaches).await;
    }

    /// Gives back the memory of the draft, until its model is loaded anew, and of the caches of conversations that no answer
    /// is written in now, which are read from files again where those are kept.
    pub async fn trim_caches(&self) {
        self.command(Command::TrimCaches).await;
    }

    /// What [`Self::trim_caches`] would give back.
    pub fn idle_caches(&self) -> Bytes {
        self.shared.relief.idle_caches()
    }

    /// What the caches take now, of all that the model in memory may grow to.
    pub fn caches(&self) -> Bytes {
        self.shared.relief.caches()
    }

    /// Writes each answer no faster than so many tokens per second, so that the machine cools; `None` as fast as it can.
    pub fn set_pace(&self, tokens_per_sec: Option<f64>) {
        self.shared.relief.set_pace(tokens_per_sec);
    }

    /// By what means tokens are guessed, where answers run on the CPU: the same text, sooner. By all, unless this says
    /// otherwise. On a GPU never: products for several tokens round otherwise than for one there, and the text could be
    /// another.
    pub fn set_guesses(&self, guesses: Guesses) {
        self.shared.relief.set_guesses(guesses);
    }

    /// Ends answers where prompt and answer have so many tokens, as one that is too long ends; `None` is as was asked for.
    pub fn cap_context(&self, tokens: Option<usize>) {
        self.shared.relief.set_cap(tokens);
    }

    /// The last model that was unloaded, for whatever reason, and every one that follows.
    pub fn watch_unloads(&self) -> watch::Receiver<Option<Unloaded>> {
        self.shared.unloaded.subscribe()
    }

    /// Cancels what runs and waits, unloads, and ends the threads. Later requests get [`GenerateError::ShutDown`].
    pub async fn shutdown(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.command(Command::ShutDown).await;
    }

    /// `None` says that the thread has ended, with the model unloaded.
    async fn command<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (done, is_done) = oneshot::channel();
        self.send_when_there_is_room(Request::Forward(command(done))).await.ok()?;
        is_done.await.ok()
    }

    async fn send_when_there_is_room(&self, mut request: Request) -> Result<(), Request> {
        loop {
            match self.front.try_send(request) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(refused)) => return Err(refused),
                Err(TrySendError::Full(refused)) => {
                    request = refused;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name.to_owned()).spawn(body).expect("the system has room for a thread");
}

/// The preparing thread: templates and tokens. Ends when every handle is gone, and the compute thread after it.
fn prepare(requests: &Receiver<Request>, commands: &SyncSender<Command>, shared: &Shared) {
    let _notes = NotesDeath(&shared.notes);
    while let Ok(request) = requests.recv() {
        let command = match request {
            Request::Count { path, request, reply } => {
                let count = shared.texts.get(&path).map_err(GenerateError::from);
                let count = count.and_then(|text| Ok(text.prompt(&request)?.tokens.len()));
                // Whoever asked may have gone.
                let _ = reply.send(count);
                continue;
            }
            Request::Render { path, request, reply } => {
                let text = shared.texts.get(&path).map_err(GenerateError::from);
                // Whoever asked may have gone.
                let _ = reply.send(text.and_then(|text| RenderedAnswer::new(&text, &request)));
                continue;
            }
            Request::Forward(command) => command,
            Request::Chat { model, request, accepted, events, queued } => {
                if events.is_closed() || shared.stopping.load(Ordering::Relaxed) {
                    continue;
                }
                match prepare_job(shared, commands, &model, *request, accepted, events.clone(), queued) {
                    Ok(job) => Command::Generate(Box::new(job)),
                    Err(error) => {
                        // One that is too large for this moment is no failure.
                        if let GenerateError::Load(why) = &error
                            && !matches!(why, LoadError::NotEnoughMemory { .. })
                        {
                            shared.notes.note_load(false);
                        }
                        let _ = events.send(Err(error));
                        continue;
                    }
                }
            }
        };
        let is_last = matches!(command, Command::ShutDown(_));
        if commands.send(command).is_err() || is_last {
            return;
        }
    }
}

fn prepare_job(
    shared: &Shared,
    commands: &SyncSender<Command>,
    model: &LoadSpec,
    request: ChatRequest,
    accepted: Instant,
    events: EventSender,
    queued: Queued,
) -> Result<Job, GenerateError> {
    let text = text_of(shared, commands, model, &events)?;
    let prompt = text.prompt(&request)?;
    let context_len = text.file.header.usable_context(model.context_len);
    let (draft, cache_budget) = draft_beside(&text.file.header, model)?;
    let sampling = request.sampling;
    let conversation = &prompt.tokens[..prompt.answer_at];
    let sampler = Sampler::new(&sampling, &text.sampling, fresh_seed(), conversation)?;
    let constraint = sampling.constraint.as_ref().map(|output| text.constraint(output)).transpose()?;
    Ok(Job {
        text,
        prompt,
        context_len,
        kv_type: model.kv_type,
        draft,
        cache_budget,
        sampling,
        written: request.written.unwrap_or_default(),
        tells_tokens: request.tells_tokens,
        relief: shared.relief.clone(),
        sampler,
        constraint: Cell::new(constraint),
        accepted,
        events,
        queued: Cell::new(Some(queued)),
    })
}

/// The text part of a model. Where it has to be read, the compute thread loads the weights meanwhile.
fn text_of(
    shared: &Shared,
    commands: &SyncSender<Command>,
    model: &LoadSpec,
    events: &EventSender,
) -> Result<Arc<ModelText>, LoadError> {
    if let Some(text) = shared.texts.known(&model.path)? {
        check_fits(&text.file.header, model)?;
        return Ok(text);
    }
    let file = Arc::new(ModelFile::open(&model.path)?);
    check_fits(&file.header, model)?;
    file.header.check_supported()?;
    let context_len = file.header.usable_context(model.context_len);
    let ahead = Ahead { file: file.clone(), context_len, kv_type: model.kv_type, events: events.clone() };
    // When the compute thread is gone, whoever asked hears of it when the request itself is sent.
    let _ = commands.send(Command::Load(Box::new(ahead)));
    shared.texts.read(&model.path, file)
}

/// Refuses a model that takes more than there is, before so much as its tokenizer is read.
fn check_fits(header: &ModelHeader, model: &LoadSpec) -> Result<(), LoadError> {
    let Some(available) = model.available else { return Ok(()) };
    let needed = header.footprint(header.usable_context(model.context_len), model.kv_type).total();
    if needed > available { Err(LoadError::NotEnoughMemory { needed, available }) } else { Ok(()) }
}

/// The draft, where answers run on the CPU and there is room for it beside the model with its context full; and what is left
/// for caches beside it.
fn draft_beside(header: &ModelHeader, model: &LoadSpec) -> Result<(Option<DraftFile>, Option<Bytes>), LoadError> {
    let without = (None, model.cache_budget);
    let (path, is_named) = match &model.draft {
        _ if computes_on_gpu() => return Ok(without),
        Draft::None => return Ok(without),
        Draft::Named(path) => (path, true),
        Draft::Found(path) => (path, false),
    };
    let context_len = header.usable_context(model.context_len);
    let footprint = match crate::read_header(path) {
        Ok(draft) => draft.footprint(context_len, model.kv_type),
        Err(error) if is_named => return Err(error),
        Err(_) => return Ok(without),
    };
    let own = header.footprint(context_len, model.kv_type);
    let fits = |needed: Footprint, room: Option<Bytes>| room.is_none_or(|room| needed.total() <= room);
    let beside = Footprint { weights: footprint.weights, scratch: footprint.scratch, kv_cache: Bytes::ZERO };
    let caches = Footprint { kv_cache: own.kv_cache, ..Footprint::default() }.with(footprint);
    if !fits(own.with(footprint), model.available) || !fits(caches, model.cache_budget) {
        return Ok(without);
    }
    let cache_budget = model.cache_budget.map(|budget| budget.saturating_sub(beside.total()));
    Ok((Some(DraftFile { path: path.clone(), footprint, is_named }), cache_budget))
}

/// A seed that nobody chose: the process's hash keys are random, and differ from call to call.
pub(crate) fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use candle_core::{Device, Tensor};
    use chat::{ChatRequest, Message, Role};
    use futures::StreamExt;
    use testkit::gguf::tiny_model;

    use super::*;
    use crate::DeviceFault;
    use crate::kv_cache::KvCache;
    use crate::models::{self, Loaded, Model, Part};

    type Fault = fn() -> candle_core::Error;

    /// Fails in its first forward, once.
    struct Failing {
        model: Box<dyn Model>,
        armed: Arc<AtomicBool>,
        fault: Fault,
    }

    impl Model for Failing {
        fn forward(&self, parts: &mut [Part<'_>]) -> Result<Tensor, GenerateError> {
            if self.armed.swap(false, Ordering::Relaxed) {
                return Err((self.fault)().into());
            }
            self.model.forward(parts)
        }

        fn new_cache(&self, kv_type: KvType) -> KvCache {
            self.model.new_cache(kv_type)
        }
    }

    /// Two requests at once, of which the first step fails; then one more.
    async fn after(fault: Fault) -> (Vec<GenerateError>, ChatEvent) {
        let folder = tempfile::tempdir().unwrap();
        let armed = Arc::new(AtomicBool::new(true));
        let loader: Loader = Box::new(move |file, on_progress| {
            let loaded = models::load(&file.gguf, &Device::Cpu, on_progress)?;
            let model = Box::new(Failing { model: loaded.model, armed: armed.clone(), fault });
            Ok(Loaded { model, in_use: loaded.in_use })
        });
        let engine = EngineHandle::start_with(&EngineConfig::default(), loader);
        let spec = LoadSpec::new(tiny_model(1).write(folder.path(), "m.gguf").unwrap(), 64);
        let request = ChatRequest { messages: vec![Message::new(Role::User, "Hi")], ..ChatRequest::default() };
        let mut failed = Vec::new();
        for mut answer in [(); 2].map(|()| engine.chat(spec.clone(), request.clone())) {
            while let Some(event) = answer.next().await {
                failed.extend(event.err());
            }
        }
        assert!(engine.loaded().is_none() || failed.len() < 2);
        let last = engine.chat(spec, request).collect::<Vec<_>>().await.pop().unwrap().unwrap();
        engine.shutdown().await;
        (failed, last)
    }

    /// Weights are loaded while the prompt is made; where that fails, the request itself tries again and tells.
    #[tokio::test]
    async fn what_fails_ahead_of_a_request_is_tried_again() {
        for (failures, is_answered) in [(1, true), (2, false)] {
            let folder = tempfile::tempdir().unwrap();
            let mut left = failures;
            let loader: Loader = Box::new(move |file, on_progress| {
                if left > 0 {
                    left -= 1;
                    return Err(LoadError::Missing("a tensor".to_owned()));
                }
                models::load(&file.gguf, &Device::Cpu, on_progress)
            });
            let engine = EngineHandle::start_with(&EngineConfig::default(), loader);
            let spec = LoadSpec::new(tiny_model(1).write(folder.path(), "m.gguf").unwrap(), 64);
            let request = ChatRequest { messages: vec![Message::new(Role::User, "Hi")], ..ChatRequest::default() };
            let last = engine.chat(spec, request).collect::<Vec<_>>().await.pop().unwrap();
            assert_eq!(last.is_ok(), is_answered, "{last:?}");
            engine.shutdown().await;
        }
    }

    #[tokio::test]
    async fn what_the_engine_can_do_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (go, may_go) = std::sync::mpsc::channel();
        let loader: Loader = Box::new(move |file, on_progress| {
            begun.send(()).unwrap();
            if may_go.recv().unwrap() {
                return models::load(&file.gguf, &Device::Cpu, on_progress);
            }
            Err(LoadError::Missing("a tensor".to_owned()))
        });
        let engine = EngineHandle::start_with(&EngineConfig::default(), loader);
        let spec = LoadSpec::new(tiny_model(1).write(folder.path(), "m.gguf").unwrap(), 64);
        let request = ChatRequest { messages: vec![Message::new(Role::User, "Hi")], ..ChatRequest::default() };
        assert_eq!(engine.condition(), Condition::Ready);
        // Twice: ahead of the request, and for it.
        go.send(false).unwrap();
        let answer = engine.chat(spec.clone(), request.clone());
        has_begun.recv().unwrap();
        has_begun.recv().unwrap();
        assert_eq!(engine.condition(), Condition::Loading);
        assert_eq!(engine.occupancy(), Occupancy { slots: 4, slots_busy: 1, most_waiting: 64, waiting: 0 });
        go.send(false).unwrap();
        answer.collect::<Vec<_>>().await;
        assert_eq!(engine.condition(), Condition::LoadFailed);
        go.send(true).unwrap();
        engine.chat(spec, request).collect::<Vec<_>>().await;
        assert_eq!(engine.condition(), Condition::Ready);
        engine.shutdown().await;
        assert_eq!(engine.condition(), Condition::Ready);
    }

    #[tokio::test]
    async fn the_death_of_the_compute_thread_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let own_footprint = || panic!("a bug outside of any request");
        let engine = EngineHandle::start(EngineConfig { own_footprint, ..EngineConfig::default() });
        let spec = LoadSpec::new(tiny_model(1).write(folder.path(), "m.gguf").unwrap(), 64);
        let request = ChatRequest { messages: vec![Message::new(Role::User, "Hi")], ..ChatRequest::default() };
        engine.chat(spec.clone(), request.clone()).collect::<Vec<_>>().await;
        assert_eq!((engine.condition(), engine.unload().await), (Condition::Ready, None));
        while engine.condition() != Condition::Died {
            tokio::task::yield_now().await;
        }
        let last = engine.chat(spec, request).collect::<Vec<_>>().await.pop();
        assert!(!matches!(last, Some(Ok(_))), "{last:?}");
    }

    #[tokio::test]
    async fn slots_change_while_an_answer_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let engine = EngineHandle::start(EngineConfig { slots: 2, most_waiting: 0, ..EngineConfig::default() });
        let spec = LoadSpec::new(tiny_model(1).write(folder.path(), "m.gguf").unwrap(), 4096);
        let request = ChatRequest { messages: vec![Message::new(Role::User, "Hi")], ..ChatRequest::default() };
        // In the queue as long as they live, whether they are written or not.
        let mut answers: Vec<_> = (0..2).map(|_| engine.chat(spec.clone(), request.clone())).collect();
        engine.set_capacity(1, 1);
        assert_eq!(engine.occupancy(), Occupancy { slots: 1, slots_busy: 1, most_waiting: 1, waiting: 1 });
        let refused = engine.chat(spec.clone(), request.clone()).next().await;
        assert!(matches!(refused, Some(Err(GenerateError::Busy(1)))), "{refused:?}");
        for answer in &mut answers {
            let last = answer.collect::<Vec<_>>().await.pop();
            assert!(matches!(last, Some(Ok(ChatEvent::Finished(_)))), "{last:?}");
        }
        engine.shutdown().await;
    }

    #[tokio::test]
    async fn a_panic_costs_what_runs() {
        let (failed, last) = after(|| panic!("a bug in a kernel")).await;
        assert!(!failed.is_empty() && failed.iter().all(|error| matches!(error, GenerateError::Crashed)), "{failed:?}");
        assert!(matches!(last, ChatEvent::Finished(_)), "{last:?}");
    }

    #[tokio::test]
    async fn a_gpu_that_fails_costs_what_runs_and_says_what_to_do() {
        let (failed, last) = after(|| {
            let message = "Command buffer had following error: Insufficient Memory \
                (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)";
            candle_core::Error::Metal(candle_core::MetalError::from(message.to_owned()))
        })
        .await;
        let [GenerateError::Device(DeviceFault::OutOfMemory), ..] = failed.as_slice() else { panic!("{failed:?}") };
        assert!(failed[0].to_string().contains("take a shorter context"));
        assert!(matches!(last, ChatEvent::Finished(_)), "{last:?}");
    }
}
