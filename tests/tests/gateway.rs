//! The gateway in front of the real engine: spoken to by our own client, and word for word.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use app::OffloadMode;
use chat::{ChatEvent, ChatRequest, Message, Role, SamplingParams};
use futures::StreamExt;
use nodes::{NodeAddress, NodeClient, NodeState};
use routing::{Demand, NodeOption, Policy, may_leave};
use system_tests::{Fixture, http, serve};
use testkit::gguf::tiny_model;

const POST: &str = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";

async fn fixture() -> (Fixture, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(7).write(folder.path(), "tiny.gguf").unwrap();
    (Fixture::start(OffloadMode::LocalOnly, &[model]).await, folder)
}

#[tokio::test]
async fn our_own_client_finds_a_tidegate_and_streams_from_it() {
    let (fixture, _folder) = fixture().await;
    let address = serve(&fixture.app, Some("key")).await;
    let url = format!("http://{address}");
    let without = NodeClient::new("node", NodeAddress::parse(&url, None).unwrap()).unwrap();
    assert!(matches!(without.probe().await.state, NodeState::Unauthorized));

    let key = Some(chat::Redacted("key".to_owned()));
    let client = NodeClient::new("node", NodeAddress::parse(&url, key).unwrap()).unwrap();
    let status = client.probe().await;
    assert!(matches!(status.state, NodeState::Ready));
    assert_eq!(status.models, ["tiny"]);
    assert_eq!(status.engine.as_deref(), Some("Tidegate"));

    let request = ChatRequest {
        messages: vec![Message::new(Role::User, "hello")],
        sampling: SamplingParams { temperature: Some(0.0), max_tokens: Some(12), ..SamplingParams::default() },
        ..ChatRequest::default()
    };
    let node = NodeOption { id: "node".to_owned(), ..NodeOption::default() };
    let leave = may_leave(&Policy::default(), &Demand::default(), &node).unwrap();
    let events: Vec<_> = client.chat(leave, "tiny", request).unwrap().collect().await;
    let Some(Ok(ChatEvent::Finished(finish))) = events.last() else { panic!("{events:?}") };
    assert!(finish.usage.is_some_and(|usage| usage.completion_tokens <= 12 && usage.prompt_tokens > 0));
}

#[tokio::test]
async fn the_same_greedy_request_gives_the_same_text_streamed_and_whole() {
    let (fixture, _folder) = fixture().await;
    let address = serve(&fixture.app, None).await;
    let body = |stream: bool| {
        format!(
            r#"{{"model":"tiny","messages":[{{"role":"user","content":"hello"}}],"temperature":0,"max_tokens":8,"stream":{stream}}}"#
        )
    };
    let (status, whole) = http(address, POST, &body(false)).await;
    assert_eq!(status, 200, "{whole}");
    let lower = whole.to_lowercase();
    assert!(lower.contains("x-tidegate-route: here") && lower.contains("x-tidegate-reason:"), "{whole}");
    let json: serde_json::Value = serde_json::from_str(whole.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let text = json["choices"][0]["message"]["content"].as_str().unwrap();

    let (status, streamed) = http(address, POST, &body(true)).await;
    assert_eq!(status, 200);
    assert!(streamed.contains("data: [DONE]"), "{streamed}");
    let pieces: String = streamed
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(pieces, text);
}

/// The JSON after the head of a reply.
fn json(reply: &str) -> serde_json::Value {
    serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap()
}

#[tokio::test]
async fn an_answer_has_the_form_that_is_asked_for() {
    let (fixture, _folder) = fixture().await;
    let address = serve(&fixture.app, None).await;
    let schema =
        r#"{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}"#;
    let body = format!(
        r#"{{"model":"tiny","messages":[{{"role":"user","content":"hello"}}],"seed":1,"max_tokens":60,
            "response_format":{{"type":"json_schema","json_schema":{{"name":"x","schema":{schema}}}}}}}"#
    );
    let (status, reply) = http(address, POST, &body).await;
    assert_eq!(status, 200, "{reply}");
    let text = json(&reply)["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(answer["ok"].is_boolean(), "{text}");
    let broken = body.replace(schema, r#"{"type":"nothing"}"#);
    let (status, reply) = http(address, POST, &broken).await;
    assert_eq!(status, 400, "{reply}");
}

#[tokio::test]
async fn probabilities_are_told_streamed_and_whole() {
    let (fixture, _folder) = fixture().await;
    let address = serve(&fixture.app, None).await;
    let body = |stream: bool| {
        format!(
            r#"{{"model":"tiny","messages":[{{"role":"user","content":"hello"}}],"temperature":0,"max_tokens":6,
                "logprobs":true,"top_logprobs":2,"stream":{stream}}}"#
        )
    };
    let (status, whole) = http(address, POST, &body(false)).await;
    assert_eq!(status, 200, "{whole}");
    let choice = json(&whole)["choices"][0].clone();
    let tokens = choice["logprobs"]["content"].as_array().unwrap().clone();
    assert!(!tokens.is_empty());
    for token in &tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // Greedy: what is drawn is the most probable.
        assert_eq!(token["logprob"], top[0]["logprob"]);
        assert!(token["logprob"].as_f64().unwrap() <= 1e-6);
    }
    let (_, streamed) = http(address, POST, &body(true)).await;
    let chunks = streamed
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned());
    assert_eq!(chunks.flatten().collect::<Vec<_>>(), tokens);

    // The first token of that answer, forbidden by its bias: another comes.
    let (_, with_ids) =
        http(address, POST, &body(true).replace("\"stream\"", "\"return_token_ids\":true,\"stream\"")).await;
    let first = with_ids
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.strip_prefix("data: ")?).ok())
        .find_map(|chunk| chunk["choices"][0]["token_ids"][0].as_u64())
        .unwrap();
    let biased = body(false).replace("\"logprobs\"", &format!("\"logit_bias\":{{\"{first}\":-100}},\"logprobs\""));
    let (status, reply) = http(address, POST, &biased).await;
    assert_eq!(status, 200, "{reply}");
    assert_ne!(json(&reply)["choices"][0]["logprobs"]["content"][0]["bytes"], tokens[0]["bytes"]);
}

