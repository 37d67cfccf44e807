//! What a node is found to be.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

use std::time::Duration;

use chat::Redacted;
use nodes::{NodeAddress, NodeClient, NodeConfig, NodeState, NodeStatus};
use serde_json::json;
use testkit::node::{FAKE_MODEL, FakeNode, Reply};

fn client(url: &str, key: Option<&str>) -> NodeClient {
    let address = NodeAddress::parse(url, key.map(|key| Redacted(key.to_owned()))).unwrap();
    let config = NodeConfig { probe_timeout: Duration::from_millis(500), ..NodeConfig::default() };
    NodeClient::with_config("node", address, config).unwrap()
}

async fn probe(node: &FakeNode) -> NodeStatus {
    client(&node.url(), None).probe().await
}

async fn listing(reply: Reply) -> NodeStatus {
    let node = FakeNode::start().await;
    node.on(FakeNode::MODELS, reply);
    probe(&node).await
}

fn owned_by(owner: &str) -> Reply {
    Reply::json(200, &json!({ "object": "list", "data": [{ "id": "m", "object": "model", "owned_by": owner }] }))
}

#[tokio::test]
async fn a_node_lists_its_models() {
    let node = FakeNode::start().await;
    node.on(FakeNode::MODELS, Reply::models(&["a", "b/c"]));
    let status = probe(&node).await;
    assert_eq!(status.state, NodeState::Ready);
    assert_eq!(status.models, ["a", "b/c"]);
    assert_eq!((status.engine, status.round_trip.is_some()), (None, true));
    assert_eq!(status.state.sentence(), None);
}

