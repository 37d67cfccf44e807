use super::calls::{Body, Tools, Unread};
use super::format::{AnswerFormat, CallFormat};
use super::{Part, held_back, may_begin};

/// Text with tags around thinking and calls.
pub(super) struct Tagged {
    place: Place,
    /// Text that may be the beginning of a tag, or a call that isn't whole.
    held: String,
    /// The closing tags before this byte of `held` don't end the call.
    tried: usize,
    thinking: (&'static str, &'static str),
    calls: Vec<CallFormat>,
    bare_json: bool,
    tools: Tools,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing but white space came yet.
    Start,
    Thinking,
    /// The white space after thinking, which belongs to nothing.
    AfterThinking,
    Answer,
    /// In a call of this format.
    Call(usize),
    /// The answer looks like a call without a mark.
    BareCall,
    /// The white space after a call, which belongs to nothing where another one follows.
    AfterCall,
}

impl Tagged {
    pub(super) fn new(format: &AnswerFormat, tools: Tools, starts_thinking: bool) -> Self {
        let offers_tools = !tools.is_empty();
        Self {
            place: if starts_thinking { Place::Thinking } else { Place::Start },
            held: String::new(),
            tried: 0,
            thinking: format.thinking,
            calls: if offers_tools { format.calls.clone() } else { Vec::new() },
            bare_json: offers_tools && format.bare_json,
            tools,
        }
    }

    pub(super) fn push(&mut self, text: &str, is_last: bool) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        // A mark at the very end opens a call of nothing.
        while !self.held.is_empty() || (is_last && matches!(self.place, Place::Call(_))) {
            let before = (self.place, self.held.len());
            match self.place {
                Place::Start => self.start(is_last),
                Place::Thinking => self.thinking(is_last, &mut parts),
                Place::AfterThinking => {
                    self.held = self.held.trim_start().to_owned();
                    if !self.held.is_empty() {
                        self.place = Place::Start;
                    }
                }
                Place::Answer => self.answer(is_last, &mut parts),
                Place::Call(index) => self.call(self.calls[index], is_last, &mut parts),
                Place::BareCall if is_last => self.bare_call(&mut parts),
                Place::BareCall => {}
                Place::AfterCall => self.after_call(is_last),
            }
            if before == (self.place, self.held.len()) {
                break;
            }
        }
        parts
    }

    fn start(&mut self, is_last: bool) {
        let visible = self.held.trim_start();
        if let Some(rest) = visible.strip_prefix(self.thinking.0) {
            self.held = rest.to_owned();
            self.place = Place::Thinking;
        } else if self.bare_json && visible.starts_with('{') {
            self.place = Place::BareCall;
        } else if is_last || !may_begin(visible, self.thinking.0) {
            self.place = Place::Answer;
        }
    }

    fn thinking(&mut self, is_last: bool, parts: &mut Vec<Part>) {
        let close = self.thinking.1;
        let (end, next) = match self.held.find(close) {
            Some(at) => (at, Some(at + close.len())),
            None if is_last => (self.held.len(), None),
            None => (self.held.len() - held_back(&self.held, close), None),
        };
        if end > 0 {
            parts.push(Part::Thinking(self.held[..end].to_owned()));
        }
        self.held.drain(..next.unwrap_or(end));
        if next.is_some() {
            self.place = Place::AfterThinking;
        }
    }

    fn answer(&mut self, is_last: bool, parts: &mut Vec<Part>) {
        let (opens, held) = (self.calls.iter().map(|call| call.open), &self.held);
        let found = opens.clone().enumerate().filter_map(|(index, open)| Some((held.find(open)?, index))).min();
        let end = match found {
            Some((at, _)) => at,
            None if is_last => held.len(),
            None => held.len() - opens.map(|open| held_back(held, open)).max().unwrap_or(0),
        };
        if end > 0 {
            parts.push(Part::Text(self.held[..end].to_owned()));
        }
        self.held.drain(..end);
        if let Some((_, index)) = found {
            self.held.drain(..self.calls[index].open.len());
            self.place = Place::Call(index);
            self.tried = 0;
        }
    }

    fn call(&mut self, format: CallFormat, is_last: bool, parts: &mut Vec<Part>) {
        while let Some(close) = format.close
            && let Some(at) = self.held[self.tried..].find(close).map(|at| self.tried + at)
        {
            let end = at + close.len();
            match format.body.read(&self.held[..at], &self.tools) {
                Ok(calls) => {
                    parts.extend(calls.into_iter().map(Part::Call));
                    self.held.drain(..end);
                    self.place = Place::AfterCall;
                    return;
                }
                // The tag may stand in the text of an argument.
                Err(Unread::Incomplete) => self.tried = end,
                Err(Unread::Malformed) => {
                    let body: String = self.held.drain(..end).collect();
                    self.give_up(format.open, &body, parts);
                    return;
                }
            }
        }
        if is_last {
            let body = std::mem::take(&mut self.held);
            match format.body.read(&body, &self.tools) {
                Ok(calls) => {
                    parts.extend(calls.into_iter().map(Part::Call));
                    self.place = Place::AfterCall;
                }
                Err(_) => self.give_up(format.open, &body, parts),
            }
        }
    }

    /// What was taken for a call is text.
    fn give_up(&mut self, open: &str, body: &str, parts: &mut Vec<Part>) {
        parts.push(Part::Text(format!("{open}{body}")));
        self.place = Place::Answer;
    }

    fn bare_call(&mut self, parts: &mut Vec<Part>) {
        match Body::Llama.read(&self.held, &self.tools) {
            Ok(calls) if calls.iter().all(|call| self.tools.has(&call.name)) => {
                self.held.clear();
                parts.extend(calls.into_iter().map(Part::Call));
                self.place = Place::AfterCall;
            }
            _ => self.place = Place::Answer,
        }
    }

    fn after_call(&mut self, is_last: bool) {
        let visible = self.held.trim_start();
        if visible.is_empty() {
            if is_last {
                self.held.clear();
            }
            return;
        }
        let mut opens = self.calls.iter().map(|call| call.open).chain([self.thinking.0]);
        if opens.clone().any(|open| visible.starts_with(open)) {
            self.place = if visible.starts_with(self.thinking.0) { Place::Start } else { Place::Answer };
            self.held = visible.to_owned();
        } else if is_last || !opens.any(|open| may_begin(visible, open)) {
            self.place = Place::Answer;
        }
    }
}
