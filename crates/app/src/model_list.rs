//! The models a user can choose: what lies in the watched folders, and files added by reference.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use engine::{LoadError, ModelHeader, read_header};

/// How deep folders are searched: publisher/model/file is three.
const MAX_DEPTH: usize = 3;
/// More files than this in a folder means that the folder isn't one of models.
const MAX_FILES: usize = 2_000;

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

/// One listed model file.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    /// The file's name without `.gguf`, made unique; what requests name.
    pub id: String,
    /// The file.
    pub path: PathBuf,
    /// Where it comes from.
    pub origin: ModelOrigin,
    /// What the header says, or why the file can't be used.
    pub header: Result<Arc<ModelHeader>, String>,
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

/// Headers that were read, by file, so that a rescan opens only what changed.
#[derive(Default)]
pub(crate) struct HeaderCache(HashMap<PathBuf, KnownHeader>);

struct KnownHeader {
    len: u64,
    modified: Option<SystemTime>,
    header: Result<Arc<ModelHeader>, String>,
}

impl HeaderCache {
    fn header(&mut self, path: &Path) -> Result<Arc<ModelHeader>, String> {
        let (len, modified) = fs::metadata(path).map_or((0, None), |meta| (meta.len(), meta.modified().ok()));
        if let Some(known) = self.0.get(path)
            && (known.len, known.modified) == (len, modified)
        {
            return known.header.clone();
        }
        let header = usable_header(path).map(Arc::new).map_err(|error| crate::error::sentence(&error.to_string()));
        self.0.insert(path.to_owned(), KnownHeader { len, modified, header: header.clone() });
        header
    }
}

/// The header of a file that the engine can run.
pub(crate) fn usable_header(path: &Path) -> Result<ModelHeader, LoadError> {
    let header = read_header(path)?;
    header.check_supported()?;
    Ok(header)
}

/// Reads folders and files into the list, sorted by id. A path that is found twice is listed once.
pub(crate) fn scan(
    folders: &[PathBuf],
    arguments: &[PathBuf],
    added: &[PathBuf],
    cache: &mut HeaderCache,
) -> Vec<ModelEntry> {
    let mut seen = BTreeSet::new();
    let mut found: Vec<(PathBuf, ModelOrigin)> = Vec::new();
    let mut take = |path: PathBuf, origin| {
        if seen.insert(fs::canonicalize(&path).unwrap_or_else(|_| path.clone())) {
            found.push((path, origin));
        }
    };
    arguments.iter().for_each(|path| take(path.clone(), ModelOrigin::Argument));
    for folder in folders {
        let mut files = Vec::new();
        gguf_files(folder, MAX_DEPTH, &mut files);
        files.into_iter().for_each(|path| take(path, ModelOrigin::Folder));
    }
    added.iter().for_each(|path| take(path.clone(), ModelOrigin::Added));

    let mut ids = HashMap::new();
    let mut entries: Vec<ModelEntry> = found
        .into_iter()
        .map(|(path, origin)| {
            let stem = path.file_stem().map_or_else(|| "model".to_owned(), |s| s.to_string_lossy().into_owned());
            let count = ids.entry(stem.clone()).and_modify(|n| *n += 1).or_insert(1);
            let id = if *count == 1 { stem } else { format!("{stem}-{count}") };
            let header = cache.header(&path);
            ModelEntry { id, path, origin, header }
        })
        .collect();
    entries.sort_by_key(|entry| entry.id.to_lowercase());
    cache.0.retain(|path, _| entries.iter().any(|entry| entry.path == *path));
    entries
}

fn gguf_files(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden || files.len() >= MAX_FILES {
            continue;
        }
        if path.is_dir() {
            if depth > 1 {
                gguf_files(&path, depth - 1, files);
            }
        } else if path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf")) {
            files.push(path);
        }
    }
}
