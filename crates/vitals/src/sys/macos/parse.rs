use std::collections::BTreeMap;
use std::time::Duration;

use chat::Bytes;

use super::{layout, section};
use crate::readings::{CpuTicks, MemoryUse, Reading, Readings, SwapUse, Unavailable};
use crate::recording::Recording;
use crate::snapshot::{MemoryPressure, PowerSource, ThermalPressure, ThermalState};
use crate::sys::sensors;

/// What a recording made on macOS says. Pure, and never panics whatever the bytes are.
pub(crate) fn parse(recording: &Recording) -> Readings {
    let metal = |line: usize| -> Reading<&str> {
        recording.text(section::METAL)?.split('\n').nth(line).ok_or("Metal told less than expected".into())
    };
    let metal_bytes = |line: usize, what: &str| {
        let bytes = metal(line)?.parse().map_err(|_| Unavailable(format!("Metal's {what} is no number")))?;
        Ok(Bytes(bytes))
    };
    Readings {
        elapsed: recording.elapsed,
        memory: memory(recording),
        wired: pages(recording, layout::vm::WIRE),
        compressed: pages(recording, layout::vm::COMPRESSOR),
        swap: swap(recording),
        swapped_in: page_counter(recording, layout::vm::SWAPINS),
        swapped_out: page_counter(recording, layout::vm::SWAPOUTS),
        pressure: pressure(recording),
        thermal: thermal(recording),
        thermal_pressure: thermal_pressure(recording),
        temperature_celsius: sensors::processor_celsius(recording),
        cpu: cpu(recording),
        gpu_name: metal(0).map(str::to_owned),
        gpu_busy_ratio: gpu_busy_ratio(recording, metal(0).ok()),
        gpu_working_set_limit: metal_bytes(1, "recommendedMaxWorkingSetSize"),
        gpu_allocated: metal_bytes(2, "currentAllocatedSize"),
        power_source: power_source(recording),
        low_power_mode: flag(recording, section::LOW_POWER),
        footprint: u64_at(recording, section::TASK, layout::task::PHYS_FOOTPRINT).map(Bytes),
        own_cpu: integer(recording, section::OWN_TIME).map(|us| BTreeMap::from([(0, Duration::from_micros(us))])),
    }
}

