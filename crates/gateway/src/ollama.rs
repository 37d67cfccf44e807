//! Ollama's dialect: chat and generate, streamed or whole, the list of models, and the version.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use app::{AskedBy, Completion, CompletionEvent};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use wire::ollama::{
    ChatCall, Endpoint, ListedModel, ModelDetails, ReplyEncoder, ReplyHead, decode_chat, decode_generate, encode_error,
    encode_tags, encode_version,
};

use crate::Gateway;
use crate::failure::Failure;
use crate::reply::{explanation, now_secs};

/// An error in the dialect's own shape.
pub(crate) struct OllamaFailure(pub(crate) Failure);

impl<E: Into<Failure>> From<E> for OllamaFailure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for OllamaFailure {
    fn into_response(self) -> Response {
        (self.0.status, [(CONTENT_TYPE, "application/json")], encode_error(&self.0.body.message)).into_response()
    }
}

pub(crate) async fn chat(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, OllamaFailure> {
    let call = decode_chat(&body?)?;
    answer(&gateway, call, Endpoint::Chat).await
}

pub(crate) async fn generate(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, OllamaFailure> {
    let call = decode_generate(&body?)?;
    answer(&gateway, call, Endpoint::Generate).await
}

pub(crate) async fn tags(State(gateway): State<Arc<Gateway>>) -> Response {
    let models: Vec<ListedModel> = gateway
        .app
        .models()
        .iter()
        .filter_map(|model| {
            let header = model.usable()?;
            let modified = std::fs::metadata(&model.path).and_then(|file| file.modified()).ok();
            let modified = modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            Some(ListedModel {
                name: model.id.clone(),
                modified_at: modified.map_or(0, |since| since.as_secs()),
                size: header.file_bytes,
                digest: String::new(),
                details: ModelDetails {
                    format: if header.path.is_dir() { "safetensors" } else { "gguf" }.to_owned(),
                    family: header.architecture.clone(),
                    parameter_size: parameters(header.parameters),
                    quantization_level: header.quantization.clone(),
                },
            })
        })
        .collect();
    ([(CONTENT_TYPE, "application/json")], encode_tags(&models)).into_response()
}

pub(crate) async fn version() -> Response {
    ([(CONTENT_TYPE, "application/json")], encode_version(env!("CARGO_PKG_VERSION"))).into_response()
}

async fn answer(gateway: &Gateway, mut call: ChatCall, endpoint: Endpoint) -> Result<Response, OllamaFailure> {
    if call.load_change.is_some() {
        let message = "Models are loaded when they are asked, and leave memory by themselves: send a message.";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "invalid_request_error", "bad_request", message).into());
    }
    // Ollama puts its usual tag behind a name that has none.
    call.request.model = call.request.model.map(|name| name.strip_suffix(":latest").unwrap_or(&name).to_owned());
    let accepted = Instant::now();
    let created = now_secs();
    let completion = gateway.app.complete(call.request, None, AskedBy::Gateway).await?;
    let head = ReplyHead { endpoint, model: completion.model.clone(), created };
    let explained = explanation(&completion.decision);
    let encoder = ReplyEncoder::new(head, call.stream);
    if call.stream {
        return Ok((explained, streamed(completion, encoder, accepted)).into_response());
    }
    let body = whole(completion, encoder, accepted).await?;
    Ok((explained, [(CONTENT_TYPE, "application/json")], body).into_response())
}

fn streamed(completion: Completion, mut encoder: ReplyEncoder, accepted: Instant) -> Response {
    let lines = completion.into_events().map(move |event| {
        let line = match event {
            Ok(CompletionEvent::Chat(event)) => encoder.encode(&event, accepted.elapsed()),
            // A stream of JSON lines has no place for a word on where it goes on.
            Ok(CompletionEvent::Moved(_)) => String::new(),
            Err(error) => encode_error(&Failure::from(error).body.message),
        };
        Ok::<_, Infallible>(line)
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn whole(completion: Completion, mut encoder: ReplyEncoder, accepted: Instant) -> Result<String, Failure> {
    let mut body = String::new();
    let mut events = completion.into_chat_events();
    while let Some(event) = events.next().await {
        body.push_str(&encoder.encode(&event?, accepted.elapsed()));
    }
    Ok(body)
}

/// `1.5B`, `494M`.
fn parameters(count: u64) -> String {
    match count as f64 {
        count if count >= 1e9 => format!("{:.1}B", count / 1e9),
        count => format!("{:.0}M", count / 1e6),
    }
}
