use std::fmt::Write as _;
use std::time::Duration;

use crate::readings::{Reading, Unavailable};

const FIRST_LINE: &str = "tidegate vitals recording 1";

/// What a probe read, before anything was made of it. Its text form is what a bug report carries:
///
/// ```text
/// tidegate vitals recording 1
/// os linux
/// elapsed_us 1000000
/// == text /proc/meminfo
/// |MemTotal:       24684092 kB
/// == bytes sysctl hw.memsize
/// |00 00 00 00 06 00 00 00
/// == failed /proc/pressure/memory
/// |No such file or directory (os error 2)
/// ```
///
/// Lines before a first line and lines that start with `#` are comments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recording {
    pub(crate) os: String,
    /// By a clock that only goes forward, from an arbitrary start.
    pub(crate) elapsed: Duration,
    sections: Vec<(String, Content)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text(String),
    Bytes(Vec<u8>),
    /// Why it could not be read.
    Failed(String),
}

/// A text that is not a recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// No line of the text starts a recording.
    #[error("no line says `{FIRST_LINE}`")]
    NoRecording,
    /// A line is neither a header, a section nor content.
    #[error("line {line} of the recording says `{text}`, which has no meaning here")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What stands there, shortened.
        text: String,
    },
    /// The recording was made on a system that this build can't parse.
    #[error("no parser for recordings from `{0}`")]
    UnknownSystem(String),
}

impl Recording {
    pub(crate) fn new(os: &str, elapsed: Duration) -> Self {
        Self { os: os.to_owned(), elapsed, sections: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &str, content: Content) {
        self.sections.push((one_line(name), content));
    }

    pub(crate) fn add_text<E: std::fmt::Display>(&mut self, name: &str, text: Result<String, E>) {
        self.add(name, text.map_or_else(|error| Content::Failed(error.to_string()), Content::Text));
    }

    pub(crate) fn text(&self, name: &str) -> Reading<&str> {
        match self.content(name)? {
            Content::Text(text) => Ok(text),
            _ => Err(Unavailable(format!("{name} is not text"))),
        }
    }

    pub(crate) fn bytes(&self, name: &str) -> Reading<&[u8]> {
        match self.content(name)? {
            Content::Bytes(bytes) => Ok(bytes),
            _ => Err(Unavailable(format!("{name} is not bytes"))),
        }
    }

    /// Name and text of every section whose name starts with `prefix`, in the order they were read.
    pub(crate) fn texts_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.sections.iter().filter_map(move |(name, content)| match content {
            Content::Text(text) if name.starts_with(prefix) => Some((name.as_str(), text.as_str())),
            _ => None,
        })
    }

    fn content(&self, name: &str) -> Reading<&Content> {
        let name = one_line(name);
        match self.sections.iter().find(|(found, _)| *found == name) {
            Some((_, Content::Failed(why))) => Err(Unavailable(format!("{name}: {why}"))),
            Some((_, content)) => Ok(content),
            None => Err(Unavailable(format!("{name} was not read"))),
        }
    }

    pub(crate) fn to_text(&self) -> String {
        let mut out = format!("{FIRST_LINE}\nos {}\nelapsed_us {}\n", self.os, self.elapsed.as_micros());
        for (name, content) in &self.sections {
            match content {
                Content::Text(text) => write_section(&mut out, "text", name, text),
                Content::Failed(why) => write_section(&mut out, "failed", name, why),
                Content::Bytes(bytes) => {
                    let rows: Vec<String> = bytes
                        .chunks(16)
                        .map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
                        .collect();
                    write_section(&mut out, "bytes", name, &rows.join("\n"));
                }
            }
        }
        out
    }

