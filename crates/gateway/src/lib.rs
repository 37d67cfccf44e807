//! The HTTP gateway: programs and agents get the same models, routing and explanations as the window.
//!
//! It parses, calls `app` and encodes. It decides nothing about models or nodes, and it keeps no state of its own but
//! who may come in and what was counted. Start at [`serve`]; `openai.rs`, `responses.rs`, `anthropic.rs` and `ollama.rs` have
//! the calls.

#![warn(missing_docs)]

mod admit;
mod answer;
mod anthropic;
mod failure;
mod health;
mod metrics;
mod ollama;
mod openai;
mod reply;
mod responses;
mod traffic;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use app::App;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::{Router, middleware};
use chat::Redacted;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::admit::Admission;
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::traffic::Traffic;

/// The largest request that is read. A conversation of a million tokens is about 4 MB of text.
const MAX_REQUEST_BYTES: usize = 16 << 20;

/// Files that this process is to be able to have open: each connection is one, and a Mac's programs begin with 256.
const OPEN_FILES: u64 = 10_240;

/// Where Anthropic's dialect is spoken.
pub(crate) const MESSAGES: &str = "/v1/messages";
/// Where Ollama's is.
pub(crate) const OLLAMA: &str = "/api/";
/// Where a server tells how it is, to anybody.
pub(crate) const HEALTH: &str = "/health";
/// Where it tells what it counted, to those who may ask for answers.
pub(crate) const METRICS: &str = "/metrics";

pub(crate) struct Gateway {
    app: App,
    admission: Admission,
    traffic: Arc<Traffic>,
    metrics: Arc<Metrics>,
}

/// Serves until `stop` resolves. From then on nobody new is let in but to `/health`, and answers that run get `drain` to
/// end; the app's shutdown ends the others. The process may have more files open from then on, as far as the system lets it.
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
    if let Err(error) = rlimit::increase_nofile_limit(OPEN_FILES) {
        tracing::warn!(%error, "fewer connections can be held than there might be");
    }
    let address = listener.local_addr()?;
    let admission = Admission::new(key, address);
    let gateway = Arc::new(Gateway { app, admission, traffic: Arc::default(), metrics: Arc::default() });
    let (told, is_told) = oneshot::channel();
    let traffic = gateway.traffic.clone();
    let stop = async move {
        stop.await;
        traffic.begin_draining();
        // Gone where the listener failed meanwhile.
        let _ = told.send(());
        traffic.ended().await;
    };
    let serving = axum::serve(listener, router(gateway)).with_graceful_shutdown(stop).into_future();
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

fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(openai::chat_completions))
        .route("/v1/completions", post(openai::completions))
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
        .route(HEALTH, get(health::health))
        .route(METRICS, get(metrics::metrics))
        .fallback(|| async { Failure::not_found("There is nothing at this path.") })
        .method_not_allowed_fallback(|| async { Failure::method_not_allowed() })
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn_with_state(gateway.clone(), admit::admit))
        .layer(middleware::from_fn(failure::in_dialect))
        .layer(middleware::from_fn_with_state(gateway.clone(), traffic::count))
        .with_state(gateway)
}
