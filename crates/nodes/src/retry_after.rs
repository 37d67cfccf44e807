use std::time::{Duration, SystemTime};

/// The longest that a node's word is waited for; what names more may be mistaken, or mean harm.
const LONGEST: Duration = Duration::from_secs(600);

/// How long to wait by a `Retry-After`, which is a number of seconds or a date: from `now`, and ten minutes at most.
/// `None` where it is neither.
pub(crate) fn read_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // What is too long for a number is longer than the longest, too.
        return Some(value.parse().map_or(LONGEST, Duration::from_secs).min(LONGEST));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default().min(LONGEST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(value: &str) -> Option<u64> {
        // 21 October 2026, 07:28:00 GMT.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_567_680);
        read_retry_after(value, now).map(|wait| wait.as_secs())
    }

    #[test]
    fn seconds_and_dates_are_read() {
        assert_eq!(read(" 7 "), Some(7));
        assert_eq!(read("0"), Some(0));
        assert_eq!(read("Wed, 21 Oct 2026 07:28:30 GMT"), Some(30));
        assert_eq!(read("Wed, 21 Oct 2026 07:27:00 GMT"), Some(0), "a date that has passed");
        assert_eq!(read("Thu, 21 Oct 2027 07:28:00 GMT"), Some(600));
        assert_eq!(read("99999999999999999999999999"), Some(600));
        for neither in ["", "soon", "-1", "1.5", "7 s", "Wed, 99 Oct 2026 07:28:00 GMT"] {
            assert_eq!(read(neither), None, "{neither}");
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_it_fail_or_wait_for_ever(value in "\\PC{0,40}|[0-9]{1,40}") {
            prop_assert!(read(&value).is_none_or(|seconds| seconds <= LONGEST.as_secs()));
        }
    }
}
