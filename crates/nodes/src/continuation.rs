use chat::{ChatRequest, Message, Role, SamplingParams};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use routing::Continuation;
use serde_json::{Value, json};
use tokio::time::timeout;
use wire::openai::{ChatCall, decode_response, encode_request};

use crate::NodeClient;
use crate::client::read_bounded;

/// Numbers have one way to go on, which the smallest models know, and which a server that begins anew doesn't write.
const QUESTION: &str = "Write the numbers from 1 to 30, with a space between them and nothing else.";
const BEGINNING: &str = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 1";
const REST: &str = "6 17";
/// Tokens in which that stands, however numbers are cut up.
const REST_TOKENS: usize = 5;
/// The most bytes of the reply that are read.
const REPLY_LIMIT: usize = 1 << 20;

impl NodeClient {
    /// Finds out how the node goes on with an answer that was begun elsewhere, by letting it go on with one: numbers, and
    /// nothing of the user's. It takes as long as a few tokens, or as loading the model.
    pub async fn probe_continuation(&self, model: &str) -> Continuation {
        if self.continues_chat(model).await {
            return Continuation::Prefix;
        }
        if self.continues_text(model).await { Continuation::Text } else { Continuation::None }
    }

    async fn continues_chat(&self, model: &str) -> bool {
        let request = ChatRequest {
            model: Some(model.to_owned()),
            messages: vec![Message::new(Role::User, QUESTION), Message::new(Role::Assistant, BEGINNING)],
            sampling: SamplingParams {
                temperature: Some(0.0),
                max_tokens: Some(REST_TOKENS),
                ..SamplingParams::default()
            },
            ..ChatRequest::default()
        };
        let body = encode_request(&ChatCall { request, stream: false, include_usage: false });
        let reply = self.post("/v1/chat/completions", body).await;
        let text = reply.and_then(|body| decode_response(&body).ok()?.text);
        text.is_some_and(|text| text.starts_with(REST))
    }

    async fn continues_text(&self, model: &str) -> bool {
        let prompt = format!("{QUESTION}\n{BEGINNING}");
        let body = json!({ "model": model, "prompt": prompt, "max_tokens": REST_TOKENS, "temperature": 0 });
        let reply = self.post("/v1/completions", body.to_string().into_bytes()).await;
        let reply: Option<Value> = reply.and_then(|body| serde_json::from_slice(&body).ok());
        let text = reply.as_ref().and_then(|reply| reply["choices"][0]["text"].as_str());
        text.is_some_and(|text| text.starts_with(REST))
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> Option<Vec<u8>> {
        let patience = self.config.inactivity_timeout;
        let request = self.request(Method::POST, path).header(CONTENT_TYPE, "application/json").body(body);
        let response = timeout(patience, request.send()).await.ok()?.ok()?;
        if !response.status().is_success() {
            return None;
        }
        read_bounded(response, REPLY_LIMIT, patience).await
    }
}
