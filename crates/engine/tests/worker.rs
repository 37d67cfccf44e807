//! The engine through its front door, with a model of a few hundred kilobytes.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use chat::{
    Bytes, ChatEvent, ChatRequest, Finish, FinishReason, Message, OutputConstraint, Progress, Role, SamplingParams,
    TokenLogprob,
};
use engine::{ChatStream, EngineConfig, EngineHandle, GenerateError, KvType, LoadError, LoadSpec};
use futures::StreamExt;
use testkit::gguf::tiny_model;

fn spec(folder: &Path, seed: u64) -> LoadSpec {
    let path = tiny_model(seed).write(folder, &format!("tiny-{seed}.gguf")).unwrap();
    LoadSpec::new(path, 512)
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
            ChatEvent::Progress(_) | ChatEvent::ToolCall { .. } | ChatEvent::Logprobs(_) | ChatEvent::Tokens { .. } => {
            }
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

/// Greedy and drawn answers of several requests that run together, some with much of their prompt in common, are what
/// each gives alone.
#[tokio::test]
async fn answers_that_run_together_are_what_each_is_alone() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(folder.path(), 1);
    let alike = "the same beginning for all of them, longer than a chunk beside an answer. ".repeat(3);
    let requests: Vec<ChatRequest> = (0..6)
        .map(|i| {
            let text = if i % 2 == 0 { format!("{alike}{i}") } else { format!("{i}") };
            let sampling = sampled(i, 20 + 5 * i as usize);
            request(&text, if i < 2 { SamplingParams { temperature: Some(0.0), ..sampling } } else { sampling })
        })
        .collect();
    let mut alone = Vec::new();
    for request in &requests {
        let engine = EngineHandle::start(EngineConfig::default());
        alone.push(read(engine.chat(spec.clone(), request.clone())).await.unwrap().0);
        engine.shutdown().await;
    }
    let engine = EngineHandle::start(EngineConfig { slots: 3, ..EngineConfig::default() });
    let together = requests.iter().map(|request| read(engine.chat(spec.clone(), request.clone())));
    let together: Vec<_> = futures::future::join_all(together).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(together.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>(), alone);
    assert!(together.iter().any(|(_, finish)| finish.usage.unwrap().cached_tokens > 100), "a prefix was reused");
    engine.shutdown().await;
}

#[tokio::test]
async fn a_budget_for_one_cache_runs_one_answer_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = spec(folder.path(), 1);
    let one = engine::read_header(&spec.path).unwrap().footprint(512, KvType::DEFAULT).kv_cache;
    let spec = LoadSpec { cache_budget: Some(one), ..spec };
    let mut first = engine.chat(spec.clone(), request("Hi", sampled(1, 200)));
    let second = engine.chat(spec, request("Ho", sampled(1, 3)));
    while !matches!(first.next().await.unwrap().unwrap(), ChatEvent::Text(_)) {}
    let ended = std::sync::Mutex::new(Vec::new());
    let note = |name| ended.lock().unwrap().push(name);
    // The first is always looked at first: where both have ended meanwhile, nobody knows in what order.
    let first = async { (read(first).await.unwrap(), note("first")) };
    futures::future::join(first, async { (read(second).await.unwrap(), note("second")) }).await;
    assert_eq!(*ended.lock().unwrap(), ["first", "second"]);
    engine.shutdown().await;
}

#[tokio::test]
async fn requests_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig { slots: 1, most_waiting: 1, ..EngineConfig::default() });
    let spec = spec(folder.path(), 1);
    let first = engine.chat(spec.clone(), request("Hi", sampled(1, 30)));
    let mut second = engine.chat(spec.clone(), request("Ho", sampled(1, 3)));
    let event = second.next().await.unwrap().unwrap();
    assert_eq!(event, ChatEvent::Progress(Progress::Waiting { ahead: 1 }));
    let third = engine.chat(spec, request("He", sampled(1, 3)));
    assert!(matches!(read(third).await, Err(GenerateError::Busy(1))));
    read(first).await.unwrap();
    read(second).await.unwrap();
    engine.shutdown().await;
}

