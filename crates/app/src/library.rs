//! Model files: the list, a verdict on a dropped file, adding and removing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use chat::{ChatRequest, Message, Role, SamplingParams};
use engine::{Draft, Evaluator, LoadedModel, ModelHeader, Perplexity, Unwritten};
use futures::StreamExt;
use notify::{RecursiveMode, Watcher};
use routing::{Fit, fit};
use tokio::sync::{mpsc, watch};

use crate::App;
use crate::error::{AppError, ErrorCode};
use crate::history::AskedBy;
use crate::model_list::{ModelEntry, ModelOrigin, model_id, scan};
use crate::node_list::same_model;
use crate::verdict::{FileVerdict, ModelVerdict, contexts, inspect};

/// A download or a copy changes its folder many times a second; the list is made anew when it pauses.
const SETTLE: Duration = Duration::from_millis(300);

/// A model is at least so many times larger than a draft that is chosen for it: a larger draft takes longer to guess than it
/// saves, on most texts.
const LEAST_LARGER: u64 = 5;

/// What happens to a file that is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddHow {
    /// It stays where it is and the list remembers it.
    Reference,
    /// It is moved into the models folder.
    Move,
    /// It is copied into the models folder.
    Copy,
}

impl App {
    /// The listed models, by name.
    pub fn models(&self) -> Arc<Vec<ModelEntry>> {
        self.inner.models.borrow().clone()
    }

    /// The list and every change to it.
    pub fn watch_models(&self) -> watch::Receiver<Arc<Vec<ModelEntry>>> {
        self.inner.models.subscribe()
    }

    /// The model that a request for `wanted` means here; `None` is the chosen one, or the first that can be used.
    pub fn model_for(&self, wanted: Option<&str>) -> Option<ModelEntry> {
        let models = self.models();
        let by_name = |name: &str| models.iter().find(|entry| same_model(&entry.id, name) && entry.header.is_ok());
        match wanted {
            Some(name) => by_name(name).cloned(),
            None => {
                let chosen = self.settings().model;
                chosen
                    .and_then(|name| by_name(&name))
                    .or_else(|| {
                        models.iter().find(|entry| entry.origin == ModelOrigin::Argument && entry.header.is_ok())
                    })
                    .or_else(|| models.iter().find(|entry| entry.header.is_ok()))
                    .cloned()
            }
        }
    }

    /// What guesses for a listed model: what this run or the settings name, or else the smallest listed model of its family
    /// that is small enough. Whether its vocabulary is the same is seen when it is loaded.
    pub fn draft_for(&self, entry: &ModelEntry) -> Draft {
        if let Some(draft) = &self.inner.config.draft {
            return draft.clone();
        }
        let models = self.models();
        if let Some(id) = self.settings().drafts.get(&entry.id) {
            let named = models.iter().find(|model| model.id == *id);
            return named.map_or(Draft::None, |model| Draft::Named(model.path.clone()));
        }
        let Some(own) = entry.usable() else { return Draft::None };
        let is_small = |header: &ModelHeader| {
            header.architecture == own.architecture
                && header.weight_bytes.0.saturating_mul(LEAST_LARGER) <= own.weight_bytes.0
        };
        let small = models.iter().filter_map(|model| Some((model.usable().filter(|header| is_small(header))?, model)));
        let smallest = small.min_by_key(|(header, _)| header.weight_bytes);
        smallest.map_or(Draft::None, |(_, model)| Draft::Found(model.path.clone()))
    }

    /// Whether a listed model fits now with the context of the settings; `None` for a file that can't be used.
    pub fn fit_now(&self, entry: &ModelEntry) -> Option<Fit> {
        let header = entry.usable()?;
        let context_len = self.settings().context_len.min(header.context_len);
        let outlook = self.outlook();
        let snapshot = outlook.snapshot();
        Some(fit(&self.local_model(entry, header), &self.policy(), snapshot, context_len))
    }

    /// Whether the engine holds this model now.
    pub fn is_loaded(&self, entry: &ModelEntry) -> bool {
        self.inner.engine.loaded().is_some_and(|loaded| loaded.path == entry.path)
    }

