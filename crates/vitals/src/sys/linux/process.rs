use std::collections::BTreeMap;
use std::time::Duration;

use chat::Bytes;

use super::{memory, number};
use crate::readings::{Reading, Unavailable};
use crate::recording::Recording;

const SELF: &str = "/proc/self/";

/// The recorded files called `file` of this process, as process 0, and of its descendants.
fn files<'a>(recording: &'a Recording, file: &'a str) -> impl Iterator<Item = (u32, &'a str)> {
    recording.texts_under("/proc/").filter_map(move |(name, text)| {
        let (pid, found) = name.strip_prefix("/proc/")?.split_once('/')?;
        let pid = if pid == "self" { 0 } else { pid.parse().ok()? };
        (found == file).then_some((pid, text))
    })
}

/// Proportional set size of the own processes. Reading it walks every page, so it may be older than the resident size:
/// what that one has moved since is added.
pub(super) fn footprint(recording: &Recording) -> Reading<Bytes> {
    let page_size = memory::page_size(recording)?;
    recording.text(&format!("{SELF}statm"))?;
    let proportional: BTreeMap<u32, (u64, u64)> = files(recording, "smaps_rollup")
        .filter_map(|(pid, text)| Some((pid, (kib(text, "Pss")?, kib(text, "Rss")?))))
        .collect();
    let mut sum = Bytes::ZERO;
    for (pid, text) in files(recording, "statm") {
        let Some(pages) = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()) else {
            if pid == 0 {
                return Err(Unavailable(format!("{SELF}statm has no resident size")));
            }
            continue;
        };
        let resident = pages.saturating_mul(page_size);
        let own =
            proportional.get(&pid).map_or(resident, |(pss, rss)| pss.saturating_add(resident).saturating_sub(*rss));
        sum = sum.saturating_add(Bytes(own));
    }
    Ok(sum)
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024))
}

/// Processor time of each own process so far.
pub(super) fn cpu_times(recording: &Recording) -> Reading<BTreeMap<u32, Duration>> {
    let per_second = number(recording.text("sysconf")?, "clock_ticks")
        .filter(|ticks| *ticks > 0)
        .ok_or(Unavailable::from("the length of a clock tick is unknown"))?;
    recording.text(&format!("{SELF}stat"))?;
    let times: BTreeMap<u32, Duration> = files(recording, "stat")
        .filter_map(|(pid, text)| {
            // The name stands in parentheses and may hold anything, parentheses too.
            let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
            let user: u64 = fields.next()?.parse().ok()?;
            let system: u64 = fields.next()?.parse().ok()?;
            Some((pid, Duration::from_secs_f64(user.saturating_add(system) as f64 / per_second as f64)))
        })
        .collect();
    if times.contains_key(&0) { Ok(times) } else { Err(Unavailable(format!("{SELF}stat has no times"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Content;

    fn recording(files: &[(&str, &str)]) -> Recording {
        let mut recording = Recording::new("linux", Duration::ZERO);
        recording.add("sysconf", Content::Text("page_size=4096\nclock_ticks=100".into()));
        for (name, text) in files {
            recording.add(name, Content::Text((*text).into()));
        }
        recording
    }

    #[test]
    fn pss_is_moved_by_what_the_resident_size_moved() {
        let files = [
            ("/proc/self/smaps_rollup", "00-ff ---p [rollup]\nRss:  400 kB\nPss:  100 kB\nPss_Dirty: 7 kB\n"),
            ("/proc/self/statm", "999 110 5 1 0 50 0\n"),
        ];
        assert_eq!(footprint(&recording(&files)), Ok(Bytes(140 << 10)));
        assert_eq!(footprint(&recording(&files[1..])), Ok(Bytes(440 << 10)));
        assert!(footprint(&recording(&files[..1])).is_err());
    }

    #[test]
    fn children_count_and_other_files_do_not() {
        let files = [
            ("/proc/self/statm", "9 10 0 0 0 0 0"),
            ("/proc/77/statm", "9 5 0 0 0 0 0"),
            ("/proc/77/smaps_rollup", "Rss: 20 kB\nPss: 8 kB"),
            ("/proc/pressure/statm", "9 1000 0"),
        ];
        assert_eq!(footprint(&recording(&files)), Ok(Bytes(48 << 10)));
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "42 (a) R 1) (b)) S 1 1 1 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 100 1 1\n";
        let files = [("/proc/self/stat", stat), ("/proc/77/stat", "77 (x")];
        assert_eq!(cpu_times(&recording(&files)), Ok(BTreeMap::from([(0, Duration::from_secs(3))])));
        assert!(cpu_times(&recording(&files[1..])).is_err());
    }
}
