//! The models a user can choose: what lies in the watched folders, and files added by reference.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use engine::{LoadError, ModelHeader, PartName, is_model_folder, model_files, read_header};

/// How deep folders are searched: publisher/model/file is three.
const MAX_DEPTH: usize = 3;
/// More than these in a folder means that the folder isn't one of models.
const MAX_MODELS: usize = 2_000;

/// Where a listed model comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelOrigin {
    /// It lies in a watched folder.
    Folder,
    /// The user added the file where it lies.
    Added,
    /// It was named when the program was started.
    Argument,
}

/// One listed model.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    /// The file's name without `.gguf` and without the number of a part, or the folder's, made unique; what requests
    /// name.
    pub id: String,
    /// The file, the first of the model's parts, or its folder.
    pub path: PathBuf,
    /// Where it comes from.
    pub origin: ModelOrigin,
    /// What the header says, or why the file can't be used.
    pub header: Result<Arc<ModelHeader>, String>,
    /// When the newest of its files was last written; `None` for a file that isn't listed yet.
    pub modified: Option<SystemTime>,
}

impl ModelEntry {
    /// The name the file gives itself, or the file's own.
    pub fn name(&self) -> String {
        self.header.as_ref().ok().and_then(|header| header.name.clone()).unwrap_or_else(|| self.id.clone())
    }

    /// The header of a model that can be loaded.
    pub fn usable(&self) -> Option<&Arc<ModelHeader>> {
        self.header.as_ref().ok()
    }
}

/// Headers that were read, by path, so that a rescan opens only what changed.
#[derive(Default)]
pub(crate) struct HeaderCache(HashMap<PathBuf, KnownHeader>);

struct KnownHeader {
    versions: Vec<(u64, Option<SystemTime>)>,
    header: Result<Arc<ModelHeader>, String>,
}

impl HeaderCache {
    fn read(&mut self, path: &Path) -> (Result<Arc<ModelHeader>, String>, Option<SystemTime>) {
        let version = |file: &Path| fs::metadata(file).map(|meta| (meta.len(), meta.modified().ok())).ok();
        let versions: Vec<_> = model_files(path).iter().map_while(|file| version(file)).collect();
        let modified = versions.iter().filter_map(|(_, modified)| *modified).max();
        if let Some(known) = self.0.get(path)
            && known.versions == versions
        {
            return (known.header.clone(), modified);
        }
        let header = usable_header(path).map(Arc::new).map_err(|error| crate::error::sentence(&error.to_string()));
        self.0.insert(path.to_owned(), KnownHeader { versions, header: header.clone() });
        (header, modified)
    }
}

/// The header of a model that the engine can run.
pub(crate) fn usable_header(path: &Path) -> Result<ModelHeader, LoadError> {
    let header = read_header(path)?;
    header.check_supported()?;
    Ok(header)
}

/// The id of a model: the name of its file without what a part's name ends in, or that of its folder.
pub(crate) fn model_id(path: &Path) -> String {
    if let Some(name) = path.file_name().filter(|_| path.is_dir()) {
        return name.to_string_lossy().into_owned();
    }
    let stem = || path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    PartName::parse(path).map_or_else(stem, |name| name.model)
}

/// Reads folders and files into the list, sorted by id. A path that is found twice is listed once, and so is a model in
/// several files.
pub(crate) fn scan(
    folders: &[PathBuf],
    arguments: &[PathBuf],
    added: &[PathBuf],
    cache: &mut HeaderCache,
) -> Vec<ModelEntry> {
    let mut seen = BTreeSet::new();
    let mut found: Vec<(PathBuf, ModelOrigin)> = Vec::new();
    let mut take = |path: PathBuf, origin| {
        let first = PartName::parse(&path).map_or_else(|| path.clone(), |name| name.first());
        if seen.insert(fs::canonicalize(&first).unwrap_or_else(|_| first.clone())) {
            // Where the first part is missing, another one says so.
            found.push((if first.exists() { first } else { path }, origin));
        }
    };
    arguments.iter().for_each(|path| take(path.clone(), ModelOrigin::Argument));
    for folder in folders {
        let mut models = Vec::new();
        find_models(folder, MAX_DEPTH, &mut models);
        models.into_iter().for_each(|path| take(path, ModelOrigin::Folder));
    }
    added.iter().for_each(|path| take(path.clone(), ModelOrigin::Added));

    let mut ids = HashMap::new();
    let mut entries: Vec<ModelEntry> = found
        .into_iter()
        .map(|(path, origin)| {
            let stem = model_id(&path);
            let count = ids.entry(stem.clone()).and_modify(|n| *n += 1).or_insert(1);
            let id = if *count == 1 { stem } else { format!("{stem}-{count}") };
            let (header, modified) = cache.read(&path);
            ModelEntry { id, path, origin, header, modified }
        })
        .collect();
    entries.sort_by_key(|entry| entry.id.to_lowercase());
    cache.0.retain(|path, _| entries.iter().any(|entry| entry.path == *path));
    entries
}

/// GGUF files, and folders as models are published in.
fn find_models(folder: &Path, depth: usize, models: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden || models.len() >= MAX_MODELS {
            continue;
        }
        if path.is_dir() {
            if is_model_folder(&path) {
                models.push(path.clone());
            }
            if depth > 1 {
                find_models(&path, depth - 1, models);
            }
        } else if path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf")) {
            models.push(path);
        }
    }
}
