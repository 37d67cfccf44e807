use chat::{ChatEvent, ChatRequest, Message, Redacted, Role, SamplingParams, Written};
use futures::StreamExt;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode};
use routing::EgressPass;
use tokio::time::timeout;
use wire::openai::{CompletionCall, Piece, decode_response, encode_completion};

use crate::client::{COMPLETIONS, read_bounded};
use crate::{NodeClient, NodeError, Seam};

/// Numbers have one way to go on, which the smallest models know, and which a server that begins anew doesn't write.
const QUESTION: &str = "Write the numbers from 1 to 30, with a space between them and nothing else.";
const BEGINNING: &str = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15";
/// Where a chat is gone on with it is cut after this, for a template may trim a message; where text is, the space at the
/// beginning of what follows must not be dropped.
const HALF: &str = " 1";
const REST: &str = "6 17";
/// Tokens in which that stands, however numbers are cut up.
const REST_TOKENS: usize = 6;
/// The most bytes of the reply that are read.
const REPLY_LIMIT: usize = 1 << 20;

/// A question and the beginning of its answer, with nothing of the user's in it: to be rendered by a model's template for
/// [`NodeClient::continues_text`].
pub fn probe_request() -> ChatRequest {
    let written = Written { text: Redacted(BEGINNING.to_owned()), ..Written::default() };
    ChatRequest { messages: vec![Message::new(Role::User, QUESTION)], written: Some(written), ..ChatRequest::default() }
}

impl NodeClient {
    /// Whether `model` goes on with a chat whose last message is the beginning of the answer: found out by letting it go on
    /// with one, numbers and nothing of the user's. It takes as long as a few tokens, or as loading the model; `None` where
    /// it couldn't be asked now.
    ///
    /// It is asked as it would be for an answer, in a stream: llama.cpp's server says the beginning again in a reply of one
    /// piece, and doesn't in a stream.
    pub async fn continues_chat(&self, model: &str) -> Option<bool> {
        let begun = format!("{BEGINNING}{HALF}");
        let request = ChatRequest {
            messages: vec![Message::new(Role::User, QUESTION), Message::new(Role::Assistant, begun)],
            sampling: greedy(REST_TOKENS),
            ..ChatRequest::default()
        };
        let (mut text, mut events) = (String::new(), self.ask(model, request));
        while let Some(event) = events.next().await {
            match event {
                Ok(ChatEvent::Text(part)) => text.push_str(&part),
                Ok(_) => {}
                Err(
                    NodeError::Busy { .. }
                    | NodeError::Unreachable { .. }
                    | NodeError::TimedOut { .. }
                    | NodeError::CutOff,
                ) => return None,
                Err(_) => return Some(false),
            }
        }
        Some(text.starts_with(REST))
    }

    /// How `model` goes on with text as it stands: `prompt` is [`probe_request`] as the model's template renders it, of
    /// `prompt_tokens` tokens. `Some(None)` where it doesn't, `None` where it couldn't be asked now. A node that counts others reads control tokens otherwise, or puts a
    /// template around the text; one that doesn't count them is taken at its word.
    ///
    /// The pass is for `prompt`, of which nobody here can tell what is in it; with one for another node nothing is asked.
    pub async fn continues_text(
        &self,
        pass: EgressPass,
        model: &str,
        prompt: Redacted<String>,
        prompt_tokens: usize,
    ) -> Option<Option<Seam>> {
        if pass.node_id() != self.id() {
            return None;
        }
        let sampling = greedy(REST_TOKENS);
        let call = CompletionCall { model: model.to_owned(), prompt, sampling, ..CompletionCall::default() };
        let Some(reply) = self.post(COMPLETIONS, encode_completion(&call)).await? else { return Some(None) };
        let counted = reply.usage.map(|usage| usage.prompt_tokens).filter(|count| *count > 0);
        if counted.is_some_and(|count| count != prompt_tokens) {
            tracing::info!(model, ?counted, prompt_tokens, "a node reads a rendered prompt in another way");
            return Some(None);
        }
        let (rest, text) = (format!("{HALF}{REST}"), reply.text.unwrap_or_default());
        if text.starts_with(&rest) {
            return Some(Some(Seam::Kept));
        }
        if !text.starts_with(rest.trim_start()) {
            return Some(None);
        }
        let first = CompletionCall { sampling: greedy(1), tells_tokens: true, ..call };
        let first = self.post(COMPLETIONS, encode_completion(&first)).await?;
        Some(first.filter(|first| first.tokens.len() == 1).map(|_| Seam::SpaceDropped))
    }

    /// Whether the node shows the control token of that id by its name in a text: found out by leaving the model no other
    /// token to write. `None` where it couldn't be asked now.
    pub async fn shows_token(&self, model: &str, id: u32, name: &str) -> Option<bool> {
        let call = CompletionCall {
            model: model.to_owned(),
            prompt: Redacted(BEGINNING.to_owned()),
            marks: vec![name.to_owned()],
            sampling: SamplingParams { logit_bias: vec![(id, 100.0)], ..greedy(1) },
            ..CompletionCall::default()
        };
        let reply = self.post(COMPLETIONS, encode_completion(&call)).await?;
        Some(reply.and_then(|reply| reply.text).is_some_and(|text| text.trim() == name))
    }

    /// What the node replies: `Some(None)` where it refuses or speaks another language, `None` where it couldn't be asked.
    async fn post(&self, path: &str, body: Vec<u8>) -> Option<Option<Piece>> {
        let patience = self.config.prefill_timeout;
        let request = self.request(Method::POST, path).header(CONTENT_TYPE, "application/json").body(body);
        let response = timeout(patience, request.send()).await.ok()?.ok()?;
        match response.status() {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => None,
            status if !status.is_success() => Some(None),
            _ => Some(decode_response(&read_bounded(response, REPLY_LIMIT, patience).await.ok()?).ok()),
        }
    }
}

fn greedy(tokens: usize) -> SamplingParams {
    SamplingParams { temperature: Some(0.0), max_tokens: Some(tokens), ..SamplingParams::default() }
}
