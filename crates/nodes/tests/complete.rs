//! The rest of an answer that was begun elsewhere, and how it is found out whether a node writes it.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

use std::time::Duration;

use chat::{ChatEvent, FinishReason, Redacted, SamplingParams};
use futures::StreamExt;
use nodes::{NodeAddress, NodeClient, NodeConfig, NodeError, NodeStream, Seam, TextPrompt};
use routing::{Demand, EgressPass, NodeOption, Policy, may_leave};
use serde_json::json;
use testkit::node::{FAKE_MODEL, FakeNode, Gate, Reply, Step};

fn client(node: &FakeNode, key: Option<&str>) -> NodeClient {
    let address = NodeAddress::parse(&node.url(), key.map(|key| Redacted(key.to_owned()))).unwrap();
    let config = NodeConfig { inactivity_timeout: Duration::from_secs(60), ..NodeConfig::default() };
    NodeClient::with_config("node", address, config).unwrap()
}

fn leave(id: &str) -> EgressPass {
    let node = NodeOption { id: id.to_owned(), ..NodeOption::default() };
    may_leave(&Policy::default(), &Demand::default(), &node).unwrap()
}

const PROMPT: &str = "<|im_start|>user\nsecret question<|im_end|>\n<|im_start|>assistant\n<think>hm";

fn text(seam: Seam) -> TextPrompt {
    TextPrompt { prompt: Redacted(PROMPT.to_owned()), marks: vec!["</think>".to_owned()], seam }
}

fn complete(client: &NodeClient, pass: EgressPass) -> Result<NodeStream, NodeError> {
    let sampling = SamplingParams { max_tokens: Some(7), ..SamplingParams::default() };
    client.complete(pass, FAKE_MODEL, text(Seam::Kept), sampling)
}

async fn completing(reply: Reply) -> FakeNode {
    let node = FakeNode::start().await;
    node.on(FakeNode::COMPLETIONS, reply);
    node
}

async fn error_of(reply: Reply, key: Option<&str>) -> NodeError {
    let node = completing(reply).await;
    let events = complete(&client(&node, key), leave("node")).unwrap().collect::<Vec<_>>().await;
    events.into_iter().next_back().unwrap().unwrap_err()
}

#[tokio::test]
async fn the_rest_of_a_text_streams_as_it_is_written() {
    let gate = Gate::new();
    let steps = [Step::rest("m"), Step::Wait(gate.clone()), Step::rest("</think>\n\nYes"), Step::finish("length")];
    let node = completing(Reply::stream(steps.into_iter().chain([Step::usage(9, 3), Step::done()]))).await;
    let mut stream = complete(&client(&node, None), leave("node")).unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), ChatEvent::Text("m".into()));
    gate.pass();
    assert_eq!(stream.next().await.unwrap().unwrap(), ChatEvent::Text("</think>\n\nYes".into()));
    let Some(Ok(ChatEvent::Finished(finish))) = stream.next().await else { panic!("no end") };
    assert_eq!((finish.reason, finish.usage.unwrap().completion_tokens), (FinishReason::Length, 3));
    assert!(stream.next().await.is_none());
    let expected = json!({
        "model": FAKE_MODEL, "prompt": PROMPT, "stream": true, "stream_options": { "include_usage": true },
        "skip_special_tokens": false, "spaces_between_special_tokens": false, "preserved_tokens": ["</think>"],
        "max_tokens": 7,
    });
    assert_eq!(node.requests_of(FakeNode::COMPLETIONS)[0].json(), expected);
}

#[tokio::test]
async fn a_rest_without_its_end_is_cut_off_and_a_slow_one_given_up() {
    for ending in [Step::Reset, Step::done(), Step::usage(1, 1)] {
        let error = error_of(Reply::stream([Step::rest("m"), ending.clone()]), None).await;
        assert!(matches!(error, NodeError::CutOff), "{ending:?}: {error}");
    }
    let node = completing(Reply::silence()).await;
    let address = NodeAddress::parse(&node.url(), None).unwrap();
    let patience = Duration::from_millis(50);
    let config = NodeConfig { prefill_timeout: patience, inactivity_timeout: patience, ..NodeConfig::default() };
    let client = NodeClient::with_config("node", address, config).unwrap();
    let last = complete(&client, leave("node")).unwrap().next().await.unwrap();
    assert!(matches!(last, Err(NodeError::TimedOut { .. })), "{last:?}");
}

#[tokio::test]
async fn nothing_goes_to_a_node_without_leave_and_no_error_says_what_went() {
    let node = completing(Reply::rest(&["m"])).await;
    assert!(matches!(complete(&client(&node, None), leave("another")), Err(NodeError::NoLeave)));
    let text = Redacted(PROMPT.to_owned());
    assert_eq!(client(&node, None).continues_text(leave("another"), FAKE_MODEL, text, 9).await, None);
    assert!(node.requests().is_empty());
    let error = error_of(Reply::error(400, "bad key sk-secret"), Some("sk-secret")).await;
    let said = format!("{error} {error:?}");
    assert!(!said.contains("sk-secret") && !said.contains("secret question"), "{said}");
}

