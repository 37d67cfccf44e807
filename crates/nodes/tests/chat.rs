//! One answer from a node, whole or broken in every way that a network and a server can break it.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

use std::error::Error;
use std::time::Duration;

use chat::{ChatEvent, ChatRequest, Finish, FinishReason, Message, Redacted, Role, SamplingParams, ToolCall, Usage};
use futures::StreamExt;
use nodes::{NodeAddress, NodeClient, NodeConfig, NodeError, NodeStream, Silence};
use routing::{Demand, EgressPass, NodeOption, Policy, may_leave};
use serde_json::json;
use testkit::node::{FAKE_MODEL, FakeNode, Gate, Reply, Step};

fn client(url: &str, key: Option<&str>, inactivity: Duration) -> NodeClient {
    let address = NodeAddress::parse(url, key.map(|key| Redacted(key.to_owned()))).unwrap();
    let config = NodeConfig { prefill_timeout: inactivity, inactivity_timeout: inactivity, ..NodeConfig::default() };
    NodeClient::with_config("node", address, config).unwrap()
}

fn leave(id: &str) -> EgressPass {
    let node = NodeOption { id: id.to_owned(), ..NodeOption::default() };
    may_leave(&Policy::default(), &Demand::default(), &node).unwrap()
}

fn question() -> ChatRequest {
    ChatRequest { messages: vec![Message::new(Role::User, "hello")], ..ChatRequest::default() }
}

fn ask(node: &FakeNode) -> NodeStream {
    client(&node.url(), None, Duration::from_secs(60)).chat(leave("node"), FAKE_MODEL, question()).unwrap()
}

fn patient(node: &FakeNode, prefill_timeout: Duration, inactivity_timeout: Duration) -> NodeStream {
    let address = NodeAddress::parse(&node.url(), None).unwrap();
    let config = NodeConfig { prefill_timeout, inactivity_timeout, ..NodeConfig::default() };
    NodeClient::with_config("node", address, config).unwrap().chat(leave("node"), FAKE_MODEL, question()).unwrap()
}

async fn replying(reply: Reply) -> FakeNode {
    let node = FakeNode::start().await;
    node.on(FakeNode::CHAT, reply);
    node
}

struct Read {
    text: String,
    thinking: String,
    calls: Vec<ToolCall>,
    end: Result<Finish, NodeError>,
}

/// Reads to the end and checks that the end is one event and nothing comes after it.
async fn read(mut stream: NodeStream) -> Read {
    let (mut text, mut thinking, mut calls) = (String::new(), String::new(), Vec::new());
    let end = loop {
        match stream.next().await.expect("a stream ends with `Finished` or an error") {
            Ok(ChatEvent::Text(piece)) => text.push_str(&piece),
            Ok(ChatEvent::Thinking(piece)) => thinking.push_str(&piece),
            Ok(ChatEvent::ToolCall { call, .. }) => calls.push(call),
            Ok(ChatEvent::Progress(_) | ChatEvent::Logprobs(_) | ChatEvent::Tokens { .. }) => {}
            Ok(ChatEvent::Finished(finish)) => break Ok(finish),
            Err(error) => break Err(error),
        }
    };
    assert!(stream.next().await.is_none(), "something came after the end");
    Read { text, thinking, calls, end }
}

async fn error_of(reply: Reply) -> NodeError {
    let node = replying(reply).await;
    read(ask(&node)).await.end.unwrap_err()
}

#[tokio::test]
async fn an_answer_streams_as_it_is_written() {
    let gate = Gate::new();
    let node = replying(Reply::gated_answer(&["Hel", "lo ", "🌊"], &gate)).await;
    let mut stream = ask(&node);
    for piece in ["Hel", "lo ", "🌊"] {
        gate.pass();
        // The node holds the rest back, so this piece can only have come by itself.
        assert_eq!(stream.next().await.unwrap().unwrap(), ChatEvent::Text(piece.into()));
    }
    gate.pass();
    let read = read(stream).await;
    let finish = read.end.unwrap();
    assert_eq!(finish.reason, FinishReason::Stop);
    assert_eq!(finish.usage, Some(Usage { prompt_tokens: 5, cached_tokens: 0, completion_tokens: 3 }));
    assert!(finish.timings.ttft.is_some());
}

