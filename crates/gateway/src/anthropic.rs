//! Anthropic's dialect: messages, streamed or whole, and the count of their tokens.

use std::convert::Infallible;
use std::sync::Arc;

use app::CompletionEvent;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use wire::anthropic::{EventEncoder, MessageHead, decode_count, decode_request, encode_count, encode_response};

use crate::Gateway;
use crate::answer::Answer;
use crate::failure::Failure;
use crate::reply::{explanation, moved_comment, reply_id, whole};

pub(crate) async fn messages(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = decode_request(&body?)?;
    let completion = gateway.complete(call.request).await?;
    let head = MessageHead { id: reply_id("msg_"), model: completion.model.clone() };
    let explained = explanation(&completion.decision);
    if call.stream {
        return Ok((explained, streamed(completion, EventEncoder::new(head))).into_response());
    }
    let (answer, finish) = whole(completion).await?;
    let body = encode_response(&head, &answer, &finish);
    Ok((explained, [(CONTENT_TYPE, "application/json")], body).into_response())
}

/// Tokens of the prompt as the local model has them.
pub(crate) async fn count_tokens(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let request = decode_count(&body?)?;
    let count = gateway.app.count_prompt_tokens(&request).await?;
    Ok(([(CONTENT_TYPE, "application/json")], encode_count(count)).into_response())
}

fn streamed(completion: Answer, mut encoder: EventEncoder) -> Response {
    let events = completion.into_events().map(move |event| {
        let text = match event {
            Ok(CompletionEvent::Chat(event)) => encoder.encode(&event),
            Ok(CompletionEvent::Moved(decision)) => moved_comment(&decision),
            Err(error) => {
                let failure = Failure::from(error);
                encoder.encode_error(failure.status.as_u16(), &failure.body.message)
            }
        };
        Ok::<_, Infallible>(text)
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(events)).into_response()
}
