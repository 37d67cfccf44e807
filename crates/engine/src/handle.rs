use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use chat::{ChatEvent, ChatRequest, Message, Progress};
use futures::Stream;
use tokio::sync::{mpsc, oneshot};

use crate::header::Footprint;
use crate::worker::{Command, EventSender, Job, Loader, Queued, Shared, Worker, device_loader};
use crate::{GenerateError, LoadError};

/// How the engine runs.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Unload the model when nobody has asked for so long; `None` keeps it.
    pub idle_unload: Option<Duration>,
    /// Threads that compute; `None` is one for each core. The first engine of a process decides.
    pub threads: Option<usize>,
}

/// Which model is to answer, and how large its context may grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadSpec {
    /// A GGUF file.
    pub path: PathBuf,
    /// Tokens of prompt and answer together; never more than the model was trained for.
    pub context_len: usize,
}

/// The model that is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedModel {
    /// Its file.
    pub path: PathBuf,
    /// The context of the last request.
    pub context_len: usize,
    /// What it takes with that context full, as predicted from the header.
    pub footprint: Footprint,
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
    Chat { model: LoadSpec, request: ChatRequest, accepted: Instant, events: EventSender, queued: Queued },
    Count { path: PathBuf, messages: Vec<Message>, reply: oneshot::Sender<Result<usize, LoadError>> },
    Forward(Command),
}

/// Requests that may wait; an app that sends more has lost count.
const MOST_WAITING: usize = 64;

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
        let (front, requests) = sync_channel(MOST_WAITING);
        let (commands, received) = sync_channel(MOST_WAITING);
        let worker = Worker::new(shared.clone(), config.idle_unload, loader);
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
        let (queued, ahead) = Queued::enter(&self.shared.waiting);
        if ahead > 0 {
            // The receiver is right here.
            let _ = events.send(Ok(ChatEvent::Progress(Progress::Waiting { ahead })));
        }
        let request = Request::Chat { model, request, accepted: Instant::now(), events: events.clone(), queued };
        if let Err(refused) = self.front.try_send(request) {
            let error = match refused {
                TrySendError::Full(_) => GenerateError::Busy(ahead),
                TrySendError::Disconnected(_) => GenerateError::ShutDown,
            };
            let _ = events.send(Err(error));
        }
        ChatStream { events: stream }
    }

    /// The tokens that `messages` make as a prompt of the model at `path`. Reads the tokenizer, never the weights.
    ///
    /// # Errors
    /// When the file cannot be used, or its template refuses the messages.
    pub async fn count_prompt_tokens(&self, path: &Path, messages: &[Message]) -> Result<usize, LoadError> {
        let (reply, count) = oneshot::channel();
        let request = Request::Count { path: path.to_owned(), messages: messages.to_vec(), reply };
        self.send_when_there_is_room(request).await.map_err(|_| LoadError::ShutDown)?;
        count.await.unwrap_or(Err(LoadError::ShutDown))
    }

    /// The model that is in memory.
    pub fn loaded(&self) -> Option<LoadedModel> {
        self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Unloads the model once the requests before this one are done, and gives its memory back.
    pub async fn unload(&self) {
        self.command(Command::Unload).await;
    }

    /// Cancels what runs and waits, unloads, and ends the threads. Later requests get [`GenerateError::ShutDown`].
    pub async fn shutdown(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.command(Command::ShutDown).await;
    }

    async fn command(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, is_done) = oneshot::channel();
        if self.send_when_there_is_room(Request::Forward(command(done))).await.is_ok() {
            // An error says that the thread has ended, with the model unloaded.
            let _ = is_done.await;
        }
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
    while let Ok(request) = requests.recv() {
        let command = match request {
            Request::Count { path, messages, reply } => {
                let count = shared.texts.get(&path).and_then(|text| Ok(text.prompt(&messages)?.tokens.len()));
                // Whoever asked may have gone.
                let _ = reply.send(count);
                continue;
            }
            Request::Forward(command) => command,
            Request::Chat { model, request, accepted, events, queued } => {
                if events.is_closed() || shared.stopping.load(Ordering::Relaxed) {
                    continue;
                }
                match prepare_job(shared, &model, request, accepted, events.clone(), queued) {
                    Ok(job) => Command::Generate(Box::new(job)),
                    Err(error) => {
                        let _ = events.send(Err(error.into()));
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
    model: &LoadSpec,
    request: ChatRequest,
    accepted: Instant,
    events: EventSender,
    queued: Queued,
) -> Result<Job, LoadError> {
    let text = shared.texts.get(&model.path)?;
    let prompt = text.prompt(&request.messages)?;
    let trained = text.header.context_len;
    let context_len = if trained == 0 { model.context_len } else { model.context_len.min(trained) };
    Ok(Job { text, prompt, context_len, sampling: request.sampling, accepted, events, queued: Cell::new(Some(queued)) })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use candle_core::{Device, Tensor};
    use chat::{ChatRequest, Message, Role};
    use futures::StreamExt;
    use testkit::gguf::tiny_model;

    use super::*;
    use crate::kv_cache::KvCache;
    use crate::models::{self, Model, TokenId};

    /// Panics in its first forward, once.
    struct Panicking {
        model: Box<dyn Model>,
        armed: Arc<AtomicBool>,
    }

    impl Model for Panicking {
        fn forward(&self, tokens: &[TokenId], cache: &mut KvCache) -> Result<Tensor, GenerateError> {
            assert!(!self.armed.swap(false, Ordering::Relaxed), "a bug in a kernel");
            self.model.forward(tokens, cache)
        }

        fn new_cache(&self) -> KvCache {
            self.model.new_cache()
        }
    }

    #[tokio::test]
    async fn a_panic_costs_one_request() {
        let folder = tempfile::tempdir().unwrap();
        let armed = Arc::new(AtomicBool::new(true));
        let loader: Loader = Box::new(move |text, on_progress| {
            let model = models::load(&text.gguf, &Device::Cpu, on_progress)?;
            Ok(Box::new(Panicking { model, armed: armed.clone() }))
        });
        let engine = EngineHandle::start_with(&EngineConfig::default(), loader);
        let spec = LoadSpec { path: tiny_model(1).write(folder.path(), "m.gguf").unwrap(), context_len: 64 };
        let request = ChatRequest { messages: vec![Message::new(Role::User, "Hi")], ..ChatRequest::default() };
        let events: Vec<_> = engine.chat(spec.clone(), request.clone()).collect().await;
        assert!(matches!(events.last(), Some(Err(GenerateError::Crashed))), "{events:?}");
        assert!(engine.loaded().is_none());
        let events: Vec<_> = engine.chat(spec, request).collect().await;
        assert!(matches!(events.last(), Some(Ok(ChatEvent::Finished(_)))), "{events:?}");
        engine.shutdown().await;
    }
}
