//! Turns that a dialect writes in several pieces.

use chat::{Message, Redacted, Role};

/// The last message where it is `role`'s, else a new one.
pub(crate) fn turn_of(messages: &mut Vec<Message>, role: Role) -> &mut Message {
    if messages.last().is_none_or(|last| last.role != role) {
        messages.push(Message::new(role, ""));
    }
    messages.last_mut().expect("there is a last one now")
}

/// A line break stands between two texts where both say something.
pub(crate) fn append_line(text: &mut Redacted<String>, more: &str) {
    if !text.0.is_empty() && !more.is_empty() {
        text.0.push('\n');
    }
    text.0.push_str(more);
}