    /// The listed model that the engine holds now, and what it takes.
    pub fn model_in_memory(&self) -> Option<(ModelEntry, LoadedModel)> {
        let loaded = self.inner.engine.loaded()?;
        let entry = self.models().iter().find(|entry| entry.path == loaded.path).cloned()?;
        Some((entry, loaded))
    }

    /// Brings the model that a request for `wanted` means into memory, where a message to it would be answered: asks it
    /// for one token. Returns its id.
    ///
    /// # Errors
    /// What keeps an answer from beginning.
    pub async fn load_model(&self, wanted: Option<String>, asked_by: AskedBy) -> Result<String, AppError> {
        let request = ChatRequest {
            model: wanted,
            messages: vec![Message::new(Role::User, "Hi")],
            sampling: SamplingParams { max_tokens: Some(1), ..SamplingParams::default() },
            ..ChatRequest::default()
        };
        let completion = self.complete(request, None, asked_by).await?;
        let id = completion.model.clone();
        let mut events = completion.into_chat_events();
        while let Some(event) = events.next().await {
            event?;
        }
        Ok(id)
    }

    /// Takes the model out of memory once its answers are done, if the engine holds it, and returns its id.
    ///
    /// # Errors
    /// When there is no such model here.
    pub async fn unload_model(&self, wanted: Option<&str>) -> Result<String, AppError> {
        let Some(entry) = self.model_for(wanted) else {
            return Err(AppError::new(ErrorCode::NoModel, "There is no such model on this machine to unload."));
        };
        if self.is_loaded(&entry) {
            self.inner.engine.unload().await;
        }
        Ok(entry.id)
    }

    /// Tokens per second that this model usually reaches here.
    pub fn usual_speed(&self, entry: &ModelEntry) -> Option<f64> {
        self.inner.speeds.usual("here", &entry.id)
    }

