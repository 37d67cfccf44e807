//! A running answer that the user moves: from here to a node, from node to node, and back here. The places are whole
//! applications behind their own gateways, with models of random weights.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod answer;
mod llama_server;
mod node;

use std::path::{Path, PathBuf};

use app::vitals::ThermalState;
use app::{App, DecisionKind, OffloadMode, PlaceChoice, SendMessage, Settings};
use serde_json::Value;
use system_tests::Fixture;
use testkit::gguf::{TINY_TEMPLATE, endless_model};
use testkit::node::{FakeNode, Gate, RecordedRequest, Reply, Step};

use answer::{PIECES, moved};
use node::Node;

/// Long enough for an answer to run while it is moved: these models write some thousand tokens a second, and never end.
const CONTEXT_LEN: u32 = 1_024;
/// Thinks for ever: the answer's beginning opens it, and noise doesn't close it.
const THINKING_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                                 <|im_start|>assistant\n<think>\n{# </think> #}";

fn model(folder: &Path, seed: u64) -> Vec<PathBuf> {
    vec![endless_model(seed, CONTEXT_LEN, TINY_TEMPLATE, &[]).write(folder, "tiny.gguf").unwrap()]
}

/// The same words and one more, and so other weights.
fn other_model(folder: &Path) -> Vec<PathBuf> {
    vec![endless_model(8, CONTEXT_LEN, TINY_TEMPLATE, &["<|more|>"]).write(folder, "other.gguf").unwrap()]
}

/// Also lets the answer alone, however busy the machine is that runs the test.
async fn set_temperature(app: &App, temperature: f32) {
    let settings = Settings {
        temperature: Some(temperature),
        max_swap_used_ratio: 1.0,
        max_swap_in_per_sec: u64::MAX,
        max_thermal: ThermalState::Critical,
        ..app.settings()
    };
    app.save_settings(settings).await.unwrap();
}

fn question(place: PlaceChoice) -> SendMessage {
    SendMessage { text: Some("hello".to_owned()), place: Some(place), ..SendMessage::default() }
}

/// The kinds of the decisions in the history and where they led, oldest first.
async fn history(app: &App) -> Vec<(DecisionKind, String)> {
    app.shutdown().await;
    let mut entries = app.decisions(None, 20).await.unwrap();
    entries.reverse();
    // What was done about the machine's memory meanwhile is another matter.
    let moves = entries.into_iter().filter(|entry| entry.note.kind != DecisionKind::Relief);
    moves.map(|entry| (entry.note.kind, entry.note.place_id)).collect()
}

#[tokio::test]
async fn in_every_direction_the_text_is_that_of_an_answer_that_stayed() {
    let folder = tempfile::tempdir().unwrap();
    let models = model(folder.path(), 7);
    let (one, other) = (Node::start(&models).await, Node::start(&models).await);
    for temperature in [0.0, 1.2] {
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            let front = Fixture::start(OffloadMode::Auto, &models).await;
            let ids = ["here".to_owned(), one.relay.add_to(&front.app).await, other.relay.add_to(&front.app).await];
            let place = |index: usize| match index {
                0 => PlaceChoice::Here,
                _ => PlaceChoice::Node(ids[index].clone()),
            };
            set_temperature(&front.app, temperature).await;
            let answer = moved(&front.app, question(place(from)), place(to)).await;
            let case = format!("from {} to {} at {temperature}", ids[from], ids[to]);
            answer.check();
            assert_eq!(answer.places(), [ids[from].as_str(), ids[to].as_str()], "{case}: {:?}", answer.notes);
            assert_eq!(answer.continuations(), [None, Some("tokens")], "{case}");
            assert_eq!(answer.ended(), ["handed over", "finished"], "{case}");
            // Each direction has a node in it, which was told the seed.
            let node = if from == 1 || to == 1 { &one } else { &other };
            let (_, undisturbed) = node.relay.undisturbed(node.relay.asked().last().unwrap()).await;
            // Reading a text and writing it differ in a sum's last bit, which a draw can fall between, if seldom.
            let compared = if temperature > 0.0 { 300 } else { usize::MAX };
            let beginning = |text: &str| text.chars().take(compared).collect::<String>();
            assert_eq!(beginning(&answer.text), beginning(&undisturbed), "{case}");
            let expected = [(DecisionKind::Start, ids[from].clone()), (DecisionKind::Move, ids[to].clone())];
            assert_eq!(history(&front.app).await, expected, "{case}");
        }
    }
}

