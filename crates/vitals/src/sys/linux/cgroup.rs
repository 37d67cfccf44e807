use std::path::{Component, Path, PathBuf};

use chat::Bytes;

use super::{attribute, number};
use crate::readings::Reading;
use crate::recording::Recording;

/// Prefix of the sections that each hold one level's numbers.
pub(super) const LEVEL: &str = "cgroup ";

/// The files and `memory.stat` lines that a level's section holds, of both versions.
pub(super) const FILES: [&str; 5] =
    ["memory.max", "memory.high", "memory.current", "memory.limit_in_bytes", "memory.usage_in_bytes"];
pub(super) const STAT_LINES: [&str; 4] = ["inactive_file", "active_file", "total_inactive_file", "total_active_file"];

/// The folders that may limit this process' memory, its own first and then up to the mount, of each memory hierarchy.
///
/// `cgroup` is `/proc/self/cgroup`, `mounts` the lines of `/proc/self/mountinfo` that mount control groups.
pub(super) fn folders(cgroup: &str, mounts: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let is_unified = controllers.is_empty();
        if !is_unified && !controllers.split(',').any(|controller| controller == "memory") {
            continue;
        }
        let Some((root, mount)) = mounts.lines().find_map(|line| mount_of(line, is_unified)) else { continue };
        // A container that sees the host's path has only its own part of it mounted.
        let below = Path::new(path).strip_prefix(&root).unwrap_or(Path::new(path));
        let names: Vec<_> = below
            .components()
            .filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None })
            .collect();
        let is_outside = below.components().any(|part| part == Component::ParentDir);
        let depth = if is_outside { 0 } else { names.len() };
        for depth in (0..=depth).rev() {
            folders.push(names[..depth].iter().fold(mount.clone(), |folder, name| folder.join(name)));
        }
    }
    folders
}

/// Root and mount point where a line of mountinfo mounts the wanted hierarchy.
fn mount_of(line: &str, is_unified: bool) -> Option<(PathBuf, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, mount) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (kind, _source, options) = (after.next()?, after.next()?, after.next().unwrap_or_default());
    let is_wanted = if is_unified {
        kind == "cgroup2"
    } else {
        kind == "cgroup" && options.split(',').any(|option| option == "memory")
    };
    is_wanted.then(|| (PathBuf::from(unescape(root)), PathBuf::from(unescape(mount))))
}

/// mountinfo writes blanks, tabs, line feeds and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

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

    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
    const V2: &str = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate";

    #[track_caller]
    fn check(cgroup: &str, mounts: &str, expected: &[&str]) {
        let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(folders(cgroup, mounts), expected);
    }

    #[test]
    fn own_folder_comes_first_then_up_to_the_mount() {
        let cgroup = "9:name=systemd:/\n4:memory:/a/b\n1:cpu:/\n0::/x\n";
        check(cgroup, V1, &["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory"]);
        check(
            "0::/user.slice/app.scope\n",
            V2,
            &["/sys/fs/cgroup/user.slice/app.scope", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup"],
        );
    }

    #[test]
    fn a_container_sees_the_hosts_path_or_its_own() {
        let mounts = V1.replace("0:32 / ", "0:32 /docker/c0ffee ");
        check("4:memory:/docker/c0ffee/job", &mounts, &["/sys/fs/cgroup/memory/job", "/sys/fs/cgroup/memory"]);
        check("0::/", V2, &["/sys/fs/cgroup"]);
    }

    #[test]
    fn a_path_never_leads_out_of_the_mount() {
        check("0::/../../etc", V2, &["/sys/fs/cgroup"]);
        check("0::/../sibling", V2, &["/sys/fs/cgroup"]);
    }

    #[test]
    fn both_controllers_in_one_hierarchy_and_blanks_in_mounts() {
        let mounts = "35 31 0:32 / /mnt/my\\040groups rw - cgroup none rw,cpu,memory";
        check("2:cpu,memory:/", mounts, &["/mnt/my groups"]);
        check("2:cpu:/", mounts, &[]);
        check("", "", &[]);
    }

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
