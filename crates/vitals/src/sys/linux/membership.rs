use std::path::{Component, Path, PathBuf};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
