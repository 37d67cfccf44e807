use std::fmt;

/// A value that must not be read in a log, an error or a snapshot: a key, or the text of a message. `Debug` prints a
/// length only, and there is no `Display`.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Redacted<T>(pub T);

impl<T: AsRef<str>> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} characters>", self.0.as_ref().chars().count())
    }
}

impl<T: AsRef<str>> Redacted<T> {
    /// The value itself. Whoever calls this must not print it.
    pub fn expose(&self) -> &str {
        self.0.as_ref()
    }
}

impl<T> From<T> for Redacted<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_a_length_only() {
        assert_eq!(format!("{:?}", Redacted("secret".to_owned())), "<6 characters>");
    }
}
