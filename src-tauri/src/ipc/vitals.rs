//! Readings: the newest as an event, the last hour on request. Absent is `null`, never zero.

use std::time::UNIX_EPOCH;

use app::Vitals;
use app::vitals::{MemoryPressure, PowerSource, ThermalState};
use serde::Serialize;
use specta::Type;
use specta_typescript::Number;
use tauri::State;

use super::error::ErrorDto;
use crate::Shell;

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VitalsDto {
    at_ms: i64,
    memory: Option<MemoryDto>,
    swap: Option<SwapDto>,
    pressure: Option<PressureDto>,
    thermal: Option<ThermalDto>,
    thermal_pressure: Option<String>,
    #[specta(type = Option<Number>)]
    temperature_celsius: Option<f64>,
    #[specta(type = Option<Number>)]
    cpu_busy_ratio: Option<f64>,
    #[specta(type = Option<Number>)]
    gpu_busy_ratio: Option<f64>,
    on_battery: Option<bool>,
    low_power_mode: Option<bool>,
    own_footprint_bytes: Option<u64>,
    weights_bytes: u64,
    kv_cache_bytes: u64,
    given_back_bytes: Option<u64>,
    #[specta(type = Option<Number>)]
    decode_tokens_per_sec: Option<f64>,
    #[specta(type = Option<Number>)]
    baseline_tokens_per_sec: Option<f64>,
    unavailable: Vec<UnavailableDto>,
}

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemoryDto {
    total_bytes: u64,
    used_bytes: u64,
    wired_bytes: Option<u64>,
    compressed_bytes: Option<u64>,
    available_bytes: u64,
    limit_bytes: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SwapDto {
    total_bytes: u64,
    used_bytes: u64,
    /// Bytes per second.
    in_per_sec: Option<u64>,
    /// Bytes per second.
    out_per_sec: Option<u64>,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum PressureDto {
    Normal,
    Warning,
    Critical,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ThermalDto {
    Nominal,
    Fair,
    Serious,
    Critical,
}

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnavailableDto {
    reading: String,
    why: String,
}

/// The last hour, oldest first.
#[tauri::command]
#[specta::specta]
pub(crate) async fn vitals_history(shell: State<'_, Shell>) -> Result<Vec<VitalsDto>, ErrorDto> {
    Ok(shell.app.vitals_history().iter().map(|vitals| VitalsDto::from(vitals.as_ref())).collect())
}

impl From<&Vitals> for VitalsDto {
    fn from(vitals: &Vitals) -> Self {
        let snapshot = &vitals.snapshot;
        Self {
            at_ms: snapshot.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64),
            memory: snapshot.memory.map(|memory| MemoryDto {
                total_bytes: memory.total.0,
                used_bytes: memory.used.0,
                wired_bytes: memory.wired.map(|bytes| bytes.0),
                compressed_bytes: memory.compressed.map(|bytes| bytes.0),
                available_bytes: memory.available.0,
                limit_bytes: memory.limit.map(|bytes| bytes.0),
            }),
            swap: snapshot.swap.map(|swap| SwapDto {
                total_bytes: swap.total.0,
                used_bytes: swap.used.0,
                in_per_sec: swap.in_per_sec.map(|bytes| bytes.0),
                out_per_sec: swap.out_per_sec.map(|bytes| bytes.0),
            }),
            pressure: snapshot.pressure.map(PressureDto::from),
            thermal: snapshot.thermal.map(ThermalDto::from),
            thermal_pressure: snapshot.thermal_pressure.map(|level| level.as_str().to_owned()),
            temperature_celsius: snapshot.temperature_celsius.map(f64::from),
            cpu_busy_ratio: snapshot.cpu.map(|cpu| f64::from(cpu.busy_ratio)),
            gpu_busy_ratio: snapshot.gpu.as_ref().and_then(|gpu| gpu.busy_ratio).map(f64::from),
            on_battery: snapshot.power.and_then(|power| power.source).map(|source| source == PowerSource::Battery),
            low_power_mode: snapshot.power.and_then(|power| power.low_power_mode),
            own_footprint_bytes: snapshot.own.map(|own| own.footprint.0),
            weights_bytes: vitals.weights.0,
            kv_cache_bytes: vitals.kv_cache.0,
            given_back_bytes: vitals.given_back.map(|bytes| bytes.0),
            decode_tokens_per_sec: vitals.decode_tokens_per_sec,
            baseline_tokens_per_sec: vitals.baseline_tokens_per_sec,
            unavailable: vitals
                .unavailable
                .iter()
                .map(|(reading, why)| UnavailableDto { reading: (*reading).to_owned(), why: why.clone() })
                .collect(),
        }
    }
}

impl From<MemoryPressure> for PressureDto {
    fn from(pressure: MemoryPressure) -> Self {
        match pressure {
            MemoryPressure::Normal => Self::Normal,
            MemoryPressure::Warning => Self::Warning,
            MemoryPressure::Critical => Self::Critical,
        }
    }
}

impl From<ThermalState> for ThermalDto {
    fn from(state: ThermalState) -> Self {
        match state {
            ThermalState::Nominal => Self::Nominal,
            ThermalState::Fair => Self::Fair,
            ThermalState::Serious => Self::Serious,
            ThermalState::Critical => Self::Critical,
        }
    }
}
