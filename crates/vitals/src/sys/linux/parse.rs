use super::{devices, memory, process};
use crate::readings::{CpuTicks, Reading, Readings, Unavailable};
use crate::recording::Recording;

/// What a recording made on Linux says. Pure, and never panics whatever the text is.
pub(crate) fn parse(recording: &Recording) -> Readings {
    let gpu = devices::gpu(recording);
    let gpu = gpu.as_ref().map_err(Clone::clone);
    Readings {
        elapsed: recording.elapsed,
        memory: memory::memory(recording),
        wired: memory::wired(recording),
        compressed: memory::compressed(recording),
        swap: memory::swap(recording),
        swapped_in: memory::swapped(recording, "pswpin"),
        swapped_out: memory::swapped(recording, "pswpout"),
        pressure: memory::pressure(recording),
        thermal: devices::thermal(recording),
        thermal_pressure: Err("only macOS tells it".into()),
        temperature_celsius: devices::temperature(recording),
        cpu: cpu(recording),
        gpu_name: gpu.clone().and_then(devices::Gpu::name),
        gpu_busy_ratio: gpu.clone().and_then(devices::Gpu::busy_ratio),
        gpu_working_set_limit: gpu.clone().and_then(devices::Gpu::working_set_limit),
        gpu_allocated: gpu.and_then(devices::Gpu::allocated),
        power_source: devices::power_source(recording),
        low_power_mode: devices::low_power_mode(recording),
        footprint: process::footprint(recording),
        own_cpu: process::cpu_times(recording),
    }
}

fn cpu(recording: &Recording) -> Reading<CpuTicks> {
    let text = recording.text("/proc/stat")?;
    let fields = text.lines().find_map(|line| line.strip_prefix("cpu "));
    // user nice system idle iowait irq softirq steal; guest time, which follows, is part of user.
    let ticks: Vec<u64> =
        fields.unwrap_or_default().split_whitespace().map_while(|field| field.parse().ok()).take(8).collect();
    if ticks.len() < 4 {
        return Err(Unavailable("/proc/stat has no processor times".into()));
    }
    let total = ticks.iter().fold(0u64, |sum, ticks| sum.saturating_add(*ticks));
    let idle = ticks[3].saturating_add(ticks.get(4).copied().unwrap_or(0));
    let is_core =
        |line: &str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let cores = text.lines().filter(|line| is_core(line)).count();
    Ok(CpuTicks { busy: total - idle.min(total), total, cores: cores.max(1) })
}
