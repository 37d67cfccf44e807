//! Requests that are being served: a server that is told to stop waits for them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use futures::{Stream, StreamExt};
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::{Gateway, HEALTH, MESSAGES, METRICS, OLLAMA};

/// What servers usually call a request whose client went away before it got a status.
const CLIENT_GONE: u16 = 499;

#[derive(Debug, Default)]
pub(crate) struct Traffic {
    running: watch::Sender<usize>,
    is_draining: AtomicBool,
}

impl Traffic {
    /// Requests whose answers aren't whole.
    pub(crate) fn running(&self) -> usize {
        *self.running.borrow()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }

    pub(crate) fn begin_draining(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
    }

    /// Resolves once no request is being served.
    pub(crate) async fn ended(&self) {
        // The sender is `self`.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }
}

/// One request, until its answer is whole or nobody reads it any more.
struct InService(Arc<Traffic>);

impl InService {
    fn begin(traffic: &Arc<Traffic>) -> Self {
        traffic.running.send_modify(|running| *running += 1);
        Self(traffic.clone())
    }
}

impl Drop for InService {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

/// One request, counted by its status when there is one, or nobody waits for it any more.
struct StatusCount {
    metrics: Arc<Metrics>,
    dialect: &'static str,
    status: u16,
}

impl Drop for StatusCount {
    fn drop(&mut self) {
        self.metrics.note_request(self.dialect, self.status);
    }
}

/// Of a few words only: each makes a series of its own.
fn dialect(path: &str) -> &'static str {
    match path {
        _ if path.starts_with(MESSAGES) => "anthropic",
        _ if path.starts_with("/v1/") => "openai",
        _ if path.starts_with(OLLAMA) => "ollama",
        _ => "other",
    }
}

/// The body of an answer that is still being written.
struct Counted {
    body: BodyDataStream,
    _request: InService,
}

impl Stream for Counted {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.body.poll_next_unpin(context)
    }
}

/// Counts every request but those that ask about the server itself.
pub(crate) async fn count(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path == HEALTH || path == METRICS {
        return next.run(request).await;
    }
    let mut status = StatusCount { metrics: gateway.metrics.clone(), dialect: dialect(path), status: CLIENT_GONE };
    let in_service = InService::begin(&gateway.traffic);
    let response = next.run(request).await;
    status.status = response.status().as_u16();
    // One that is there as a whole keeps its length, and is sent before the connection is closed.
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::from_stream(Counted { body: body.into_data_stream(), _request: in_service }))
}
