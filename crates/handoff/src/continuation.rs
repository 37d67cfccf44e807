use chat::{ChatRequest, Message, Redacted, Role, Written};
use routing::Continuation;

use crate::{Ledger, Takeover};

/// Why a place can't go on with an answer at this point, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CannotContinue(&'static str);

/// The request with which a place goes on with what is in `ledger`, at the most exact level that it and the answer allow:
/// by token ids, by the text that they or what was told make, or as a chat whose last message is the beginning of the answer.
///
/// # Errors
/// When the place takes new messages only, or needs what isn't known: an answer with calls of tools goes on only where its
/// tokens are known, one that must have a form only at the level of tokens, and a chat can't be continued in the middle of
/// thinking.
pub fn continue_request(
    request: &ChatRequest,
    ledger: &Ledger,
    takeover: &Takeover,
) -> Result<(ChatRequest, Continuation), CannotContinue> {
    if ledger.is_empty() {
        return Ok((request.clone(), takeover.level));
    }
    if takeover.level == Continuation::None {
        return Err(CannotContinue("it can't go on with an answer that was begun elsewhere"));
    }
    let told = Written {
        tokens: Vec::new(),
        text: Redacted(ledger.text().to_owned()),
        thinking: Redacted(ledger.thinking().to_owned()),
        calls: ledger.calls(),
    };
    let tokens = ledger.tokens_for(takeover.tokenizer.as_deref()).filter(|_| takeover.level != Continuation::Prefix);
    if request.sampling.constraint.is_some() && !(takeover.level == Continuation::Tokens && tokens.is_some()) {
        return Err(CannotContinue("an answer that must have a form can only be gone on with by its tokens"));
    }
    if let Some(tokens) = tokens {
        // At the level of text, they say which text exactly.
        let written = Written { tokens: tokens.to_vec(), ..told };
        return Ok((ChatRequest { written: Some(written), ..request.clone() }, takeover.level));
    }
    if ledger.calls() > 0 {
        return Err(CannotContinue("an answer with calls of tools can only be gone on with by its tokens"));
    }
    if matches!(takeover.level, Continuation::Tokens | Continuation::Text) {
        return Ok((ChatRequest { written: Some(told), ..request.clone() }, Continuation::Text));
    }
    if ledger.text().is_empty() {
        return Err(CannotContinue("it can't go on in the middle of thinking"));
    }
    let mut request = request.clone();
    // What comes is counted from here.
    request.sampling.max_tokens =
        request.sampling.max_tokens.map(|most| most.saturating_sub(ledger.token_count()).max(1));
    let reasoning = (!ledger.thinking().is_empty()).then(|| Redacted(ledger.thinking().to_owned()));
    match request.messages.last_mut().filter(|last| is_open(last)) {
        // The answer was to go on with a message as it was.
        Some(last) => last.text.0.push_str(ledger.text()),
        None => {
            let message = Message { reasoning, ..Message::new(Role::Assistant, ledger.text()) };
            request.messages.push(message);
        }
    }
    Ok((request, Continuation::Prefix))
}

fn is_open(last: &Message) -> bool {
    last.role == Role::Assistant && last.tool_calls.is_empty()
}
