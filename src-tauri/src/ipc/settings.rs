//! Settings: one struct both ways.

use app::vitals::ThermalState;
use app::{App, KvType, OffloadMode, Settings, Theme};
use serde::{Deserialize, Serialize};
use specta::Type;
use specta_typescript::Number;
use tauri::{AppHandle, Manager, State};

use super::error::ErrorDto;
use super::nodes::TrustDto;
use crate::Shell;

#[derive(Debug, Clone, Serialize, Deserialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SettingsDto {
    offload: OffloadDto,
    model: Option<String>,
    context_len: usize,
    /// `null` is as the device computes.
    kv_type: Option<KvTypeDto>,
    models_folder: String,
    reserve_bytes: u64,
    #[specta(type = Number)]
    max_swap_used_ratio: f64,
    /// Bytes per second.
    max_swap_in_per_sec: u64,
    max_thermal: MaxThermalDto,
    /// Ids of models whose questions and answers never leave this machine.
    models_that_stay: Vec<String>,
    /// Nodes that are trusted less are never asked.
    least_trust: TrustDto,
    /// Whether other programs of this machine are served.
    serves_programs: bool,
    theme: ThemeDto,
    system_prompt: String,
    #[specta(type = Option<Number>)]
    temperature: Option<f64>,
    /// Whether to offer a measurement of a machine that wasn't measured.
    offer_calibration: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum OffloadDto {
    LocalOnly,
    Auto,
    Remote,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum KvTypeDto {
    F32,
    F16,
    Q8,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum MaxThermalDto {
    Fair,
    Serious,
    Critical,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ThemeDto {
    System,
    Light,
    Dark,
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn save_settings(shell: State<'_, Shell>, settings: SettingsDto) -> Result<SettingsDto, ErrorDto> {
    let saved = shell.app.save_settings(settings.into_settings(&shell.app)).await?;
    Ok(SettingsDto::new(&shell.app, saved))
}

/// The menu's way to the offload switch. Everyone who shows it hears of the change as of any other.
pub(crate) fn choose_offload(handle: &AppHandle, offload: OffloadDto) {
    let app = handle.state::<Shell>().app.clone();
    tauri::async_runtime::spawn(async move {
        let settings = Settings { offload: offload.into(), ..app.settings() };
        if let Err(error) = app.save_settings(settings).await {
            tracing::warn!(%error, "the offload mode was not saved");
        }
    });
}

impl SettingsDto {
    pub(crate) fn new(app: &App, settings: Settings) -> Self {
        let reserve = settings.policy(ram(app)).reserve;
        Self {
            offload: settings.offload.into(),
            model: settings.model,
            context_len: settings.context_len,
            kv_type: settings.kv_type.map(|kv_type| match kv_type {
                KvType::F32 => KvTypeDto::F32,
                KvType::F16 => KvTypeDto::F16,
                KvType::Q8 => KvTypeDto::Q8,
            }),
            models_folder: settings.models_folder.to_string_lossy().into_owned(),
            reserve_bytes: reserve.0,
            max_swap_used_ratio: settings.max_swap_used_ratio,
            max_swap_in_per_sec: settings.max_swap_in_per_sec,
            max_thermal: match settings.max_thermal {
                // The interface offers no limit that is always exceeded; a saved one shows as the lowest it offers.
                ThermalState::Nominal | ThermalState::Fair => MaxThermalDto::Fair,
                ThermalState::Serious => MaxThermalDto::Serious,
                ThermalState::Critical => MaxThermalDto::Critical,
            },
            models_that_stay: settings.models_that_stay,
            least_trust: settings.least_trust.into(),
            serves_programs: settings.serves_programs,
            theme: match settings.theme {
                Theme::System => ThemeDto::System,
                Theme::Light => ThemeDto::Light,
                Theme::Dark => ThemeDto::Dark,
            },
            system_prompt: settings.system_prompt,
            temperature: settings.temperature.map(shortest),
            offer_calibration: settings.offer_calibration,
        }
    }

    /// A reserve that is the machine's own default stays unset, so that it follows the machine.
    fn into_settings(self, app: &App) -> Settings {
        let default_reserve = Settings { reserve_bytes: None, ..app.settings() }.policy(ram(app)).reserve;
        Settings {
            offload: self.offload.into(),
            model: self.model,
            context_len: self.context_len,
            kv_type: self.kv_type.map(|kv_type| match kv_type {
                KvTypeDto::F32 => KvType::F32,
                KvTypeDto::F16 => KvType::F16,
                KvTypeDto::Q8 => KvType::Q8,
            }),
            models_folder: self.models_folder.into(),
            reserve_bytes: (self.reserve_bytes != default_reserve.0).then_some(self.reserve_bytes),
            max_swap_used_ratio: self.max_swap_used_ratio,
            max_swap_in_per_sec: self.max_swap_in_per_sec,
            max_thermal: match self.max_thermal {
                MaxThermalDto::Fair => ThermalState::Fair,
                MaxThermalDto::Serious => ThermalState::Serious,
                MaxThermalDto::Critical => ThermalState::Critical,
            },
            drafts: app.settings().drafts,
            models_that_stay: self.models_that_stay,
            least_trust: self.least_trust.into(),
            serves_programs: self.serves_programs,
            theme: match self.theme {
                ThemeDto::System => Theme::System,
                ThemeDto::Light => Theme::Light,
                ThemeDto::Dark => Theme::Dark,
            },
            system_prompt: self.system_prompt,
            temperature: self.temperature.map(|temperature| temperature as f32),
            offer_calibration: self.offer_calibration,
        }
    }
}

fn ram(app: &App) -> Option<app::chat::Bytes> {
    app.watch_vitals().borrow().snapshot.memory.map(|memory| memory.total)
}

/// 0.7 as people wrote it, not the 0.699999988079071 that it is as a wider number.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

impl From<OffloadMode> for OffloadDto {
    fn from(mode: OffloadMode) -> Self {
        match mode {
            OffloadMode::LocalOnly => Self::LocalOnly,
            OffloadMode::Auto => Self::Auto,
            OffloadMode::Remote => Self::Remote,
        }
    }
}

impl From<OffloadDto> for OffloadMode {
    fn from(mode: OffloadDto) -> Self {
        match mode {
            OffloadDto::LocalOnly => Self::LocalOnly,
            OffloadDto::Auto => Self::Auto,
            OffloadDto::Remote => Self::Remote,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temperature_is_shown_as_it_was_written() {
        assert_eq!(shortest(0.7), 0.7);
        assert_eq!(shortest(1.0), 1.0);
    }
}
