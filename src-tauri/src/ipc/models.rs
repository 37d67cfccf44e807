//! Models: the list, a dropped file's verdict, adding and removing.

use std::path::PathBuf;

use app::{AddHow, App, FileVerdict, Fit, ModelEntry, ModelHeader, ModelOrigin, ModelVerdict, Verdict};
use serde::{Deserialize, Serialize};
use specta::Type;
use specta_typescript::Number;
use tauri::{AppHandle, State};
use tauri_plugin_dialog::DialogExt;

use super::error::ErrorDto;
use crate::Shell;
use crate::window;

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModelDto {
    id: String,
    name: String,
    architecture: String,
    quantization: String,
    file_bytes: u64,
    parameters: u64,
    context_len: usize,
    path: String,
    origin: ModelOriginDto,
    error: Option<String>,
    fit: Option<FitDto>,
    loaded: bool,
    #[specta(type = Option<Number>)]
    decode_tokens_per_sec: Option<f64>,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ModelOriginDto {
    Folder,
    Added,
    Argument,
}

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FitDto {
    verdict: FitVerdictDto,
    context_len: usize,
    needed_bytes: u64,
    weights_bytes: u64,
    kv_cache_bytes: u64,
    scratch_bytes: u64,
    budget_bytes: Option<u64>,
    available_bytes: Option<u64>,
    max_context: Option<usize>,
    sentence: String,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum FitVerdictDto {
    RunsWell,
    Tight,
    TooBig,
    Unknown,
}

/// What a dropped file is, and what will happen if it is used.
#[derive(Debug, Clone, Serialize, Type)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[expect(clippy::large_enum_variant, reason = "made once for each dropped file and sent at once")]
pub(crate) enum VerdictDto {
    Model {
        model: ModelDto,
        fits: Vec<FitDto>,
        nodes_that_could: Vec<String>,
        already_listed: bool,
        license: Option<String>,
        has_chat_template: bool,
        #[specta(type = Number)]
        elapsed_ms: f64,
    },
    Refused {
        title: String,
        sentence: String,
        hint: Option<String>,
        path: String,
    },
}

#[derive(Debug, Clone, Copy, Deserialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum AddHowDto {
    Reference,
    Move,
    Copy,
}

pub(crate) fn list(app: &App) -> Vec<ModelDto> {
    app.models().iter().map(|entry| ModelDto::listed(app, entry)).collect()
}

/// Says what each dropped file is, from its header alone.
#[tauri::command]
#[specta::specta]
pub(crate) async fn inspect_files(shell: State<'_, Shell>, paths: Vec<String>) -> Result<Vec<VerdictDto>, ErrorDto> {
    let mut verdicts = Vec::with_capacity(paths.len());
    for path in paths {
        verdicts.push(VerdictDto::new(&shell.app, shell.app.inspect_file(path.into(), None).await));
    }
    Ok(verdicts)
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn add_model(shell: State<'_, Shell>, path: String, how: AddHowDto) -> Result<ModelDto, ErrorDto> {
    let entry = shell.app.add_model(path.into(), how.into()).await?;
    Ok(ModelDto::listed(&shell.app, &entry))
}

/// Takes a model off the list; its file stays.
#[tauri::command]
#[specta::specta]
pub(crate) async fn remove_model(shell: State<'_, Shell>, id: String) -> Result<(), ErrorDto> {
    Ok(shell.app.remove_model(&id).await?)
}

/// The system's file dialog; nothing where it was closed.
#[tauri::command]
#[specta::specta]
pub(crate) async fn choose_model_file(handle: AppHandle) -> Result<Option<String>, ErrorDto> {
    let (chosen, choice) = tokio::sync::oneshot::channel();
    let dialog = handle.dialog().file().set_title("Choose a model").add_filter("GGUF models", &["gguf"]);
    // The receiver waits below; it is gone only where the app ends.
    dialog.pick_file(move |file| drop(chosen.send(file)));
    let file = window::while_dialog(&handle, choice).await.ok().flatten();
    Ok(file.and_then(|file| file.into_path().ok()).map(|path| path.to_string_lossy().into_owned()))
}

impl From<AddHowDto> for AddHow {
    fn from(how: AddHowDto) -> Self {
        match how {
            AddHowDto::Reference => Self::Reference,
            AddHowDto::Move => Self::Move,
            AddHowDto::Copy => Self::Copy,
        }
    }
}

impl ModelDto {
    fn listed(app: &App, entry: &ModelEntry) -> Self {
        let header = entry.usable();
        Self {
            id: entry.id.clone(),
            name: entry.name(),
            architecture: header.map(|header| header.architecture.clone()).unwrap_or_default(),
            quantization: header.map(|header| header.quantization.clone()).unwrap_or_default(),
            file_bytes: header.map_or(0, |header| header.file_bytes.0),
            parameters: header.map_or(0, |header| header.parameters),
            context_len: header.map_or(0, |header| header.context_len),
            path: entry.path.to_string_lossy().into_owned(),
            origin: match entry.origin {
                ModelOrigin::Folder => ModelOriginDto::Folder,
                ModelOrigin::Added => ModelOriginDto::Added,
                ModelOrigin::Argument => ModelOriginDto::Argument,
            },
            error: entry.header.as_ref().err().cloned(),
            fit: header.zip(app.fit_now(entry)).map(|(header, fit)| FitDto::new(app, header, fit)),
            loaded: app.is_loaded(entry),
            decode_tokens_per_sec: app.usual_speed(entry),
        }
    }
}

impl FitDto {
    fn new(app: &App, header: &ModelHeader, fit: Fit) -> Self {
        let footprint = header.footprint(fit.context_len, app.settings().kv_type());
        let memory = app.watch_vitals().borrow().snapshot.memory;
        Self {
            verdict: match fit.verdict {
                Verdict::RunsWell => FitVerdictDto::RunsWell,
                Verdict::Tight => FitVerdictDto::Tight,
                Verdict::TooBig => FitVerdictDto::TooBig,
                Verdict::Unknown => FitVerdictDto::Unknown,
            },
            context_len: fit.context_len,
            needed_bytes: fit.needed.0,
            weights_bytes: footprint.weights.0,
            kv_cache_bytes: footprint.kv_cache.0,
            scratch_bytes: footprint.scratch.0,
            budget_bytes: fit.budget.map(|bytes| bytes.0),
            available_bytes: memory.map(|memory| memory.available.0),
            max_context: fit.max_context,
            sentence: fit.sentence,
        }
    }
}

impl VerdictDto {
    fn new(app: &App, verdict: FileVerdict) -> Self {
        match verdict {
            FileVerdict::Model(verdict) => Self::of_model(app, *verdict),
            FileVerdict::Refused(refusal) => Self::Refused {
                title: refusal.title,
                sentence: refusal.sentence,
                hint: refusal.hint,
                path: refusal.path.to_string_lossy().into_owned(),
            },
        }
    }

    fn of_model(app: &App, verdict: ModelVerdict) -> Self {
        let header = verdict.header;
        let path: PathBuf = header.path.clone();
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let entry = ModelEntry {
            id: verdict.listed_as.clone().unwrap_or(stem),
            path,
            origin: ModelOrigin::Added,
            header: Ok(header.clone()),
            modified: None,
        };
        Self::Model {
            model: ModelDto::listed(app, &entry),
            fits: verdict.fits.into_iter().map(|fit| FitDto::new(app, &header, fit)).collect(),
            nodes_that_could: verdict.nodes_that_could,
            already_listed: verdict.listed_as.is_some(),
            license: header.license.clone(),
            has_chat_template: header.chat_template.is_some(),
            elapsed_ms: verdict.elapsed.as_secs_f64() * 1e3,
        }
    }
}
