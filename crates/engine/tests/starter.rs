//! The starter model against llama.cpp: the same prompts, the same tokens, the same greedy text. How the reference was
//! made stands in `tools/llamacpp_reference.mjs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic")]

use std::path::PathBuf;

use chat::{
    ChatEvent, ChatRequest, Finish, FinishReason, Message, OutputConstraint, Progress, Redacted, Role, SamplingParams,
    Written,
};
use engine::{ChatStream, EngineConfig, EngineHandle, Evaluator, Guesses, KvType, LoadSpec, Unwritten, read_header};
use futures::StreamExt;
use serde_json::Value;

fn starter() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
    assert!(path.exists(), "the starter model is missing: run `make setup`, which fetches it");
    path
}

fn reference() -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/starter_reference.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn messages(case: &Value) -> Vec<Message> {
    let turns = case["messages"].as_array().unwrap();
    let turn = |turn: &Value| (Role::parse(turn[0].as_str().unwrap()).unwrap(), turn[1].as_str().unwrap().to_owned());
    turns.iter().map(turn).map(|(role, text)| Message::new(role, text)).collect()
}

fn spec() -> LoadSpec {
    LoadSpec::new(starter(), 1024)
}

fn greedy(messages: Vec<Message>, max_tokens: usize) -> ChatRequest {
    let sampling = SamplingParams { temperature: Some(0.0), max_tokens: Some(max_tokens), ..SamplingParams::default() };
    ChatRequest { messages, sampling, ..ChatRequest::default() }
}

async fn read(mut stream: ChatStream) -> (String, Finish, Vec<Progress>) {
    let (mut answer, mut progress) = (String::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            ChatEvent::Text(text) => answer.push_str(&text),
            ChatEvent::Thinking(text) => panic!("this model doesn't think: {text}"),
            ChatEvent::ToolCall { call, .. } => panic!("there is no tool to call: {call:?}"),
            ChatEvent::Progress(step) => progress.push(step),
            ChatEvent::Logprobs(_) | ChatEvent::Tokens { .. } => panic!("nobody asked for them"),
            ChatEvent::Finished(finish) => return (answer, finish, progress),
        }
    }
    panic!("the stream ended without an end");
}

#[tokio::test]
async fn greedy_answers_are_llama_cpps() {
    let engine = EngineHandle::start(EngineConfig::default());
    for case in reference()["cases"].as_array().unwrap() {
        let request = greedy(messages(case), case["maxTokens"].as_u64().unwrap() as usize);
        let count = engine.count_prompt_tokens(&starter(), &request).await.unwrap();
        assert_eq!(count, case["promptIds"].as_array().unwrap().len(), "prompt tokens of {}", case["prompt"]);
        let (answer, finish, _) = read(engine.chat(spec(), request)).await;
        assert_eq!(answer, case["text"].as_str().unwrap());
        let reason = if case["finished"].as_bool().unwrap() { FinishReason::Stop } else { FinishReason::Length };
        assert_eq!(finish.reason, reason);
        assert_eq!(finish.usage.unwrap().completion_tokens, case["ids"].as_array().unwrap().len());
    }
    engine.shutdown().await;
}

/// At a temperature at which a rounding of the last bit would soon show, with logits that say so to the last bit.
#[tokio::test]
async fn an_answer_is_the_same_whatever_else_runs() {
    let request = |seed: u64| {
        let mut request = greedy(vec![Message::new(Role::User, format!("Tell me {seed} things about the sea."))], 24);
        request.sampling =
            SamplingParams { temperature: Some(1.5), seed: Some(seed), top_logprobs: Some(1), ..request.sampling };
        request
    };
    let drawn = async |mut stream: ChatStream| {
        let mut drawn = Vec::new();
        while let Some(event) = stream.next().await {
            if let ChatEvent::Logprobs(tokens) = event.unwrap() {
                drawn.extend(tokens.into_iter().map(|token| (token.drawn.bytes, token.drawn.logprob.to_bits())));
            }
        }
        drawn
    };
    let engine = EngineHandle::start(EngineConfig::default());
    let mut alone = Vec::new();
    for seed in 1..=3 {
        alone.push(drawn(engine.chat(spec(), request(seed))).await);
        engine.unload().await;
    }
    let together = (1..=3).map(|seed| drawn(engine.chat(spec(), request(seed))));
    assert_eq!(futures::future::join_all(together).await, alone);
    engine.shutdown().await;
}