#[tokio::test]
async fn models_are_swapped_and_idle_ones_unloaded() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig { idle_unload: Some(Duration::from_millis(50)), ..EngineConfig::default() };
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
async fn a_model_larger_than_what_is_available_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let (small, large) = (spec(folder.path(), 1), spec(folder.path(), 2));
    let needed = engine::read_header(&large.path).unwrap().footprint(512, KvType::DEFAULT).total();
    let with = |available| LoadSpec { available: Some(available), ..large.clone() };
    read(engine.chat(small.clone(), request("Hi", sampled(1, 3)))).await.unwrap();
    match read(engine.chat(with(Bytes(needed.0 - 1)), request("Hi", sampled(1, 3)))).await {
        Err(GenerateError::Load(LoadError::NotEnoughMemory { needed: told, available })) => {
            assert_eq!((told, available), (needed, Bytes(needed.0 - 1)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(engine.loaded().unwrap().path, small.path, "what is loaded stays");
    read(engine.chat(with(needed), request("Hi", sampled(1, 3)))).await.unwrap();
    assert_eq!(engine.loaded().unwrap().path, large.path);
    assert_eq!(engine.watch_unloads().borrow().as_ref().unwrap().path, small.path);
    engine.shutdown().await;
}

#[tokio::test]
async fn what_does_not_fit_is_told_in_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = LoadSpec { context_len: 64, ..spec(folder.path(), 1) };
    let request = request(&"x".repeat(100), sampled(1, 3));
    let count = engine.count_prompt_tokens(&spec.path, &request).await.unwrap();
    match read(engine.chat(spec, request)).await {
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
    let missing = LoadSpec::new(PathBuf::from("/nowhere/model.gguf"), 64);
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

#[tokio::test]
async fn a_constrained_answer_fits_its_schema_or_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = spec(folder.path(), 1);
    let schema = r#"{"type":"object","properties":{"ok":{"type":"boolean"},"n":{"enum":[1,"größe"]}},"required":["ok","n"],
        "additionalProperties":false}"#;
    let constraint = Some(OutputConstraint::JsonSchema(schema.to_owned()));
    for seed in 0..5 {
        let sampling = SamplingParams { constraint: constraint.clone(), ..sampled(seed, 400) };
        let (answer, finish) = read(engine.chat(spec.clone(), request("Hi", sampling))).await.unwrap();
        assert_eq!(finish.reason, FinishReason::Stop);
        let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert!(value["ok"].is_boolean() && (value["n"] == 1 || value["n"] == "größe"), "{answer}");
        assert_eq!(value.as_object().unwrap().len(), 2);
    }
    let sampling = SamplingParams { constraint, ..sampled(1, 3) };
    let (answer, finish) = read(engine.chat(spec.clone(), request("Hi", sampling))).await.unwrap();
    assert_eq!(finish.reason, FinishReason::Length);
    assert!(answer.starts_with('{'), "{answer}");
    engine.shutdown().await;
}

#[tokio::test]
async fn a_constraint_leaves_thinking_free_and_never_cuts_it_short() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = spec(folder.path(), 1);
    // The template opens a thinking part, in as many bytes.
    let mut file = std::fs::read(&spec.path).unwrap();
    let (plain, thinks) = (b"<|im_start|>assistant\n", b"<|im_start|>   <think>");
    let at = file.windows(plain.len()).position(|bytes| bytes == plain).unwrap();
    file[at..at + plain.len()].copy_from_slice(thinks);
    std::fs::write(&spec.path, file).unwrap();
    // The grammar allows one byte, and the model is pushed to end at once.
    let sampling = SamplingParams {
        constraint: Some(OutputConstraint::Grammar("start: \"7\"".to_owned())),
        logit_bias: vec![(261, 90.0), (263, 90.0)],
        ..sampled(1, 30)
    };
    let mut thinking = String::new();
    let mut events = engine.chat(spec, request("Hi", sampling));
    loop {
        match events.next().await.unwrap().unwrap() {
            ChatEvent::Thinking(text) => thinking.push_str(&text),
            ChatEvent::Text(text) => panic!("it never stopped thinking: {text}"),
            ChatEvent::Finished(finish) => break assert_eq!(finish.reason, FinishReason::Length),
            ChatEvent::Progress(_) | ChatEvent::Logprobs(_) | ChatEvent::Tokens { .. } | ChatEvent::ToolCall { .. } => {
            }
        }
    }
    assert!(!thinking.is_empty());
    engine.shutdown().await;
}

#[tokio::test]
async fn logprobs_come_with_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = spec(folder.path(), 1);
    let sampling = SamplingParams { top_logprobs: Some(4), ..sampled(1, 25) };
    let mut events = engine.chat(spec, request("Hi", sampling));
    let (mut logprobs, mut text): (Vec<TokenLogprob>, String) = (Vec::new(), String::new());
    let finish = loop {
        match events.next().await.unwrap().unwrap() {
            ChatEvent::Logprobs(more) => logprobs.extend(more),
            ChatEvent::Text(more) => {
                assert!(!logprobs.is_empty(), "they come before their text");
                text.push_str(&more);
            }
            ChatEvent::Finished(finish) => break finish,
            ChatEvent::Progress(_) | ChatEvent::Thinking(_) | ChatEvent::Tokens { .. } | ChatEvent::ToolCall { .. } => {
            }
        }
    };
    assert_eq!(logprobs.len(), finish.usage.unwrap().completion_tokens);
    let bytes: Vec<u8> = logprobs.iter().flat_map(|token| token.drawn.bytes.clone()).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
    for token in &logprobs {
        assert_eq!(token.top.len(), 4);
        assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        assert!(token.drawn.logprob <= token.top[0].logprob && token.top[0].logprob < 0.0);
        assert!(token.top.iter().map(|other| other.logprob.exp()).sum::<f32>() < 1.0001);
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_no_model_has_to_go_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let [loaded, spec] = [1, 2].map(|seed| spec(folder.path(), seed));
    read(engine.chat(loaded.clone(), request("Hi", sampled(1, 2)))).await.unwrap();
    let schema = Some(OutputConstraint::JsonSchema(r#"{"type":"colour"}"#.to_owned()));
    for sampling in [
        SamplingParams { temperature: Some(f32::NAN), ..SamplingParams::default() },
        SamplingParams { constraint: schema, ..SamplingParams::default() },
    ] {
        let error = read(engine.chat(spec.clone(), request("Hi", sampling))).await.unwrap_err();
        assert!(matches!(error, GenerateError::InvalidRequest(_)), "{error}");
        assert_eq!(engine.loaded().unwrap().path, loaded.path);
    }
    engine.shutdown().await;
}

/// A conversation goes on without its beginning being run again, after an unload, another model, and a restart; not with
/// another model in the same file.
#[tokio::test]
async fn a_conversation_survives_its_model_being_unloaded() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig { cache_dir: Some(folder.path().join("caches")), ..EngineConfig::default() };
    let (one, two) = (spec(folder.path(), 1), spec(folder.path(), 2));
    let text = "a long question, of which nobody wants to run every word again. ".repeat(5);
    let greedy = SamplingParams { temperature: Some(0.0), max_tokens: Some(20), ..SamplingParams::default() };
    let ask = |engine: &EngineHandle, spec: &LoadSpec, more: &str| {
        read(engine.chat(spec.clone(), request(&format!("{text}{more}"), greedy.clone())))
    };
    let engine = EngineHandle::start(config.clone());
    let (answer, finish) = ask(&engine, &one, "").await.unwrap();
    let prompt_tokens = finish.usage.unwrap().prompt_tokens;
    assert!(prompt_tokens > 256);
    engine.unload().await;
    let (again, finish) = ask(&engine, &one, "").await.unwrap();
    assert_eq!((again, finish.usage.unwrap().cached_tokens), (answer.clone(), prompt_tokens - 1));
    assert_eq!(ask(&engine, &two, "").await.unwrap().1.usage.unwrap().cached_tokens, 0);
    assert!(ask(&engine, &one, "And?").await.unwrap().1.usage.unwrap().cached_tokens > 256);
    engine.shutdown().await;

    let engine = EngineHandle::start(config.clone());
    let (again, finish) = ask(&engine, &one, "").await.unwrap();
    assert_eq!(again, answer);
    assert!(finish.usage.unwrap().cached_tokens > 256);
    engine.shutdown().await;

    let engine = EngineHandle::start(config.clone());
    assert!(ask(&engine, &one, "").await.unwrap().1.usage.unwrap().cached_tokens > 256);
    engine.forget_caches().await;
    assert_eq!(std::fs::read_dir(folder.path().join("caches")).unwrap().count(), 0);
    assert_eq!(ask(&engine, &one, "").await.unwrap().1.usage.unwrap().cached_tokens, 0);
    ask(&engine, &two, "").await.unwrap();
    engine.shutdown().await;

    std::fs::copy(&two.path, &one.path).unwrap();
    let engine = EngineHandle::start(config);
    let (other, finish) = ask(&engine, &one, "").await.unwrap();
    assert_ne!(other, answer);
    assert!(finish.usage.unwrap().cached_tokens > 256, "the other model's own cache is found under another name");
    engine.shutdown().await;
}

/// Its forecast is smaller, and caches on disk are told from those in full.
#[tokio::test]
async fn caches_are_kept_in_eight_bits_where_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let engine =
        EngineHandle::start(EngineConfig { cache_dir: Some(folder.path().join("caches")), ..EngineConfig::default() });
    let full = spec(folder.path(), 1);
    let packed = LoadSpec { kv_type: KvType::Q8, ..full.clone() };
    let (header, long) = (engine::read_header(&full.path).unwrap(), "what was asked, at length. ".repeat(12));
    // Each is unloaded for the next, and finds its own caches again.
    for (spec, cached) in [(&full, false), (&packed, false), (&full, true), (&packed, true)] {
        let (_, finish) = read(engine.chat(spec.clone(), request(&long, sampled(1, 10)))).await.unwrap();
        assert_eq!(finish.usage.unwrap().cached_tokens > 256, cached, "{:?}", spec.kv_type);
        assert_eq!(engine.loaded().unwrap().footprint, header.footprint(512, spec.kv_type));
    }
    engine.shutdown().await;
    let [packed, full] = [KvType::Q8, KvType::F32].map(|kv_type| header.footprint(512, kv_type).kv_cache);
    assert!(packed.0 * 3 < full.0 * 2);
}

#[tokio::test]
async fn a_machine_in_trouble_is_relieved() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = spec(folder.path(), 1);
    // Ends that the model may find by itself are forbidden.
    let endless = SamplingParams { logit_bias: vec![(263, -90.0), (261, -90.0)], ..sampled(1, 400) };
    let (_, whole) = read(engine.chat(spec.clone(), request("Hi", endless.clone()))).await.unwrap();
    let prompt = whole.usage.unwrap().prompt_tokens;
    assert_eq!(whole.usage.unwrap().completion_tokens, 400);
    // The end is told before the slot is free.
    while engine.idle_caches() == Bytes::ZERO {
        tokio::task::yield_now().await;
    }
    engine.trim_caches().await;
    assert_eq!(engine.idle_caches(), Bytes::ZERO);
    engine.cap_context(Some(prompt + 30));
    let (_, capped) = read(engine.chat(spec.clone(), request("Hi", endless.clone()))).await.unwrap();
    assert_eq!(capped.reason, FinishReason::Length);
    assert_eq!(capped.usage.unwrap().completion_tokens, 30);
    engine.cap_context(None);
    engine.set_pace(Some(50.0));
    let paced = SamplingParams { max_tokens: Some(21), ..endless };
    let started = std::time::Instant::now();
    read(engine.chat(spec, request("Hi", paced))).await.unwrap();
    // Twenty steps of at least 20 ms each: no machine is too fast for it.
    assert!(started.elapsed() >= Duration::from_millis(400));
    engine.shutdown().await;
}
