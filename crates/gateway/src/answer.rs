//! An answer of the application, counted as it is read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use app::{AppError, AskedBy, Completion, CompletionEvent, DecisionRecord};
use chat::{ChatEvent, ChatRequest};
use futures::{Stream, StreamExt};

use crate::Gateway;
use crate::metrics::{Metrics, Outcome};

/// An answer that has begun. Dropping it stops the answer.
pub(crate) struct Answer {
    /// Where it runs, and why.
    pub(crate) decision: DecisionRecord,
    /// The model that answers, by its name at that place.
    pub(crate) model: String,
    events: Counted,
}

impl Answer {
    /// What follows the first decision.
    pub(crate) fn into_events(self) -> impl Stream<Item = Result<CompletionEvent, AppError>> + Send + Unpin {
        self.events
    }

    /// What the backends say, without the decisions.
    pub(crate) fn into_chat_events(self) -> impl Stream<Item = Result<ChatEvent, AppError>> + Send + Unpin {
        self.events.filter_map(|event| {
            std::future::ready(match event {
                Ok(CompletionEvent::Chat(event)) => Some(Ok(event)),
                Ok(CompletionEvent::Moved(_)) => None,
                Err(error) => Some(Err(error)),
            })
        })
    }
}

impl Gateway {
    /// Answers `request`. Returns when the answer has begun, so that an error can still be told as one.
    ///
    /// # Errors
    /// Whatever keeps the answer from beginning; later failures come as the last item of the stream.
    pub(crate) async fn complete(&self, request: ChatRequest) -> Result<Answer, AppError> {
        let mut count = Count::begin(&self.metrics);
        let begun = self.app.complete(request, None, AskedBy::Gateway).await;
        let completion: Completion = begun.inspect_err(|_| count.outcome = Outcome::Failed)?;
        let (decision, model) = (completion.decision.clone(), completion.model.clone());
        let events = Counted { events: Box::new(completion.into_events()), count };
        Ok(Answer { decision, model, events })
    }
}

/// What is counted of one answer, at its end.
struct Count {
    metrics: Arc<Metrics>,
    accepted: Instant,
    has_begun: bool,
    outcome: Outcome,
}

impl Count {
    fn begin(metrics: &Arc<Metrics>) -> Self {
        // Until it is known better: whoever asked went away.
        Self { metrics: metrics.clone(), accepted: Instant::now(), has_begun: false, outcome: Outcome::Cancelled }
    }

    fn note(&mut self, event: &Result<CompletionEvent, AppError>) {
        match event {
            Ok(CompletionEvent::Chat(ChatEvent::Text(_) | ChatEvent::Thinking(_) | ChatEvent::ToolCall { .. })) => {
                if !std::mem::replace(&mut self.has_begun, true) {
                    self.metrics.note_first_token(self.accepted.elapsed().as_secs_f64());
                }
            }
            Ok(CompletionEvent::Chat(ChatEvent::Finished(finish))) => {
                self.outcome = Outcome::Finished;
                self.metrics.note_finish(finish);
            }
            Ok(CompletionEvent::Chat(_) | CompletionEvent::Moved(_)) => {}
            Err(_) => self.outcome = Outcome::Failed,
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.metrics.note_answer(self.outcome);
    }
}

struct Counted {
    events: Box<dyn Stream<Item = Result<CompletionEvent, AppError>> + Send + Unpin>,
    count: Count,
}

impl Stream for Counted {
    type Item = Result<CompletionEvent, AppError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(self.events.poll_next_unpin(context));
        if let Some(event) = &event {
            self.count.note(event);
        }
        Poll::Ready(event)
    }
}
