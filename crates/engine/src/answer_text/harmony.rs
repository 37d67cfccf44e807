use super::calls::Tools;
use super::format::HARMONY_MARKS;
use super::{Call, Part, held_back, may_begin};

const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const START: &str = "<|start|>";

/// gpt-oss's format: an answer is several messages, each with a header that names its channel and, for calls, the tool.
/// <https://cookbook.openai.com/articles/openai-harmony>
pub(super) struct Harmony {
    place: Place,
    held: String,
    tools: Tools,
}

#[derive(Clone, PartialEq, Eq)]
enum Place {
    /// Before or in a header.
    Header,
    Thinking,
    Answer,
    /// In the arguments of a call of the tool of this name.
    Call(String),
}

impl Harmony {
    pub(super) const fn new(tools: Tools) -> Self {
        Self { place: Place::Header, held: String::new(), tools }
    }

    pub(super) fn push(&mut self, text: &str, is_last: bool) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        loop {
            let before = (self.place.clone(), self.held.len());
            if self.place == Place::Header {
                self.header(is_last);
            } else {
                self.message(is_last, &mut parts);
            }
            if before == (self.place.clone(), self.held.len()) {
                return parts;
            }
        }
    }

    fn header(&mut self, is_last: bool) {
        const BEGINNINGS: [&str; 5] = [CHANNEL, START, MESSAGE, "<|constrain|>", "to="];
        let visible = self.held.trim_start();
        if !visible.is_empty() && !BEGINNINGS.iter().any(|beginning| may_begin(visible, beginning)) {
            // An answer without a header.
            self.place = Place::Answer;
        } else if let Some((header, rest)) = self.held.split_once(MESSAGE) {
            self.place = self.place_of(header);
            self.held = rest.to_owned();
        } else if is_last {
            // A header that was cut off tells nothing.
            self.held.clear();
        }
    }

    fn place_of(&self, header: &str) -> Place {
        let word = |text: &str| text.split(|c: char| c.is_whitespace() || c == '<').next().unwrap_or("").to_owned();
        let recipient = header.split_once("to=").map(|(_, rest)| word(rest)).filter(|name| name != "assistant");
        let channel = header.split_once(CHANNEL).map(|(_, rest)| word(rest.trim_start()));
        match (recipient, channel.as_deref()) {
            (Some(name), _) => Place::Call(name.strip_prefix("functions.").unwrap_or(&name).to_owned()),
            (None, Some("analysis")) => Place::Thinking,
            (None, _) => Place::Answer,
        }
    }

    /// Gives out what the message says; ends it at the next mark.
    fn message(&mut self, is_last: bool, parts: &mut Vec<Part>) {
        let found = HARMONY_MARKS.iter().filter_map(|mark| Some((self.held.find(mark)?, *mark))).min();
        let is_call = matches!(self.place, Place::Call(_));
        let end = match found {
            Some((at, _)) => at,
            None if is_last => self.held.len(),
            None if is_call => return,
            None => self.held.len() - HARMONY_MARKS.iter().map(|mark| held_back(&self.held, mark)).max().unwrap_or(0),
        };
        let text: String = self.held.drain(..end).collect();
        match &self.place {
            Place::Thinking if !text.is_empty() => parts.push(Part::Thinking(text)),
            Place::Call(name) => parts.push(self.call(name.clone(), text)),
            Place::Header | Place::Thinking | Place::Answer => {
                if !text.is_empty() {
                    parts.push(Part::Text(text));
                }
            }
        }
        if let Some((_, mark)) = found {
            if mark != CHANNEL && mark != START {
                self.held.drain(..mark.len());
            }
            self.place = Place::Header;
        } else if is_call {
            self.place = Place::Header;
        }
    }

    fn call(&self, name: String, text: String) -> Part {
        let arguments = serde_json::from_str(text.trim()).ok().filter(serde_json::Value::is_object);
        match arguments {
            Some(arguments) if !self.tools.is_empty() && !name.is_empty() => {
                Part::Call(Call { id: None, name, arguments: arguments.to_string() })
            }
            _ => Part::Text(text),
        }
    }
}
