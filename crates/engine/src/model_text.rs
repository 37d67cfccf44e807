use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use chat::Message;

use crate::LoadError;
use crate::gguf::Gguf;
use crate::header::ModelHeader;
use crate::models::TokenId;
use crate::sampling::SamplingDefaults;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// The part of a model that works on text: everything but the weights. Shared between the thread that prepares
/// prompts and the one that computes.
pub(crate) struct ModelText {
    pub(crate) gguf: Gguf,
    pub(crate) header: ModelHeader,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) sampling: SamplingDefaults,
    template: ChatTemplate,
    version: FileVersion,
}

/// Tells a file from another one that was put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileVersion {
    len: u64,
    modified: Option<SystemTime>,
}

/// A conversation, ready to be run.
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<TokenId>,
    /// The template opened a thinking part, as some do.
    pub(crate) starts_thinking: bool,
}

impl ModelText {
    fn load(path: &Path) -> Result<Self, LoadError> {
        let version = FileVersion::of(path)?;
        let gguf = Gguf::open(path)?;
        let header = ModelHeader::from_gguf(&gguf)?;
        header.check_supported()?;
        let tokenizer = Tokenizer::load(&gguf)?;
        let source = gguf.metadata().text("tokenizer.chat_template");
        let (bos, eos) = (tokenizer.special_text(tokenizer.bos), tokenizer.special_text(tokenizer.eos));
        let template = ChatTemplate::new(source, bos, eos)?;
        Ok(Self { sampling: SamplingDefaults::read(gguf.metadata()), gguf, header, tokenizer, template, version })
    }

    /// Whether both come from one file, unchanged in between.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        self.gguf.path == other.gguf.path && self.version == other.version
    }

    pub(crate) fn prompt(&self, messages: &[Message]) -> Result<Prompt, LoadError> {
        let text = self.template.render(messages)?;
        let tokens = self.tokenizer.encode_prompt(&text)?;
        if tokens.is_empty() {
            return Err(LoadError::Template("it rendered an empty prompt".to_owned()));
        }
        Ok(Prompt { tokens, starts_thinking: text.trim_end().ends_with("<think>") })
    }
}

impl FileVersion {
    fn of(path: &Path) -> Result<Self, LoadError> {
        let metadata = path.metadata().map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        Ok(Self { len: metadata.len(), modified: metadata.modified().ok() })
    }
}

/// The texts of the models that were used last.
#[derive(Default)]
pub(crate) struct TextCache {
    entries: Mutex<Vec<(PathBuf, Arc<ModelText>)>>,
}

/// One that runs and one that is being looked at; a tokenizer takes tens of megabytes.
const MOST_TEXTS: usize = 2;

impl TextCache {
    /// The text part of the model in the file at `path`, read anew where the file has changed.
    pub(crate) fn get(&self, path: &Path) -> Result<Arc<ModelText>, LoadError> {
        let version = FileVersion::of(path)?;
        let found = self.lock().iter().find(|(known, text)| known == path && text.version == version).cloned();
        if let Some((_, text)) = found {
            return Ok(text);
        }
        // Not under the lock: it takes a good part of a second.
        let text = Arc::new(ModelText::load(path)?);
        let mut entries = self.lock();
        entries.retain(|(known, _)| known != path);
        entries.push((path.to_owned(), text.clone()));
        if entries.len() > MOST_TEXTS {
            entries.remove(0);
        }
        Ok(text)
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(PathBuf, Arc<ModelText>)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