#[tokio::test]
async fn what_is_asked_reaches_the_node() {
    let node = FakeNode::start().await;
    node.require_key("sk-secret");
    let sampling = SamplingParams { temperature: Some(0.0), max_tokens: Some(7), ..SamplingParams::default() };
    let request = ChatRequest { sampling, model: Some("local name".into()), ..question() };
    let stream = client(&node.url(), Some("sk-secret"), Duration::from_secs(60))
        .chat(leave("node"), FAKE_MODEL, request)
        .unwrap();
    assert_eq!(read(stream).await.text, "Hello from the node");
    let requests = node.requests_of(FakeNode::CHAT);
    let expected = json!({
        "model": FAKE_MODEL, "messages": [{ "role": "user", "content": "hello" }], "stream": true,
        "stream_options": { "include_usage": true }, "temperature": 0.0, "max_tokens": 7,
    });
    assert_eq!(requests[0].json(), expected);
}

#[tokio::test]
async fn thinking_is_kept_apart() {
    let steps = [Step::thinking("hm"), Step::thinking("…"), Step::text("yes"), Step::finish("length"), Step::done()];
    let node = replying(Reply::stream(steps)).await;
    let read = read(ask(&node)).await;
    assert_eq!((read.thinking.as_str(), read.text.as_str()), ("hm…", "yes"));
    assert_eq!(read.end.unwrap().reason, FinishReason::Length);
}

#[tokio::test]
async fn an_answer_without_its_end_is_cut_off() {
    let endings: [&[Step]; 5] = [
        &[],
        &[Step::done()],
        &[Step::usage(1, 1)],
        &[Step::Bytes(b"data: {\"choices\":[{\"delta\":{\"content\":\"lo".to_vec())],
        &[Step::finish("cancelled"), Step::done()],
    ];
    for ending in endings {
        let node = replying(Reply::stream([Step::text("Hel")].into_iter().chain(ending.to_vec()))).await;
        let read = read(ask(&node)).await;
        assert_eq!(read.text, "Hel", "{ending:?}");
        assert!(matches!(read.end, Err(NodeError::CutOff)), "{ending:?}: {:?}", read.end);
    }
}

#[tokio::test]
async fn a_node_that_dies_in_the_middle_cuts_off() {
    let gate = Gate::new();
    let node = replying(Reply::stream([Step::text("Hel"), Step::Wait(gate.clone()), Step::Reset])).await;
    let mut stream = ask(&node);
    assert_eq!(stream.next().await.unwrap().unwrap(), ChatEvent::Text("Hel".into()));
    gate.pass();
    assert!(matches!(read(stream).await.end, Err(NodeError::CutOff)));

    // The machine as a whole goes away.
    let node = replying(Reply::stream([Step::text("Hel"), Step::Hang])).await;
    let mut stream = ask(&node);
    assert_eq!(stream.next().await.unwrap().unwrap(), ChatEvent::Text("Hel".into()));
    drop(node);
    assert!(matches!(read(stream).await.end, Err(NodeError::CutOff)));
}