    /// Every recording in `text`, one after the other.
    pub(crate) fn parse_all(text: &str) -> Result<Vec<Self>, RecordingError> {
        let mut recordings: Vec<Self> = Vec::new();
        let mut section: Option<(String, String, Vec<&str>)> = None;
        // Content may hold carriage returns, which `lines()` would drop.
        for (index, line) in text.split('\n').enumerate() {
            let wrong = || RecordingError::Line { line: index + 1, text: line.chars().take(60).collect() };
            if let Some(content) = line.strip_prefix('|') {
                section.as_mut().ok_or_else(wrong)?.2.push(content);
                continue;
            }
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            if line.trim_end() == FIRST_LINE {
                close(&mut section, &mut recordings).ok_or_else(wrong)?;
                recordings.push(Self::default());
                continue;
            }
            let Some(recording) = recordings.last_mut() else { continue };
            if let Some(os) = line.strip_prefix("os ") {
                recording.os = os.trim().to_owned();
            } else if let Some(elapsed) = line.strip_prefix("elapsed_us ") {
                recording.elapsed = Duration::from_micros(elapsed.trim().parse().map_err(|_| wrong())?);
            } else if let Some(rest) = line.strip_prefix("== ") {
                let (kind, name) = rest.split_once(' ').ok_or_else(wrong)?;
                close(&mut section, &mut recordings).ok_or_else(wrong)?;
                section = Some((kind.to_owned(), name.to_owned(), Vec::new()));
            } else {
                return Err(wrong());
            }
        }
        close(&mut section, &mut recordings)
            .ok_or(RecordingError::Line { line: text.split('\n').count(), text: "the last section".into() })?;
        if recordings.is_empty() { Err(RecordingError::NoRecording) } else { Ok(recordings) }
    }
}

/// Puts the finished section into the newest recording. `None` where its kind or content has no meaning.
fn close(section: &mut Option<(String, String, Vec<&str>)>, recordings: &mut [Recording]) -> Option<()> {
    let Some((kind, name, lines)) = section.take() else { return Some(()) };
    let content = match kind.as_str() {
        "text" => Content::Text(lines.join("\n")),
        "failed" => Content::Failed(lines.join("\n")),
        "bytes" => Content::Bytes(
            lines
                .iter()
                .flat_map(|line| line.split_ascii_whitespace())
                .map(|byte| u8::from_str_radix(byte, 16).ok())
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    };
    recordings.last_mut()?.sections.push((name, content));
    Some(())
}

fn write_section(out: &mut String, kind: &str, name: &str, content: &str) {
    let _ = writeln!(out, "== {kind} {name}"); // writing to a string cannot fail
    for line in content.split('\n') {
        let _ = writeln!(out, "|{line}");
    }
}

fn one_line(name: &str) -> String {
    name.replace(['\n', '\r'], "?")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            any::<String>().prop_map(Content::Text),
            any::<Vec<u8>>().prop_map(Content::Bytes),
            any::<String>().prop_map(Content::Failed),
        ]
    }

    proptest! {
        #[test]
        fn text_form_round_trips(
            micros in 0u64..1 << 50,
            sections in prop::collection::vec(("[a-z/ .]{1,12}[a-z]", content()), 0..6),
        ) {
            let mut recording = Recording::new("linux", Duration::from_micros(micros));
            for (name, content) in sections {
                recording.add(&name, content);
            }
            let text = format!("# a comment\n{}{}", recording.to_text(), recording.to_text());
            prop_assert_eq!(Recording::parse_all(&text), Ok(vec![recording.clone(), recording]));
        }

        #[test]
        fn hostile_text_is_refused_not_fatal(text in any::<String>(), kind in "[a-z]{0,6}") {
            let _ = Recording::parse_all(&text);
            let _ = Recording::parse_all(&format!("{FIRST_LINE}\n== {kind} x\n|{text}"));
        }
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(Recording::parse_all("hello"), Err(RecordingError::NoRecording));
        let text = format!("{FIRST_LINE}\nos linux\nnonsense");
        let error = RecordingError::Line { line: 3, text: "nonsense".into() };
        assert_eq!(Recording::parse_all(&text), Err(error));
    }

    #[test]
    fn failures_carry_their_reason() {
        let mut recording = Recording::new("linux", Duration::ZERO);
        recording.add_text("/proc/x", Err::<String, _>("permission denied"));
        assert_eq!(recording.text("/proc/x"), Err(Unavailable("/proc/x: permission denied".into())));
        assert_eq!(recording.text("/proc/y"), Err(Unavailable("/proc/y was not read".into())));
    }
}