/// On an engine that never saw it: what was decoded token by token there is read as a prompt here.
#[tokio::test]
async fn an_answer_that_goes_on_elsewhere_is_the_one_that_would_have_been() {
    let engine = EngineHandle::start(EngineConfig::default());
    let question = "Explain in two paragraphs how a tide gate works.";
    for temperature in [0.0, 0.8] {
        let mut request = greedy(vec![Message::new(Role::User, question)], 48);
        request.sampling.temperature = Some(temperature);
        request.sampling.seed = Some(3);
        request.tells_tokens = true;
        let (mut tokens, mut text, mut steps) = (Vec::new(), String::new(), Vec::new());
        let mut events = engine.chat(spec(), request.clone());
        while let Some(event) = events.next().await {
            match event.unwrap() {
                ChatEvent::Tokens { ids, .. } => {
                    steps.push((tokens.clone(), text.clone()));
                    tokens.extend(ids);
                }
                ChatEvent::Text(piece) => text.push_str(&piece),
                _ => {}
            }
        }
        for cut in [5, 40] {
            engine.forget_caches().await;
            let (tokens, told) = steps[cut].clone();
            let written = Written { tokens, text: Redacted(told.clone()), ..Written::default() };
            let request = ChatRequest { written: Some(written), tells_tokens: false, ..request.clone() };
            let (rest, finish, _) = read(engine.chat(spec(), request)).await;
            assert_eq!(format!("{told}{rest}"), text, "cut after {cut} tokens at temperature {temperature}");
            assert_eq!(finish.usage.unwrap().completion_tokens, 48);
        }
    }
    engine.shutdown().await;
}

const CODE: &str = "fn area(width: f64, height: f64) -> f64 {
    width * height
}

fn perimeter(width: f64, height: f64) -> f64 {
    2.0 * (width + height)
}

fn is_square(width: f64, height: f64) -> bool {
    (width - height).abs() < f64::EPSILON
}
";

/// Whole answers, for a guess that was wrong may show only later. Its speed is printed, and never a reason to fail.
#[tokio::test]
async fn guesses_change_nothing_in_an_answer() {
    let edit =
        format!("Rename `width` to `w` in this code and give me all of it, in one block, without a word more.\n{CODE}");
    let (edit, chat) = (Message::new(Role::User, edit), Message::new(Role::User, "Why is the sky blue?"));
    for (name, question, temperature) in [("edit", &edit, 0.0), ("edit", &edit, 0.8), ("chat", &chat, 0.0)] {
        let mut answers = Vec::new();
        for guesses in [Guesses::None, Guesses::All] {
            let engine = EngineHandle::start(EngineConfig::default());
            engine.set_guesses(guesses);
            let mut request = greedy(vec![question.clone()], 80);
            (request.sampling.temperature, request.sampling.seed) = (Some(temperature), Some(5));
            let (text, finish, _) = read(engine.chat(spec(), request)).await;
            let speed = finish.timings.decode_tokens_per_sec.unwrap();
            let guessed = finish.timings.guessed_tokens;
            println!("{name} at {temperature}, guesses {guesses:?}: {guessed} right, {speed:.1} tokens/s");
            assert_eq!(guessed > 0, guesses == Guesses::All && name == "edit", "{name}");
            answers.push((text, finish.reason, finish.usage.unwrap().completion_tokens));
            engine.shutdown().await;
        }
        assert_eq!(answers[0], answers[1], "{name} at {temperature}");
    }
}

