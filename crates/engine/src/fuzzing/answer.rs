use chat::{ChatEvent, Tool, ToolCall};

use super::{sections, texts};
use crate::answer_text::{AnswerFormat, AnswerText, Tools};

/// Sections: a template, of which only the marks matter; a line of settings (`tools`, `thinking`), then a stop string
/// in each line; a byte for the length of each piece; what the model writes.
///
/// However the text is cut, the same events come out.
pub fn answer(data: &[u8]) {
    let bytes = sections(data);
    let texts = texts(data);
    let [template, settings, _, text, ..] = texts.as_slice() else { return };
    let format = AnswerFormat::of(template);
    let mut settings = settings.lines();
    let switches = settings.next().unwrap_or_default();
    let stops: Vec<String> = settings.map(str::to_owned).collect();
    let tools = if switches.contains("tools") { offered() } else { Tools::default() };
    let read = |lengths: &mut dyn Iterator<Item = usize>| {
        let mut answer = AnswerText::new(&stops, &format, tools.clone(), switches.contains("thinking"), 1);
        let mut written = Written::default();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let len = lengths.next().map_or(rest.len(), |len| rest.ceil_char_boundary(len));
            let (piece, later) = rest.split_at(len);
            written.add(answer.push(piece));
            rest = later;
        }
        written.add(answer.finish());
        (written, answer.is_stopped())
    };
    let whole = read(&mut std::iter::empty());
    let cut = read(&mut bytes[2].iter().map(|len| usize::from(*len)));
    assert_eq!(whole, cut);
    let character_by_character = read(&mut std::iter::repeat(1));
    assert_eq!(whole, character_by_character);
    for stop in stops.iter().filter(|stop| !stop.is_empty()) {
        assert!(!whole.0.texts.iter().any(|text| text.contains(stop)), "{stop:?} in {:?}", whole.0);
    }
}

fn offered() -> Tools {
    let parameters = r#"{"type":"object","properties":{"query":{"type":"string"},"limit":{"type":"integer"}}}"#;
    let tool =
        |name: &str| Tool { name: name.to_owned(), description: String::new(), parameters: parameters.to_owned() };
    Tools::new(&[tool("search"), tool("now")])
}

/// Events, with the pieces of a text put together.
#[derive(Debug, Default, PartialEq)]
struct Written {
    texts: Vec<String>,
    thinking: Vec<String>,
    calls: Vec<(usize, ToolCall)>,
    /// In which order they came.
    kinds: String,
}

impl Written {
    fn add(&mut self, events: Vec<ChatEvent>) {
        for event in events {
            let (kind, texts, text) = match event {
                ChatEvent::Text(text) => ('t', &mut self.texts, text),
                ChatEvent::Thinking(text) => ('h', &mut self.thinking, text),
                ChatEvent::ToolCall { index, call } => {
                    self.calls.push((index, call));
                    self.kinds.push('c');
                    continue;
                }
                other => panic!("{other:?} is no part of a text"),
            };
            assert!(!text.is_empty(), "an event of no text");
            match texts.last_mut() {
                Some(last) if self.kinds.ends_with(kind) => last.push_str(&text),
                _ => {
                    texts.push(text);
                    self.kinds.push(kind);
                }
            }
        }
    }
}
