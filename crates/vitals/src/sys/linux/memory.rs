use chat::Bytes;

use super::{cgroup, number};
use crate::readings::{MemoryUse, Reading, SwapUse, Unavailable};
use crate::recording::Recording;
use crate::snapshot::MemoryPressure;

const MEMINFO: &str = "/proc/meminfo";

/// Share of the last ten seconds, in percent, that tasks waited for memory from which on [`MemoryPressure`] is not
/// normal. Where the kernel keeps up, the average stays below 1; the killers of user space act between 5 (a desktop's
/// early one) and 60 (systemd-oomd's default), so 10 warns before either level hurts for long.
const STALLED_PERCENT: f32 = 10.0;

fn meminfo(recording: &Recording, name: &str) -> Reading<Bytes> {
    let text = recording.text(MEMINFO)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| Bytes(kib.saturating_mul(1024)))
        .ok_or_else(|| Unavailable(format!("{MEMINFO} has no {name}")))
}

pub(super) fn memory(recording: &Recording) -> Reading<MemoryUse> {
    let total = meminfo(recording, "MemTotal")?;
    let machine = match meminfo(recording, "MemAvailable") {
        Ok(available) => available.min(total),
        // Kernels before 3.14: the same estimate without the reserve that the kernel would keep back.
        Err(_) => {
            let sum = ["MemFree", "Buffers", "Cached"]
                .iter()
                .try_fold(Bytes::ZERO, |sum, name| meminfo(recording, name).map(|bytes| sum.saturating_add(bytes)))?;
            sum.saturating_sub(meminfo(recording, "Shmem").unwrap_or_default()).min(total)
        }
    };
    let limits = cgroup::limits(recording, total);
    let (limit, group) = limits.map_or((None, None), |limits| (limits.limit, limits.available));
    let available = group.map_or(machine, |group| group.min(machine));
    Ok(MemoryUse { total, used: total.saturating_sub(machine), available, limit })
}

/// What can't be paged out: locked pages, and the kernel's own.
pub(super) fn wired(recording: &Recording) -> Reading<Bytes> {
    ["Unevictable", "SUnreclaim", "KernelStack", "PageTables"]
        .iter()
        .try_fold(Bytes::ZERO, |sum, name| Ok(sum.saturating_add(meminfo(recording, name)?)))
}

/// What zswap holds. Pages in zram count as swap instead, as the kernel sees them.
pub(super) fn compressed(recording: &Recording) -> Reading<Bytes> {
    meminfo(recording, "Zswap")
}

pub(super) fn swap(recording: &Recording) -> Reading<SwapUse> {
    let (total, free) = (meminfo(recording, "SwapTotal")?, meminfo(recording, "SwapFree")?);
    Ok(SwapUse { total, used: total.saturating_sub(free) })
}

/// Bytes moved since the machine started; `counter` is `pswpin` or `pswpout`.
pub(super) fn swapped(recording: &Recording, counter: &str) -> Reading<Bytes> {
    let page_size = page_size(recording)?;
    recording
        .text("/proc/vmstat")?
        .lines()
        .find_map(|line| line.strip_prefix(counter)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
        .map(|pages| Bytes(pages.saturating_mul(page_size)))
        .ok_or_else(|| Unavailable(format!("/proc/vmstat has no {counter}")))
}

pub(super) fn page_size(recording: &Recording) -> Reading<u64> {
    number(recording.text("sysconf")?, "page_size").ok_or("the page size is unknown".into())
}

/// The worse of the machine's and the own control group's pressure.
pub(super) fn pressure(recording: &Recording) -> Reading<MemoryPressure> {
    let machine = recording.text("/proc/pressure/memory").and_then(parse_pressure);
    let group = recording.text("cgroup memory.pressure").and_then(parse_pressure);
    match (machine, group) {
        (Ok(machine), Ok(group)) => Ok(machine.max(group)),
        (Ok(pressure), Err(_)) | (Err(_), Ok(pressure)) => Ok(pressure),
        (Err(why), Err(_)) => Err(why),
    }
}

fn parse_pressure(text: &str) -> Reading<MemoryPressure> {
    let average = |who: &str| -> Option<f32> {
        let line = text.lines().find_map(|line| line.strip_prefix(who)?.strip_prefix(' '))?;
        line.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok().filter(|avg: &f32| avg.is_finite())
    };
    let (Some(some), Some(full)) = (average("some"), average("full")) else {
        return Err("the kernel's pressure text has no averages".into());
    };
    Ok(if full >= STALLED_PERCENT {
        MemoryPressure::Critical
    } else if some >= STALLED_PERCENT {
        MemoryPressure::Warning
    } else {
        MemoryPressure::Normal
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(some: &str, full: &str, expected: Option<MemoryPressure>) {
        let text = format!("some avg10={some} avg60=0.00 avg300=0.00 total=0\nfull avg10={full} avg60=0.00 total=0\n");
        assert_eq!(parse_pressure(&text).ok(), expected);
    }

    #[test]
    fn stalls_above_ten_percent_are_pressure() {
        check("0.00", "0.00", Some(MemoryPressure::Normal));
        check("9.99", "9.99", Some(MemoryPressure::Normal));
        check("10.00", "3.10", Some(MemoryPressure::Warning));
        check("88.00", "10.00", Some(MemoryPressure::Critical));
        check("NaN", "0.00", None);
        check("", "0.00", None);
    }
}
