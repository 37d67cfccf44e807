//! Linux: /proc, /sys, pressure stall information and control groups of both versions.

mod cgroup;
mod devices;
#[cfg(any(test, all(target_os = "linux", not(feature = "force-fallback"))))]
mod membership;
mod memory;
mod parse;
mod process;
#[cfg(all(target_os = "linux", not(feature = "force-fallback")))]
mod read;

pub(crate) use parse::parse;
#[cfg(all(target_os = "linux", not(feature = "force-fallback")))]
pub(crate) use read::SystemProbe;

pub(crate) const NAME: &str = "linux";

/// The value of a `name=value` line. Folders of small files are recorded as such lines.
fn attribute<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.split_once('=').filter(|(found, _)| *found == name).map(|(_, value)| value))
}

fn number(text: &str, name: &str) -> Option<u64> {
    attribute(text, name)?.trim().parse().ok()
}
