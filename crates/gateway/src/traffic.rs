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

use crate::{Gateway, HEALTH};

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
    if request.uri().path() == HEALTH {
        return next.run(request).await;
    }
    let in_service = InService::begin(&gateway.traffic);
    let response = next.run(request).await;
    // One that is there as a whole keeps its length, and is sent before the connection is closed.
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::from_stream(Counted { body: body.into_data_stream(), _request: in_service }))
}
