//! Answers without a conversation, for the gateway and the command line.

use std::pin::Pin;
use std::task::{Context, Poll};

use chat::{ChatEvent, ChatRequest};
use futures::Stream;
use routing::PlaceChoice;
use tokio::sync::mpsc;

use crate::answer::{self, AnswerEvent, AnswerRequest};
use crate::{App, AppError, DecisionRecord, ErrorCode};

/// An answer that has begun. Dropping it stops the answer.
#[derive(Debug)]
pub struct Completion {
    /// Where it runs, and why.
    pub decision: DecisionRecord,
    /// The model that answers, by its name at that place.
    pub model: String,
    events: CompletionEvents,
}

impl Completion {
    /// What the backend says, without the decision.
    pub fn into_events(self) -> impl Stream<Item = Result<ChatEvent, AppError>> + Send + Unpin {
        self.events
    }
}

struct CompletionEvents {
    first: Option<ChatEvent>,
    rest: mpsc::Receiver<AnswerEvent>,
}

impl std::fmt::Debug for CompletionEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CompletionEvents")
    }
}

impl Stream for CompletionEvents {
    type Item = Result<ChatEvent, AppError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            return Poll::Ready(match std::task::ready!(self.rest.poll_recv(context)) {
                Some(AnswerEvent::Chat(event)) => Some(Ok(event)),
                Some(AnswerEvent::Failed(error)) => Some(Err(error)),
                // Only before the first event can an answer move to another place.
                Some(AnswerEvent::Routed(_)) => continue,
                None => None,
            });
        }
    }
}

impl App {
    /// Answers a request that belongs to no conversation. Returns when the answer has begun, so that an error can
    /// still be told as one.
    ///
    /// # Errors
    /// Whatever keeps the answer from beginning; later failures come as the last item of the stream.
    pub async fn complete(&self, request: ChatRequest, place: Option<PlaceChoice>) -> Result<Completion, AppError> {
        if request.messages.is_empty() {
            return Err(AppError::new(ErrorCode::BadRequest, "The request has no messages."));
        }
        let mut events = answer::start(self, AnswerRequest { chat: request, place, stays_local: false });
        let mut routed = None;
        loop {
            match events.recv().await {
                Some(AnswerEvent::Routed(next)) => routed = Some(next),
                Some(AnswerEvent::Failed(error)) => return Err(error),
                Some(AnswerEvent::Chat(first)) => {
                    let Some(routed) = routed else { continue };
                    let events = CompletionEvents { first: Some(first), rest: events };
                    return Ok(Completion { decision: routed.decision, model: routed.model, events });
                }
                None => return Err(AppError::new(ErrorCode::Internal, "The answer ended without a word.")),
            }
        }
    }
}
