use std::hint::black_box;

use chat::{ChatRequest, Message, ReasoningEffort, Redacted, Role, Tool, ToolCall};

use super::texts;
use crate::answer_text::AnswerFormat;
use crate::template::ChatTemplate;

/// Whether a name stands on both sides of a `+`: a list that is doubled in a loop claims gigabytes, which minijinja 3.1
/// doesn't count. That is known (see docs/ARCHITECTURE.md), and would be found again and again.
fn adds_to_itself(template: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || matches!(character, '_' | '.');
    template.match_indices('+').any(|(at, _)| {
        let (left, right) = (template[..at].trim_end(), template[at + 1..].trim_start());
        let left = &left[left.trim_end_matches(is_part).len()..];
        let right = &right[..right.len() - right.trim_start_matches(is_part).len()];
        !left.is_empty() && left == right
    })
}

/// Sections: the template; the names of tokens that steer the model, a line each, first those of beginning and end; then
/// what the conversation is made of, a word that says which in a line of its own.
///
/// Compiles the template and renders the conversation, whose marks are sealed.
pub fn template(data: &[u8]) {
    let sections = texts(data);
    let mut names = sections.get(1).map_or("", String::as_str).lines();
    let (bos, eos) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
    if adds_to_itself(&sections[0]) {
        return;
    }
    let Ok(template) = ChatTemplate::new(Some(sections[0].clone()), bos, eos, names) else { return };
    let mut request = ChatRequest::default();
    for section in sections.iter().skip(2) {
        let (kind, text) = section.split_once('\n').unwrap_or((section, ""));
        let (name, rest) = text.split_once('\n').unwrap_or((text, ""));
        let last = request.messages.last_mut();
        match (Role::parse(kind), kind, last) {
            (Some(role), ..) => request.messages.push(Message::new(role, text)),
            (_, "thinking", Some(last)) => last.reasoning = Some(Redacted(text.to_owned())),
            (_, "name", Some(last)) => last.name = Some(text.to_owned()),
            (_, "result of", Some(last)) => last.tool_call_id = Some(text.to_owned()),
            (_, "call", Some(last)) => {
                let id = format!("call-{}", last.tool_calls.len());
                let call = ToolCall { id, name: name.to_owned(), arguments: Redacted(rest.to_owned()) };
                last.tool_calls.push(call);
            }
            (_, "offer", _) => {
                let description = format!("It does {name}.");
                request.tools.push(Tool { name: name.to_owned(), description, parameters: rest.to_owned() });
            }
            (_, "effort", _) => request.reasoning_effort = ReasoningEffort::parse(text),
            _ => {}
        }
    }
    let format = AnswerFormat::of(template.source());
    let rendered = template.render(&request);
    black_box(rendered.map_or_else(
        |error| error.to_string().len(),
        |rendered| usize::from(format.leaves_thinking_open(&rendered.text)),
    ));
}