#[tokio::test]
async fn anthropic_clients_get_the_same_answer_streamed_and_whole() {
    const MESSAGES: &str =
        "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nx-api-key: key\r\nContent-Type: application/json";
    const COUNT: &str = "POST /v1/messages/count_tokens HTTP/1.1\r\nHost: localhost\r\nx-api-key: key\r\nContent-Type: application/json";
    let (fixture, _folder) = fixture().await;
    let address = serve(&fixture.app, Some("key")).await;
    let body = |stream: bool| {
        format!(
            r#"{{"model":"tiny","system":"Be brief.","messages":[{{"role":"user","content":[{{"type":"text","text":"hello"}}]}}],
                "temperature":0,"max_tokens":8,"stream":{stream}}}"#
        )
    };
    let (status, whole) = http(address, MESSAGES, &body(false)).await;
    assert_eq!(status, 200, "{whole}");
    assert!(whole.to_lowercase().contains("x-tidegate-route: here"), "{whole}");
    let whole = json(&whole);
    assert_eq!((&whole["type"], &whole["role"]), (&"message".into(), &"assistant".into()));
    let text = whole["content"][0]["text"].as_str().unwrap();

    let (status, streamed) = http(address, MESSAGES, &body(true)).await;
    assert_eq!(status, 200);
    let events: Vec<serde_json::Value> =
        streamed.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let kinds = ["message_start", "message_delta", "message_stop"];
    assert!(kinds.iter().all(|kind| events.iter().any(|event| event["type"] == *kind)), "{streamed}");
    let pieces: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(pieces, text);

    let counted = json(&http(address, COUNT, &body(false)).await.1);
    let usage = &whole["usage"];
    let read = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap_or(0);
    assert_eq!(counted["input_tokens"], read);

    for (head, body, status, kind) in [
        (MESSAGES, "{", 400, "invalid_request_error"),
        (
            MESSAGES,
            r#"{"model":"gpt-9","max_tokens":3,"messages":[{"role":"user","content":"x"}]}"#,
            404,
            "not_found_error",
        ),
        ("POST /v1/messages HTTP/1.1\r\nHost: localhost", "{}", 401, "authentication_error"),
        (COUNT, r#"{"model":"gpt-9","messages":[{"role":"user","content":"x"}]}"#, 404, "not_found_error"),
    ] {
        let (given, reply) = http(address, head, body).await;
        assert_eq!(given, status, "{reply}");
        assert_eq!((&json(&reply)["type"], &json(&reply)["error"]["type"]), (&"error".into(), &kind.into()), "{reply}");
    }
}

