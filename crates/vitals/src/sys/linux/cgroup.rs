use chat::Bytes;

use super::{attribute, number};
use crate::readings::Reading;
use crate::recording::Recording;

/// Prefix of the sections that each hold one level's numbers.
pub(super) const LEVEL: &str = "cgroup ";

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// The smallest limit on the way up that is below what the machine has.
    pub(super) limit: Option<Bytes>,
    /// The least that any level still gives, its page cache counted as free.
    pub(super) available: Option<Bytes>,
}

/// The limits of every recorded level. Page cache counts as free like in the kernel's own `MemAvailable`: a model's
/// mapped pages would otherwise make its own control group look full.
pub(super) fn limits(recording: &Recording, total: Bytes) -> Reading<Limits> {
    // Without this file the process could be limited and nobody would know.
    recording.text("/proc/self/cgroup")?;
    let mut limits = Limits { limit: None, available: None };
    for (_, level) in recording.texts_under(LEVEL) {
        let (limit, used) = if attribute(level, "memory.limit_in_bytes").is_some() {
            (number(level, "memory.limit_in_bytes"), number(level, "memory.usage_in_bytes"))
        } else {
            // "max" is no number. Above `high` the kernel throttles and swaps, so it is a limit to us.
            let limit = [number(level, "memory.max"), number(level, "memory.high")].into_iter().flatten().min();
            (limit, number(level, "memory.current"))
        };
        // Version 1 writes the largest number of pages where there is no limit.
        let Some(limit) = limit.map(Bytes).filter(|limit| *limit < total) else { continue };
        limits.limit = Some(limits.limit.map_or(limit, |smaller| smaller.min(limit)));
        let stat = |v1: &str, v2: &str| number(level, v1).or_else(|| number(level, v2)).map_or(Bytes::ZERO, Bytes);
        let cache =
            stat("total_inactive_file", "inactive_file").saturating_add(stat("total_active_file", "active_file"));
        // A level whose use can't be read is taken as empty: its limit still holds.
        let held = used.map_or(Bytes::ZERO, Bytes).saturating_sub(cache);
        let free = limit.saturating_sub(held);
        limits.available = Some(limits.available.map_or(free, |smaller| smaller.min(free)));
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::recording::Content;

    #[track_caller]
    fn check_limits(levels: &[&str], limit: Option<u64>, available: Option<u64>) {
        let mut recording = Recording::new("linux", Duration::ZERO);
        recording.add("/proc/self/cgroup", Content::Text("0::/".into()));
        for (index, level) in levels.iter().enumerate() {
            recording.add(&format!("{LEVEL}{index}"), Content::Text((*level).into()));
        }
        let expected = Limits { limit: limit.map(Bytes), available: available.map(Bytes) };
        assert_eq!(limits(&recording, Bytes(10_000)), Ok(expected));
    }

    #[test]
    fn the_smallest_limit_up_the_path_holds() {
        check_limits(&["memory.max=max\nmemory.high=max\nmemory.current=5"], None, None);
        check_limits(
            &[
                "memory.max=4000\nmemory.current=100",
                "memory.max=3000\nmemory.current=900\ninactive_file=200\nactive_file=50",
            ],
            Some(3000),
            Some(2350),
        );
        check_limits(
            &["memory.max=4000\nmemory.current=3900", "memory.max=5000\nmemory.current=4000"],
            Some(4000),
            Some(100),
        );
        check_limits(&["memory.max=4000\nmemory.high=2000\nmemory.current=2500"], Some(2000), Some(0));
    }

    #[test]
    fn version_1_says_no_limit_with_a_huge_number() {
        check_limits(&["memory.limit_in_bytes=9223372036854771712\nmemory.usage_in_bytes=5"], None, None);
        let level = "memory.limit_in_bytes=2000\nmemory.usage_in_bytes=1500\ninactive_file=1\ntotal_inactive_file=600";
        check_limits(&[level], Some(2000), Some(1100));
    }

    #[test]
    fn an_unreadable_membership_is_unknown() {
        assert!(limits(&Recording::new("linux", Duration::ZERO), Bytes(1)).is_err());
    }
}
