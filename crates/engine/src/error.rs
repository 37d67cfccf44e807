use std::path::PathBuf;

use chat::Bytes;

use crate::device_fault::DeviceFault;

/// Why a model file cannot be used. The variants say what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is missing, or the system refuses to read it.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Some other kind of file.
    #[error("not a GGUF file: it starts with {found}")]
    NotGguf {
        /// The first bytes, as text where they are text.
        found: String,
    },
    /// GGUF, but of a version that this reader doesn't know.
    #[error("GGUF version {0} is not supported; versions 2 and 3 are")]
    UnsupportedVersion(u32),
    /// GGUF written for a big-endian machine.
    #[error("the file is big-endian GGUF; convert it to little-endian")]
    BigEndian,
    /// The file ends too early: a download that stopped, most often.
    #[error("{}", truncated_sentence(*at, *expected))]
    Truncated {
        /// The file ends at this byte.
        at: Bytes,
        /// The size it should have, where the header is whole enough to tell.
        expected: Option<Bytes>,
    },
    /// A value in the header cannot be.
    #[error("the file is damaged at byte {at}: {what}")]
    Malformed {
        /// Offset of the value.
        at: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A part of a model in several files isn't there.
    #[error("part {part} of {count} is missing: `{file}` is not beside the others")]
    MissingPart {
        /// The name it should have.
        file: String,
        /// From 1.
        part: u64,
        /// How many there should be.
        count: u64,
    },
    /// Files that are named as parts of one model don't belong together.
    #[error("`{file}` doesn't fit the other parts of the model: {what}")]
    WrongPart {
        /// Its name.
        file: String,
        /// How that shows.
        what: String,
    },
    /// Another part than the one that was asked for cannot be used.
    #[error("`{file}`: {cause}")]
    Part {
        /// Its name.
        file: String,
        /// Why not.
        cause: Box<LoadError>,
    },
    /// A folder without what a published model consists of.
    #[error("not a model folder: it has no {0}")]
    NotModelFolder(String),
    /// A published model in a form that only GGUF files are read in.
    #[error("{0}; take a GGUF file of the same model instead")]
    NeedsGguf(String),
    /// A file of a published model that isn't what its name says.
    #[error("`{file}` cannot be used: {what}")]
    BadFile {
        /// Its name.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// A model that was named as a draft, and can't be one here.
    #[error("`{file}` can't be the draft of this model: {why}")]
    WrongDraft {
        /// Its name.
        file: String,
        /// What is in the way.
        why: &'static str,
    },
    /// The header lacks a key or a tensor that the architecture needs.
    #[error("the file lacks `{0}`")]
    Missing(String),
    /// A tensor has another shape than the header's numbers ask for.
    #[error("tensor `{tensor}` has shape {found:?}, but {expected:?} is needed")]
    WrongShape {
        /// Its name.
        tensor: String,
        /// Outermost dimension first.
        found: Vec<usize>,
        /// Outermost dimension first.
        expected: Vec<usize>,
    },
    /// A model family that this version cannot run.
    #[error("architecture `{0}` is not supported yet")]
    UnsupportedArchitecture(String),
    /// A packing of weights that this version cannot run.
    #[error("tensor `{tensor}` is packed as {tensor_type}, which is not supported yet")]
    UnsupportedTensorType {
        /// Its name.
        tensor: String,
        /// The type, as GGUF names it.
        tensor_type: String,
    },
    /// A property of a known architecture that this version cannot run.
    #[error("{0} is not supported yet")]
    UnsupportedFeature(String),
    /// The tokenizer in the file cannot be built.
    #[error("the tokenizer in the file cannot be used: {0}")]
    Tokenizer(String),
    /// The chat template in the file refuses these messages, or is not valid.
    #[error("the chat template in the file failed: {0}")]
    Template(String),
    /// The model and its caches take more than the caller says there is; nothing was allocated for them.
    #[error("the model needs {needed}, but {available} can be used")]
    NotEnoughMemory {
        /// What it takes with the context full, as predicted from the header.
        needed: Bytes,
        /// What the caller says there is.
        available: Bytes,
    },
    /// The compute device could not take the weights.
    #[error("the weights could not be put on the device")]
    Device(#[source] candle_core::Error),
    /// The engine was shut down.
    #[error("the engine is shut down")]
    ShutDown,
}

fn truncated_sentence(at: Bytes, expected: Option<Bytes>) -> String {
    match expected {
        Some(expected) => {
            // Rounded down, so that a file that lacks its last byte is not "100 %".
            let percent = (u128::from(at.0) * 100 / u128::from(expected.0.max(1))).min(99);
            format!(
                "the file ends at byte {} of {}: the download stopped at {percent} %; fetch it again",
                at.0, expected.0
            )
        }
        None => format!("the file ends at byte {}, inside its header: the download stopped; fetch it again", at.0),
    }
}

/// Why an answer could not be made, or not be finished.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The model could not be loaded.
    #[error(transparent)]
    Load(LoadError),
    /// The conversation doesn't fit in the context.
    #[error("the conversation has {prompt_tokens} tokens, but the context holds {context_len}")]
    ContextFull {
        /// Tokens of the rendered prompt.
        prompt_tokens: usize,
        /// Tokens that fit, those of the answer included.
        context_len: usize,
    },
    /// More requests wait than the engine takes.
    #[error("the engine is busy: {0} requests are waiting already")]
    Busy(usize),
    /// A bug ended this request; the engine is running again.
    #[error("the engine failed in this request and was restarted")]
    Crashed,
    /// What is asked for cannot be: a sampling parameter without meaning, a schema that cannot be enforced.
    #[error("{0}")]
    InvalidRequest(String),
    /// The answer could not go on within the form it must have.
    #[error("the answer cannot be held to its form: {0}")]
    Constraint(String),
    /// The GPU failed. The model was unloaded.
    #[error(transparent)]
    Device(DeviceFault),
    /// What was to be computed cannot be.
    #[error("the model's graph failed while computing")]
    Compute(#[source] candle_core::Error),
    /// The engine was shut down.
    #[error("the engine is shut down")]
    ShutDown,
}

impl From<candle_core::Error> for GenerateError {
    fn from(error: candle_core::Error) -> Self {
        match DeviceFault::of(&error) {
            Some(fault) => {
                tracing::warn!(%error, "the GPU failed");
                Self::Device(fault)
            }
            None => Self::Compute(error),
        }
    }
}

impl From<LoadError> for GenerateError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Device(error) => match DeviceFault::of(&error) {
                Some(_) => error.into(),
                None => Self::Load(LoadError::Device(error)),
            },
            other => Self::Load(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_download_says_how_far_it_came() {
        let error = LoadError::Truncated { at: Bytes(610), expected: Some(Bytes(1000)) };
        assert_eq!(
            error.to_string(),
            "the file ends at byte 610 of 1000: the download stopped at 61 %; fetch it again"
        );
        let error = LoadError::Truncated { at: Bytes(999), expected: Some(Bytes(1000)) };
        assert!(error.to_string().contains("99 %"));
    }
}
