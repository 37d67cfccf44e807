//! The engine through its front door, with a model of a few hundred kilobytes.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use chat::{ChatEvent, ChatRequest, Finish, FinishReason, Message, Progress, Role, SamplingParams};
use engine::{ChatStream, EngineConfig, EngineHandle, GenerateError, LoadError, LoadSpec};
use futures::StreamExt;
use testkit::gguf::tiny_model;

fn spec(folder: &Path, seed: u64) -> LoadSpec {
    let path = tiny_model(seed).write(folder, &format!("tiny-{seed}.gguf")).unwrap();
    LoadSpec { path, context_len: 512 }
}

fn request(text: &str, sampling: SamplingParams) -> ChatRequest {
    ChatRequest { messages: vec![Message::new(Role::User, text)], sampling, ..ChatRequest::default() }
}

fn sampled(seed: u64, max_tokens: usize) -> SamplingParams {
    SamplingParams {
        temperature: Some(1.5),
        seed: Some(seed),
        max_tokens: Some(max_tokens),
        ..SamplingParams::default()
    }
}

async fn read(mut stream: ChatStream) -> Result<(String, Finish), GenerateError> {
    let mut answer = String::new();
    while let Some(event) = stream.next().await {
        match event? {
            ChatEvent::Text(text) | ChatEvent::Thinking(text) => answer.push_str(&text),
            ChatEvent::Progress(_) => {}
            ChatEvent::Finished(finish) => return Ok((answer, finish)),
        }
    }
    panic!("the stream ended without an end");
}

#[tokio::test]
async fn the_same_seed_gives_the_same_text() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = spec(folder.path(), 1);
    let (first, finish) = read(engine.chat(spec.clone(), request("Hi", sampled(1, 40)))).await.unwrap();
    let (again, _) = read(engine.chat(spec.clone(), request("Hi", sampled(1, 40)))).await.unwrap();
    let (other, _) = read(engine.chat(spec, request("Hi", sampled(2, 40)))).await.unwrap();
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!(finish.usage.unwrap().completion_tokens > 0);
    assert!(finish.timings.ttft.is_some());
    engine.shutdown().await;
}

#[tokio::test]
async fn a_dropped_stream_ends_its_answer_and_the_next_one_runs() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = spec(folder.path(), 1);
    let mut dropped = engine.chat(spec.clone(), request("Hi", sampled(3, 400)));
    while let Some(event) = dropped.next().await {
        if let ChatEvent::Text(_) = event.unwrap() {
            break;
        }
    }
    drop(dropped);
    let (_, finish) = read(engine.chat(spec, request("Hi", sampled(1, 3)))).await.unwrap();
    assert_eq!(finish.reason, FinishReason::Length);
    engine.shutdown().await;
}

#[tokio::test]
async fn requests_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = spec(folder.path(), 1);
    let first = engine.chat(spec.clone(), request("Hi", sampled(1, 30)));
    let mut second = engine.chat(spec, request("Ho", sampled(1, 3)));
    let event = second.next().await.unwrap().unwrap();
    assert_eq!(event, ChatEvent::Progress(Progress::Waiting { ahead: 1 }));
    read(first).await.unwrap();
    read(second).await.unwrap();
    engine.shutdown().await;
}

#[tokio::test]
async fn models_are_swapped_and_idle_ones_unloaded() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig { idle_unload: Some(Duration::from_millis(50)), threads: None };
    let engine = EngineHandle::start(config);
    let (one, two) = (spec(folder.path(), 1), spec(folder.path(), 2));
    let greedy = SamplingParams { temperature: Some(0.0), max_tokens: Some(20), ..SamplingParams::default() };
    let (from_one, _) = read(engine.chat(one.clone(), request("Hi", greedy.clone()))).await.unwrap();
    let (from_two, _) = read(engine.chat(two, request("Hi", greedy.clone()))).await.unwrap();
    assert_ne!(from_one, from_two);
    // An unload is only an event inside the engine: ask until it shows.
    while engine.loaded().is_some() {
        tokio::task::yield_now().await;
    }
    let (again, _) = read(engine.chat(one, request("Hi", greedy))).await.unwrap();
    assert_eq!(again, from_one);
    engine.shutdown().await;
}

#[tokio::test]
async fn what_does_not_fit_is_told_in_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = LoadSpec { context_len: 64, ..spec(folder.path(), 1) };
    let messages = [Message::new(Role::User, "x".repeat(100))];
    let count = engine.count_prompt_tokens(&spec.path, &messages).await.unwrap();
    match read(engine.chat(spec, request(messages[0].text.expose(), sampled(1, 3)))).await {
        Err(GenerateError::ContextFull { prompt_tokens, context_len: 64 }) => assert_eq!(prompt_tokens, count),
        other => panic!("{other:?}"),
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn an_answer_ends_where_the_context_does() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = LoadSpec { context_len: 48, ..spec(folder.path(), 1) };
    let sampling = SamplingParams { max_tokens: None, ..sampled(5, 0) };
    let (_, finish) = read(engine.chat(spec, request("Hi", sampling))).await.unwrap();
    let usage = finish.usage.unwrap();
    assert!(finish.reason == FinishReason::Stop || usage.prompt_tokens + usage.completion_tokens == 48, "{usage:?}");
    engine.shutdown().await;
}

#[tokio::test]
async fn a_missing_or_broken_file_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let missing = LoadSpec { path: PathBuf::from("/nowhere/model.gguf"), context_len: 64 };
    let error = read(engine.chat(missing, request("Hi", sampled(1, 3)))).await.unwrap_err();
    assert!(matches!(error, GenerateError::Load(LoadError::Read { .. })), "{error}");
    let whole = spec(folder.path(), 1);
    let bytes = std::fs::read(&whole.path).unwrap();
    std::fs::write(&whole.path, &bytes[..bytes.len() / 2]).unwrap();
    let error = read(engine.chat(whole, request("Hi", sampled(1, 3)))).await.unwrap_err();
    assert!(error.to_string().contains("the download stopped at"), "{error}");
    engine.shutdown().await;
}

#[tokio::test]
async fn after_a_shutdown_nothing_runs() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    engine.shutdown().await;
    let error = read(engine.chat(spec(folder.path(), 1), request("Hi", sampled(1, 3)))).await.unwrap_err();
    assert!(matches!(error, GenerateError::ShutDown), "{error}");
}
