use std::fmt;

/// A number of bytes. Displays as memory is shown in Activity Monitor: 1 KB = 2¹⁰, 1 GB = 2³⁰, one decimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes at all: a measured nothing, not an unknown.
    pub const ZERO: Self = Self(0);

    /// `n` × 2²⁰ bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` × 2³⁰ bytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The difference, or zero where `other` is larger.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, or the largest number of bytes there is.
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// `ratio` of these bytes, for a ratio between 0 and 1.
    pub fn scaled(self, ratio: f64) -> Self {
        Self((self.0 as f64 * ratio) as u64)
    }

    /// The size of a file as Finder shows it: 1 kB = 10³, 1 GB = 10⁹.
    pub fn file_size(self) -> String {
        format_in(self.0, 1000.0, ["bytes", "kB", "MB", "GB", "TB"])
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format_in(self.0, 1024.0, ["bytes", "KB", "MB", "GB", "TB"]))
    }
}

fn format_in(bytes: u64, step: f64, units: [&str; 5]) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.95 would be shown as 1000.0, so the next unit starts just before it.
    while value >= step - 0.05 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_binary_and_files_are_decimal() {
        assert_eq!(Bytes(491_400_064).file_size(), "491.4 MB");
        assert_eq!(Bytes(491_400_064).to_string(), "468.6 MB");
        assert_eq!(Bytes::gib(24).to_string(), "24.0 GB");
        assert_eq!(Bytes(17).to_string(), "17 bytes");
        assert_eq!(Bytes((1 << 30) - 1).to_string(), "1.0 GB");
        assert_eq!(Bytes(999_999_999).file_size(), "1.0 GB");
    }
}
