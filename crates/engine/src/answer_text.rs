//! What a model writes, on its way to whoever asked: thinking apart from the answer, and never a part of a stop string.

use chat::ChatEvent;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Sorts text into thinking and answer, and finds stop strings in the answer.
pub(crate) struct AnswerText {
    place: Place,
    /// Text that may be the beginning of a tag or of a stop string.
    held: String,
    stops: Vec<String>,
    stopped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing but white space came yet.
    Start,
    Thinking,
    /// The white space between thinking and answer, which belongs to neither.
    AfterThinking,
    Answer,
}

impl AnswerText {
    /// `starts_thinking`: the prompt ends with an open tag.
    pub(crate) fn new(stops: &[String], starts_thinking: bool) -> Self {
        Self {
            place: if starts_thinking { Place::Thinking } else { Place::Start },
            held: String::new(),
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
            stopped: false,
        }
    }

    /// Whether a stop string came.
    pub(crate) const fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Adds `text`; gives what is certain now.
    pub(crate) fn push(&mut self, text: &str) -> Vec<ChatEvent> {
        self.held.push_str(text);
        self.drain(false)
    }

    /// Gives what was held, now that nothing follows.
    pub(crate) fn finish(&mut self) -> Vec<ChatEvent> {
        self.drain(true)
    }

    fn drain(&mut self, is_last: bool) -> Vec<ChatEvent> {
        let mut events = Vec::new();
        while !self.stopped && !self.held.is_empty() {
            let before = (self.place, self.held.len());
            match self.place {
                Place::Start => self.start(is_last),
                Place::Thinking => self.thinking(is_last, &mut events),
                Place::AfterThinking => {
                    self.held = self.held.trim_start().to_owned();
                    if !self.held.is_empty() {
                        self.place = Place::Answer;
                    }
                }
                Place::Answer => self.answer(is_last, &mut events),
            }
            if before == (self.place, self.held.len()) {
                break;
            }
        }
        events
    }

    fn start(&mut self, is_last: bool) {
        let visible = self.held.trim_start();
        if let Some(rest) = visible.strip_prefix(OPEN) {
            self.held = rest.to_owned();
            self.place = Place::Thinking;
        } else if is_last || !OPEN.starts_with(visible) {
            self.place = Place::Answer;
        }
    }

    fn thinking(&mut self, is_last: bool, events: &mut Vec<ChatEvent>) {
        let (end, next) = match self.held.find(CLOSE) {
            Some(at) => (at, Some(at + CLOSE.len())),
            None if is_last => (self.held.len(), None),
            None => (self.held.len() - held_back(&self.held, CLOSE), None),
        };
        if end > 0 {
            events.push(ChatEvent::Thinking(self.held[..end].to_owned()));
        }
        self.held.drain(..next.unwrap_or(end));
        if next.is_some() {
            self.place = Place::AfterThinking;
        }
    }

    fn answer(&mut self, is_last: bool, events: &mut Vec<ChatEvent>) {
        // Of several stop strings the one that begins first ends the answer.
        let stop = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let end = match stop {
            Some(at) => at,
            None if is_last => self.held.len(),
            None => self.held.len() - self.stops.iter().map(|stop| held_back(&self.held, stop)).max().unwrap_or(0),
        };
        if end > 0 {
            events.push(ChatEvent::Text(self.held[..end].to_owned()));
        }
        self.held.drain(..end);
        if stop.is_some() {
            self.stopped = true;
            self.held.clear();
        }
    }
}

/// Bytes at the end of `text` that `tag` begins with.
fn held_back(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|len| tag.is_char_boundary(*len) && text.ends_with(&tag[..*len])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in pieces of every size; whatever the size, the same must come out.
    fn check(text: &str, stops: &[&str], starts_thinking: bool, thinking: &str, answer: &str) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let characters: Vec<char> = text.chars().collect();
        for size in 1..=characters.len().max(1) {
            let mut splitter = AnswerText::new(&stops, starts_thinking);
            let mut events = Vec::new();
            for piece in characters.chunks(size) {
                events.extend(splitter.push(&piece.iter().collect::<String>()));
            }
            events.extend(splitter.finish());
            let (mut found_thinking, mut found_answer) = (String::new(), String::new());
            for event in events {
                match event {
                    ChatEvent::Text(text) => found_answer.push_str(&text),
                    ChatEvent::Thinking(text) => found_thinking.push_str(&text),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((found_thinking.as_str(), found_answer.as_str()), (thinking, answer), "in pieces of {size}");
        }
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        check("a < b, <th", &[], false, "", "a < b, <th");
        check(" \n leading", &[], false, "", " \n leading");
    }

    #[test]
    fn thinking_is_told_apart() {
        check("<think>\nhm</think>\n\nSo: 56", &[], false, "\nhm", "So: 56");
        check("hm</think>So", &[], true, "hm", "So");
        check("<think>never ends</th", &[], false, "never ends</th", "");
        check("text <think> in the middle", &[], false, "", "text <think> in the middle");
    }

    #[test]
    fn stop_strings_never_leak() {
        check("one END two", &["END"], false, "", "one ");
        check("one EN two E", &["END"], false, "", "one EN two E");
        check("aab", &["aab"], false, "", "");
        check("x 東京 y", &["東京"], false, "", "x ");
        check("first: second", &["second", "t: s"], false, "", "firs");
    }
}