#[tokio::test]
async fn a_body_shorter_than_its_length_is_cut_off() {
    let short = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 5000\r\n\r\n: hello\n\n";
    assert!(matches!(error_of(Reply::recorded(short)).await, NodeError::CutOff));
    let json = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{\"choices\":[";
    assert!(matches!(error_of(Reply::recorded(json)).await, NodeError::CutOff));
    let chunked =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\n: hello\n\n\r\n";
    assert!(matches!(error_of(Reply::recorded(chunked)).await, NodeError::CutOff));
}

#[tokio::test]
async fn silence_is_a_time_out_that_says_where_the_node_stopped() {
    let prefill = Duration::from_millis(400);
    let later = Duration::from_millis(200);
    let role = json!({ "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "" } }] });
    let whole = Reply::body(200, "application/json", &[("content-length", "50")], "{");
    let cases = [
        (Reply::silence(), Silence::BeforeReply, prefill),
        (Reply::stream([Step::Hang]), Silence::BeforeAnswer, prefill),
        // It tells that it is there, and goes on with the prompt.
        (Reply::stream([Step::Bytes(b": ping\n\n".to_vec()), Step::Hang]), Silence::BeforeAnswer, prefill),
        (Reply::stream([Step::chunk(&role), Step::Hang]), Silence::BeforeAnswer, prefill),
        (whole.then(Step::Hang), Silence::BeforeAnswer, prefill),
        (Reply::stream([Step::text("a"), Step::Hang]), Silence::InAnswer, later),
        (Reply::stream([Step::thinking("a"), Step::Hang]), Silence::InAnswer, later),
    ];
    for (reply, stopped, limit) in cases {
        let node = replying(reply).await;
        let read = read(patient(&node, prefill, later)).await;
        let Err(NodeError::TimedOut { after, silence }) = read.end else { panic!("{stopped:?}: {:?}", read.end) };
        assert_eq!((after, silence), (limit, stopped));
        // The connection is given up, not kept.
        node.wait_for_hang_ups(1).await;
    }
    let error = NodeError::TimedOut { after: Duration::from_secs(90), silence: Silence::InAnswer };
    assert_eq!(
        error.to_string(),
        "the node stopped in the middle of the answer, and nothing came for 90 s; it may hang or be asleep: look at it, \
         or ask again elsewhere"
    );
}

#[tokio::test]
async fn comments_keep_an_answer_alive() {
    let gate = Gate::new();
    let ping = || [Step::Wait(gate.clone()), Step::Bytes(b": ping\n\n".to_vec())];
    let pings = std::iter::repeat_with(ping).take(6).flatten();
    let steps = [Step::text("a")].into_iter().chain(pings).chain([Step::text("b"), Step::finish("stop")]);
    let node = replying(Reply::stream(steps)).await;
    // Six pauses of a quarter of the allowance: longer than it altogether, none of them too long.
    let allowance = Duration::from_millis(800);
    let pacing = tokio::spawn(async move {
        for _ in 0..6 {
            tokio::time::sleep(allowance / 4).await;
            gate.pass();
        }
    });
    let read = read(patient(&node, allowance, allowance)).await;
    assert_eq!((read.text.as_str(), read.end.is_ok()), ("ab", true));
    pacing.await.unwrap();
}

#[tokio::test]
async fn a_whole_answer_stays_whole_whatever_happens_to_the_connection() {
    let gate = Gate::new();
    for ending in [
        vec![],
        vec![Step::Hang],
        vec![Step::Wait(gate.clone()), Step::Reset],
        vec![Step::Bytes(b"data: {\"us".to_vec())],
    ] {
        gate.pass();
        let node =
            replying(Reply::stream([Step::text("a"), Step::finish("stop")].into_iter().chain(ending.clone()))).await;
        let read = read(
            client(&node.url(), None, Duration::from_millis(200)).chat(leave("node"), FAKE_MODEL, question()).unwrap(),
        )
        .await;
        assert_eq!(read.text, "a");
        assert_eq!(read.end.unwrap().usage, None, "{ending:?}");
    }
}

#[tokio::test]
async fn dropping_the_stream_hangs_up() {
    let node = replying(Reply::stream([Step::text("a"), Step::Hang])).await;
    let mut stream = ask(&node);
    assert!(stream.next().await.unwrap().is_ok());
    drop(stream);
    node.wait_for_hang_ups(1).await;

    // Also before the first byte of a reply.
    node.on(FakeNode::CHAT, Reply::silence());
    let stream = ask(&node);
    let reading = tokio::spawn(read(stream));
    node.wait_for_requests(2).await;
    reading.abort();
    node.wait_for_hang_ups(2).await;
}

#[tokio::test]
async fn nothing_is_sent_before_the_stream_is_polled() {
    let node = FakeNode::start().await;
    drop(ask(&node));
    let read = read(ask(&node)).await;
    assert!(read.end.is_ok());
    assert_eq!(node.requests().len(), 1);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let busy = Reply::body(
        503,
        "application/json",
        &[("retry-after", " 7 ")],
        r#"{"error":{"message":"Loading model","code":503}}"#,
    );
    match error_of(busy).await {
        NodeError::Busy { retry_after, sentence } => {
            assert_eq!((retry_after, sentence.as_deref()), (Some(Duration::from_secs(7)), Some("Loading model")));
        }
        other => panic!("{other:?}"),
    }
    for (told, expected) in [
        ("Wed, 21 Oct 2015 07:28:00 GMT", Some(Duration::ZERO)),
        ("Tue, 21 Oct 2155 07:28:00 GMT", Some(Duration::from_secs(600))),
        ("soon", None),
    ] {
        match error_of(Reply::body(429, "text/plain", &[("retry-after", told)], "")).await {
            NodeError::Busy { retry_after, sentence: None } => assert_eq!(retry_after, expected, "{told}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(error_of(Reply::error(401, "no")).await, NodeError::Unauthorized));
    assert!(matches!(error_of(Reply::error(403, "no")).await, NodeError::Unauthorized));
    let missing = error_of(Reply::error(404, "model 'x' not found, try pulling it first")).await;
    assert!(matches!(&missing, NodeError::ModelMissing { model, .. } if model == FAKE_MODEL), "{missing:?}");
    let missing =
        error_of(Reply::json(400, &json!({ "error": { "message": "unknown", "code": "model_not_found" } }))).await;
    assert!(matches!(missing, NodeError::ModelMissing { .. }));
    let no_chat = error_of(Reply::json(404, &json!({ "detail": "Not Found" }))).await;
    assert!(matches!(no_chat, NodeError::Refused { status: 404, .. }), "{no_chat:?}");
    let too_long = error_of(Reply::error(400, "the prompt is longer than the context")).await;
    assert_eq!(too_long.to_string(), "the node answered with status 400: the prompt is longer than the context");
    let page = error_of(Reply::html(502, "<html>Bad Gateway</html>")).await;
    assert_eq!(page.to_string(), "the node answered with status 502");
}

#[tokio::test]
async fn an_endless_error_is_read_to_a_limit_only() {
    let node = replying(Reply::body(500, "text/plain", &[], &"x".repeat(1 << 20))).await;
    let error = read(ask(&node)).await.end.unwrap_err();
    assert!(matches!(error, NodeError::Refused { status: 500, sentence: None }), "{error:?}");
}

#[tokio::test]
async fn a_failure_in_the_middle_is_told_in_the_nodes_words() {
    let failed = json!({ "error": { "message": "CUDA out of memory", "code": 500 } });
    for step in
        [Step::chunk(&failed), Step::Bytes(b"error: {\"code\":500,\"message\":\"CUDA out of memory\"}\n\n".to_vec())]
    {
        let node = replying(Reply::stream([Step::text("a"), step, Step::done()])).await;
        let read = read(ask(&node)).await;
        assert_eq!(read.text, "a");
        match read.end {
            Err(NodeError::Failed { sentence }) => assert_eq!(sentence, "CUDA out of memory"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn calls_that_come_in_parts_are_told_whole() {
    let part = |index: usize, function: serde_json::Value, id: Option<&str>| {
        let call = json!({ "index": index, "id": id, "function": function });
        format!("data: {}\n\n", json!({ "choices": [{ "delta": { "tool_calls": [call] } }] }))
    };
    let stream = [
        part(0, json!({ "name": "search", "arguments": "" }), Some("c1")),
        part(0, json!({ "arguments": "{\"q\": " }), None),
        part(1, json!({ "name": "now", "arguments": "{}" }), Some("c2")),
        part(0, json!({ "arguments": "1}" }), None),
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\ndata: [DONE]\n\n".to_owned(),
    ];
    let node = replying(Reply::body(200, "text/event-stream", &[], &stream.concat())).await;
    let answer = read(ask(&node)).await;
    let calls: Vec<_> =
        answer.calls.iter().map(|call| (call.id.as_str(), call.name.as_str(), call.arguments.expose())).collect();
    assert_eq!(calls, [("c1", "search", "{\"q\": 1}"), ("c2", "now", "{}")]);
    assert_eq!(answer.end.unwrap().reason, FinishReason::Stop);
}

#[tokio::test]
async fn a_server_that_does_not_stream_is_understood() {
    let body = json!({
        "choices": [{ "message": { "role": "assistant", "content": "yes", "reasoning_content": "hm" }, "finish_reason": "length" }],
        "usage": { "prompt_tokens": 3, "completion_tokens": 2 }, "timings": { "predicted_per_second": 31.5 },
    });
    let node = replying(Reply::json(200, &body)).await;
    let answer = read(ask(&node)).await;
    assert_eq!((answer.thinking.as_str(), answer.text.as_str()), ("hm", "yes"));
    let finish = answer.end.unwrap();
    assert_eq!((finish.reason, finish.usage.unwrap().completion_tokens), (FinishReason::Length, 2));
    assert_eq!(finish.timings.decode_tokens_per_sec, Some(31.5));
    let error = error_of(Reply::json(200, &json!({ "error": "out of memory" }))).await;
    assert!(matches!(error, NodeError::Failed { sentence } if sentence == "out of memory"));
    assert!(matches!(error_of(Reply::json(200, &json!({ "hello": "world" }))).await, NodeError::NotANode { .. }));
    // A proxy that gives the stream another name changes nothing.
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n";
    let node = replying(Reply::body(200, "text/plain", &[], stream)).await;
    assert_eq!(read(ask(&node)).await.text, "a");
}

#[tokio::test]
async fn what_is_no_answer_is_no_node() {
    for reply in [
        Reply::html(200, "<html>welcome</html>"),
        Reply::stream([Step::Bytes(b"data: hello\n\n".to_vec())]),
        Reply::stream([Step::Bytes(vec![b'x'; 2 << 20])]),
        Reply::body(302, "text/plain", &[("location", "http://127.0.0.1:1/")], ""),
    ] {
        let error = error_of(reply).await;
        assert!(matches!(error, NodeError::NotANode { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_key_goes_to_its_own_node_and_into_no_error() {
    let other = FakeNode::start().await;
    let node = FakeNode::start().await;
    let location = format!("{}/v1/chat/completions", other.url());
    for status in [301, 302, 307, 308] {
        node.on(FakeNode::CHAT, Reply::body(status, "text/plain", &[("location", &location)], ""));
        let stream = client(&node.url(), Some("sk-secret"), Duration::from_secs(60))
            .chat(leave("node"), FAKE_MODEL, question())
            .unwrap();
        assert!(read(stream).await.end.is_err());
    }
    assert!(other.requests().is_empty(), "a redirect was followed");
    assert_eq!(node.requests()[0].headers["authorization"], "Bearer sk-secret");

    for reply in [
        Reply::error(400, "the key sk-secret is not known"),
        Reply::error(503, "sk-secret has no credit"),
        Reply::stream([Step::chunk(&json!({ "error": "sk-secret" }))]),
    ] {
        node.on(FakeNode::CHAT, reply);
        let client = client(&node.url(), Some("sk-secret"), Duration::from_secs(60));
        let error = read(client.chat(leave("node"), FAKE_MODEL, question()).unwrap()).await.end.unwrap_err();
        assert!(!format!("{error} {error:?} {client:?}").contains("sk-secret"), "{error:?}");
    }
}

#[tokio::test]
async fn a_node_that_is_not_there_is_unreachable() {
    let node = FakeNode::start().await;
    let url = node.url();
    node.stop().await;
    let error = read(
        client(&url, Some("sk-secret"), Duration::from_secs(60)).chat(leave("node"), FAKE_MODEL, question()).unwrap(),
    )
    .await
    .end
    .unwrap_err();
    assert!(matches!(error, NodeError::Unreachable { .. }), "{error:?}");
    assert_eq!(error.to_string(), "nothing listens on that port");
    assert!(error.source().is_some());
    assert!(!format!("{error:?}").contains("secret"));

    let error = error_of(Reply::reset()).await;
    assert!(matches!(error, NodeError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_is_unreachable() {
    // A server that speaks no TLS takes the greeting and waits for more of it.
    let plain = FakeNode::start().await;
    let address = NodeAddress::parse(&plain.url().replace("http://", "https://"), None).unwrap();
    let config = NodeConfig { connect_timeout: Duration::from_millis(200), ..NodeConfig::default() };
    let stream =
        NodeClient::with_config("node", address, config).unwrap().chat(leave("node"), FAKE_MODEL, question()).unwrap();
    let error = read(stream).await.end.unwrap_err();
    assert_eq!(error.to_string(), "no connection came about within 0.2 s");
    assert!(plain.requests().is_empty());
}

#[tokio::test]
async fn a_recorded_answer_of_mlx_lm_is_read() {
    let recorded = include_bytes!("../../wire/tests/recorded/mlx_lm-0.32.2/stream.http");
    let node = replying(Reply::recorded(recorded)).await;
    let read = read(ask(&node)).await;
    assert_eq!(read.text, "\u{fffd} prry*\u{fffd}ry*");
    let finish = read.end.unwrap();
    assert_eq!(finish.usage, Some(Usage { prompt_tokens: 44, cached_tokens: 0, completion_tokens: 9 }));

    // The same bytes, broken off at every place before the end was told, are never taken for the whole.
    let told = recorded.windows(6).position(|window| window == b"\"stop\"").unwrap();
    for cut in (0..told).step_by(97) {
        let node = replying(Reply::recorded(&recorded[..cut])).await;
        let read = self::read(ask(&node)).await;
        assert!(
            matches!(read.end, Err(NodeError::CutOff | NodeError::Unreachable { .. })),
            "cut at {cut}: {:?}",
            read.end
        );
    }
    let missing =
        error_of(Reply::recorded(include_bytes!("../../wire/tests/recorded/mlx_lm-0.32.2/missing-model.http"))).await;
    assert!(matches!(missing, NodeError::ModelMissing { .. }), "{missing:?}");
}

#[tokio::test]
async fn a_recorded_answer_of_llama_cpp_python_is_read() {
    let recorded = include_bytes!("../../wire/tests/recorded/llama-cpp-python-0.3.36/stream.http");
    let node = replying(Reply::recorded(recorded)).await;
    let read = read(ask(&node)).await;
    assert_eq!(read.text, "🌊 The sea is a vast, unforgiving landscape that stretches across the globe. 🌞");
    assert_eq!(read.end.unwrap().usage, None);
}

#[tokio::test]
async fn leave_for_another_node_is_none() {
    let node = FakeNode::start().await;
    let client = client(&node.url(), None, Duration::from_secs(60));
    assert!(matches!(client.chat(leave("other"), FAKE_MODEL, question()), Err(NodeError::NoLeave)));
    assert!(node.requests().is_empty());
}

#[tokio::test]
async fn a_node_shows_how_it_goes_on_with_an_answer() {
    let probe = async |reply| {
        let node = replying(reply).await;
        let continues = client(&node.url(), None, Duration::from_secs(60)).continues_chat(FAKE_MODEL).await;
        let asked = node.requests_of(FakeNode::CHAT).pop().unwrap().json();
        assert_eq!(asked["messages"][1]["role"], "assistant");
        assert_eq!((&asked["stream"], &asked["continue_final_message"]), (&json!(true), &json!(true)));
        continues
    };
    assert_eq!(probe(Reply::answer(&["6 ", "17"])).await, Some(true));
    // It begins anew, or says the beginning again, which would be doubled.
    assert_eq!(probe(Reply::answer(&["1 2 3", " 4"])).await, Some(false));
    assert_eq!(probe(Reply::error(400, "the last message must be the user's")).await, Some(false));
    // Another time it may.
    assert_eq!(probe(Reply::error(503, "loading")).await, None);
    assert_eq!(probe(Reply::reset()).await, None);
}
