//! Numbers as the sentences show them. What must not promise too much is rounded to the careful side.

use std::time::Duration;

use chat::Bytes;

/// An amount that has to be free, rounded up to the next tenth: that much free is enough.
pub(crate) fn at_least(bytes: Bytes) -> String {
    let exact = u128::from(bytes.0);
    let unit = [1 << 40, 1 << 30].into_iter().find(|&unit| exact >= unit).unwrap_or(1_u128 << 20);
    let tenths = (exact * 10).div_ceil(unit);
    let rounded = (tenths * unit).div_ceil(10);
    Bytes(u64::try_from(rounded).unwrap_or(u64::MAX)).to_string()
}

/// A context length as people write it, rounded down: "8k", "7.1k", "900".
pub(crate) fn context(tokens: usize) -> String {
    let (thousands, tenths) = (tokens / 1024, tokens % 1024 * 10 / 1024);
    match (thousands, tenths) {
        (0, _) => tokens.to_string(),
        (1..16, 1..) => format!("{thousands}.{tenths}k"),
        _ => format!("{thousands}k"),
    }
}

/// A count of tokens: "6,200 tokens".
pub(crate) fn tokens(count: usize) -> String {
    let digits = count.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{grouped} {}", if count == 1 { "token" } else { "tokens" })
}

/// A decode speed: "41 tok/s", "2.5 tok/s".
pub(crate) fn speed(tokens_per_sec: f64) -> String {
    if tokens_per_sec < 9.95 { format!("{tokens_per_sec:.1} tok/s") } else { format!("{tokens_per_sec:.0} tok/s") }
}

/// A time that is forecast: "about 40 s", "about 3 min", "about 2 h"; "under a second", "over a day".
pub(crate) fn about(seconds: f64) -> String {
    match seconds {
        ..1.0 => "under a second".to_owned(),
        ..90.0 => format!("about {seconds:.0} s"),
        ..5400.0 => format!("about {:.0} min", seconds / 60.0),
        ..86_400.0 => format!("about {:.0} h", seconds / 3600.0),
        _ => "over a day".to_owned(),
    }
}

/// A time that has passed: "6 s ago", "a moment ago".
pub(crate) fn ago(passed: Duration) -> String {
    match passed.as_secs() {
        0 => "a moment ago".to_owned(),
        seconds => format!("{seconds} s ago"),
    }
}

/// The text with its first letter as a capital.
pub(crate) fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_in_the_window() {
        assert_eq!(at_least(Bytes(Bytes::gib(6).0 + 1)), "6.1 GB");
        assert_eq!(at_least(Bytes::gib(6)), "6.0 GB");
        assert_eq!(at_least(Bytes(1)), "102.4 KB");
        assert_eq!(at_least(Bytes::ZERO), "0 bytes");
        at_least(Bytes(u64::MAX));
        assert_eq!([context(900), context(8192), context(7372), context(131_072)], ["900", "8k", "7.1k", "128k"]);
        assert_eq!(
            [tokens(1), tokens(999), tokens(6200), tokens(1_000_000)].join(" "),
            "1 token 999 tokens 6,200 tokens 1,000,000 tokens"
        );
        assert_eq!([speed(2.54), speed(9.96), speed(41.4)], ["2.5 tok/s", "10 tok/s", "41 tok/s"]);
        assert_eq!([about(0.2), about(41.7), about(200.0)], ["under a second", "about 42 s", "about 3 min"]);
        assert_eq!([about(7200.0), about(f64::INFINITY)], ["about 2 h", "over a day"]);
        assert_eq!(ago(Duration::from_millis(6900)), "6 s ago");
        assert_eq!(ago(Duration::from_millis(900)), "a moment ago");
        assert_eq!([capitalized("needs"), capitalized("")], ["Needs", ""]);
    }
}
