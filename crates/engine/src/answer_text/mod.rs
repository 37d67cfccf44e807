//! What a model writes, on its way to whoever asked: thinking and calls of tools apart from the answer, and never a
//! part of a stop string.

mod calls;
mod format;
mod harmony;
mod literal;
mod stops;
mod tagged;

use chat::{ChatEvent, Redacted, ToolCall};

pub(crate) use calls::Tools;
pub(crate) use format::{AnswerFormat, Rewritten};
use harmony::Harmony;
pub(crate) use stops::Stops;
use tagged::Tagged;

/// Sorts what a model writes into events, and finds stop strings in the answer. However the text is cut into pieces,
/// the same events come out, but for where their texts are cut.
pub(crate) struct AnswerText {
    parser: Parser,
    stops: Stops,
    calls: usize,
    /// What the ids of the calls are made from.
    id_seed: u64,
}

enum Parser {
    /// Everything is text.
    Plain,
    Tagged(Tagged),
    Harmony(Harmony),
}

/// A part of what a model wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Thinking(String),
    Call(Call),
}

/// A call as it stands in the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Call {
    /// Where the model names one.
    id: Option<String>,
    name: String,
    /// The text of a JSON object.
    arguments: String,
}

impl AnswerText {
    /// `tools` are those that were offered: without any, what looks like a call is text. `starts_thinking`: the prompt
    /// ends with an open tag.
    pub(crate) fn new(
        stops: &[String],
        format: &AnswerFormat,
        tools: Tools,
        starts_thinking: bool,
        id_seed: u64,
    ) -> Self {
        let parser = if format.is_harmony() {
            Parser::Harmony(Harmony::new(tools))
        } else {
            Parser::Tagged(Tagged::new(format, tools, starts_thinking))
        };
        Self { parser, stops: Stops::new(stops), calls: 0, id_seed }
    }

    /// For what goes on with a text, and is nothing but text.
    pub(crate) fn plain(stops: &[String]) -> Self {
        Self { parser: Parser::Plain, stops: Stops::new(stops), calls: 0, id_seed: 0 }
    }

    /// Whether a stop string came.
    pub(crate) const fn is_stopped(&self) -> bool {
        self.stops.is_stopped()
    }

    /// Adds `text`; gives what is certain now.
    pub(crate) fn push(&mut self, text: &str) -> Vec<ChatEvent> {
        let parts = match &mut self.parser {
            Parser::Plain => vec![Part::Text(text.to_owned())],
            Parser::Tagged(tagged) => tagged.push(text, false),
            Parser::Harmony(harmony) => harmony.push(text, false),
        };
        self.events(parts)
    }

    /// Gives what was held, now that nothing follows.
    pub(crate) fn finish(&mut self) -> Vec<ChatEvent> {
        let parts = match &mut self.parser {
            Parser::Plain => Vec::new(),
            Parser::Tagged(tagged) => tagged.push("", true),
            Parser::Harmony(harmony) => harmony.push("", true),
        };
        let mut events = self.events(parts);
        self.release(&mut events);
        events
    }

    fn events(&mut self, parts: Vec<Part>) -> Vec<ChatEvent> {
        let mut events = Vec::new();
        for part in parts {
            if self.is_stopped() {
                break;
            }
            match part {
                Part::Text(text) => push_text(&mut events, self.stops.push(&text)),
                Part::Thinking(text) => {
                    self.release(&mut events);
                    events.push(ChatEvent::Thinking(text));
                }
                Part::Call(call) => {
                    self.release(&mut events);
                    let index = self.calls;
                    self.calls += 1;
                    let id = call.id.unwrap_or_else(|| call_id(self.id_seed, index));
                    let call = ToolCall { id, name: call.name, arguments: Redacted(call.arguments) };
                    events.push(ChatEvent::ToolCall { index, call });
                }
            }
        }
        events
    }

    /// A stop string doesn't reach across anything but text.
    fn release(&mut self, events: &mut Vec<ChatEvent>) {
        push_text(events, self.stops.release());
    }
}

fn push_text(events: &mut Vec<ChatEvent>, text: String) {
    if !text.is_empty() {
        events.push(ChatEvent::Text(text));
    }
}

/// Nine letters and digits, which is what Mistral's templates insist on; others take anything.
fn call_id(seed: u64, index: usize) -> String {
    // SplitMix64's last steps, so that neighbours look different.
    let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    format!("{:016x}", z ^ (z >> 31))[..9].to_owned()
}

/// Bytes at the end of `text` that `tag` begins with.
fn held_back(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|len| tag.is_char_boundary(*len) && text.ends_with(&tag[..*len])).unwrap_or(0)
}

/// Whether `text` begins with `tag`, or may yet.
fn may_begin(text: &str, tag: &str) -> bool {
    text.starts_with(tag) || tag.starts_with(text)
}

#[cfg(test)]
mod tests;