#[tokio::test]
async fn a_conversation_goes_on_from_the_cache() {
    let engine = EngineHandle::start(EngineConfig::default());
    let mut messages = vec![Message::new(Role::User, "What is 7 times 8?")];
    let (answer, first, progress) = read(engine.chat(spec(), greedy(messages.clone(), 16))).await;
    assert_eq!(answer, "7 times 8 is 56.");
    assert_eq!(first.usage.unwrap().cached_tokens, 0);
    assert!(matches!(progress[0], Progress::Loading { .. }), "{progress:?}");
    assert_eq!(engine.loaded().unwrap().path, starter());

    messages.push(Message::new(Role::Assistant, answer));
    messages.push(Message::new(Role::User, "And times 2?"));
    let (_, second, progress) = read(engine.chat(spec(), greedy(messages.clone(), 4))).await;
    let usage = second.usage.unwrap();
    assert!(usage.cached_tokens > first.usage.unwrap().prompt_tokens, "{usage:?}");
    assert!(progress.iter().all(|step| matches!(step, Progress::Prefill { .. })), "{progress:?}");

    engine.unload().await;
    assert!(engine.loaded().is_none());
    engine.shutdown().await;
}

#[test]
fn the_header_tells_what_the_model_is() {
    let header = read_header(&starter()).unwrap();
    header.check_supported().unwrap();
    assert_eq!((header.architecture.as_str(), header.quantization.as_str()), ("qwen2", "Q4_K_M"));
    assert_eq!((header.context_len, header.takes_tools(), header.has_thinking()), (32_768, true, false));
    assert_eq!(header.kv_bytes_per_token(KvType::DEFAULT).0, 24 * 2 * 2 * 64 * 2);
}

#[tokio::test]
async fn a_schema_shapes_what_the_model_knows() {
    let engine = EngineHandle::start(EngineConfig::default());
    let schema = r#"{"type":"object","properties":{"capital":{"type":"string","maxLength":30},
        "continent":{"enum":["Africa","Asia","Europe"]}},"required":["capital","continent"],"additionalProperties":false}"#;
    let mut request = greedy(vec![Message::new(Role::User, "Tell me about France, as JSON.")], 60);
    request.sampling.constraint = Some(OutputConstraint::JsonSchema(schema.to_owned()));
    let (answer, finish, _) = read(engine.chat(spec(), request)).await;
    assert_eq!(finish.reason, FinishReason::Stop);
    let value: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(value, serde_json::json!({ "capital": "Paris", "continent": "Europe" }));
    engine.shutdown().await;
}

/// With values in 8 bits, and keys in 16 since this model's have a bias, it says nearly the same.
#[test]
fn eight_bit_caches_change_little() {
    let model = Evaluator::open(&starter(), Unwritten::default()).unwrap();
    let header = read_header(&starter()).unwrap();
    let (mut positions, mut alike, mut divergence) = (0, 0, 0.0_f64);
    for case in reference()["cases"].as_array().unwrap() {
        let ids = |key: &str| case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
        let tokens: Vec<u32> = ids("promptIds").chain(ids("ids")).collect();
        let [full, packed] = [KvType::DEFAULT, KvType::Q8].map(|kv_type| {
            let mut sequence = model.sequence(kv_type);
            let logits = model.logits(&mut [(&tokens, &mut sequence)]).unwrap();
            assert_eq!(sequence.allocated(), header.footprint(tokens.len(), kv_type).kv_cache);
            logits
        });
        for (full, packed) in full.iter().zip(&packed) {
            let (p, q) = (log_softmax(full), log_softmax(packed));
            divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            let best = |logits: &[f64]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            alike += usize::from(best(&p) == best(&q));
            positions += 1;
        }
    }
    let (alike, divergence) = (alike as f64 / f64::from(positions), divergence / f64::from(positions));
    println!("{positions} positions: the same best token in {:.1} %, divergence {divergence:.1e}", 100.0 * alike);
    assert!(alike > 0.95 && divergence < 0.01);
    assert_eq!(header.kv_bytes_per_token(KvType::Q8).0, 24 * 2 * (2 * 64 + 64 + 2 * 4));
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - most) - sum.ln()).collect()
}
