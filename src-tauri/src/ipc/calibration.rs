//! What this machine was measured to do, and measuring it.

use app::{App, Calibration};
use serde::Serialize;
use specta::Type;
use specta_typescript::Number;
use tauri::State;

use super::error::ErrorDto;
use crate::Shell;

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CalibrationDto {
    /// The model that it was measured with.
    model_name: String,
    #[specta(type = Number)]
    bandwidth_bytes_per_sec: f64,
    #[specta(type = Number)]
    decode_tokens_per_sec: f64,
    #[specta(type = Number)]
    prefill_tokens_per_sec: f64,
    /// η: the part of the memory's bandwidth that decode reaches. Above 1 where weights are read from caches.
    #[specta(type = Number)]
    reached_ratio: f64,
}

/// `null` until this machine, with this system and this engine, was measured.
#[tauri::command]
#[specta::specta]
pub(crate) async fn calibration(shell: State<'_, Shell>) -> Result<Option<CalibrationDto>, ErrorDto> {
    Ok(shell.app.calibration().map(|calibration| CalibrationDto::new(&shell.app, calibration)))
}

/// Measures this machine with the chosen model; takes seconds.
#[tauri::command]
#[specta::specta]
pub(crate) async fn calibrate(shell: State<'_, Shell>) -> Result<CalibrationDto, ErrorDto> {
    let calibration = shell.app.calibrate(None).await?;
    Ok(CalibrationDto::new(&shell.app, calibration))
}

impl CalibrationDto {
    fn new(app: &App, calibration: Calibration) -> Self {
        let name = app.models().iter().find(|entry| entry.id == calibration.model).map(|entry| entry.name());
        Self {
            model_name: name.unwrap_or(calibration.model),
            bandwidth_bytes_per_sec: calibration.bandwidth_bytes_per_sec,
            decode_tokens_per_sec: calibration.decode_tokens_per_sec,
            prefill_tokens_per_sec: calibration.prefill_tokens_per_sec,
            reached_ratio: calibration.eta,
        }
    }
}
