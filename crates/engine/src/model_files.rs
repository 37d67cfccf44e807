use std::path::{Path, PathBuf};

use crate::gguf::PartName;
use crate::safetensors;

/// The files that the model at `path` lies in, as far as their names tell: the file itself, all parts of a split one up
/// to the first that is missing, or what a published folder has. When one of them changes, the model may have changed.
pub fn model_files(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        return safetensors::files(path);
    }
    match PartName::parse(path) {
        Some(name) => name.all().take_while(|part| part.exists()).collect(),
        None => vec![path.to_owned()],
    }
}
