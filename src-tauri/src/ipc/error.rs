//! The one place where the shell's errors turn into what the interface sees.

use serde::Serialize;
use specta::Type;

/// A refused or failed command: a code to branch on, a sentence to show, and what people do about it.
#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorDto {
    code: String,
    sentence: String,
    hint: Option<String>,
}

impl From<app::AppError> for ErrorDto {
    fn from(error: app::AppError) -> Self {
        Self { code: error.code.as_str().to_owned(), sentence: error.sentence, hint: error.hint }
    }
}

impl From<tauri::Error> for ErrorDto {
    fn from(error: tauri::Error) -> Self {
        Self::internal(error)
    }
}

impl ErrorDto {
    /// A fault of the desktop around us: the clipboard, the browser, the window system.
    pub(crate) fn internal(error: impl std::error::Error) -> Self {
        tracing::error!(%error, "the desktop refused");
        Self {
            code: "internal".to_owned(),
            sentence: "The desktop refused this.".to_owned(),
            hint: Some(error.to_string()),
        }
    }

    pub(crate) fn bad_request(sentence: &str) -> Self {
        Self { code: "badRequest".to_owned(), sentence: sentence.to_owned(), hint: None }
    }
}
