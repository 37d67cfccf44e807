//! Answers without a conversation, for the gateway and the command line.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use chat::{ChatEvent, ChatRequest};
use futures::{Stream, StreamExt};
use routing::PlaceChoice;

use crate::answer::{self, AnswerEvent, AnswerRequest, Answering};
use crate::{App, AppError, AskedBy, DecisionRecord, ErrorCode};

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
    /// What follows the first decision.
    pub fn into_events(self) -> impl Stream<Item = Result<CompletionEvent, AppError>> + Send + Unpin {
        self.events
    }

    /// What the backends say, without the decisions.
    pub fn into_chat_events(self) -> impl Stream<Item = Result<ChatEvent, AppError>> + Send + Unpin {
        self.events.filter_map(|event| {
            std::future::ready(match event {
                Ok(CompletionEvent::Chat(event)) => Some(Ok(event)),
                Ok(CompletionEvent::Moved(_)) => None,
                Err(error) => Some(Err(error)),
            })
        })
    }
}

/// What happens in an answer that has begun.
#[derive(Clone, Debug)]
pub enum CompletionEvent {
    /// What a backend says.
    Chat(ChatEvent),
    /// The answer goes on elsewhere, and why.
    Moved(DecisionRecord),
}

struct CompletionEvents {
    first: Option<ChatEvent>,
    answering: Answering,
}

impl std::fmt::Debug for CompletionEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CompletionEvents")
    }
}

impl Stream for CompletionEvents {
    type Item = Result<CompletionEvent, AppError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(CompletionEvent::Chat(first))));
        }
        loop {
            return Poll::Ready(match ready!(self.answering.poll_next(context)) {
                Some(AnswerEvent::Chat(event)) => Some(Ok(CompletionEvent::Chat(event))),
                Some(AnswerEvent::Routed(routed)) => Some(Ok(CompletionEvent::Moved(routed.decision))),
                Some(AnswerEvent::Failed(error)) => Some(Err(error)),
                Some(AnswerEvent::Note(_)) => continue,
                None => None,
            });
        }
    }
}

impl App {
    /// Tokens of the rendered prompt, as the local model that the request names has them.
    ///
    /// # Errors
    /// When no such model is here, or the prompt can't be rendered.
    pub async fn count_prompt_tokens(&self, request: &ChatRequest) -> Result<usize, AppError> {
        let Some(entry) = self.model_for(request.model.as_deref()) else {
            return Err(AppError::new(ErrorCode::NoModel, "Tokens are counted with a local model, and it isn't here."));
        };
        self.inner.engine.count_prompt_tokens(&entry.path, request).await.map_err(answer::generate_error)
    }

    /// Answers a request that belongs to no conversation. Returns when the answer has begun, so that an error can
    /// still be told as one.
    ///
    /// # Errors
    /// Whatever keeps the answer from beginning; later failures come as the last item of the stream.
    pub async fn complete(
        &self,
        request: ChatRequest,
        place: Option<PlaceChoice>,
        asked_by: AskedBy,
    ) -> Result<Completion, AppError> {
        if request.messages.is_empty() && request.raw.is_none() {
            return Err(AppError::new(ErrorCode::BadRequest, "The request has no messages."));
        }
        // Nodes are asked for chats: whose template they would put around a text isn't known.
        let stays_local = request.raw.is_some();
        let request = AnswerRequest { chat: request, place, stays_local, asked_by, message: None };
        let mut answering = answer::start(self, request);
        let mut routed = None;
        loop {
            match answering.next().await {
                Some(AnswerEvent::Routed(next)) => routed = Some(next),
                Some(AnswerEvent::Note(_)) => {}
                Some(AnswerEvent::Failed(error)) => return Err(error),
                Some(AnswerEvent::Chat(first)) => {
                    let Some(routed) = routed else { continue };
                    let events = CompletionEvents { first: Some(first), answering };
                    return Ok(Completion { decision: routed.decision, model: routed.model, events });
                }
                None => return Err(AppError::new(ErrorCode::Internal, "The answer ended without a word.")),
            }
        }
    }
}
