//! OpenAI's dialect: chat completions, streamed or whole, and the list of models.

use std::convert::Infallible;
use std::sync::Arc;

use app::CompletionEvent;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use wire::openai::{ChunkEncoder, ModelEntry, ReplyHead, decode_request, encode_models, encode_response};

use crate::Gateway;
use crate::answer::Answer;
use crate::failure::Failure;
use crate::reply::{explanation, moved_comment, now_secs, reply_id, whole};

pub(crate) async fn chat_completions(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = decode_request(&body?)?;
    let completion = gateway.complete(call.request).await?;
    let head = ReplyHead { id: reply_id("chatcmpl-"), created: now_secs(), model: completion.model.clone() };
    let explained = explanation(&completion.decision);
    if call.stream {
        return Ok((explained, streamed(completion, ChunkEncoder::new(head, call.include_usage))).into_response());
    }
    let (answer, finish) = whole(completion).await?;
    let body = encode_response(&head, &answer, &finish);
    Ok((explained, [(CONTENT_TYPE, "application/json")], body).into_response())
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

fn streamed(completion: Answer, mut encoder: ChunkEncoder) -> Response {
    // The body pulls: a reader that doesn't read holds the backend back instead of filling memory, and one that goes
    // away drops the completion, which stops it.
    let events = completion.into_events().map(move |event| {
        let text = match event {
            Ok(CompletionEvent::Chat(event)) => encoder.encode(&event),
            Ok(CompletionEvent::Moved(decision)) => moved_comment(&decision),
            Err(error) => encoder.encode_error(&Failure::from(error).body),
        };
        Ok::<_, Infallible>(text)
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(events)).into_response()
}
