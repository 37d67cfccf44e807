//! Text that is gone on with as it stands, and several answers to one request, word for word through the gateway.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use app::OffloadMode;
use serde_json::{Value, json};
use system_tests::{Fixture, http, serve};
use testkit::gguf::{TINY_TEMPLATE, tiny_model, tiny_model_with};

struct Server {
    _fixture: Fixture,
    _folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Server {
    /// With a model that has these marks beside its own.
    async fn start(marks: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = if marks.is_empty() { tiny_model(7) } else { tiny_model_with(7, TINY_TEMPLATE, marks) };
        let model = model.write(folder.path(), "tiny.gguf").unwrap();
        let fixture = Fixture::start(OffloadMode::LocalOnly, &[model]).await;
        let address = serve(&fixture.app, None).await;
        Self { _fixture: fixture, _folder: folder, address }
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json");
        http(self.address, &head, &body.to_string()).await
    }

    async fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, reply) = self.post(path, body).await;
        assert_eq!(status, 200, "{reply}");
        serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    }

    /// The chunks of a stream that came to its end.
    async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        let (status, reply) = self.post(path, &body).await;
        assert!(status == 200 && reply.matches("data: [DONE]").count() == 1, "{reply}");
        let data = reply.lines().filter_map(|line| line.strip_prefix("data: ").filter(|data| *data != "[DONE]"));
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

/// What each choice says, in the order of their indices: of a whole reply, or of all chunks of a stream.
fn texts(replies: &[Value]) -> Vec<String> {
    let mut texts = BTreeMap::<u64, String>::new();
    for choice in replies.iter().flat_map(|reply| reply["choices"].as_array().unwrap()) {
        let text = [&choice["text"], &choice["message"]["content"], &choice["delta"]["content"]];
        let text = text.into_iter().find_map(Value::as_str).unwrap_or_default();
        *texts.entry(choice["index"].as_u64().unwrap()).or_default() += text;
    }
    assert!(texts.keys().copied().eq(0..texts.len() as u64));
    texts.into_values().collect()
}

#[tokio::test]
async fn a_text_is_gone_on_with_as_it_stands() {
    let server = Server::start(&[]).await;
    let greedy = json!({ "model": "tiny", "temperature": 0, "max_tokens": 8 });
    let with = |more: Value| {
        let mut body = greedy.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let chat = with(json!({ "messages": [{ "role": "user", "content": "hello" }] }));
    let chat = texts(&[server.ask("/v1/chat/completions", &chat).await]);
    // The same conversation, rendered by the asker.
    let rendered = with(json!({ "prompt": "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n" }));
    let whole = server.ask("/v1/completions", &rendered).await;
    assert_eq!((texts(std::slice::from_ref(&whole)), &whole["object"]), (chat, &json!("text_completion")));
    let streamed = server.stream("/v1/completions", &rendered).await;
    assert_eq!(texts(&streamed), texts(std::slice::from_ref(&whole)));
    assert_eq!(streamed.last().unwrap()["usage"]["total_tokens"], whole["usage"]["total_tokens"]);

    // Ollama's word for it.
    let raw = json!({ "model": "tiny", "prompt": rendered["prompt"], "raw": true, "stream": false,
        "options": { "temperature": 0, "num_predict": 8 } });
    let raw = server.ask("/api/generate", &raw).await;
    assert_eq!(raw["response"].as_str().unwrap(), texts(std::slice::from_ref(&whole))[0]);

    let (a, b) = (with(json!({ "prompt": "a" })), with(json!({ "prompt": "b" })));
    let apart = [server.ask("/v1/completions", &a).await, server.ask("/v1/completions", &b).await];
    let (first, second) = (texts(&apart[..1]).remove(0), texts(&apart[1..]).remove(0));
    let both = with(json!({ "prompt": ["a", "b"], "echo": true }));
    let expected = [format!("a{first}"), format!("b{second}")];
    assert_eq!(texts(&[server.ask("/v1/completions", &both).await]), expected);
    assert_eq!(texts(&server.stream("/v1/completions", &both).await), expected);

    let told = server.ask("/v1/completions", &with(json!({ "prompt": "a", "logprobs": 2 }))).await;
    let logprobs = &told["choices"][0]["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap().len();
    assert!(tokens > 0 && logprobs["text_offset"][0] == 0, "{told}");
    for list in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().unwrap().len(), tokens, "{list}");
    }
}

#[tokio::test]
async fn a_gap_is_filled_by_a_model_that_learned_it() {
    let body = json!({ "model": "tiny", "prompt": "fn f() {", "suffix": "}", "max_tokens": 4, "temperature": 0 });
    let (status, reply) = Server::start(&[]).await.post("/v1/completions", &body).await;
    assert!(status == 400 && reply.contains("suffix"), "{reply}");
    let server = Server::start(&["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]).await;
    let filled = texts(&[server.ask("/v1/completions", &body).await]);
    // Without a suffix the names stand for the tokens.
    let by_names = json!({ "model": "tiny", "prompt": "<|fim_prefix|>fn f() {<|fim_suffix|>}<|fim_middle|>",
        "max_tokens": 4, "temperature": 0 });
    assert_eq!(texts(&[server.ask("/v1/completions", &by_names).await]), filled);
    let ollama = json!({ "model": "tiny", "prompt": "fn f() {", "suffix": "}", "stream": false,
        "options": { "num_predict": 4, "temperature": 0 } });
    assert_eq!(server.ask("/api/generate", &ollama).await["response"].as_str().unwrap(), filled[0]);
}

#[tokio::test]
async fn several_answers_are_several() {
    let server = Server::start(&[]).await;
    let body = |n: u64, seed: u64| {
        json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hello" }], "n": n, "seed": seed,
            "temperature": 1.5, "max_tokens": 8 })
    };
    let mut expected = Vec::new();
    for seed in 5..8 {
        expected.extend(texts(&[server.ask("/v1/chat/completions", &body(1, seed)).await]));
    }
    assert!(expected[0] != expected[1] && expected[1] != expected[2], "{expected:?}");
    let whole = server.ask("/v1/chat/completions", &body(3, 5)).await;
    assert_eq!(texts(std::slice::from_ref(&whole)), expected);
    let streamed = server.stream("/v1/chat/completions", &body(3, 5)).await;
    assert_eq!(texts(&streamed), expected);
    let usage = &streamed.last().unwrap()["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"]),
        (&whole["usage"]["prompt_tokens"], &whole["usage"]["completion_tokens"])
    );
    assert!(usage["completion_tokens"].as_u64().unwrap() > 8, "those of all three: {usage}");
}