#[tokio::test]
async fn responses_are_the_same_streamed_and_whole() {
    const RESPONSES: &str = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    let (fixture, _folder) = fixture().await;
    let address = serve(&fixture.app, None).await;
    let body = |stream: bool| {
        format!(
            r#"{{"model":"tiny","instructions":"Be brief.","input":[{{"role":"user","content":[{{"type":"input_text","text":"hello"}}]}}],
                "temperature":0,"max_output_tokens":8,"store":true,"include":["message.output_text.logprobs"],"stream":{stream}}}"#
        )
    };
    let (status, whole) = http(address, RESPONSES, &body(false)).await;
    assert_eq!(status, 200, "{whole}");
    assert!(whole.to_lowercase().contains("x-tidegate-route: here"), "{whole}");
    let whole = json(&whole);
    assert_eq!((&whole["object"], &whole["store"]), (&"response".into(), &false.into()));
    let usage = |name: &str| whole["usage"][name].as_u64().unwrap();
    assert_eq!(usage("input_tokens") + usage("output_tokens"), usage("total_tokens"));
    let part = &whole["output"][0]["content"][0];
    assert!(part["text"].as_str().is_some_and(|text| !text.is_empty()), "{whole}");
    assert!(part["logprobs"].as_array().is_some_and(|tokens| (1..=8).contains(&tokens.len())), "{whole}");

    let (status, streamed) = http(address, RESPONSES, &body(true)).await;
    assert_eq!(status, 200);
    let events: Vec<serde_json::Value> =
        streamed.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    assert_eq!(events[0]["type"], "response.created", "{streamed}");
    let ended = &events.last().unwrap()["response"];
    let item = &ended["output"][0];
    assert_eq!((&item["content"], &ended["status"]), (&whole["output"][0]["content"], &whole["status"]));
    let pieces: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(pieces, part["text"].as_str().unwrap());
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{streamed}");
    }

    let formed = r#"{"model":"tiny","input":"hello","temperature":0,"max_output_tokens":60,"text":{"format":{"type":"json_schema",
        "name":"x","schema":{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}}}}"#;
    let reply = json(&http(address, RESPONSES, formed).await.1);
    let text = reply["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(text).unwrap()["ok"].is_boolean(), "{text}");

    for (body, status, param) in [
        ("{", 400, serde_json::Value::Null),
        (r#"{"model":"tiny","input":"x","previous_response_id":"resp_1"}"#, 400, "previous_response_id".into()),
        (r#"{"model":"tiny","input":"x","tools":[{"type":"web_search"}]}"#, 400, "tools[0].type".into()),
        (r#"{"model":"gpt-9","input":"x"}"#, 404, serde_json::Value::Null),
    ] {
        let (given, reply) = http(address, RESPONSES, body).await;
        assert_eq!((given, &json(&reply)["error"]["param"]), (status, &param), "{reply}");
    }
}

#[tokio::test]
async fn ollama_clients_get_the_same_answer_streamed_and_whole() {
    const CHAT: &str = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    const GENERATE: &str = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    let (fixture, _folder) = fixture().await;
    let address = serve(&fixture.app, None).await;
    let lines = |reply: &str| -> Vec<serde_json::Value> {
        reply.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(serde_json::Value::is_object).collect()
    };
    let options = r#""options":{"temperature":0,"num_predict":8}"#;
    let chat = |stream: bool| {
        format!(
            r#"{{"model":"tiny:latest","messages":[{{"role":"user","content":"hello"}}],"stream":{stream},{options}}}"#
        )
    };
    let (status, whole) = http(address, CHAT, &chat(false)).await;
    assert_eq!(status, 200, "{whole}");
    let whole = json(&whole);
    assert_eq!((&whole["done"], &whole["model"]), (&true.into(), &"tiny".into()));
    assert!(whole["eval_count"].as_u64().is_some_and(|count| (1..=8).contains(&count)), "{whole}");
    let text = whole["message"]["content"].as_str().unwrap();

    let (_, streamed) = http(address, CHAT, &chat(true)).await;
    let streamed = lines(&streamed);
    let pieces: String = streamed.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!((pieces.as_str(), &streamed.last().unwrap()["done"]), (text, &true.into()));

    let prompt = format!(r#"{{"model":"tiny","prompt":"hello","stream":false,{options}}}"#);
    let (status, generated) = http(address, GENERATE, &prompt).await;
    assert_eq!((status, json(&generated)["response"].as_str()), (200, Some(text)), "{generated}");

    let listed = json(&http(address, "GET /api/tags HTTP/1.1\r\nHost: localhost", "").await.1);
    assert_eq!(listed["models"][0]["name"], "tiny");
    assert!(listed["models"][0]["modified_at"].as_str().is_some_and(|at| at > "2026"), "{listed}");
    const SHOW: &str = "POST /api/show HTTP/1.1\r\nHost: localhost";
    let shown = json(&http(address, SHOW, r#"{"model":"tiny:latest"}"#).await.1);
    let family = shown["model_info"]["general.architecture"].as_str().unwrap();
    assert!(shown["model_info"][format!("{family}.context_length")].as_u64().is_some_and(|tokens| tokens > 0));
    assert_eq!(shown["capabilities"][0], "completion");

    const PS: &str = "GET /api/ps HTTP/1.1\r\nHost: localhost";
    let running = async || json(&http(address, PS, "").await.1)["models"].clone();
    assert_eq!(running().await[0]["name"], "tiny");
    let unload = r#"{"model":"tiny","messages":[],"keep_alive":0,"stream":false}"#;
    assert_eq!(json(&http(address, CHAT, unload).await.1)["done_reason"], "unload");
    assert_eq!(running().await, serde_json::json!([]));
    assert_eq!(json(&http(address, GENERATE, r#"{"model":"tiny"}"#).await.1)["done_reason"], "load");
    assert_eq!(running().await[0]["name"], "tiny");

    for (head, body) in [
        (SHOW, r#"{"model":"gpt-9"}"#),
        ("GET /api/nothing HTTP/1.1\r\nHost: localhost", ""),
        (CHAT, r#"{"model":"gpt-9","keep_alive":0}"#),
    ] {
        let (status, reply) = http(address, head, body).await;
        assert_eq!((status, json(&reply)["error"].is_string()), (404, true), "{reply}");
    }
    let (status, reply) = http(address, CHAT, r#"{"model":"gpt-9","messages":[{"role":"user","content":"x"}]}"#).await;
    assert_eq!(status, 404);
    assert!(json(&reply)["error"].as_str().is_some_and(|error| error.contains("gpt-9")), "{reply}");
}

#[tokio::test]
async fn a_full_server_says_when_to_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(7).write(folder.path(), "tiny.gguf").unwrap();
    let fixture = Fixture::start_narrow(&[model], 1).await;
    let address = serve(&fixture.app, None).await;
    let body = r#"{"model":"tiny","messages":[{"role":"user","content":"hello"}],"max_tokens":300,"stream":true}"#;
    let replies = futures::future::join_all((0..12).map(|_| http(address, POST, body))).await;
    let (answered, refused): (Vec<_>, Vec<_>) = replies.into_iter().partition(|(status, _)| *status == 200);
    assert!(answered.len() >= 2 && !refused.is_empty(), "{} of 12 answered", answered.len());
    assert!(answered.iter().all(|(_, reply)| reply.contains("[DONE]")));
    for (status, reply) in refused {
        assert_eq!((status, json(&reply)["error"]["code"].as_str()), (503, Some("busy")), "{reply}");
        assert!(reply.to_lowercase().contains("retry-after: "), "{reply}");
    }
}

#[tokio::test]
async fn errors_have_the_right_status_and_say_what_is_wrong() {
    let (fixture, _folder) = fixture().await;
    let open = serve(&fixture.app, None).await;
    let hello = r#"{"model":"tiny","messages":[{"role":"user","content":"hello"}]}"#;
    for (head, body, status, word) in [
        (POST, "{", 400, "JSON"),
        (POST, r#"{"messages":[]}"#, 400, "messages"),
        (POST, r#"{"model":"gpt-9","messages":[{"role":"user","content":"x"}]}"#, 404, "gpt-9"),
        ("GET /v1/nothing HTTP/1.1\r\nHost: localhost", "", 404, "path"),
        ("GET /v1/chat/completions HTTP/1.1\r\nHost: localhost", "", 405, "method"),
        ("POST /v1/chat/completions HTTP/1.1\r\nHost: evil.example", hello, 403, "Host"),
        ("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example", hello, 403, "pages"),
    ] {
        let (given, reply) = http(open, head, body).await;
        assert_eq!(given, status, "{head} {body}: {reply}");
        assert!(reply.contains(word), "{reply}");
    }
    let long = format!(
        r#"{{"model":"tiny","max_tokens":9,"messages":[{{"role":"user","content":"{}"}}]}}"#,
        "word ".repeat(4000)
    );
    let (status, reply) = http(open, POST, &long).await;
    assert_eq!((status, json(&reply)["error"]["code"].as_str()), (400, Some("context_length_exceeded")), "{reply}");
    let (status, reply) = http(open, "POST /v1/messages HTTP/1.1\r\nHost: localhost", &long).await;
    let message = json(&reply)["error"]["message"].clone();
    assert!(status == 400 && message.as_str().is_some_and(|it| it.starts_with("prompt is too long")), "{reply}");
    let locked = serve(&fixture.app, Some("key")).await;
    assert_eq!(http(locked, POST, hello).await.0, 401);
    assert_eq!(http(locked, "GET /health HTTP/1.1\r\nHost: localhost", "").await.0, 200);
    assert_eq!(
        http(locked, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key", "").await.0,
        200
    );
}
