//! Answers that go on at a server which knows no template, only plain text: rendered here, read here.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use app::chat::{ChatEvent, ChatRequest, FinishReason, Message, Role, SamplingParams};
use app::{AskedBy, OffloadMode, PlaceChoice, ReplyEvent, SendMessage};
use futures::StreamExt;
use serde_json::{Value, json};
use system_tests::{Fixture, read};
use testkit::gguf::{TINY_TEMPLATE, TINY_VOCABULARY, endless_model, tiny_model_with};
use testkit::node::{FakeNode, Reply, Step};

const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
                        {% endfor %}<|im_start|>assistant\n{# <think> #}";
const CONVERSATION: &str = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
const THINK: usize = TINY_VOCABULARY;
const NUMBERS: &str = " 16 17 18";

/// A piece of an answer as another Tidegate streams it; `member` is its kind of text.
fn piece(member: &str, text: &str, tokens: &[usize]) -> Step {
    Step::chunk(&json!({ "choices": [{
        "index": 0, "delta": { member: text }, "token_ids": tokens, "token_offset": 0, "finish_reason": null,
    }] }))
}

fn bytes(text: &str) -> Vec<usize> {
    text.bytes().map(usize::from).collect()
}

/// An application that has the model `tiny`; another Tidegate that has it, too, and begins with `begun` and dies; and a
/// server that only goes on with text, whose replies follow those to the probes.
struct World {
    fixture: Fixture,
    text: FakeNode,
    _models: tempfile::TempDir,
    _begins: FakeNode,
}

impl World {
    async fn start(begun: Vec<Step>) -> Self {
        let models = tempfile::tempdir().unwrap();
        let model = tiny_model_with(7, TEMPLATE, &["<think>", "</think>"]).write(models.path(), "tiny.gguf").unwrap();
        let fixture = Fixture::start(OffloadMode::Remote, &[model]).await;
        let mut nodes = [FakeNode::start().await, FakeNode::start().await];
        // The first by its name answers, as long as nothing is known of their speed.
        nodes.sort_by_key(FakeNode::url);
        let [begins, text] = nodes;
        let tokenizer = fixture.app.models()[0].usable().unwrap().tokenizer.clone();
        let entry = json!({ "id": "tiny", "object": "model", "owned_by": "tidegate", "tokenizer": tokenizer });
        begins.on(FakeNode::MODELS, Reply::json(200, &json!({ "object": "list", "data": [entry] })));
        begins.on(FakeNode::CHAT, Reply::stream(begun.into_iter().chain([Step::Reset])));
        text.on(FakeNode::MODELS, Reply::models(&["tiny"]));
        text.on(FakeNode::CHAT, Reply::error(404, "Not Found"));
        text.on(FakeNode::COMPLETIONS, Reply::whole_rest(NUMBERS, None));
        for node in [&begins, &text] {
            fixture.app.add_node(&node.url(), None).await.unwrap();
        }
        Self { fixture, text, _models: models, _begins: begins }
    }

    async fn ask(&self, question: &str) -> Answer {
        let sampling = SamplingParams {
            stop: vec!["STOP".to_owned()],
            max_tokens: Some(400),
            seed: Some(5),
            ..SamplingParams::default()
        };
        let messages = vec![Message::new(Role::User, question)];
        let request = ChatRequest { messages, sampling, ..ChatRequest::default() };
        let completion = self.fixture.app.complete(request, None, AskedBy::Gateway).await.unwrap();
        let mut answer = Answer::default();
        let mut events = completion.into_chat_events();
        while let Some(event) = events.next().await {
            match event.unwrap() {
                ChatEvent::Thinking(text) => answer.thinking.push_str(&text),
                ChatEvent::Text(text) => answer.text.push_str(&text),
                ChatEvent::Finished(finish) => {
                    answer.end = Some((finish.reason, finish.usage.map(|usage| usage.completion_tokens)));
                }
                _ => {}
            }
        }
        answer
    }

    fn asked_for_rest(&self) -> Vec<Value> {
        self.text.requests_of(FakeNode::COMPLETIONS).iter().map(|request| request.json()).collect()
    }
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    thinking: String,
    text: String,
    end: Option<(FinishReason, Option<usize>)>,
}

#[tokio::test]
async fn thinking_that_another_machine_began_goes_on_as_text_and_ends_at_a_stop_string() {
    let mut tokens = vec![THINK];
    tokens.extend(bytes("hm"));
    let world = World::start(vec![piece("reasoning_content", "hm", &tokens)]).await;
    world.text.then(FakeNode::COMPLETIONS, Reply::whole_rest("</think>", None));
    let rest = ["m", "…</thi", "nk>\n\nYes S", "TOP never"].map(Step::rest);
    world.text.then(FakeNode::COMPLETIONS, Reply::stream(rest.into_iter().chain([Step::Hang])));
    let answer = world.ask("hello").await;
    assert_eq!((answer.thinking.as_str(), answer.text.as_str()), ("hmm…", "Yes "));
    assert_eq!(answer.end, Some((FinishReason::Stop, None)));
    world.text.wait_for_hang_ups(1).await;

    let [probe, mark, rest] = world.asked_for_rest().try_into().unwrap();
    let numbers = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15";
    let probed = probe["prompt"].as_str().unwrap();
    assert!(
        probed.starts_with("<|im_start|>user\nWrite the numbers") && probed.ends_with(&format!("assistant\n{numbers}"))
    );
    assert_eq!(mark["logit_bias"], json!({ (THINK + 1).to_string(): 100.0 }));
    let expected = json!({
        "model": "tiny", "prompt": format!("{CONVERSATION}<think>hm"), "max_tokens": 397, "seed": 5, "stream": true,
        "stream_options": { "include_usage": true }, "preserved_tokens": ["</think>"], "skip_special_tokens": false,
        "spaces_between_special_tokens": false,
    });
    assert_eq!(rest, expected);
}

#[tokio::test]
async fn a_stop_string_is_found_across_the_seam() {
    let world = World::start(vec![piece("content", "Yes ", &bytes("Yes ST"))]).await;
    world.text.then(FakeNode::COMPLETIONS, Reply::whole_rest("</think>", None));
    world.text.then(FakeNode::COMPLETIONS, Reply::rest(&["OP never"]));
    let answer = world.ask("hello").await;
    assert_eq!(answer, Answer { text: "Yes ".into(), end: Some((FinishReason::Stop, None)), ..Answer::default() });
    assert_eq!(world.asked_for_rest()[2]["prompt"], format!("{CONVERSATION}Yes ST"));
}

#[tokio::test]
async fn tokens_are_counted_over_the_whole_answer() {
    // A server that doesn't know the model's end writes on, is stopped, and tells no count.
    for (rest, count) in [(["IR", "!"].as_slice(), Some(7)), (&["IR", "!<|im_end|>", "\nuser"], None)] {
        let world = World::start(vec![piece("content", "Yes S", &bytes("Yes S"))]).await;
        world.text.then(FakeNode::COMPLETIONS, Reply::whole_rest("</think>", None));
        world.text.then(FakeNode::COMPLETIONS, Reply::rest(rest));
        let answer = world.ask("hello").await;
        assert_eq!((answer.text.as_str(), answer.end), ("Yes SIR!", Some((FinishReason::Stop, count))));
    }
}

#[tokio::test]
async fn a_question_that_spells_a_control_token_goes_as_a_chat_instead() {
    let world = World::start(vec![piece("content", "It ", &bytes("It "))]).await;
    let message = json!({ "role": "assistant", "content": "6 17 18" });
    let probe = json!({ "choices": [{ "message": message, "finish_reason": "length" }] });
    world.text.on(FakeNode::CHAT, Reply::json(200, &probe));
    world.text.then(FakeNode::CHAT, Reply::answer(&["opens", " thinking."]));
    let answer = world.ask("What is <think>?").await;
    assert_eq!(answer.text, "It opens thinking.");
    assert!(world.asked_for_rest().is_empty());
    let asked = world.text.requests_of(FakeNode::CHAT)[1].json();
    assert_eq!(asked["messages"][1], json!({ "role": "assistant", "content": "It " }));
}

#[tokio::test]
async fn a_server_that_hides_the_marks_of_thinking_gets_no_thinking_to_go_on_with() {
    let mut tokens = vec![THINK];
    tokens.extend(bytes("hm"));
    let world = World::start(vec![piece("reasoning_content", "hm", &tokens)]).await;
    world.text.then(FakeNode::COMPLETIONS, Reply::whole_rest("", None));
    let request = ChatRequest { messages: vec![Message::new(Role::User, "hello")], ..ChatRequest::default() };
    let completion = world.fixture.app.complete(request, None, AskedBy::Gateway).await.unwrap();
    let events: Vec<_> = completion.into_chat_events().collect().await;
    assert!(events.last().unwrap().is_err(), "{events:?}");
    assert_eq!(world.asked_for_rest().len(), 2, "nothing but the probes");
}

#[tokio::test]
async fn an_answer_that_began_here_moves_to_a_server_of_plain_text() {
    let models = tempfile::tempdir().unwrap();
    let fixture = Fixture::start(
        OffloadMode::Auto,
        &[endless_model(7, 4096, TINY_TEMPLATE, &[]).write(models.path(), "tiny.gguf").unwrap()],
    )
    .await;
    let settings = app::Settings { temperature: Some(0.0), ..fixture.app.settings() };
    fixture.app.save_settings(settings).await.unwrap();
    let node = FakeNode::start().await;
    node.on(FakeNode::MODELS, Reply::models(&["/srv/Tiny.gguf"]));
    node.on(FakeNode::CHAT, Reply::error(404, "Not Found"));
    node.on(FakeNode::COMPLETIONS, Reply::whole_rest(NUMBERS, None));
    // It reads what is written while the answer goes on here, then takes over.
    node.then(FakeNode::COMPLETIONS, Reply::rest(&["x"]));
    node.then(FakeNode::COMPLETIONS, Reply::rest(&[" and so", " on."]));
    let id = fixture.app.add_node(&node.url(), None).await.unwrap().id;
    let message =
        SendMessage { text: Some("hello".to_owned()), place: Some(PlaceChoice::Here), ..SendMessage::default() };
    let mut events = fixture.app.send_message(message).await.unwrap();
    let (mut answer, mut text) = (None, String::new());
    while let Some(event) = events.next().await {
        match event {
            ReplyEvent::Accepted { message, .. } => answer = Some(message),
            ReplyEvent::Text(piece) => {
                text.push_str(&piece);
                break;
            }
            _ => {}
        }
    }
    fixture.app.move_answer(answer.unwrap(), PlaceChoice::Node(id)).unwrap();
    let reply = read(events).await;
    text.push_str(&reply.text);
    assert_eq!(reply.error, None);
    assert_eq!(reply.targets.last().map(String::as_str), Some("node"));
    let asked: Vec<Value> = node.requests_of(FakeNode::COMPLETIONS).iter().map(|request| request.json()).collect();
    let prompt = asked[2]["prompt"].as_str().unwrap();
    assert_eq!(asked[1]["max_tokens"], 1);
    let begun = prompt.strip_prefix(CONVERSATION).unwrap();
    assert!(!begun.is_empty());
    assert_eq!(text, format!("{begun} and so on."));
    let segments = &reply.stored().segments;
    assert_eq!(segments.last().unwrap().continuation.as_deref(), Some("text"), "{segments:?}");
}
