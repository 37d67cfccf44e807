//! Server-sent events: the framing of every streamed answer. The decoder takes bytes however the network cut them.

use std::collections::VecDeque;

/// The data of the last event of an OpenAI stream.
pub const DONE: &str = "[DONE]";

/// The most bytes one event may have, unless told otherwise: far more than a chunk of any answer, far less than memory.
pub const EVENT_LIMIT: usize = 1 << 20;

/// An event with that data, one `data:` line for each of its lines.
pub fn encode_data(data: &str) -> String {
    let mut event = String::with_capacity(data.len() + 8);
    for line in lines(data) {
        event.push_str("data: ");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    event
}

/// An event of that name, which must be one line, with that data.
pub fn encode_event(name: &str, data: &str) -> String {
    format!("event: {name}\n{}", encode_data(data))
}

/// A comment, which every client passes over; it keeps a connection alive.
pub fn encode_comment(text: &str) -> String {
    let mut comment = String::with_capacity(text.len() + 4);
    for line in lines(text) {
        comment.push_str(": ");
        comment.push_str(line);
        comment.push('\n');
    }
    comment.push('\n');
    comment
}

/// Lines as the format ends them: by CR LF, LF or CR.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split("\r\n").flat_map(|part| part.split(['\r', '\n']))
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// The event's name, where it has one.
    pub name: Option<String>,
    /// Its data, the lines joined by a line feed.
    pub data: String,
}

/// What is no stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// One event is larger than the limit.
    #[error("an event has more than {limit} bytes")]
    TooLong {
        /// In bytes.
        limit: usize,
    },
}

/// Takes the bytes of a stream, cut anywhere, and gives its events. Comments, ids and retry times are passed over; bytes
/// that are not UTF-8 become U+FFFD, as the specification says.
#[derive(Clone, Debug)]
pub struct SseDecoder {
    limit: usize,
    line: Vec<u8>,
    event: SseEvent,
    has_data: bool,
    is_first_line: bool,
    ended_with_cr: bool,
}

impl Default for SseDecoder {
    fn default() -> Self {
        Self::with_limit(EVENT_LIMIT)
    }
}

impl SseDecoder {
    /// A decoder that refuses events of more than `limit` bytes.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            event: SseEvent::default(),
            has_data: false,
            is_first_line: true,
            ended_with_cr: false,
        }
    }

    /// Takes the next bytes and appends the events that they complete. After an error, nothing more can be read.
    pub fn push(&mut self, mut bytes: &[u8], events: &mut VecDeque<SseEvent>) -> Result<(), SseError> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.ended_with_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let name_len = self.event.name.as_ref().map_or(0, String::len);
            if self.line.len() + part.len() + self.event.data.len() + name_len > self.limit {
                return Err(SseError::TooLong { limit: self.limit });
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { return Ok(()) };
            self.ended_with_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            events.extend(self.end_line());
        }
        Ok(())
    }

    /// The stream is over: gives the event that was not ended by an empty line, if there is one. The specification drops
    /// it; some servers end their last event with the connection. It may be cut off, which the caller has to judge.
    pub fn finish(mut self) -> Option<SseEvent> {
        if !self.line.is_empty()
            && let Some(event) = self.end_line()
        {
            return Some(event);
        }
        self.has_data.then_some(self.event)
    }

    fn end_line(&mut self) -> Option<SseEvent> {
        let line = std::mem::take(&mut self.line);
        let mut line = line.as_slice();
        if std::mem::take(&mut self.is_first_line) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => self.append(value),
            "event" => self.event.name = Some(value.to_owned()),
            // Older llama.cpp writes an error in mid-stream as a field of its own.
            "error" => {
                self.event.name = Some("error".to_owned());
                self.append(value);
            }
            _ => {}
        }
        None
    }

    fn append(&mut self, value: &str) {
        if self.has_data {
            self.event.data.push('\n');
        }
        self.has_data = true;
        self.event.data.push_str(value);
    }
}
