//! For systems without a probe of their own: compiles everywhere, and everything is unknown.

#[cfg(any(feature = "force-fallback", not(any(target_os = "macos", target_os = "linux"))))]
mod read;

#[cfg(any(feature = "force-fallback", not(any(target_os = "macos", target_os = "linux"))))]
pub(crate) use read::SystemProbe;

use crate::readings::Readings;
use crate::recording::Recording;

pub(crate) const NAME: &str = "other";

pub(crate) fn parse(recording: &Recording) -> Readings {
    Readings::unknown(recording.elapsed, "Tidegate has no probe for this operating system")
}
