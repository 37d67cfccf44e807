//! A running answer that the user moves: from here to a node, from node to node, and back here. The places are whole
//! applications behind their own gateways, with models of random weights.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use app::vitals::ThermalState;
use app::{
    App, DecisionKind, MessageId, MessageState, OffloadMode, PlaceChoice, ReplyEvent, Segment, SendMessage, Settings,
    StoredMessage,
};
use futures::StreamExt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use system_tests::{Fixture, http, serve};
use testkit::gguf::{TINY_TEMPLATE, tiny_model_of};
use testkit::node::{FakeNode, Gate, RecordedRequest, Reply, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Long enough for an answer to run while it is moved: these models write some thousand tokens a second.
const CONTEXT_LEN: u32 = 4_096;
/// Pieces of an answer after which it is moved.
const PIECES: usize = 20;
/// Thinks for ever: the answer's beginning opens it, and noise doesn't close it.
const THINKING_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                                 <|im_start|>assistant\n<think>\n{# </think> #}";

fn model(folder: &Path, seed: u64) -> Vec<PathBuf> {
    vec![tiny_model_of(seed, CONTEXT_LEN, TINY_TEMPLATE, &[]).write(folder, "tiny.gguf").unwrap()]
}

/// The same words and one more, and so other weights.
fn other_model(folder: &Path) -> Vec<PathBuf> {
    vec![tiny_model_of(8, CONTEXT_LEN, TINY_TEMPLATE, &["<|more|>"]).write(folder, "other.gguf").unwrap()]
}

/// A node that is a whole application, behind a relay that keeps what it is asked.
struct Node {
    _fixture: Fixture,
    gateway: SocketAddr,
    relay: SocketAddr,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Node {
    async fn start(models: &[PathBuf]) -> Self {
        let fixture = Fixture::start(OffloadMode::LocalOnly, models).await;
        let gateway = serve(&fixture.app, None).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (relay, connections) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<Vec<u8>>>>::default());
        let kept = connections.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(gateway).await.unwrap();
                tokio::spawn(pass_on(client, server, kept.clone()));
            }
        });
        Self { _fixture: fixture, gateway, relay, connections }
    }

    async fn add_to(&self, app: &App) -> String {
        app.add_node(&format!("http://{}", self.relay), None).await.unwrap().id
    }

    /// The answers that it was asked for, in order.
    fn asked(&self) -> Vec<Value> {
        let connections = self.connections.lock().unwrap();
        let bodies = connections.iter().filter(|bytes| bytes.starts_with(b"POST /v1/chat/completions"));
        bodies
            .map(|bytes| {
                let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
                serde_json::from_slice(&bytes[end + 4..]).unwrap()
            })
            .collect()
    }

    /// Thinking and text of its whole answer to `request`.
    async fn answer(&self, request: &Value) -> (String, String) {
        let mut request = request.clone();
        let fields = request.as_object_mut().unwrap();
        fields.insert("stream".into(), false.into());
        // By the name that another node has for it.
        fields.remove("model");
        fields.remove("stream_options");
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json", self.gateway);
        let (status, reply) = http(self.gateway, &head, &request.to_string()).await;
        assert_eq!(status, 200, "{reply}");
        let (_, body) = reply.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        let message = &body["choices"][0]["message"];
        let part = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
        (part("reasoning_content"), part("content"))
    }

    /// The same of the answer that was gone on with by `request`, had it been left alone.
    async fn undisturbed(&self, request: &Value) -> (String, String) {
        let mut request = request.clone();
        let fields = request.as_object_mut().unwrap();
        fields.remove("tidegate_written");
        // A place that only warms up is asked for one token.
        fields.remove("max_tokens");
        fields.remove("max_completion_tokens");
        self.answer(&request).await
    }
}

async fn pass_on(client: TcpStream, server: TcpStream, kept: Arc<Mutex<Vec<Vec<u8>>>>) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let index = {
        let mut kept = kept.lock().unwrap();
        kept.push(Vec::new());
        kept.len() - 1
    };
    let asking = async {
        let mut buffer = [0; 4_096];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            kept.lock().unwrap()[index].extend(&buffer[..count]);
            to_server.write_all(&buffer[..count]).await.unwrap();
        }
    };
    // Whoever closes first ends both.
    tokio::select! {
        () = asking => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
}