#[tokio::test]
async fn engines_are_recognized_by_what_they_show() {
    for (owner, engine) in [("llamacpp", "llama.cpp"), ("vllm", "vLLM"), ("sglang", "SGLang"), ("tidegate", "Tidegate")]
    {
        assert_eq!(listing(owned_by(owner)).await.engine.as_deref(), Some(engine));
    }
    let server = Reply::body(200, "application/json", &[("server", "llama.cpp")], r#"{"data":[{"id":"m"}]}"#);
    assert_eq!(listing(server).await.engine.as_deref(), Some("llama.cpp"));
}

#[tokio::test]
async fn engines_are_recognized_by_what_only_they_have() {
    let cases = [
        ("GET /health", json!({ "status": "ok", "engine": "tidegate" }), "Tidegate"),
        ("GET /props", json!({ "default_generation_settings": {}, "total_slots": 1 }), "llama.cpp"),
        ("GET /version", json!({ "version": "0.12.0" }), "vLLM"),
        ("GET /api/version", json!({ "version": "0.13.1" }), "Ollama"),
    ];
    for (route, body, engine) in cases {
        let node = FakeNode::start().await;
        node.on(route, Reply::json(200, &body));
        let client = client(&node.url(), None);
        assert_eq!(client.probe().await.engine.as_deref(), Some(engine));
        // It is not asked for again while the node looks the same.
        assert_eq!(client.probe().await.engine.as_deref(), Some(engine));
        assert_eq!(node.requests_of(route).len(), 1);
        node.on(FakeNode::MODELS, owned_by("vllm"));
        assert_eq!(client.probe().await.engine.as_deref(), Some("vLLM"), "another engine moved in");
    }
}

#[tokio::test]
async fn mlx_lm_is_recognized_by_its_recorded_replies() {
    let node = FakeNode::start().await;
    node.on(FakeNode::MODELS, Reply::recorded(include_bytes!("../../wire/tests/recorded/mlx_lm-0.32.2/models.http")));
    node.on("GET /health", Reply::recorded(include_bytes!("../../wire/tests/recorded/mlx_lm-0.32.2/health.http")));
    let status = probe(&node).await;
    assert_eq!(
        (status.engine.as_deref(), status.models.as_slice()),
        (Some("mlx_lm"), &["/tmp/tiny-llama".to_owned()][..])
    );
    // Its list breaks off after the head where its cache folder is missing.
    let crashed = include_bytes!("../../wire/tests/recorded/mlx_lm-0.32.2/models-crashed.http");
    let NodeState::NotANode(sentence) = listing(Reply::recorded(crashed)).await.state else {
        panic!("no list of models")
    };
    assert!(sentence.ends_with("sends an empty list of models."), "{sentence}");
}

#[tokio::test]
async fn a_key_is_wanted_and_taken() {
    let node = FakeNode::start().await;
    node.require_key("sk-right");
    assert_eq!(probe(&node).await.state, NodeState::Unauthorized);
    assert_eq!(client(&node.url(), Some("sk-wrong")).probe().await.state, NodeState::Unauthorized);
    let status = client(&node.url(), Some("sk-right")).probe().await;
    assert_eq!((status.state, status.models), (NodeState::Ready, vec![FAKE_MODEL.to_owned()]));
}

#[tokio::test]
async fn what_is_no_node_is_told_in_one_sentence() {
    let cases = [
        (Reply::html(200, "<html>router</html>"), "answers with a web page, not as a node does."),
        (Reply::html(404, "<html>nothing</html>"), "answers with a web page, not as a node does."),
        (Reply::body(200, "text/plain", &[], "hello"), "answers, but not in JSON as a node does."),
        (Reply::json(200, &json!({ "hello": 1 })), "answers, but not with a list of models as a node does."),
        (
            Reply::json(404, &json!({ "detail": "Not Found" })),
            "has no list of models (error 404: Not Found), so it is no node.",
        ),
        (
            Reply::body(301, "text/plain", &[("location", "http://x/")], ""),
            "only points to another address: add that one instead.",
        ),
    ];
    for (reply, end) in cases {
        let status = listing(reply).await;
        let NodeState::NotANode(sentence) = &status.state else { panic!("{status:?}") };
        assert!(sentence.starts_with("127.0.0.1:") && sentence.ends_with(end), "{sentence}");
        assert!(status.models.is_empty() && status.round_trip.is_some());
    }
}

#[tokio::test]
async fn what_does_not_answer_now_is_unreachable() {
    let cases = [
        (Reply::json(503, &json!({ "error": { "message": "Loading model", "code": 503 } })), "is busy: Loading model."),
        (
            Reply::body(500, "text/plain", &[], "Internal Server Error"),
            "answers with error 500: Internal Server Error.",
        ),
        (Reply::silence(), "accepts connections but didn't answer within 0.5 s."),
        (Reply::reset(), "can't be reached: it closed the connection without an answer."),
    ];
    for (reply, end) in cases {
        let NodeState::Unreachable(sentence) = listing(reply).await.state else { panic!("{end}") };
        assert!(sentence.starts_with("127.0.0.1:") && sentence.ends_with(end), "{sentence}");
    }
    let node = FakeNode::start().await;
    let url = node.url();
    node.stop().await;
    let NodeState::Unreachable(sentence) = client(&url, None).probe().await.state else {
        panic!("a dropped node answered")
    };
    assert!(sentence.ends_with("can't be reached: nothing listens on that port."), "{sentence}");
}

#[tokio::test]
async fn a_key_that_a_node_repeats_is_not_shown() {
    let node = FakeNode::start().await;
    node.on(FakeNode::MODELS, Reply::error(500, "bad key sk-secret"));
    let status = client(&node.url(), Some("sk-secret")).probe().await;
    assert!(!format!("{status:?}").contains("sk-secret"), "{status:?}");
}

#[tokio::test]
async fn llama_cpp_python_is_recognized_by_its_recorded_replies() {
    let recorded = include_bytes!("../../wire/tests/recorded/llama-cpp-python-0.3.36/models.http");
    let status = listing(Reply::recorded(recorded)).await;
    assert_eq!(
        (status.engine.as_deref(), status.models.as_slice()),
        (Some("llama-cpp-python"), &["starter".to_owned()][..])
    );
}
