use chat::civil_date;

/// The last second of the year 9999, the last that the format has room for.
const LATEST: u64 = 253_402_300_799;

/// RFC 3339 in UTC: `2024-02-29T12:34:56Z`. `seconds` are since 1970; later than the year 9999 is its last second.
pub(super) fn rfc3339(seconds: u64) -> String {
    let seconds = seconds.min(LATEST);
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_out() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(1_709_210_096), "2024-02-29T12:34:56Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