#[tokio::test]
async fn thinking_moves_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = endless_model(7, CONTEXT_LEN, THINKING_TEMPLATE, &["<think>", "</think>"]);
    let models = vec![file.write(folder.path(), "tiny.gguf").unwrap()];
    let node = Node::start(&models).await;
    let front = Fixture::start(OffloadMode::Auto, &models).await;
    let id = node.relay.add_to(&front.app).await;
    set_temperature(&front.app, 0.0).await;
    let answer = moved(&front.app, question(PlaceChoice::Here), PlaceChoice::Node(id.clone())).await;
    answer.check();
    assert_eq!(answer.places(), ["here", id.as_str()]);
    let [(_, at_char, thinking_at_char)] = answer.moves.as_slice() else { panic!("{:?}", answer.moves) };
    assert!(*at_char == 0 && *thinking_at_char > 0, "in the middle of thinking");
    let undisturbed = node.relay.undisturbed(node.relay.asked().last().unwrap()).await;
    assert_eq!((answer.thinking, answer.text), undisturbed);
}

#[tokio::test]
async fn a_node_with_another_tokenizer_goes_on_by_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let (own, others) = (model(folder.path(), 7), other_model(folder.path()));
    let (same, node) = (Node::start(&own).await, Node::start(&others).await);
    let front = Fixture::start(OffloadMode::Auto, &own).await;
    let id = node.relay.add_to(&front.app).await;
    set_temperature(&front.app, 0.0).await;
    let answer = moved(&front.app, question(PlaceChoice::Here), PlaceChoice::Node(id.clone())).await;
    answer.check();
    assert_eq!(answer.places(), ["here", id.as_str()], "{:?}", answer.notes);
    assert_eq!(answer.continuations(), [None, Some("text")]);
    let (before, after) = answer.halves();
    let takeover = node.relay.asked().pop().unwrap();
    let (_, undisturbed) = same.relay.undisturbed(&takeover).await;
    assert!(undisturbed.starts_with(before), "it was begun as it would have gone on here");
    assert_eq!(takeover["tidegate_written"]["content"], before);
    let (_, rest) = node.relay.answer(&takeover).await;
    assert_eq!(after, rest, "and goes on as the other model goes on with that text");
}

#[tokio::test]
async fn what_another_engine_begins_goes_on_here_and_on_a_node() {
    let folder = tempfile::tempdir().unwrap();
    let models = model(folder.path(), 7);
    let (fake, gate) = (FakeNode::start().await, Gate::new());
    let pieces = vec!["hello wörld "; PIECES];
    // Then it waits until the answer has left it.
    let steps = pieces.iter().map(|text| Step::text(text)).chain([Step::Wait(gate)]);
    fake.on(FakeNode::CHAT, Reply::stream(steps));
    let node = Node::start(&models).await;
    for to_node in [false, true] {
        let front = Fixture::start(OffloadMode::Auto, &models).await;
        let fake_id = front.app.add_node(&fake.url(), None).await.unwrap().id;
        let node_id = node.relay.add_to(&front.app).await;
        set_temperature(&front.app, 0.0).await;
        let to = if to_node { PlaceChoice::Node(node_id.clone()) } else { PlaceChoice::Here };
        let answer = moved(&front.app, question(PlaceChoice::Node(fake_id.clone())), to).await;
        answer.check();
        assert_eq!(answer.places(), [fake_id.as_str(), if to_node { &node_id } else { "here" }]);
        assert_eq!(answer.continuations(), [None, Some("text")]);
        assert!(answer.text.starts_with(&pieces.concat()) && answer.moves[0].1 == pieces.concat().chars().count());
    }
}

