//! OpenAI's dialect: chat completions, streamed or whole, and the list of models.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use app::{AppError, AskedBy, Completion, CompletionEvent, DecisionRecord, ErrorCode};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use chat::ChatEvent;
use futures::StreamExt;
use wire::openai::{ChunkEncoder, ModelEntry, ReplyHead, WholeAnswer, decode_request, encode_models, encode_response};
use wire::sse::encode_comment;

use crate::Gateway;
use crate::failure::Failure;

const ROUTE: HeaderName = HeaderName::from_static("x-tidegate-route");
const REASON: HeaderName = HeaderName::from_static("x-tidegate-reason");

pub(crate) async fn chat_completions(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let body = body.map_err(|rejection| Failure::unreadable(rejection.body_text()))?;
    let call = decode_request(&body)?;
    let completion = gateway.app.complete(call.request, None, AskedBy::Gateway).await?;
    let head = ReplyHead { id: reply_id(), created: now_secs(), model: completion.model.clone() };
    let explained = explanation(&completion.decision);
    Ok(if call.stream {
        (explained, streamed(completion, ChunkEncoder::new(head, call.include_usage))).into_response()
    } else {
        (explained, [(CONTENT_TYPE, "application/json")], whole(completion, &head).await?).into_response()
    })
}

pub(crate) async fn models(State(gateway): State<Arc<Gateway>>) -> Response {
    let here = gateway.app.models();
    let mut list: Vec<ModelEntry> = here
        .iter()
        .filter(|model| model.header.is_ok())
        .map(|model| ModelEntry {
            id: model.id.clone(),
            owned_by: Some("tidegate".to_owned()),
            tokenizer: model.usable().map(|header| header.tokenizer.clone()),
        })
        .collect();
    for node in gateway.app.nodes() {
        for model in node.status.into_iter().flat_map(|status| status.models) {
            if list.iter().all(|known| known.id != model) {
                list.push(ModelEntry { id: model, owned_by: Some(node.name.clone()), tokenizer: None });
            }
        }
    }
    ([(CONTENT_TYPE, "application/json")], encode_models(&list, now_secs())).into_response()
}

fn streamed(completion: Completion, mut encoder: ChunkEncoder) -> Response {
    // The body pulls: a reader that doesn't read holds the backend back instead of filling memory, and one that goes
    // away drops the completion, which stops it.
    let events = completion.into_events().map(move |event| {
        let text = match event {
            Ok(CompletionEvent::Chat(event)) => encoder.encode(&event),
            // Headers have gone; a comment is what every client passes over.
            Ok(CompletionEvent::Moved(decision)) => encode_comment(&format!(
                "x-tidegate-route: {}; x-tidegate-reason: {}",
                ascii(&decision.place),
                ascii(&decision.sentence)
            )),
            Err(error) => encoder.encode_error(&Failure::from(error).body),
        };
        Ok::<_, Infallible>(text)
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(events)).into_response()
}

async fn whole(completion: Completion, head: &ReplyHead) -> Result<Vec<u8>, AppError> {
    let mut answer = WholeAnswer::default();
    let mut events = completion.into_chat_events();
    while let Some(event) = events.next().await {
        match event? {
            ChatEvent::Text(piece) => answer.text.push_str(&piece),
            ChatEvent::Thinking(piece) => answer.thinking.push_str(&piece),
            ChatEvent::ToolCall { call, .. } => answer.calls.push(call),
            ChatEvent::Logprobs(tokens) => answer.logprobs.extend(tokens),
            ChatEvent::Finished(finish) => return Ok(encode_response(head, &answer, &finish)),
            ChatEvent::Progress(_) | ChatEvent::Tokens { .. } => {}
        }
    }
    Err(AppError { code: ErrorCode::CutOff, sentence: "The answer ended in the middle.".to_owned(), hint: None })
}

/// Where the answer runs and why, on every response.
fn explanation(decision: &DecisionRecord) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, text) in [(ROUTE, &decision.place), (REASON, &decision.sentence)] {
        if let Ok(value) = HeaderValue::from_str(&ascii(text)) {
            headers.insert(name, value);
        }
    }
    headers
}

/// Headers are ASCII; the sentences have a middle dot or a curly quote now and then.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '-' }).collect()
}

fn reply_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("chatcmpl-{:x}-{}", now_secs(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
