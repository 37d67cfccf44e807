//! What replies of every dialect have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use app::{AppError, DecisionRecord, ErrorCode};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use chat::{ChatEvent, Finish};
use futures::StreamExt;
use wire::openai::WholeAnswer;
use wire::sse::encode_comment;

use crate::answer::Answer;

const ROUTE: HeaderName = HeaderName::from_static("x-tidegate-route");
const REASON: HeaderName = HeaderName::from_static("x-tidegate-reason");

/// Reads an answer to its end.
pub(crate) async fn whole(completion: Answer) -> Result<(WholeAnswer, Finish), AppError> {
    let mut answer = WholeAnswer::default();
    let take = |event| match event {
        ChatEvent::Text(piece) => answer.text.push_str(&piece),
        ChatEvent::Thinking(piece) => answer.thinking.push_str(&piece),
        ChatEvent::ToolCall { call, .. } => answer.calls.push(call),
        ChatEvent::Logprobs(tokens) => answer.logprobs.extend(tokens),
        ChatEvent::Progress(_) | ChatEvent::Tokens { .. } | ChatEvent::Finished(_) => {}
    };
    let finish = read(completion, take).await?;
    Ok((answer, finish))
}

/// Hands over what an answer says up to its end, which must come.
pub(crate) async fn read(completion: Answer, mut take: impl FnMut(ChatEvent)) -> Result<Finish, AppError> {
    let mut events = completion.into_chat_events();
    while let Some(event) = events.next().await {
        match event? {
            ChatEvent::Finished(finish) => return Ok(finish),
            event => take(event),
        }
    }
    Err(AppError { code: ErrorCode::CutOff, sentence: "The answer ended in the middle.".to_owned(), hint: None })
}

/// Where the answer runs and why, on every response.
pub(crate) fn explanation(decision: &DecisionRecord) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, text) in [(ROUTE, &decision.place), (REASON, &decision.sentence)] {
        if let Ok(value) = HeaderValue::from_str(&ascii(text)) {
            headers.insert(name, value);
        }
    }
    headers
}

/// The same for an answer that moves: headers have gone, and a comment is what every client passes over.
pub(crate) fn moved_comment(decision: &DecisionRecord) -> String {
    encode_comment(&format!(
        "x-tidegate-route: {}; x-tidegate-reason: {}",
        ascii(&decision.place),
        ascii(&decision.sentence)
    ))
}

/// Headers are ASCII; the sentences have a middle dot or a curly quote now and then.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '-' }).collect()
}

/// A name that no other answer of this gateway has.
pub(crate) fn reply_id(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{prefix}{:x}-{}", now_secs(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