    /// Says what a file is and what would happen with it, first with `context_len` tokens, where not given those of the
    /// settings. Reads the header only, in well under a second.
    pub async fn inspect_file(&self, path: PathBuf, context_len: Option<usize>) -> FileVerdict {
        let started = Instant::now();
        let inspected = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || inspect(&path)).await
        };
        let header = match inspected {
            Ok(Ok(header)) => Arc::new(header),
            Ok(Err(refusal)) => return FileVerdict::Refused(refusal),
            Err(error) => {
                tracing::error!(%error, "inspecting a file failed");
                return FileVerdict::Refused(crate::Refusal {
                    path,
                    title: "It can't be read".to_owned(),
                    sentence: "Reading the file's header failed.".to_owned(),
                    hint: None,
                });
            }
        };
        let path = header.path.clone();
        let entry = ModelEntry {
            id: model_id(&path),
            path,
            origin: ModelOrigin::Added,
            header: Ok(header.clone()),
            modified: None,
        };
        let (model, policy) = (self.local_model(&entry, &header), self.policy());
        let outlook = self.outlook();
        let snapshot = outlook.snapshot();
        let fits = contexts(context_len.unwrap_or(self.settings().context_len), header.context_len)
            .into_iter()
            .map(|context_len| fit(&model, &policy, snapshot, context_len))
            .collect();
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let listed_as =
            self.models().iter().find(|listed| real(&listed.path) == real(&entry.path)).map(|listed| listed.id.clone());
        let has_it = |view: &&crate::NodeView| {
            view.status.as_ref().is_some_and(|status| status.models.iter().any(|model| same_model(model, &entry.id)))
        };
        let nodes_that_could = self.nodes().iter().filter(has_it).map(|view| view.name.clone()).collect();
        FileVerdict::Model(Box::new(ModelVerdict {
            header,
            fits,
            nodes_that_could,
            listed_as,
            elapsed: started.elapsed(),
        }))
    }

    /// How well a listed model predicts `text`, in windows of `window` tokens. Takes as long as reading it.
    ///
    /// # Errors
    /// Where the model can't be loaded, or the text is shorter than a window.
    pub async fn perplexity(&self, entry: &ModelEntry, text: String, window: usize) -> Result<Perplexity, AppError> {
        let path = entry.path.clone();
        let measured = tokio::task::spawn_blocking(move || {
            Evaluator::open(&path, Unwritten::default())?.perplexity(&text, window)
        });
        let measured = measured.await.map_err(|error| AppError::internal("perplexity", &error))?;
        measured.map_err(crate::answer::generate_error)
    }

    /// Puts a file on the list and makes it the chosen model.
    ///
    /// # Errors
    /// `BadFile` where it can't be used, `BadRequest` where the folder has another file of that name or a model folder is
    /// to be moved or copied, `DiskFull` where a copy doesn't fit.
    pub async fn add_model(&self, path: PathBuf, how: AddHow) -> Result<ModelEntry, AppError> {
        let header = match self.inspect_file(path, None).await {
            FileVerdict::Model(verdict) => verdict.header,
            FileVerdict::Refused(refusal) => {
                let error = AppError::new(ErrorCode::BadFile, refusal.sentence);
                return Err(match refusal.hint {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                });
            }
        };
        let placed = match how {
            AddHow::Reference => header.path.clone(),
            // What else lies in the folder isn't known, and links in it may lead elsewhere.
            AddHow::Move | AddHow::Copy if header.path.is_dir() => {
                return Err(AppError::new(ErrorCode::BadRequest, "A model folder stays where it is.")
                    .with_hint("Add it where it lies, or put it into the models folder yourself."));
            }
            AddHow::Move | AddHow::Copy => {
                let folder = self.settings().models_folder;
                tokio::task::spawn_blocking(move || place_all(&header.files, &folder, how))
                    .await
                    .map_err(|error| AppError::internal("adding the file", &error))??
            }
        };
        if how == AddHow::Reference {
            let path = placed.clone();
            self.with_store(move |store| store.add_model_path(&path)).await??;
        }
        self.rescan_models().await;
        let entry = self
            .models()
            .iter()
            .find(|entry| entry.path == placed)
            .or(self.models().iter().find(|entry| fs::canonicalize(&entry.path).ok() == fs::canonicalize(&placed).ok()))
            .cloned()
            .ok_or_else(|| AppError::new(ErrorCode::NotFound, "The file was added but is gone again."))?;
        let mut settings = self.settings();
        settings.model = Some(entry.id.clone());
        self.save_settings(settings).await?;
        Ok(entry)
    }

    /// Takes a file that was added by reference off the list. The file itself stays.
    ///
    /// # Errors
    /// `NotFound` for an id that isn't listed, `BadRequest` for a file in a watched folder: it is listed as long as it
    /// lies there.
    pub async fn remove_model(&self, id: &str) -> Result<(), AppError> {
        let models = self.models();
        let entry = models
            .iter()
            .find(|entry| entry.id == id)
            .ok_or_else(|| AppError::new(ErrorCode::NotFound, format!("There is no model “{id}” on the list.")))?;
        if entry.origin != ModelOrigin::Added {
            return Err(AppError::new(ErrorCode::BadRequest, "This model lies in a models folder.")
                .with_hint("Delete or move the file to take it off the list."));
        }
        let path = entry.path.clone();
        self.with_store(move |store| store.remove_model_path(&path)).await??;
        self.rescan_models().await;
        Ok(())
    }

    /// Makes the list anew from the folders.
    pub(crate) async fn rescan_models(&self) {
        let added = match self.with_store(|store| store.added_models()).await {
            Ok(Ok(added)) => added,
            Ok(Err(error)) => {
                tracing::warn!(%error, "added models not listed");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        let (inner, folders) = (self.inner.clone(), self.folders());
        let scanned = tokio::task::spawn_blocking(move || {
            let mut headers = inner.headers.lock().unwrap_or_else(PoisonError::into_inner);
            scan(&folders, &inner.config.models, &added, &mut headers)
        });
        if let Ok(entries) = scanned.await {
            self.inner.models.send_replace(Arc::new(entries));
        }
    }

    fn folders(&self) -> Vec<PathBuf> {
        let mut folders = self.inner.models_dirs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        folders.push(self.settings().models_folder);
        folders
    }

    /// Watches the folders of models; a change makes the list anew once it has settled.
    pub(crate) fn watch_folders(&self) {
        let (changed, mut changes) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is no change.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = changed.send(());
            }
        });
        let mut watcher = match watcher {
            Ok(watcher) => watcher,
            Err(error) => return tracing::warn!(%error, "folders of models are not watched"),
        };
        for folder in self.folders() {
            if let Err(error) = fs::create_dir_all(&folder) {
                tracing::warn!(%error, folder = %folder.display(), "folder of models not made");
            }
            if let Err(error) = watcher.watch(&folder, RecursiveMode::Recursive) {
                tracing::warn!(%error, folder = %folder.display(), "folder of models not watched");
            }
        }
        // The old watcher is dropped here, which closes its channel and so ends its task.
        *self.inner.folder_watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(watcher);
        let app = self.clone();
        tokio::spawn(async move {
            while changes.recv().await.is_some() {
                while let Ok(Some(())) = tokio::time::timeout(SETTLE, changes.recv()).await {}
                app.rescan_models().await;
            }
        });
    }

    /// The header of a file, for those who ask about it without adding it.
    ///
    /// # Errors
    /// `BadFile` with what is wrong with it.
    pub fn header(path: &Path) -> Result<ModelHeader, AppError> {
        inspect(path).map_err(|refusal| {
            let error = AppError::new(ErrorCode::BadFile, refusal.sentence);
            match refusal.hint {
                Some(hint) => error.with_hint(hint),
                None => error,
            }
        })
    }
}

