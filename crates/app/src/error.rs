use std::fmt;

use engine::LoadError;
use store::StoreError;

/// What kind of thing went wrong, for callers that act on it: a shell chooses a button or a status by this, never by
/// the sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// What was asked makes no sense as asked.
    BadRequest,
    /// The conversation, model or node named isn't there.
    NotFound,
    /// No model is chosen, or the chosen one is gone.
    NoModel,
    /// The file can't be used as a model.
    BadFile,
    /// It would need more memory than is free now.
    DoesNotFit,
    /// The conversation has more tokens than the context holds.
    ContextFull,
    /// No node could be reached, or none is set up.
    NodeUnreachable,
    /// The node wants another key.
    NodeUnauthorized,
    /// The node answered with an error.
    NodeFailed,
    /// The node went away in the middle of an answer.
    CutOff,
    /// The local engine failed in the middle of an answer.
    EngineFailed,
    /// As many requests wait as may.
    Busy,
    /// The disk has no room left.
    DiskFull,
    /// A fault of ours; the log has the chain of causes.
    Internal,
}

impl ErrorCode {
    /// The code as it is written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "badRequest",
            Self::NotFound => "notFound",
            Self::NoModel => "noModel",
            Self::BadFile => "badFile",
            Self::DoesNotFit => "doesNotFit",
            Self::ContextFull => "contextFull",
            Self::NodeUnreachable => "nodeUnreachable",
            Self::NodeUnauthorized => "nodeUnauthorized",
            Self::NodeFailed => "nodeFailed",
            Self::CutOff => "cutOff",
            Self::EngineFailed => "engineFailed",
            Self::Busy => "busy",
            Self::DiskFull => "diskFull",
            Self::Internal => "internal",
        }
    }
}

/// An error as every shell shows it: a code to branch on, a sentence for the user and what they can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppError {
    /// What kind of error it is.
    pub code: ErrorCode,
    /// What happened, as a whole sentence.
    pub sentence: String,
    /// What to do about it, where there is something.
    pub hint: Option<String>,
}

impl AppError {
    pub(crate) fn new(code: ErrorCode, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into(), hint: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A fault of ours. The chain of causes goes to the log, the user sees that it happened.
    pub(crate) fn internal(what: &str, cause: &dyn std::error::Error) -> Self {
        tracing::error!(error = chain(cause), "{what}");
        Self::new(ErrorCode::Internal, sentence(&format!("{what}: {cause}")))
    }
}

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)?;
        match &self.hint {
            Some(hint) => write!(f, " {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for AppError {}

impl From<LoadError> for AppError {
    fn from(error: LoadError) -> Self {
        tracing::warn!(error = chain(&error), "model not loaded");
        Self::new(ErrorCode::BadFile, sentence(&error.to_string()))
    }
}

impl From<StoreError> for AppError {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = chain(&error), "store");
        let code = match error {
            StoreError::DiskFull(_) => ErrorCode::DiskFull,
            StoreError::NotFound(_) => ErrorCode::NotFound,
            _ => ErrorCode::Internal,
        };
        Self::new(code, sentence(&error.to_string()))
    }
}

/// The message of an error as a sentence: errors are lower case and without a full stop, sentences aren't.
pub(crate) fn sentence(message: &str) -> String {
    let mut letters = message.trim().chars();
    let Some(first) = letters.next() else { return String::new() };
    let mut sentence: String = first.to_uppercase().chain(letters).collect();
    if !sentence.ends_with(['.', '?', '!']) {
        sentence.push('.');
    }
    sentence
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_sentences() {
        assert_eq!(sentence("the file ends at byte 12"), "The file ends at byte 12.");
        assert_eq!(sentence("is it on?"), "Is it on?");
        assert_eq!(sentence(""), "");
    }
}
