//! Where answers run: here, on a node, and what happens when a node goes away.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::PathBuf;

use app::{ErrorCode, MessageState, OffloadMode, PlaceChoice, SendMessage};
use futures::StreamExt;
use system_tests::Fixture;
use testkit::gguf::tiny_model;
use testkit::node::{FAKE_ANSWER, FakeNode, Reply, Step};

fn tiny(folder: &tempfile::TempDir) -> Vec<PathBuf> {
    vec![tiny_model(7).write(folder.path(), "tiny.gguf").unwrap()]
}

#[tokio::test]
async fn a_message_is_answered_here_and_is_there_after_a_restart() {
    let models = tempfile::tempdir().unwrap();
    let models = tiny(&models);
    let fixture = Fixture::start(OffloadMode::LocalOnly, &models).await;
    let reply = fixture.ask("hello").await;
    assert_eq!(reply.error, None);
    assert_eq!(reply.targets, ["here"]);
    assert_eq!(reply.stored().text, reply.text, "the stored answer is what was shown");
    let id = reply.stored().conversation_id;

    let fixture = fixture.restart(OffloadMode::LocalOnly, &models).await;
    assert_eq!(fixture.app.conversations().len(), 1);
    let (conversation, _) = fixture.app.conversation(id).await.unwrap();
    assert_eq!(conversation.title, "hello");
    assert_eq!(conversation.messages[0].text, "hello");
    assert_eq!(conversation.messages[1], *reply.stored());
    assert!(app::decision_of(&conversation.messages[1]).is_some(), "the decision is kept with the answer");
}

#[tokio::test]
async fn dropping_the_stream_stops_the_answer_and_keeps_what_came() {
    let (folder, node) = (tempfile::tempdir().unwrap(), FakeNode::start().await);
    node.on(FakeNode::CHAT, Reply::stream([Step::text("begun"), Step::Hang]));
    let fixture = Fixture::start(OffloadMode::Remote, &tiny(&folder)).await;
    fixture.app.add_node(&node.url(), None).await.unwrap();
    let message = SendMessage { text: Some("hello".to_owned()), ..SendMessage::default() };
    let mut events = fixture.app.send_message(message).await.unwrap();
    let mut id = None;
    while let Some(event) = events.next().await {
        match event {
            app::ReplyEvent::Accepted { conversation, .. } => id = Some(conversation),
            app::ReplyEvent::Text(_) => break,
            _ => {}
        }
    }
    drop(events);
    node.wait_for_hang_ups(1).await;
    fixture.app.shutdown().await;
    let (conversation, _) = fixture.app.conversation(id.unwrap()).await.unwrap();
    assert_eq!(conversation.messages[1].text, "begun");
    assert_eq!(conversation.messages[1].state, MessageState::Stopped);
}

#[tokio::test]
async fn with_the_switch_on_remote_the_next_message_streams_from_the_node() {
    let (folder, node) = (tempfile::tempdir().unwrap(), FakeNode::start().await);
    node.require_key("secret");
    let fixture = Fixture::start(OffloadMode::Remote, &tiny(&folder)).await;
    let view = fixture.app.add_node(&node.url(), Some("secret".to_owned())).await.unwrap();
    assert!(view.has_key);

    let reply = fixture.ask("what is a tide gate?").await;
    assert_eq!(reply.error, None);
    assert_eq!(reply.targets, ["node"]);
    assert_eq!(reply.text, FAKE_ANSWER.concat());
    let request = node.requests_of(FakeNode::CHAT).pop().unwrap().json();
    assert_eq!(request["messages"][0]["content"], "what is a tide gate?");

    // The key survives a restart and is not in the database.
    let fixture = fixture.restart(OffloadMode::Remote, &[]).await;
    let view = fixture.app.probe_node(&view.id).await.unwrap();
    assert!(matches!(view.status.unwrap().state, app::NodeState::Ready));
    let database = std::fs::read(fixture.folder.path().join("data/tidegate.db")).unwrap();
    assert!(!database.windows(6).any(|window| window == b"secret"));
}

#[tokio::test]
async fn a_node_that_dies_in_mid_answer_loses_nothing_and_the_answer_can_be_had_here() {
    let (folder, node) = (tempfile::tempdir().unwrap(), FakeNode::start().await);
    node.on(FakeNode::CHAT, Reply::stream([Step::text("half an "), Step::text("answer"), Step::Reset]));
    let fixture = Fixture::start(OffloadMode::Remote, &tiny(&folder)).await;
    fixture.app.add_node(&node.url(), None).await.unwrap();

    let failed = fixture.ask("hello").await;
    assert_eq!(failed.error, Some(ErrorCode::CutOff));
    assert_eq!(failed.stored().text, "half an answer");
    assert!(matches!(failed.stored().state, MessageState::Failed { .. }));

    let again = SendMessage {
        conversation: Some(failed.stored().conversation_id),
        place: Some(PlaceChoice::Here),
        ..SendMessage::default()
    };
    let reply = fixture.send(again).await;
    assert_eq!(reply.error, None);
    assert_eq!(reply.targets, ["here"]);
    let (conversation, _) = fixture.app.conversation(failed.stored().conversation_id).await.unwrap();
    let texts: Vec<_> = conversation.messages.iter().map(|message| message.text.as_str()).collect();
    assert_eq!(texts, ["hello", "half an answer", reply.text.as_str()]);
}

#[tokio::test]
async fn a_node_that_is_gone_is_a_clear_error_and_the_question_stays() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::start(OffloadMode::Remote, &tiny(&folder)).await;
    let node = FakeNode::start().await;
    fixture.app.add_node(&node.url(), None).await.unwrap();
    node.stop().await;

    let failed = fixture.ask("keep me").await;
    assert_eq!(failed.error, Some(ErrorCode::NodeUnreachable));
    let (conversation, _) = fixture.app.conversation(failed.stored().conversation_id).await.unwrap();
    assert_eq!(conversation.messages[0].text, "keep me");
}

#[tokio::test]
async fn in_auto_a_node_that_fails_before_its_first_token_is_passed_over() {
    let (broken, sound) = (FakeNode::start().await, FakeNode::start().await);
    broken.on(FakeNode::CHAT, Reply::error(500, "out of memory"));
    // No model here: only nodes can answer.
    let fixture = Fixture::start(OffloadMode::Auto, &[]).await;
    fixture.app.add_node(&broken.url(), None).await.unwrap();
    fixture.app.add_node(&sound.url(), None).await.unwrap();

    let reply = fixture.ask("hello").await;
    assert_eq!(reply.error, None);
    assert_eq!(reply.text, FAKE_ANSWER.concat());
}

#[tokio::test]
async fn a_chat_that_stays_here_never_reaches_a_node() {
    let (folder, node) = (tempfile::tempdir().unwrap(), FakeNode::start().await);
    let fixture = Fixture::start(OffloadMode::Remote, &tiny(&folder)).await;
    fixture.app.add_node(&node.url(), None).await.unwrap();
    let first = fixture.ask("in public").await;
    assert_eq!(first.targets, ["node"]);

    let id = first.stored().conversation_id;
    fixture.app.set_stays_local(id, true).await.unwrap();
    let message = SendMessage {
        conversation: Some(id),
        text: Some("in private".to_owned()),
        place: fixture.app.nodes().pop().map(|node| PlaceChoice::Node(node.id)),
        ..SendMessage::default()
    };
    let reply = fixture.send(message).await;
    assert!(reply.targets.iter().all(|target| target != "node"), "{:?}", reply.targets);
    assert_eq!(node.requests_of(FakeNode::CHAT).len(), 1);
}