/// Every Mac is little-endian.
fn array_at<const N: usize>(recording: &Recording, name: &str, offset: usize) -> Reading<[u8; N]> {
    let bytes = recording.bytes(name)?;
    let found = bytes.get(offset..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().ok_or_else(|| Unavailable(format!("{name} gave only {} bytes", bytes.len())))
}

fn u32_at(recording: &Recording, name: &str, offset: usize) -> Reading<u32> {
    array_at(recording, name, offset).map(u32::from_le_bytes)
}

fn u64_at(recording: &Recording, name: &str, offset: usize) -> Reading<u64> {
    array_at(recording, name, offset).map(u64::from_le_bytes)
}

/// A number that sysctl may give in four or in eight bytes.
fn sysctl(recording: &Recording, name: &str) -> Reading<u64> {
    if recording.bytes(name)?.len() == 4 {
        u32_at(recording, name, 0).map(u64::from)
    } else {
        u64_at(recording, name, 0)
    }
}

fn integer(recording: &Recording, name: &str) -> Reading<u64> {
    let text = recording.text(name)?.trim();
    text.parse().map_err(|_| Unavailable(format!("{name} is no number")))
}

fn flag(recording: &Recording, name: &str) -> Reading<bool> {
    integer(recording, name).map(|value| value != 0)
}

fn pages(recording: &Recording, offset: usize) -> Reading<Bytes> {
    let pages = u64::from(u32_at(recording, section::VM, offset)?);
    Ok(Bytes(pages.saturating_mul(sysctl(recording, section::PAGE)?)))
}

fn page_counter(recording: &Recording, offset: usize) -> Reading<Bytes> {
    let pages = u64_at(recording, section::VM, offset)?;
    Ok(Bytes(pages.saturating_mul(sysctl(recording, section::PAGE)?)))
}

/// Used is what Activity Monitor shows: app memory, wired memory and what the compressor holds. File cache (external)
/// and purgeable pages are given back on demand.
fn memory(recording: &Recording) -> Reading<MemoryUse> {
    use layout::vm;
    let total = Bytes(sysctl(recording, section::RAM)?);
    let sum = |offsets: &[usize]| -> Reading<Bytes> {
        offsets.iter().try_fold(Bytes::ZERO, |sum, offset| Ok(sum.saturating_add(pages(recording, *offset)?)))
    };
    let held = sum(&[vm::ACTIVE, vm::INACTIVE, vm::SPECULATIVE, vm::WIRE, vm::COMPRESSOR])?;
    let used = held.saturating_sub(sum(&[vm::PURGEABLE, vm::EXTERNAL])?).min(total);
    Ok(MemoryUse { total, used, available: total.saturating_sub(used), limit: None })
}

fn swap(recording: &Recording) -> Reading<SwapUse> {
    let bytes = |offset| u64_at(recording, section::SWAP, offset).map(Bytes);
    Ok(SwapUse { total: bytes(layout::swap::TOTAL)?, used: bytes(layout::swap::USED)? })
}

fn pressure(recording: &Recording) -> Reading<MemoryPressure> {
    match sysctl(recording, section::PRESSURE)? {
        1 => Ok(MemoryPressure::Normal),
        2 => Ok(MemoryPressure::Warning),
        4 => Ok(MemoryPressure::Critical),
        level => Err(Unavailable(format!("macOS gave the unknown memory pressure level {level}"))),
    }
}

fn thermal(recording: &Recording) -> Reading<ThermalState> {
    match integer(recording, section::THERMAL)? {
        0 => Ok(ThermalState::Nominal),
        1 => Ok(ThermalState::Fair),
        2 => Ok(ThermalState::Serious),
        3 => Ok(ThermalState::Critical),
        state => Err(Unavailable(format!("macOS gave the unknown thermal state {state}"))),
    }
}

fn thermal_pressure(recording: &Recording) -> Reading<ThermalPressure> {
    match integer(recording, section::THERMAL_PRESSURE)? {
        0 => Ok(ThermalPressure::Nominal),
        1 => Ok(ThermalPressure::Moderate),
        2 => Ok(ThermalPressure::Heavy),
        3 => Ok(ThermalPressure::Trapping),
        4 => Ok(ThermalPressure::Sleeping),
        level => Err(Unavailable(format!("macOS gave the unknown thermal pressure level {level}"))),
    }
}

/// `host_cpu_load_info`: ticks of all cores as user, system, idle, nice. They are 32 bits wide and wrap after weeks.
fn cpu(recording: &Recording) -> Reading<CpuTicks> {
    let ticks = |index: usize| u32_at(recording, section::CPU, index * 4).map(u64::from);
    let (user, system, idle, nice) = (ticks(0)?, ticks(1)?, ticks(2)?, ticks(3)?);
    let cores = usize::try_from(sysctl(recording, section::CORES)?).unwrap_or(1).max(1);
    Ok(CpuTicks { busy: user + system + nice, total: user + system + idle + nice, cores })
}

/// Lines of name, tab, percent, from `PerformanceStatistics` of each `IOAccelerator`.
fn gpu_busy_ratio(recording: &Recording, metal_name: Option<&str>) -> Reading<f32> {
    let gpus: Vec<(&str, &str)> =
        recording.text(section::GPUS)?.lines().filter_map(|line| line.split_once('\t')).collect();
    let one = match gpus.as_slice() {
        [one] => Some(one),
        many => many.iter().find(|(name, _)| Some(*name) == metal_name),
    };
    let percent = one.ok_or_else(|| Unavailable(format!("none of {} GPUs has the Metal device's name", gpus.len())))?.1;
    match percent.parse::<f32>() {
        Ok(percent) if percent.is_finite() => Ok((percent / 100.0).clamp(0.0, 1.0)),
        _ => Err("the GPU's driver does not tell its use".into()),
    }
}

fn power_source(recording: &Recording) -> Reading<PowerSource> {
    match recording.text(section::POWER)?.trim() {
        "AC Power" => Ok(PowerSource::Mains),
        "Battery Power" | "UPS Power" => Ok(PowerSource::Battery),
        other => Err(Unavailable(format!("macOS gave the unknown power source `{other}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Content;

    fn recording(name: &str, content: Content) -> Recording {
        let mut recording = Recording::new("macos", Duration::ZERO);
        recording.add(name, content);
        recording
    }

    #[test]
    fn levels_are_apples() {
        let level = |level: u32| pressure(&recording(section::PRESSURE, Content::Bytes(level.to_le_bytes().to_vec())));
        assert_eq!(level(1), Ok(MemoryPressure::Normal));
        assert_eq!(level(2), Ok(MemoryPressure::Warning));
        assert_eq!(level(4), Ok(MemoryPressure::Critical));
        assert_eq!(level(3), Err(Unavailable("macOS gave the unknown memory pressure level 3".into())));
        let heat = |level: &str| thermal_pressure(&recording(section::THERMAL_PRESSURE, Content::Text(level.into())));
        assert_eq!(heat("2"), Ok(ThermalPressure::Heavy));
        assert!(heat("5").is_err());
    }

    #[test]
    fn short_structs_are_unknown() {
        let short = recording(section::VM, Content::Bytes(vec![1; 100]));
        let parsed = parse(&short);
        assert_eq!(parsed.swapped_in, Err(Unavailable(format!("{} gave only 100 bytes", section::VM))));
        assert!(parsed.memory.is_err());
    }

    #[test]
    fn one_gpu_needs_no_name_and_several_do() {
        let busy = |text: &str, name| gpu_busy_ratio(&recording(section::GPUS, Content::Text(text.into())), name).ok();
        assert_eq!(busy("Apple M3\t42\n", Some("Apple M3")), Some(0.42));
        assert_eq!(busy("\t42\n", None), Some(0.42));
        assert_eq!(busy("Intel UHD 630\t9\nAMD Radeon Pro\t80\n", Some("AMD Radeon Pro")), Some(0.8));
        assert_eq!(busy("Intel UHD 630\t9\nAMD Radeon Pro\t80\n", None), None);
        assert_eq!(busy("Apple M3\t-\n", None), None);
        assert_eq!(busy("Apple M3\tNaN\n", None), None);
    }

    #[test]
    fn a_ups_is_a_battery() {
        let source = |text: &str| power_source(&recording(section::POWER, Content::Text(text.into()))).ok();
        assert_eq!(source("UPS Power"), Some(PowerSource::Battery));
        assert_eq!(source("AC Power"), Some(PowerSource::Mains));
        assert_eq!(source("Off Line"), None);
    }
}
