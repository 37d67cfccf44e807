use chat::{ChatEvent, Written};

use crate::GenerateError;

/// Keeps from telling again what was told of an answer elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Told {
    text: String,
    thinking: String,
    calls: usize,
}

impl Told {
    pub(crate) fn new(written: &Written) -> Self {
        Self {
            text: written.text.expose().to_owned(),
            thinking: written.thinking.expose().to_owned(),
            calls: written.calls,
        }
    }

    /// What of `event` is new.
    ///
    /// # Errors
    /// When the answer says something else than was told: it came from another model, or from damaged tokens.
    pub(crate) fn rest(&mut self, event: ChatEvent) -> Result<Option<ChatEvent>, GenerateError> {
        match event {
            ChatEvent::Text(text) => Ok(untold(&mut self.text, text)?.map(ChatEvent::Text)),
            ChatEvent::Thinking(text) => Ok(untold(&mut self.thinking, text)?.map(ChatEvent::Thinking)),
            ChatEvent::ToolCall { index, .. } if index < self.calls => Ok(None),
            event => Ok(Some(event)),
        }
    }
}

/// What of `text` follows `told`, of which as much is taken as it has.
fn untold(told: &mut String, mut text: String) -> Result<Option<String>, GenerateError> {
    if told.is_empty() {
        return Ok(Some(text));
    }
    let both = told.len().min(text.len());
    if told.as_bytes()[..both] != text.as_bytes()[..both] {
        return Err(GenerateError::InvalidRequest("the answer so far is not what its tokens say".to_owned()));
    }
    // Equal to a boundary of one text, which is one of the other as well.
    told.drain(..both);
    text.drain(..both);
    Ok((!text.is_empty()).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, calls: usize) -> Told {
        Told { text: text.to_owned(), thinking: "hm".to_owned(), calls }
    }

    #[test]
    fn only_what_is_new_is_told() {
        let mut told = told("Grüße, ", 1);
        let mut rest = |event| told.rest(event).unwrap();
        let text = |text: &str| ChatEvent::Text(text.to_owned());
        let call = |index| ChatEvent::ToolCall { index, call: chat::ToolCall::default() };
        assert_eq!(rest(text("Grü")), None);
        assert_eq!(rest(ChatEvent::Thinking("hmm".to_owned())), Some(ChatEvent::Thinking("m".to_owned())));
        assert_eq!(rest(text("ße, du")), Some(text("du")));
        assert_eq!(rest(text("Grü")), Some(text("Grü")));
        assert_eq!(rest(call(0)), None);
        assert_eq!(rest(call(1)), Some(call(1)));
    }

    #[test]
    fn another_answer_is_refused() {
        for other in ["Grusse", "Grü\u{de}er", "x"] {
            assert!(told("Grüße", 0).rest(ChatEvent::Text(other.to_owned())).is_err(), "{other}");
        }
    }
}