#[tokio::test]
async fn a_node_goes_on_with_text_where_it_does_so_and_reads_it_as_we_do() {
    let goes_on = async |reply: Reply| {
        let node = completing(reply).await;
        client(&node, None).continues_text(leave("node"), FAKE_MODEL, Redacted("1 2".to_owned()), 40).await
    };
    assert_eq!(goes_on(Reply::whole_rest(" 16 17 18", Some(40))).await, Some(Some(Seam::Kept)));
    assert_eq!(goes_on(Reply::whole_rest(" 16 17 18", None)).await, Some(Some(Seam::Kept)), "not every server counts");
    assert_eq!(goes_on(Reply::whole_rest(" 16 17 18", Some(61))).await, Some(None), "a template was put around it");
    assert_eq!(goes_on(Reply::whole_rest("16 17 18", Some(40))).await, Some(None), "the space is lost");
    assert_eq!(goes_on(Reply::whole_rest("1 2 3", Some(40))).await, Some(None));
    assert_eq!(goes_on(Reply::error(404, "no such path")).await, Some(None));
    assert_eq!(goes_on(Reply::error(503, "loading")).await, None, "another time it may");
    assert_eq!(goes_on(Reply::reset()).await, None);
}

/// The first token of a rest, as mlx_lm tells it.
fn first_token(text: &str, id: u32) -> Reply {
    let logprobs = json!({ "content": [{ "id": id, "logprob": -0.5 }] });
    let choices = json!([{ "index": 0, "text": text, "logprobs": logprobs, "finish_reason": "length" }]);
    Reply::json(200, &json!({ "object": "text_completion", "choices": choices }))
}

#[tokio::test]
async fn a_node_that_drops_a_space_tells_the_token_that_has_it() {
    let node = completing(Reply::whole_rest("16 17 18", Some(40))).await;
    node.then(FakeNode::COMPLETIONS, first_token("1", 220));
    node.then(FakeNode::COMPLETIONS, first_token("so", 773));
    node.then(FakeNode::COMPLETIONS, Reply::rest(&["so", " on"]));
    let prompt = Redacted("1 2".to_owned());
    let seam = client(&node, None).continues_text(leave("node"), FAKE_MODEL, prompt, 40).await;
    assert_eq!(seam, Some(Some(Seam::SpaceDropped)));
    let sampling = SamplingParams { seed: Some(3), max_tokens: Some(9), ..SamplingParams::default() };
    let stream = client(&node, None).complete(leave("node"), FAKE_MODEL, text(Seam::SpaceDropped), sampling).unwrap();
    let events: Vec<_> = stream.map(|event| event.unwrap()).collect().await;
    assert_eq!(events[0], ChatEvent::Tokens { from: 0, ids: vec![773] });
    assert_eq!(events[1..3], ["so", " on"].map(|text| ChatEvent::Text(text.to_owned())));
    assert!(matches!(events[3..], [ChatEvent::Finished(_)]), "{events:?}");
    let asked: Vec<_> = node.requests_of(FakeNode::COMPLETIONS).iter().map(|request| request.json()).collect();
    let [first, rest] = &asked[2..] else { panic!("{asked:?}") };
    assert_eq!((&first["logprobs"], &first["max_tokens"], &first["stream"]), (&json!(true), &json!(1), &json!(false)));
    for same in ["prompt", "seed"] {
        assert_eq!(first[same], rest[same]);
    }
    // A failure there is the end.
    node.on(FakeNode::COMPLETIONS, Reply::whole_rest("so", None));
    let stream = client(&node, None).complete(leave("node"), FAKE_MODEL, text(Seam::SpaceDropped), greedy()).unwrap();
    let events: Vec<_> = stream.collect().await;
    assert!(matches!(events[..], [Err(NodeError::NotANode { .. })]), "{events:?}");
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: Some(0.0), ..SamplingParams::default() }
}

#[tokio::test]
async fn a_node_shows_a_token_where_its_name_comes() {
    let node = completing(Reply::whole_rest("</think>", None)).await;
    assert_eq!(client(&node, None).shows_token(FAKE_MODEL, 265, "</think>").await, Some(true));
    let asked = node.requests_of(FakeNode::COMPLETIONS)[0].json();
    assert_eq!((&asked["logit_bias"], &asked["max_tokens"]), (&json!({ "265": 100.0 }), &json!(1)));
    let hiding = completing(Reply::whole_rest("", None)).await;
    assert_eq!(client(&hiding, None).shows_token(FAKE_MODEL, 265, "</think>").await, Some(false));
}
