//! The one place that picks an operating system; a new one is a folder and two lines here.
//!
//! Each folder has `read.rs`, compiled on that system alone, which copies what the system says into a [`Recording`],
//! and `parse.rs`, compiled and tested everywhere, which makes [`Readings`] of any such recording.

mod fallback;
mod linux;
mod macos;
#[cfg(any(test, all(any(target_os = "macos", target_os = "linux"), not(feature = "force-fallback"))))]
mod pace;
mod sensors;

use crate::readings::Readings;
use crate::recording::Recording;

#[cfg(any(feature = "force-fallback", not(any(target_os = "macos", target_os = "linux"))))]
pub(crate) use fallback::SystemProbe;
#[cfg(all(target_os = "linux", not(feature = "force-fallback")))]
pub(crate) use linux::SystemProbe;
#[cfg(all(target_os = "macos", not(feature = "force-fallback")))]
pub(crate) use macos::SystemProbe;

pub(crate) fn has_parser(os: &str) -> bool {
    matches!(os, linux::NAME | macos::NAME | fallback::NAME)
}

pub(crate) fn parse(recording: &Recording) -> Readings {
    match recording.os.as_str() {
        linux::NAME => linux::parse(recording),
        macos::NAME => macos::parse(recording),
        _ => fallback::parse(recording),
    }
}
