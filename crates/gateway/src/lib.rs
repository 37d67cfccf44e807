//! The HTTP gateway: programs and agents get the same models, routing and explanations as the window.
//!
//! It parses, calls `app` and encodes. It decides nothing about models or nodes, and it keeps no state of its own but
//! who may come in. Start at [`serve`]; `openai.rs`, `responses.rs`, `anthropic.rs` and `ollama.rs` have
//! the calls.

#![warn(missing_docs)]

mod admit;
mod anthropic;
mod failure;
mod ollama;
mod openai;
mod reply;
mod responses;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use app::App;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Router, middleware};
use chat::Redacted;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::admit::Admission;
use crate::failure::Failure;

/// The largest request that is read. A conversation of a million tokens is about 4 MB of text.
const MAX_REQUEST_BYTES: usize = 16 << 20;

/// Where Anthropic's dialect is spoken.
pub(crate) const MESSAGES: &str = "/v1/messages";
/// Where Ollama's is.
pub(crate) const OLLAMA: &str = "/api/";

pub(crate) struct Gateway {
    app: App,
    admission: Admission,
}

/// Serves until `stop` resolves. From then on nobody new is let in, and answers that run get `drain` to end; the app's
/// shutdown ends the others.
///
/// # Errors
/// Where the listener fails.
pub async fn serve(
    listener: TcpListener,
    app: App,
    key: Option<Redacted<String>>,
    stop: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    let (told, is_told) = oneshot::channel();
    let stop = async move {
        stop.await;
        // Gone where the listener failed meanwhile.
        let _ = told.send(());
    };
    let serving = axum::serve(listener, router(app, key, address)).with_graceful_shutdown(stop).into_future();
    let too_late = async {
        match is_told.await {
            Ok(()) => tokio::time::sleep(drain).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        served = serving => served,
        () = too_late => Ok(()),
    }
}

/// All paths, for a listener at `address`.
pub fn router(app: App, key: Option<Redacted<String>>, address: SocketAddr) -> Router {
    let gateway = Arc::new(Gateway { app, admission: Admission::new(key, address) });
    Router::new()
        .route("/v1/chat/completions", post(openai::chat_completions))
        .route("/v1/responses", post(responses::create))
        .route(MESSAGES, post(anthropic::messages))
        .route(&format!("{MESSAGES}/count_tokens"), post(anthropic::count_tokens))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/tags", get(ollama::tags))
        .route("/api/show", post(ollama::show))
        .route("/api/ps", get(ollama::ps))
        .route("/api/version", get(ollama::version))
        .route("/v1/models", get(openai::models))
        .route("/health", get(health))
        .fallback(|| async { Failure::not_found("There is nothing at this path.") })
        .method_not_allowed_fallback(|| async { Failure::method_not_allowed() })
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn_with_state(gateway.clone(), admit::admit))
        .layer(middleware::from_fn(failure::in_dialect))
        .with_state(gateway)
}

async fn health(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    let models = gateway.app.models();
    let body = json!({
        "status": "ok",
        "engine": "tidegate",
        "version": env!("CARGO_PKG_VERSION"),
        "device": app::device_name(),
        "models": models.iter().filter(|model| model.header.is_ok()).count(),
        "nodes": gateway.app.nodes().len(),
    });
    ([(CONTENT_TYPE, "application/json")], body.to_string())
}