/// Moves or copies the files of a model into the folder, all or none; gives the path of the first there.
fn place_all(files: &[PathBuf], folder: &Path, how: AddHow) -> Result<PathBuf, AppError> {
    let targets: Vec<PathBuf> = files.iter().filter_map(|file| Some(folder.join(file.file_name()?))).collect();
    let is_there: Vec<bool> = targets.iter().map(|target| target.exists()).collect();
    for (i, file) in files.iter().enumerate() {
        let Err(error) = place(file, folder, how) else { continue };
        for ((file, target), was_there) in files.iter().zip(&targets).zip(is_there).take(i) {
            let is_undone = match (how, file.parent()) {
                _ if was_there => true,
                (AddHow::Move, Some(origin)) => place(target, origin, how).is_ok(),
                _ => fs::remove_file(target).is_ok(),
            };
            if !is_undone {
                tracing::warn!(file = %target.display(), "a part stayed in the models folder");
            }
        }
        return Err(error);
    }
    targets.into_iter().next().ok_or_else(|| AppError::new(ErrorCode::BadRequest, "The file has no name."))
}

/// Moves or copies a file into the folder under its own name, whole or not at all.
fn place(path: &Path, folder: &Path, how: AddHow) -> Result<PathBuf, AppError> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull => AppError::new(ErrorCode::DiskFull, "The disk has no room for a copy.")
            .with_hint("Move the file instead, or leave it where it is."),
        _ => AppError::internal("placing the file in the models folder", &error),
    };
    let name = path.file_name().ok_or_else(|| AppError::new(ErrorCode::BadRequest, "The file has no name."))?;
    let target = folder.join(name);
    if fs::canonicalize(&target).is_ok_and(|existing| fs::canonicalize(path).is_ok_and(|path| path == existing)) {
        return Ok(target);
    }
    if target.exists() {
        return Err(AppError::new(ErrorCode::BadRequest, format!("{} exists already.", target.display())));
    }
    fs::create_dir_all(folder).map_err(failed)?;
    if how == AddHow::Move && fs::rename(path, &target).is_ok() {
        return Ok(target);
    }
    let part = folder.join(format!(".{}.part", name.to_string_lossy()));
    let copied = fs::copy(path, &part).and_then(|_| fs::rename(&part, &target));
    if let Err(error) = copied {
        let _ = fs::remove_file(&part);
        return Err(failed(error));
    }
    if how == AddHow::Move {
        fs::remove_file(path).map_err(failed)?;
    }
    Ok(target)
}