#[tokio::test]
async fn another_engine_goes_on_with_the_message_that_it_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let models = model(folder.path(), 7);
    let (fake, same) = (FakeNode::start().await, Node::start(&models).await);
    // It is asked how it goes on with numbers; then it reads what is written, and goes on with it.
    fake.on(FakeNode::CHAT, Reply::answer(&["6", " 17"]));
    fake.then(FakeNode::CHAT, Reply::answer(&["x"]));
    fake.then(FakeNode::CHAT, Reply::answer(&[" and", " so", " on"]));
    let front = Fixture::start(OffloadMode::Auto, &models).await;
    let id = front.app.add_node(&fake.url(), None).await.unwrap().id;
    set_temperature(&front.app, 0.0).await;
    let answer = moved(&front.app, question(PlaceChoice::Here), PlaceChoice::Node(id.clone())).await;
    answer.check();
    assert_eq!(answer.places(), ["here", id.as_str()], "{:?}", answer.notes);
    assert_eq!(answer.continuations(), [None, Some("prefix")]);
    let before = answer.text.strip_suffix(" and so on").unwrap();
    let takeover = fake.requests_of(FakeNode::CHAT).pop().unwrap().json();
    assert_eq!(takeover["messages"][1]["content"], before);
    let request = serde_json::json!({ "messages": [takeover["messages"][0]], "temperature": 0 });
    assert!(same.relay.undisturbed(&request).await.1.starts_with(before));
}

#[tokio::test]
async fn a_node_that_takes_new_messages_only_gets_nothing_of_a_running_answer() {
    let folder = tempfile::tempdir().unwrap();
    let models = model(folder.path(), 7);
    let (fake, same) = (FakeNode::start().await, Node::start(&models).await);
    let front = Fixture::start(OffloadMode::Auto, &models).await;
    let id = front.app.add_node(&fake.url(), None).await.unwrap().id;
    set_temperature(&front.app, 0.0).await;
    let answer = moved(&front.app, question(PlaceChoice::Here), PlaceChoice::Node(id)).await;
    answer.check();
    assert_eq!(answer.places(), ["here"]);
    assert!(answer.why_it_stays().contains("takes new messages only"), "{:?}", answer.notes);
    let asked: Vec<Value> = fake.requests_of(FakeNode::CHAT).iter().map(RecordedRequest::json).collect();
    assert!(asked.iter().all(|request| !request.to_string().contains("hello")), "it was probed and no more");
    let request = serde_json::json!({ "messages": [{ "role": "user", "content": "hello" }], "temperature": 0 });
    assert_eq!(answer.text, same.relay.undisturbed(&request).await.1);
    let kinds: Vec<_> = history(&front.app).await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [DecisionKind::Start, DecisionKind::Stay]);
}

#[tokio::test]
async fn an_answer_of_a_chat_that_stays_here_stays_here() {
    let folder = tempfile::tempdir().unwrap();
    let models = model(folder.path(), 7);
    let node = Node::start(&models).await;
    let front = Fixture::start(OffloadMode::Auto, &models).await;
    let id = node.relay.add_to(&front.app).await;
    set_temperature(&front.app, 0.0).await;
    let first = front.send(question(PlaceChoice::Here)).await;
    let conversation = first.stored().conversation_id;
    front.app.set_stays_local(conversation, true).await.unwrap();
    let again = SendMessage { conversation: Some(conversation), ..SendMessage::default() };
    let answer = moved(&front.app, again, PlaceChoice::Node(id)).await;
    answer.check();
    assert_eq!(answer.places(), ["here"]);
    assert!(answer.why_it_stays().contains("this chat stays here"), "{:?}", answer.notes);
    assert_eq!(node.relay.asked(), [] as [Value; 0], "nothing reached the node");
    assert_eq!(answer.text, first.text);
}
