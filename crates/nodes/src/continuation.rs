use std::time::Duration;

use chat::{ChatEvent, ChatRequest, Message, Role, SamplingParams};
use futures::StreamExt;
use routing::Continuation;
use tokio::time::timeout;

use crate::{NodeClient, NodeError};

/// Numbers have one way to go on, which the smallest models know, and which a server that begins anew doesn't write.
const QUESTION: &str = "Write the numbers from 1 to 30, with a space between them and nothing else.";
const BEGINNING: &str = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 1";
const REST: &str = "6 17";
/// Tokens in which that stands, however numbers are cut up.
const REST_TOKENS: usize = 5;
/// A model that takes longer to load is asked another time: a running answer may wait for this.
const PATIENCE: Duration = Duration::from_secs(20);

impl NodeClient {
    /// Finds out how the node goes on with an answer that was begun elsewhere, by letting it go on with one: numbers, and
    /// nothing of the user's. It takes as long as a few tokens, or as loading the model; `None` where it didn't answer.
    ///
    /// It is asked as it would be for an answer, in a stream: llama.cpp's server says the beginning again in a reply of one
    /// piece, and doesn't in a stream. One that only completes plain text can't go on with an answer, because it isn't asked
    /// by messages.
    pub async fn probe_continuation(&self, model: &str) -> Option<Continuation> {
        let request = ChatRequest {
            messages: vec![Message::new(Role::User, QUESTION), Message::new(Role::Assistant, BEGINNING)],
            sampling: SamplingParams {
                temperature: Some(0.0),
                max_tokens: Some(REST_TOKENS),
                ..SamplingParams::default()
            },
            ..ChatRequest::default()
        };
        let text = timeout(self.config.inactivity_timeout.min(PATIENCE), self.text(model, request)).await.ok()?;
        match text {
            Ok(text) if text.starts_with(REST) => Some(Continuation::Prefix),
            Ok(_) => Some(Continuation::None),
            // It may know, but it can't be asked now.
            Err(
                NodeError::Busy { .. } | NodeError::Unreachable { .. } | NodeError::TimedOut { .. } | NodeError::CutOff,
            ) => None,
            Err(_) => Some(Continuation::None),
        }
    }

    async fn text(&self, model: &str, request: ChatRequest) -> Result<String, NodeError> {
        let (mut text, mut events) = (String::new(), self.ask(model, request));
        while let Some(event) = events.next().await {
            if let ChatEvent::Text(part) = event? {
                text.push_str(&part);
            }
        }
        Ok(text)
    }
}
