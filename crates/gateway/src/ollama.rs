//! Ollama's dialect: chat and generate, streamed or whole, models that are listed, shown and in memory, and the version.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use app::{AskedBy, CompletionEvent, ModelEntry, ModelHeader};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use wire::ollama::{
    Capability, ChatCall, Endpoint, InfoValue, ListedModel, LoadChange, ModelDetails, ReplyEncoder, ReplyHead,
    RunningModel, ShownModel, decode_chat, decode_generate, decode_show, encode_error, encode_load_change, encode_ps,
    encode_show, encode_tags, encode_version,
};

use crate::Gateway;
use crate::answer::Answer;
use crate::failure::Failure;
use crate::reply::{explanation, now_secs};

/// The release of Ollama whose dialect this is: programs compare it with the one that brought what they need, and would
/// take our own version for a very old one. `/health` tells that.
const SPOKEN: &str = "0.12.11";

pub(crate) async fn chat(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = decode_chat(&body?)?;
    answer(&gateway, call, Endpoint::Chat).await
}

pub(crate) async fn generate(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = decode_generate(&body?)?;
    answer(&gateway, call, Endpoint::Generate).await
}

/// The models of this machine, and those that nodes tell of.
pub(crate) async fn tags(State(gateway): State<Arc<Gateway>>) -> Response {
    let here = gateway.app.models();
    let mut list: Vec<ListedModel> = here
        .iter()
        .filter_map(|entry| {
            let header = entry.usable()?;
            Some(ListedModel {
                name: entry.id.clone(),
                modified_at: modified_secs(entry),
                size: header.file_bytes,
                details: details(header),
                ..ListedModel::default()
            })
        })
        .collect();
    for name in gateway.app.nodes().into_iter().filter_map(|node| node.status).flat_map(|status| status.models) {
        if list.iter().all(|known| known.name != name) {
            list.push(ListedModel { name, ..ListedModel::default() });
        }
    }
    ([(CONTENT_TYPE, "application/json")], encode_tags(&list)).into_response()
}

/// What the file of a model says; editors ask before they show one.
pub(crate) async fn show(
    State(gateway): State<Arc<Gateway>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let name = decode_show(&body?)?;
    let entry = gateway.app.model_for(Some(untagged(&name)));
    let Some((entry, header)) = entry.as_ref().and_then(|entry| Some((entry, entry.usable()?))) else {
        return Err(Failure::not_found(&format!("There is no model “{name}” on this machine.")));
    };
    let abilities = [(header.takes_tools(), Capability::Tools), (header.has_thinking(), Capability::Thinking)];
    let abilities = abilities.into_iter().filter_map(|(has, ability)| has.then_some(ability));
    let family = &header.architecture;
    let model = ShownModel {
        modified_at: modified_secs(entry),
        details: details(header),
        model_info: vec![
            ("general.architecture".to_owned(), InfoValue::Text(family.clone())),
            ("general.basename".to_owned(), InfoValue::Text(entry.name())),
            ("general.parameter_count".to_owned(), InfoValue::Count(header.parameters)),
            (format!("{family}.context_length"), InfoValue::Count(header.context_len as u64)),
        ],
        capabilities: std::iter::once(Capability::Completion).chain(abilities).collect(),
        template: header.chat_template.clone().unwrap_or_default(),
        ..ShownModel::default()
    };
    Ok(([(CONTENT_TYPE, "application/json")], encode_show(&model)).into_response())
}

/// The model in memory. It leaves at the time told or sooner: that counts from now, and it was used before.
pub(crate) async fn ps(State(gateway): State<Arc<Gateway>>) -> Response {
    let running = gateway.app.model_in_memory().and_then(|(entry, loaded)| {
        let size = loaded.footprint.total();
        Some(RunningModel {
            name: entry.id.clone(),
            size,
            size_vram: if app::computes_on_gpu() { size } else { chat::Bytes::ZERO },
            details: details(entry.usable()?),
            expires_at: now_secs() + app::IDLE_UNLOAD.as_secs(),
            context_length: loaded.context_len,
            ..RunningModel::default()
        })
    });
    ([(CONTENT_TYPE, "application/json")], encode_ps(running.as_slice())).into_response()
}

fn modified_secs(entry: &ModelEntry) -> u64 {
    entry.modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

fn details(header: &ModelHeader) -> ModelDetails {
    ModelDetails {
        format: if header.path.is_dir() { "safetensors" } else { "gguf" }.to_owned(),
        family: header.architecture.clone(),
        parameter_size: parameters(header.parameters),
        quantization_level: header.quantization.clone(),
    }
}

/// Ollama puts its usual tag behind a name that has none.
fn untagged(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

pub(crate) async fn version() -> Response {
    ([(CONTENT_TYPE, "application/json")], encode_version(SPOKEN)).into_response()
}

async fn answer(gateway: &Gateway, mut call: ChatCall, endpoint: Endpoint) -> Result<Response, Failure> {
    call.request.model = call.request.model.as_deref().map(untagged).map(str::to_owned);
    if let Some(change) = call.load_change {
        let model = match change {
            LoadChange::Load => gateway.app.load_model(call.request.model, AskedBy::Gateway).await?,
            LoadChange::Unload => gateway.app.unload_model(call.request.model.as_deref()).await?,
        };
        let head = ReplyHead { endpoint, model, created: now_secs() };
        return Ok(([(CONTENT_TYPE, "application/json")], encode_load_change(&head, change)).into_response());
    }
    let accepted = Instant::now();
    let created = now_secs();
    let completion = gateway.complete(call.request).await?;
    let head = ReplyHead { endpoint, model: completion.model.clone(), created };
    let explained = explanation(&completion.decision);
    let encoder = ReplyEncoder::new(head, call.stream);
    if call.stream {
        return Ok((explained, streamed(completion, encoder, accepted)).into_response());
    }
    let body = whole(completion, encoder, accepted).await?;
    Ok((explained, [(CONTENT_TYPE, "application/json")], body).into_response())
}

fn streamed(completion: Answer, mut encoder: ReplyEncoder, accepted: Instant) -> Response {
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

async fn whole(completion: Answer, mut encoder: ReplyEncoder, accepted: Instant) -> Result<String, Failure> {
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
