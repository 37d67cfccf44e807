//! Whether other programs are served, as the settings show it.

use serde::Serialize;
use specta::Type;

use crate::programs::Programs;

/// Both are `null` while it is turned off.
#[derive(Debug, Clone, Default, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProgramsDto {
    /// Where they are served: `http://127.0.0.1:11500`.
    url: Option<String>,
    /// Why they aren't.
    error: Option<String>,
}

impl From<Programs> for ProgramsDto {
    fn from(programs: Programs) -> Self {
        match programs {
            Programs::Off => Self::default(),
            Programs::Served(address) => Self { url: Some(format!("http://{address}")), error: None },
            Programs::Failed(sentence) => Self { url: None, error: Some(sentence) },
        }
    }
}