/// An answer that was moved while it was written.
#[derive(Default)]
struct Answer {
    text: String,
    thinking: String,
    /// Where it went, and the characters of text and thinking before.
    moves: Vec<(String, usize, usize)>,
    notes: Vec<String>,
    message: Option<StoredMessage>,
}

impl Answer {
    fn stored(&self) -> &StoredMessage {
        self.message.as_ref().expect("the answer ended")
    }

    /// What was shown is what is stored, the segments cover it, and each still says what its place said.
    fn check(&self) {
        let stored = self.stored();
        assert_eq!(stored.state, MessageState::Done);
        assert_eq!((stored.text.as_str(), stored.thinking.as_str()), (self.text.as_str(), self.thinking.as_str()));
        let starts = |segment: &Segment| (segment.started_at_char, segment.thinking_at_char);
        let moves: Vec<_> =
            self.moves.iter().map(|(place, text, thinking)| (place.as_str(), (*text, *thinking))).collect();
        let segments = &stored.segments;
        let began: Vec<_> = segments[1..].iter().map(|segment| (segment.place.as_str(), starts(segment))).collect();
        assert_eq!(moves, began, "a move is told at the character where the next place begins");
        assert_eq!(starts(&segments[0]), (0, 0));
        let ends = segments[1..].iter().map(starts).chain([(self.text.chars().count(), self.thinking.chars().count())]);
        for (segment, end) in segments.iter().zip(ends) {
            let (from, thinking_from) = starts(segment);
            let part = |text: &str, from: usize, to: usize| text.chars().skip(from).take(to - from).collect::<String>();
            let (text, thinking) = (part(&self.text, from, end.0), part(&self.thinking, thinking_from, end.1));
            assert_eq!(segment.checksum.as_deref(), Some(checksum(&thinking, &text).as_str()), "{segment:?}");
            assert!(!text.is_empty() || !thinking.is_empty(), "{segment:?} wrote nothing");
        }
        assert!(segments[1..].iter().all(|segment| segment.gap_ms.is_some()));
        let ended: Vec<_> = segments.iter().map(|segment| segment.ended.as_deref().unwrap()).collect();
        let (last, before) = ended.split_last().unwrap();
        assert_eq!(*last, "finished");
        assert!(before.iter().all(|ended| *ended == "handed over"), "{ended:?}");
    }

    /// Why it stays where it is.
    fn why_it_stays(&self) -> &str {
        let stays: Vec<_> = self.notes.iter().filter(|note| note.starts_with("It stays where it is")).collect();
        assert_eq!(stays.len(), 1, "{:?}", self.notes);
        stays[0]
    }

    fn places(&self) -> Vec<&str> {
        self.stored().segments.iter().map(|segment| segment.place_id.as_str()).collect()
    }

    fn continuations(&self) -> Vec<Option<&str>> {
        self.stored().segments.iter().map(|segment| segment.continuation.as_deref()).collect()
    }
}

/// As `handoff::Ledger` documents it, for parts without calls of tools.
fn checksum(thinking: &str, text: &str) -> String {
    let mut hash = Sha256::new();
    for part in [thinking, text] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asks at `from`; after some pieces of the answer, `to` says where it shall go on.
async fn moved(app: &App, message: SendMessage, to: PlaceChoice) -> Answer {
    let (mut answer, mut id, mut pieces) = (Answer::default(), None::<MessageId>, 0);
    let mut events = app.send_message(message).await.unwrap();
    while let Some(event) = events.next().await {
        match event {
            ReplyEvent::Accepted { message, .. } => id = Some(message),
            ReplyEvent::Text(text) => {
                answer.text.push_str(&text);
                pieces += 1;
            }
            ReplyEvent::Thinking(text) => {
                answer.thinking.push_str(&text);
                pieces += 1;
            }
            ReplyEvent::Moved { decision, at_char, thinking_at_char } => {
                answer.moves.push((decision.place, at_char, thinking_at_char));
            }
            ReplyEvent::Note { sentence } => answer.notes.push(sentence),
            ReplyEvent::Finished(message) => answer.message = Some(*message),
            ReplyEvent::Failed { error, .. } => panic!("{error:?}, after {:?}", answer.notes),
            ReplyEvent::Routed(_) | ReplyEvent::Progress(_) => {}
        }
        if pieces == PIECES {
            pieces += 1;
            app.move_answer(id.unwrap(), to.clone()).unwrap();
        }
    }
    answer
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
            let ids = ["here".to_owned(), one.add_to(&front.app).await, other.add_to(&front.app).await];
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
            // Each direction has a node in it, which was told the seed.
            let node = if from == 1 || to == 1 { &one } else { &other };
            let (_, undisturbed) = node.undisturbed(node.asked().last().unwrap()).await;
            assert_eq!(answer.text, undisturbed, "{case}");
            let expected = [(DecisionKind::Start, ids[from].clone()), (DecisionKind::Move, ids[to].clone())];
            assert_eq!(history(&front.app).await, expected, "{case}");
        }
    }
}

