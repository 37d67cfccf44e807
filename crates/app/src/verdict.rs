//! What a dropped file is and what would happen with it, from its header alone.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{LoadError, ModelHeader};
use routing::Fit;

use crate::error::sentence;
use crate::model_list::usable_header;

/// What was found out about a dropped file.
#[derive(Clone, Debug)]
pub enum FileVerdict {
    /// It is a model that the engine can run.
    Model(Box<ModelVerdict>),
    /// It can't be used.
    Refused(Refusal),
}

/// A model file that could be added.
#[derive(Clone, Debug)]
pub struct ModelVerdict {
    /// What the file says of itself.
    pub header: Arc<ModelHeader>,
    /// Whether it fits now, for contexts from short to what it was trained for; the first is the one it would be
    /// loaded with.
    pub fits: Vec<Fit>,
    /// Names of nodes that have a model of this name.
    pub nodes_that_could: Vec<String>,
    /// The id under which it is listed already.
    pub listed_as: Option<String>,
    /// How long finding out took.
    pub elapsed: Duration,
}

/// Why a file can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The file.
    pub path: PathBuf,
    /// What is wrong in a few words.
    pub title: String,
    /// What exactly is wrong.
    pub sentence: String,
    /// What people do about it.
    pub hint: Option<String>,
}

/// Contexts that a verdict is given for, as far as the model was trained.
pub(crate) fn contexts(wanted: usize, trained: usize) -> Vec<usize> {
    let first = wanted.min(trained);
    let mut contexts = vec![first];
    contexts.extend([4_096, 8_192, 32_768, 131_072].into_iter().filter(|&len| len < trained && len != first));
    if trained != first {
        contexts.push(trained);
    }
    contexts[1..].sort_unstable();
    contexts
}

/// The header of a file that can be used, or why not. Touches the file's head only.
pub(crate) fn inspect(path: &Path) -> Result<ModelHeader, Refusal> {
    let refuse = |title: &str, sentence: String, hint: Option<&str>| {
        Err(Refusal { path: path.to_owned(), title: title.to_owned(), sentence, hint: hint.map(str::to_owned) })
    };
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return unreadable(path, &name, &error),
    };
    if meta.is_dir() {
        return usable(path);
    }
    if !meta.is_file() {
        return refuse("Not a file", format!("“{name}” is a device or a pipe, not a file."), None);
    }
    let mut magic = [0u8; 4];
    match File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return refuse(
                "The file is too short",
                format!("“{name}” has {} bytes; a model's header alone is longer.", meta.len()),
                Some("The download probably stopped at once; fetch it again."),
            );
        }
        Err(error) => return unreadable(path, &name, &error),
    }
    if &magic != b"GGUF" {
        return not_gguf(path, &name, magic);
    }
    usable(path)
}

/// The header of a model that the engine can run.
fn usable(path: &Path) -> Result<ModelHeader, Refusal> {
    let started = Instant::now();
    let header = usable_header(path);
    tracing::debug!(elapsed_ms = started.elapsed().as_millis() as u64, "header read");
    header.map_err(|error| Refusal {
        path: path.to_owned(),
        title: title_of(&error).to_owned(),
        sentence: sentence(&error.to_string()),
        hint: hint_of(&error).map(str::to_owned),
    })
}

fn unreadable(path: &Path, name: &str, error: &std::io::Error) -> Result<ModelHeader, Refusal> {
    let (title, sentence, hint) = match error.kind() {
        ErrorKind::PermissionDenied => (
            "No permission to read it",
            format!("You may not read “{name}”."),
            Some("Give yourself read permission (chmod u+r), or copy it to a place that is yours."),
        ),
        ErrorKind::NotFound => (
            "The file is gone",
            format!("“{name}” isn't there any more."),
            Some("Was its disk ejected or the file moved?"),
        ),
        _ => ("It can't be read", format!("Reading “{name}” failed: {error}."), None),
    };
    Err(Refusal { path: path.to_owned(), title: title.to_owned(), sentence, hint: hint.map(str::to_owned) })
}

