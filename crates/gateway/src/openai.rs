//! OpenAI's dialect: chat completions and completions of text, streamed or whole, and the list of models.

use std::convert::Infallible;
use std::sync::Arc;

use app::CompletionEvent;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use chat::{ChatEvent, ChatRequest};
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, select_all};
use wire::openai::{
    Choices, ChunkEncoder, ModelEntry, ReplyHead, Shape, TextCall, decode_request, decode_text_request, encode_models,
    encode_response,
};

use crate::Gateway;
use crate::answer::Answer;
use crate::failure::Failure;
use crate::reply::{explanation, moved_comment, now_secs, reply_id, whole};

pub(crate) async fn chat_completions(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = decode_request(&body?)?;
    let wanted = Wanted {
        choices: Choices { n: call.n, ..Choices::CHAT },
        requests: vec![call.request],
        echo: Vec::new(),
        stream: call.stream,
        include_usage: call.include_usage,
    };
    answer(&gateway, wanted).await
}

pub(crate) async fn completions(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let TextCall { requests, n, echo, stream, include_usage } = decode_text_request(&body?)?;
    let prefix = |request: &ChatRequest| request.raw.as_ref().map(|raw| raw.prefix.0.clone()).unwrap_or_default();
    let echo = if echo { requests.iter().map(prefix).collect() } else { Vec::new() };
    let choices = Choices { shape: Shape::Text, prompts: requests.len(), n };
    answer(&gateway, Wanted { choices, requests, echo, stream, include_usage }).await
}

/// What a call wants.
struct Wanted {
    choices: Choices,
    /// One for each prompt.
    requests: Vec<ChatRequest>,
    /// With what the answers to each begin; empty where with nothing.
    echo: Vec<String>,
    stream: bool,
    include_usage: bool,
}

async fn answer(gateway: &Gateway, wanted: Wanted) -> Result<Response, Failure> {
    let Wanted { choices, requests, echo, stream, include_usage } = wanted;
    let copies = requests.iter().flat_map(|request| (0..choices.n).map(|copy| copy_of(request, copy)));
    let answers = try_join_all(copies.map(|request| gateway.complete(request))).await?;
    // A call asks for one answer at least.
    let Some(first) = answers.first() else { return Err(Failure::not_found("There is nothing to answer.")) };
    let prefix = if choices.shape == Shape::Chat { "chatcmpl-" } else { "cmpl-" };
    let head = ReplyHead { id: reply_id(prefix), created: now_secs(), model: first.model.clone() };
    let explained = explanation(&first.decision);
    if stream {
        let encoder = ChunkEncoder::with_choices(head, include_usage, choices);
        return Ok((explained, streamed(answers, encoder, &echo, choices.n)).into_response());
    }
    let mut answers = try_join_all(answers.into_iter().map(whole)).await?;
    for (index, (answer, _)) in answers.iter_mut().enumerate() {
        if let Some(echo) = echo.get(index / choices.n) {
            answer.text.insert_str(0, echo);
        }
    }
    let body = encode_response(&head, choices, &answers);
    Ok((explained, [(CONTENT_TYPE, "application/json")], body).into_response())
}

/// The request for one of several answers: by the same seed they would all be the same.
fn copy_of(request: &ChatRequest, copy: usize) -> ChatRequest {
    let mut request = request.clone();
    request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(copy as u64));
    request
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

fn streamed(answers: Vec<Answer>, mut encoder: ChunkEncoder, echo: &[String], n: usize) -> Response {
    let echoed: Vec<String> = echo
        .iter()
        .enumerate()
        .flat_map(|(prompt, text)| (prompt * n..(prompt + 1) * n).map(move |choice| (choice, text)))
        .map(|(choice, text)| encoder.encode_choice(choice, &ChatEvent::Text(text.clone())))
        .collect();
    let events =
        answers.into_iter().enumerate().map(|(choice, answer)| answer.into_events().map(move |it| (choice, it)));
    // The body pulls: a reader that doesn't read holds the backend back instead of filling memory, and one that goes
    // away drops the answers, which stops them.
    let events = stream::unfold((select_all(events), encoder), |(mut events, mut encoder)| async move {
        let (choice, event) = events.next().await?;
        let text = match event {
            Ok(CompletionEvent::Chat(event)) => encoder.encode_choice(choice, &event),
            Ok(CompletionEvent::Moved(decision)) => moved_comment(&decision),
            Err(error) => {
                // One that fails ends them all.
                events.clear();
                encoder.encode_error(&Failure::from(error).body)
            }
        };
        Some((text, (events, encoder)))
    });
    let body = stream::iter(echoed).chain(events).map(Ok::<_, Infallible>);
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(body)).into_response()
}