#[tokio::test]
async fn thinking_moves_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = tiny_model_of(7, CONTEXT_LEN, THINKING_TEMPLATE, &["<think>", "</think>"]);
    let models = vec![file.write(folder.path(), "tiny.gguf").unwrap()];
    let node = Node::start(&models).await;
    let front = Fixture::start(OffloadMode::Auto, &models).await;
    let id = node.add_to(&front.app).await;
    set_temperature(&front.app, 0.0).await;
    let answer = moved(&front.app, question(PlaceChoice::Here), PlaceChoice::Node(id.clone())).await;
    answer.check();
    assert_eq!(answer.places(), ["here", id.as_str()]);
    let [(_, at_char, thinking_at_char)] = answer.moves.as_slice() else { panic!("{:?}", answer.moves) };
    assert!(*at_char == 0 && *thinking_at_char > 0, "in the middle of thinking");
    let undisturbed = node.undisturbed(node.asked().last().unwrap()).await;
    assert_eq!((answer.thinking, answer.text), undisturbed);
}

#[tokio::test]
async fn a_node_with_another_tokenizer_goes_on_by_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let (own, others) = (model(folder.path(), 7), other_model(folder.path()));
    let (same, node) = (Node::start(&own).await, Node::start(&others).await);
    let front = Fixture::start(OffloadMode::Auto, &own).await;
    let id = node.add_to(&front.app).await;
    set_temperature(&front.app, 0.0).await;
    let answer = moved(&front.app, question(PlaceChoice::Here), PlaceChoice::Node(id.clone())).await;
    answer.check();
    assert_eq!(answer.places(), ["here", id.as_str()]);
    assert_eq!(answer.continuations(), [None, Some("text")]);
    let at = answer.text.char_indices().nth(answer.moves[0].1).unwrap().0;
    let (before, after) = answer.text.split_at(at);
    let takeover = node.asked().pop().unwrap();
    let (_, undisturbed) = same.undisturbed(&takeover).await;
    assert!(undisturbed.starts_with(before), "it was begun as it would have gone on here");
    assert_eq!(takeover["tidegate_written"]["content"], before);
    let (_, rest) = node.answer(&takeover).await;
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
        let node_id = node.add_to(&front.app).await;
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
    assert!(same.undisturbed(&request).await.1.starts_with(before));
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
    assert_eq!(answer.text, same.undisturbed(&request).await.1);
    let kinds: Vec<_> = history(&front.app).await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [DecisionKind::Start, DecisionKind::Stay]);
}

#[tokio::test]
async fn an_answer_of_a_chat_that_stays_here_stays_here() {
    let folder = tempfile::tempdir().unwrap();
    let models = model(folder.path(), 7);
    let node = Node::start(&models).await;
    let front = Fixture::start(OffloadMode::Auto, &models).await;
    let id = node.add_to(&front.app).await;
    set_temperature(&front.app, 0.0).await;
    let first = front.send(question(PlaceChoice::Here)).await;
    let conversation = first.stored().conversation_id;
    front.app.set_stays_local(conversation, true).await.unwrap();
    let again = SendMessage { conversation: Some(conversation), ..SendMessage::default() };
    let answer = moved(&front.app, again, PlaceChoice::Node(id)).await;
    answer.check();
    assert_eq!(answer.places(), ["here"]);
    assert!(answer.why_it_stays().contains("this chat stays here"), "{:?}", answer.notes);
    assert_eq!(node.asked(), [] as [Value; 0], "nothing reached the node");
    assert_eq!(answer.text, first.text);
}