fn not_gguf(path: &Path, name: &str, magic: [u8; 4]) -> Result<ModelHeader, Refusal> {
    let extension = path.extension().map(|ext| ext.to_string_lossy().to_lowercase()).unwrap_or_default();
    let (sentence, hint) = match (extension.as_str(), &magic) {
        ("safetensors", _) => (
            format!("“{name}” is a safetensors file: the weights of a model without the rest of it."),
            "Drop the whole folder that it came in, with config.json and the tokenizer.",
        ),
        (_, [b'P', b'K', ..]) => {
            (format!("“{name}” is a zip archive."), "If a model is inside, unpack it and drop the .gguf file.")
        }
        ("gguf", b"<!DO" | b"<htm" | b"<HTM") => (
            format!("“{name}” is a web page that was saved under a model's name."),
            "Fetch the file itself, not its page.",
        ),
        ("gguf", b"vers") => {
            (format!("“{name}” is a Git LFS pointer, not the model."), "Run `git lfs pull` where you cloned it.")
        }
        ("gguf", _) => (
            format!(
                "“{name}” doesn't begin with the letters GGUF at byte 0, so it isn't a GGUF model or it was damaged."
            ),
            "Fetch it again and compare its SHA-256 with the one on its page.",
        ),
        _ => (format!("“{name}” is not a GGUF model."), "Drop a file that ends in .gguf."),
    };
    Err(Refusal { path: path.to_owned(), title: "Not a GGUF model".to_owned(), sentence, hint: Some(hint.to_owned()) })
}

fn title_of(error: &LoadError) -> &'static str {
    match error {
        LoadError::Part { cause, .. } => title_of(cause),
        LoadError::NotModelFolder(_) => "This is a folder",
        LoadError::NeedsGguf(_) => "This form of the model isn't supported",
        LoadError::BadFile { .. } => "A file of the model can't be used",
        LoadError::Truncated { .. } => "The file is incomplete",
        LoadError::MissingPart { .. } => "A part is missing",
        LoadError::WrongPart { .. } => "The parts don't belong together",
        LoadError::UnsupportedArchitecture(_) => "This family isn't supported yet",
        LoadError::UnsupportedTensorType { .. } => "This quantization isn't supported yet",
        LoadError::UnsupportedVersion(_) | LoadError::BigEndian => "This GGUF version isn't supported",
        _ => "The file is damaged",
    }
}

fn hint_of(error: &LoadError) -> Option<&'static str> {
    match error {
        LoadError::Part { cause, .. } => hint_of(cause),
        LoadError::NotModelFolder(_) => {
            Some("Drop a .gguf file inside it, or choose the folder as the models folder in Settings.")
        }
        LoadError::NeedsGguf(_) => Some("The same model usually exists as GGUF: look for its name followed by “GGUF”."),
        LoadError::Truncated { .. } => Some("Fetch it again; most download tools can resume."),
        LoadError::MissingPart { .. } => Some("Fetch the missing file into the same folder."),
        LoadError::WrongPart { .. } => Some("Fetch all parts again, from one place and under their own names."),
        LoadError::UnsupportedTensorType { .. } => Some("A Q4_K_M or Q8_0 file of the same model works."),
        LoadError::UnsupportedArchitecture(_) => {
            Some("A node that runs it (llama.cpp, Ollama, LM Studio) can answer with it.")
        }
        LoadError::UnsupportedVersion(_) | LoadError::BigEndian => {
            Some("Convert the model again with a current llama.cpp.")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_start_with_the_wanted_one_and_end_with_the_trained_one() {
        assert_eq!(contexts(8_192, 32_768), [8_192, 4_096, 32_768]);
        assert_eq!(contexts(8_192, 2_048), [2_048]);
        assert_eq!(contexts(8_192, 262_144), [8_192, 4_096, 32_768, 131_072, 262_144]);
    }

    fn refusal(name: &str, content: &[u8]) -> Refusal {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        inspect(&path).unwrap_err()
    }

    #[test]
    fn files_that_are_no_models_are_named_for_what_they_are() {
        assert!(refusal("a.gguf", b"<!DOCTYPE html>").sentence.contains("web page"));
        assert!(refusal("a.gguf", b"version https://git-lfs").sentence.contains("Git LFS pointer"));
        assert!(refusal("a.zip", b"PK\x03\x04....").sentence.contains("zip archive"));
        assert!(refusal("model.safetensors", b"\x10\0\0\0\0\0\0\0{}").sentence.contains("safetensors"));
        assert!(refusal("notes.txt", b"hello there").sentence.contains("not a GGUF model"));
        assert!(refusal("a.gguf", b"").title.contains("too short"));
    }

    #[test]
    fn a_folder_and_a_missing_file_are_refused_with_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = inspect(folder.path()).unwrap_err();
        assert_eq!(refusal.title, "This is a folder");
        assert_eq!(refusal.sentence, "Not a model folder: it has no `config.json`.");
        assert_eq!(inspect(&folder.path().join("none.gguf")).unwrap_err().title, "The file is gone");
    }
}
