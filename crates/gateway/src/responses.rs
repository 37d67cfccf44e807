//! OpenAI's younger dialect: responses, streamed or whole. Nothing of them is kept.

use std::convert::Infallible;
use std::sync::Arc;

use app::CompletionEvent;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use wire::openai::responses::{self, EventEncoder, ResponseHead, decode_request};

use crate::Gateway;
use crate::answer::Answer;
use crate::failure::Failure;
use crate::reply::{explanation, moved_comment, now_secs, read, reply_id};

pub(crate) async fn create(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = decode_request(&body?)?;
    let completion = gateway.complete(call.request).await?;
    let head = ResponseHead {
        id: reply_id("resp_"),
        created_at: now_secs(),
        model: completion.model.clone(),
        repeated: call.repeated,
    };
    let explained = explanation(&completion.decision);
    if call.stream {
        return Ok((explained, streamed(completion, EventEncoder::new(head))).into_response());
    }
    let mut answer = responses::Response::new(head);
    let finish = read(completion, |event| answer.push(&event)).await?;
    Ok((explained, [(CONTENT_TYPE, "application/json")], answer.encode(&finish)).into_response())
}

fn streamed(completion: Answer, mut encoder: EventEncoder) -> Response {
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
