//! Start and end of the application, and the state that lives between.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use engine::{Condition, Draft, EngineConfig, EngineHandle, KvType, Occupancy, Unloaded, Wiring};
use nodes::NodeAddress;
use notify::RecommendedWatcher;
use routing::{OffloadMode, Outlook, Policy, may_wire};
use store::{ConversationSummary, Secrets, Store, StoreError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::App;
use crate::calibration::{self, Calibration};
use crate::error::{AppError, ErrorCode};
use crate::model_list::{HeaderCache, ModelEntry};
use crate::node_list::NodeList;
use crate::reply::Moves;
use crate::settings::Settings;
use crate::speeds::Speeds;
use crate::trust;
use crate::vitals_watch::{Vitals, VitalsWatch};

/// A model that nobody asked anything for this long gives its memory back.
pub const IDLE_UNLOAD: Duration = Duration::from_secs(600);
/// Weights are held in RAM this much longer than an answer: a next question often follows the reading of a short one.
const RELEASE_WEIGHTS: Duration = Duration::from_secs(10);
/// Nodes are asked how they are this often while somebody looks, and ten times less often otherwise.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// How long the parts of a shutdown may take.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

/// How to start.
#[derive(Clone, Debug, Default)]
pub struct AppConfig {
    /// Where chats, settings and keys are kept, and the caches of models that were unloaded.
    pub data_dir: PathBuf,
    /// Folders of models beside the one of the settings.
    pub models_dirs: Vec<PathBuf>,
    /// Model files named at start; the first is the chosen one where the settings name none.
    pub models: Vec<PathBuf>,
    /// Nodes for this run only.
    pub nodes: Vec<NodeAddress>,
    /// The offload mode for this run; `None` is the saved one.
    pub offload: Option<OffloadMode>,
    /// The context of this run, of [`crate::CONTEXT_LENGTHS`]; `None` is as saved.
    pub context_len: Option<usize>,
    /// How keys and values are kept in this run; `None` is as saved.
    pub kv_type: Option<KvType>,
    /// What guesses for every model in this run; `None` is as the settings have it.
    pub draft: Option<Draft>,
    /// Threads that compute; `None` is one for each core. The first application of a process decides.
    pub threads: Option<usize>,
    /// Answers that are written here at the same time; `None` is 4.
    pub slots: Option<usize>,
    /// Requests that may wait for a slot; more are refused. `None` is 64.
    pub most_waiting: Option<usize>,
}

/// Why the application can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Chats and settings can't be opened.
    #[error("cannot open the chats in {}", path.display())]
    Store {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The folder for chats and settings can't be made.
    #[error("cannot make {}", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A node named at start is not one.
    #[error(transparent)]
    Node(#[from] AppError),
}

/// `~/Library/Application Support/app.tidegate` on macOS, `~/.local/share/tidegate` on Linux, as the system's
/// conventions have it; `None` where there is no home.
pub fn default_data_dir() -> Option<PathBuf> {
    directories::ProjectDirs::from("app", "", "tidegate").map(|dirs| dirs.data_dir().to_owned())
}

pub(crate) struct Inner {
    pub(crate) config: AppConfig,
    pub(crate) engine: EngineHandle,
    pub(crate) nodes: NodeList,
    pub(crate) vitals: Arc<VitalsWatch>,
    pub(crate) speeds: Arc<Speeds>,
    pub(crate) calibration: watch::Sender<Option<Calibration>>,
    pub(crate) settings: watch::Sender<Settings>,
    pub(crate) models: watch::Sender<Arc<Vec<ModelEntry>>>,
    pub(crate) conversations: watch::Sender<Arc<Vec<ConversationSummary>>>,
    /// Those of the configuration, as they are now.
    pub(crate) models_dirs: Mutex<Vec<PathBuf>>,
    pub(crate) headers: Mutex<HeaderCache>,
    pub(crate) folder_watcher: Mutex<Option<RecommendedWatcher>>,
    pub(crate) replies: Tasks,
    pub(crate) moves: Moves,
    pub(crate) notice: Option<String>,
    /// True from the moment of the shutdown: running answers stop and are stored.
    pub(crate) closing: watch::Sender<bool>,
    background: Tasks,
    visible: AtomicBool,
    pub(crate) secrets: Secrets,
    store: Store,
}

/// Tasks that somebody has to wait for.
#[derive(Default)]
pub(crate) struct Tasks(Mutex<Vec<JoinHandle<()>>>);

/// A task that ends with whoever asked for it.
pub(crate) struct AbortOnDrop(pub(crate) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Tasks {
    pub(crate) fn track(&self, task: JoinHandle<()>) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    fn take(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl App {
    /// Opens the store, reads the models' headers, and starts the engine, the readings and the watcher of folders.
    ///
    /// # Errors
    /// Where chats and settings can't be opened, or a node of the configuration has no usable address.
    pub async fn start(config: AppConfig) -> Result<Self, StartError> {
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|source| StartError::DataDir { path: config.data_dir.clone(), source })?;
        let failed = |source| StartError::Store { path: config.data_dir.clone(), source };
        let store = Store::open(&config.data_dir.join("tidegate.db")).map_err(failed)?;
        let secrets = Secrets::in_folder(&config.data_dir);
        let notice = store.set_aside().map(|aside| {
            let file = aside.moved_to.display();
            format!(
                "The chats were damaged ({}) and have been moved aside to {file}. Tidegate starts with none.",
                aside.why
            )
        });
        let mut settings = saved_settings(&store, &config.data_dir).map_err(failed)?;
        settings.offload = config.offload.unwrap_or(settings.offload);
        settings.context_len = config.context_len.unwrap_or(settings.context_len);
        settings.kv_type = config.kv_type.or(settings.kv_type);
        let speeds = Arc::new(Speeds::from_json(store.get_setting("speeds").map_err(failed)?.as_deref()));
        let calibration = watch::channel(calibration::saved(&store).map_err(failed)?).0;
        let nodes = saved_nodes(&store, &secrets, &config).map_err(|error| match error {
            SavedNodes::Store(source) => failed(source),
            SavedNodes::Address(error) => StartError::Node(error),
        })?;
        let conversations = store.conversations().map_err(failed)?;

        // The readings include what the engine does, so they start after it.
        let readings: Arc<OnceLock<watch::Receiver<Arc<Vitals>>>> = Arc::default();
        let engine = EngineHandle::start(engine_config(&config, readings.clone()));
        let vitals = {
            let (engine, unloads, speeds) = (engine.clone(), engine.watch_unloads(), speeds.clone());
            Arc::new(VitalsWatch::start(Box::new(move |vitals| {
                if let Some(loaded) = engine.loaded() {
                    vitals.weights = loaded.footprint.weights;
                    vitals.kv_cache = loaded.footprint.kv_cache;
                }
                vitals.given_back = unloads.borrow().as_ref().and_then(|unloaded| unloaded.given_back);
                (vitals.decode_tokens_per_sec, vitals.baseline_tokens_per_sec) = speeds.live(Instant::now());
            })))
        };
        // Nobody else sets it.
        let _ = readings.set(vitals.subscribe());
        let app = Self {
            inner: Arc::new(Inner {
                models_dirs: Mutex::new(config.models_dirs.clone()),
                config,
                engine,
                nodes,
                vitals,
                speeds,
                calibration,
                settings: watch::channel(settings).0,
                models: watch::channel(Arc::default()).0,
                conversations: watch::channel(Arc::new(conversations)).0,
                headers: Mutex::default(),
                folder_watcher: Mutex::default(),
                replies: Tasks::default(),
                moves: Moves::default(),
                notice,
                closing: watch::channel(false).0,
                background: Tasks::default(),
                visible: AtomicBool::new(true),
                secrets,
                store,
            }),
        };
        app.rescan_models().await;
        app.watch_folders();
        let unloads = app.inner.engine.watch_unloads();
        app.inner.background.track(tokio::spawn(log_unloads(unloads)));
        let probing = app.clone();
        app.inner.background.track(tokio::spawn(async move { probing.probe_now_and_then().await }));
        Ok(app)
    }

    /// Stops accepting, ends running answers and stores them, gives the model's memory back, and ends all threads.
    pub async fn shutdown(&self) {
        self.inner.background.take().iter().for_each(JoinHandle::abort);
        self.inner.folder_watcher.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.inner.closing.send_replace(true);
        let replies = futures::future::join_all(self.inner.replies.take());
        if tokio::time::timeout(SHUTDOWN_LIMIT, replies).await.is_err() {
            tracing::warn!("a running answer did not end in time");
        }
        if tokio::time::timeout(SHUTDOWN_LIMIT, self.inner.engine.shutdown()).await.is_err() {
            tracing::warn!("the engine did not stop in time");
        }
        let vitals = self.inner.vitals.clone();
        let _ = tokio::time::timeout(SHUTDOWN_LIMIT, tokio::task::spawn_blocking(move || vitals.stop())).await;
    }

    /// What this machine's engine can do now.
    pub fn condition(&self) -> Condition {
        self.inner.engine.condition()
    }

    /// How many requests this machine's engine has, of how many that it takes.
    pub fn occupancy(&self) -> Occupancy {
        self.inner.engine.occupancy()
    }

    /// Writes so many answers here at the same time from now on, and lets so many requests wait. What runs and waits goes
    /// on.
    pub fn set_capacity(&self, slots: usize, most_waiting: usize) {
        self.inner.engine.set_capacity(slots, most_waiting);
    }

    /// Lists the models of these folders from now on, beside those of the settings. A model that answers does so to the end.
    pub async fn set_models_dirs(&self, folders: Vec<PathBuf>) {
        *self.inner.models_dirs.lock().unwrap_or_else(PoisonError::into_inner) = folders;
        self.rescan_models().await;
        self.watch_folders();
    }

    /// What the user should be told about the start, once.
    pub fn notice(&self) -> Option<&str> {
        self.inner.notice.as_deref()
    }

    /// Tells whether a person looks at the readings: they are taken less often when nobody does.
    pub fn set_visible(&self, visible: bool) {
        self.inner.visible.store(visible, Ordering::Relaxed);
        self.inner.vitals.set_visible(visible);
    }

    /// The newest reading and every one that follows.
    pub fn watch_vitals(&self) -> watch::Receiver<Arc<Vitals>> {
        self.inner.vitals.subscribe()
    }

    /// Readings of the last hour, oldest first, at most one a second.
    pub fn vitals_history(&self) -> Vec<Arc<Vitals>> {
        self.inner.vitals.history()
    }

    /// The settings as they are.
    pub fn settings(&self) -> Settings {
        self.inner.settings.borrow().clone()
    }

    /// The settings and every change to them.
    pub fn watch_settings(&self) -> watch::Receiver<Settings> {
        self.inner.settings.subscribe()
    }

    /// Saves the settings and acts on what changed.
    ///
    /// # Errors
    /// `BadRequest` for a value outside its range; nothing is changed then.
    pub async fn save_settings(&self, settings: Settings) -> Result<Settings, AppError> {
        settings.check().map_err(|sentence| AppError::new(ErrorCode::BadRequest, sentence))?;
        let json = serde_json::to_string(&settings).map_err(|error| AppError::internal("settings", &error))?;
        self.with_store(move |store| store.set_setting("settings", &json)).await??;
        let moved = self.settings().models_folder != settings.models_folder;
        self.inner.settings.send_replace(settings.clone());
        if moved {
            self.rescan_models().await;
            self.watch_folders();
        }
        Ok(settings)
    }

    /// The routing policy of the settings, for this machine or the part of it that this process may use.
    pub(crate) fn policy(&self) -> Policy {
        let memory = self.inner.vitals.latest().snapshot.memory;
        let ram = memory.map(|memory| memory.usable());
        self.settings().policy(ram)
    }

    /// The last minute of readings as decisions are made from it.
    pub(crate) fn outlook(&self) -> Outlook {
        self.inner.vitals.outlook()
    }

    pub(crate) fn save_speeds(&self) {
        let (app, json) = (self.clone(), self.inner.speeds.to_json());
        self.in_background(async move {
            if let Ok(Err(error)) = app.with_store(move |store| store.set_setting("speeds", &json)).await {
                tracing::warn!(%error, "speeds not saved");
            }
        });
    }

    /// Runs a task that the shutdown ends.
    pub(crate) fn in_background(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.inner.background.track(tokio::spawn(task));
    }

    /// Runs `work` on the store, off the async threads.
    pub(crate) async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T, AppError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner.store))
            .await
            .map_err(|error| AppError::internal("the store", &error))
    }

    async fn probe_now_and_then(&self) {
        let mut skipped = 0;
        loop {
            let looked_at = self.inner.visible.load(Ordering::Relaxed);
            if looked_at || skipped >= 10 {
                skipped = 0;
                self.inner.nodes.probe_all().await;
            } else {
                skipped += 1;
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }
}

fn engine_config(config: &AppConfig, readings: Arc<OnceLock<watch::Receiver<Arc<Vitals>>>>) -> EngineConfig {
    let budget = move |wired| {
        let latest = readings.get().map(|readings| readings.borrow().clone());
        latest.map_or(chat::Bytes::ZERO, |latest| may_wire(&latest.snapshot, wired))
    };
    let usual = EngineConfig::default();
    EngineConfig {
        idle_unload: Some(IDLE_UNLOAD),
        threads: config.threads,
        slots: config.slots.unwrap_or(usual.slots),
        most_waiting: config.most_waiting.unwrap_or(usual.most_waiting),
        cache_dir: Some(config.data_dir.join("caches")),
        wiring: Some(Wiring { budget: Arc::new(budget), release_after: RELEASE_WEIGHTS }),
        own_footprint: || vitals::Sampler::new().sample().own.map(|own| own.footprint),
        ..usual
    }
}

async fn log_unloads(mut unloads: watch::Receiver<Option<Unloaded>>) {
    while unloads.changed().await.is_ok() {
        if let Some(Unloaded { path, given_back }) = &*unloads.borrow_and_update() {
            let given_back = given_back.map_or_else(|| "an unknown amount".to_owned(), |bytes| bytes.to_string());
            tracing::info!(model = %path.display(), given_back, "model unloaded");
        }
    }
}

fn saved_settings(store: &Store, data_dir: &Path) -> Result<Settings, StoreError> {
    let defaults = Settings::defaults(data_dir);
    let Some(json) = store.get_setting("settings")? else { return Ok(defaults) };
    Ok(serde_json::from_str::<Settings>(&json)
        .inspect_err(|error| tracing::warn!(%error, "saved settings not understood, using the defaults"))
        .ok()
        .filter(|settings| settings.check().is_ok())
        .unwrap_or(defaults))
}

enum SavedNodes {
    Store(StoreError),
    Address(AppError),
}

fn saved_nodes(store: &Store, secrets: &Secrets, config: &AppConfig) -> Result<NodeList, SavedNodes> {
    let list = NodeList::new();
    for row in store.nodes().map_err(SavedNodes::Store)? {
        let key = secrets.get(&row.id).map_err(SavedNodes::Store)?;
        let address = NodeAddress { url: row.url, key };
        match list.insert(Some(row.id), address, false) {
            Ok(view) => {
                if let Some(trust) = row.trust.as_deref().and_then(trust::parse) {
                    list.update(&view.id, |view| view.trust = trust);
                }
            }
            Err(error) => tracing::warn!(%error, "a saved node was left out"),
        }
    }
    for address in &config.nodes {
        if list.views().iter().all(|view| view.url != address.url) {
            list.insert(None, address.clone(), true).map_err(SavedNodes::Address)?;
        }
    }
    Ok(list)
}
