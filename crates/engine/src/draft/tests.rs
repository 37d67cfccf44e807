use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use candle_core::{Device, Tensor};
use chat::{Bytes, ChatEvent, ChatRequest, Finish, Message, OutputConstraint, Role, SamplingParams, Written};
use futures::StreamExt;
use testkit::gguf::{endless_model, tiny_model, tiny_model_with};

use super::*;
use crate::handle::{Draft, LoadSpec};
use crate::kv_cache::KvCache;
use crate::models;
use crate::relief::Guesses;
use crate::worker::Loader;
use crate::{ChatStream, EngineConfig, EngineHandle};

/// What is wrong with the draft beside its weights.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    Nothing,
    /// Every third pass says something else.
    EveryThird,
    /// Every third pass fails.
    Fails,
    /// What it computes are no numbers.
    NoNumbers,
}

/// The first model that is loaded takes its time, so that drafts pay; the others are drafts.
struct Wrapped {
    model: Box<dyn Model>,
    is_draft: bool,
    flaw: Flaw,
    passes: Arc<AtomicUsize>,
}

impl Model for Wrapped {
    fn forward(&self, parts: &mut [Part<'_>]) -> Result<Tensor, GenerateError> {
        if !self.is_draft {
            sleep(Duration::from_millis(3));
            return self.model.forward(parts);
        }
        let is_third = self.passes.fetch_add(1, Ordering::Relaxed) % 3 == 2;
        let logits = self.model.forward(parts)?;
        match self.flaw {
            Flaw::EveryThird if is_third => Ok(logits.neg()?),
            Flaw::Fails if is_third => Err(candle_core::Error::Msg("a draft that fails".to_owned()).into()),
            Flaw::NoNumbers => Ok((logits * f64::NAN)?),
            _ => Ok(logits),
        }
    }

    fn new_cache(&self, kv_type: KvType) -> KvCache {
        self.model.new_cache(kv_type)
    }
}

/// An engine for one model, and how often its draft ran.
fn engine(flaw: Flaw) -> (EngineHandle, Arc<AtomicUsize>) {
    let passes = Arc::new(AtomicUsize::new(0));
    let counted = passes.clone();
    let mut loaded = 0;
    let loader: Loader = Box::new(move |file, on_progress| {
        let Loaded { model, in_use } = models::load(&file.gguf, &Device::Cpu, on_progress)?;
        loaded += 1;
        let model = Box::new(Wrapped { model, is_draft: loaded > 1, flaw, passes: counted.clone() });
        Ok(Loaded { model, in_use })
    });
    (EngineHandle::start_with(&EngineConfig::default(), loader), passes)
}

fn spec(path: PathBuf, draft: Draft) -> LoadSpec {
    LoadSpec { draft, ..LoadSpec::new(path, 512) }
}

fn request(text: &str, sampling: SamplingParams) -> ChatRequest {
    let messages = vec![Message::new(Role::User, text)];
    ChatRequest { messages, sampling, tells_tokens: true, ..ChatRequest::default() }
}

/// Tokens, text, and logprobs in ten-thousandths: products of f32 weights may round otherwise for several rows.
type Record = (Vec<u32>, String, Vec<i64>);

async fn read(mut stream: ChatStream) -> Result<(Record, Finish), GenerateError> {
    let mut record = Record::default();
    while let Some(event) = stream.next().await {
        match event? {
            ChatEvent::Tokens { ids, .. } => record.0.extend(ids),
            ChatEvent::Text(text) => record.1.push_str(&text),
            ChatEvent::Logprobs(tokens) => {
                record.2.extend(tokens.iter().map(|token| (token.drawn.logprob * 1e4).round() as i64));
            }
            ChatEvent::Finished(finish) => return Ok((record, finish)),
            _ => {}
        }
    }
    panic!("the stream ended without an end");
}

fn requests() -> Vec<ChatRequest> {
    let plain = SamplingParams { max_tokens: Some(60), ..SamplingParams::default() };
    let mut all = Vec::new();
    for (seed, temperature) in [(1, 0.0), (2, 0.4), (3, 0.8), (4, 1.5)] {
        let drawn = SamplingParams { temperature: Some(temperature), seed: Some(seed), ..plain.clone() };
        let penalties = SamplingParams {
            repetition_penalty: Some(1.3),
            frequency_penalty: Some(0.5),
            top_logprobs: Some(2),
            ..drawn.clone()
        };
        let schema =
            r#"{"type":"object","properties":{"n":{"type":"integer"},"s":{"type":"string"}},"required":["n","s"]}"#;
        let constraint = Some(OutputConstraint::JsonSchema(schema.to_owned()));
        let formed = SamplingParams { constraint, ..drawn.clone() };
        let stopped = SamplingParams { stop: vec!["a".to_owned(), "e".to_owned()], ..drawn.clone() };
        all.extend([drawn, penalties, formed, stopped].map(|sampling| request(&format!("Hi {seed}"), sampling)));
    }
    all
}

#[track_caller]
fn assert_same(record: &Record, expected: &Record, case: &str) {
    assert_eq!((&record.0, &record.1), (&expected.0, &expected.1), "{case}");
    assert_eq!(record.2.len(), expected.2.len(), "{case}");
    assert!(record.2.iter().zip(&expected.2).all(|(one, other)| (one - other).abs() <= 1), "{case}");
}

async fn without(path: &Path) -> Vec<Record> {
    let (engine, _) = engine(Flaw::Nothing);
    engine.set_guesses(Guesses::None);
    let mut records = Vec::new();
    for request in requests() {
        records.push(read(engine.chat(spec(path.to_owned(), Draft::None), request)).await.unwrap().0);
    }
    engine.shutdown().await;
    records
}

/// With a draft that is always right, one that is so now and then, one of other weights, and broken ones; one after the
/// other and at once.
#[tokio::test]
async fn no_draft_changes_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(1).write(folder.path(), "main.gguf").unwrap();
    let other = tiny_model(2).write(folder.path(), "other.gguf").unwrap();
    let expected = without(&path).await;
    let cases = [
        (&path, Flaw::Nothing),
        (&path, Flaw::EveryThird),
        (&other, Flaw::Nothing),
        (&path, Flaw::Fails),
        (&path, Flaw::NoNumbers),
    ];
    for (draft, flaw) in cases {
        for guesses in [Guesses::Draft, Guesses::All] {
            let (engine, passes) = engine(flaw);
            engine.set_guesses(guesses);
            let spec = spec(path.clone(), Draft::Named(draft.clone()));
            let mut guessed = 0;
            for (request, expected) in requests().into_iter().zip(&expected) {
                let (record, finish) = read(engine.chat(spec.clone(), request)).await.unwrap();
                assert_same(&record, expected, &format!("{} {flaw:?} {guesses:?}", draft.display()));
                guessed += finish.timings.guessed_tokens;
            }
            assert!(passes.load(Ordering::Relaxed) > 0);
            // How many depends on what the machine does beside this test.
            assert!(guessed > 0 || *draft != path || flaw != Flaw::Nothing);
            let together = requests().into_iter().map(|request| read(engine.chat(spec.clone(), request)));
            let together = futures::future::join_all(together).await;
            let records: Vec<_> = together.into_iter().map(|answer| answer.unwrap().0).collect();
            for (record, expected) in records.iter().zip(&expected) {
                assert_same(record, expected, &format!("{} {flaw:?} {guesses:?}, together", draft.display()));
            }
            engine.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_moved_answer_and_a_next_turn_are_guessed_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = endless_model(1, 512, testkit::gguf::TINY_TEMPLATE, &[]).write(folder.path(), "main.gguf").unwrap();
    let sampling =
        SamplingParams { temperature: Some(0.8), seed: Some(7), max_tokens: Some(80), ..SamplingParams::default() };
    let whole = request("Hi", sampling);
    let spec = spec(path.clone(), Draft::Named(path));
    let (first, _) = engine(Flaw::Nothing);
    let ((tokens, text, _), _) = read(first.chat(spec.clone(), whole.clone())).await.unwrap();
    let (second, _) = engine(Flaw::EveryThird);
    for cut in [1, 33, 79] {
        let written = Some(Written { tokens: tokens[..cut].to_vec(), ..Written::default() });
        let (rest, _) = read(second.chat(spec.clone(), ChatRequest { written, ..whole.clone() })).await.unwrap();
        assert_eq!(rest.0, tokens, "cut after {cut}");
    }
    let turns = [(Role::User, "Hi"), (Role::Assistant, &text), (Role::User, "More")];
    let messages = turns.into_iter().map(|(role, text)| Message::new(role, text)).collect();
    let next = ChatRequest { messages, ..whole };
    let guessed = read(first.chat(spec.clone(), next.clone())).await.unwrap().0;
    first.forget_caches().await;
    first.set_guesses(Guesses::None);
    assert_eq!(read(first.chat(spec, next)).await.unwrap().0, guessed);
    first.shutdown().await;
    second.shutdown().await;
}

#[tokio::test]
async fn a_draft_of_another_vocabulary_is_refused_by_name_and_never_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(1).write(folder.path(), "main.gguf").unwrap();
    let marks: Vec<String> = (0..40).map(|i| format!("<mark-{i}>")).collect();
    let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
    let other = tiny_model_with(1, "", &marks).write(folder.path(), "other.gguf").unwrap();
    let padded = tiny_model_with(1, "", &marks[..2]).write(folder.path(), "padded.gguf").unwrap();
    let (engine, passes) = engine(Flaw::Nothing);
    let ask = || request("Hi", SamplingParams { max_tokens: Some(20), seed: Some(1), ..SamplingParams::default() });
    let error = read(engine.chat(spec(path.clone(), Draft::Named(other.clone())), ask())).await.unwrap_err();
    assert_eq!(error.to_string(), "`other.gguf` can't be the draft of this model: its vocabulary is another");
    let plain = read(engine.chat(spec(path.clone(), Draft::Found(other)), ask())).await.unwrap().0;
    let missing = folder.path().join("missing.gguf");
    assert!(read(engine.chat(spec(path.clone(), Draft::Named(missing.clone())), ask())).await.is_err());
    assert_eq!(read(engine.chat(spec(path.clone(), Draft::Found(missing)), ask())).await.unwrap().0, plain);
    assert_eq!(passes.load(Ordering::Relaxed), 0);
    assert_eq!(read(engine.chat(spec(path, Draft::Named(padded)), ask())).await.unwrap().0, plain);
    assert!(passes.load(Ordering::Relaxed) > 0, "a few words more at its end are padding");
    engine.shutdown().await;
}

#[tokio::test]
async fn a_draft_is_the_first_to_go_where_memory_is_short() {
    let folder = tempfile::tempdir().unwrap();
    let path = endless_model(1, 512, testkit::gguf::TINY_TEMPLATE, &[]).write(folder.path(), "main.gguf").unwrap();
    let sampling = SamplingParams { temperature: Some(0.0), max_tokens: Some(300), ..SamplingParams::default() };
    let ask = || request("Hi", sampling.clone());
    let own = crate::read_header(&path).unwrap().footprint(512, KvType::DEFAULT);
    let spec = spec(path.clone(), Draft::Named(path));
    let (engine, passes) = engine(Flaw::Nothing);
    engine.set_guesses(Guesses::None);
    let expected = read(engine.chat(spec.clone(), ask())).await.unwrap().0;
    engine.set_guesses(Guesses::Draft);
    assert_eq!(engine.loaded().unwrap().footprint.total(), Bytes(2 * own.total().0));

    // While an answer is being written.
    let mut stream = engine.chat(spec.clone(), ask());
    while passes.load(Ordering::Relaxed) < 8 {
        stream.next().await.unwrap().unwrap();
    }
    assert!(engine.idle_caches() >= own.weights, "{}", engine.idle_caches());
    engine.trim_caches().await;
    assert_eq!((engine.idle_caches(), engine.loaded().unwrap().footprint), (Bytes::ZERO, own));
    let ran = passes.load(Ordering::Relaxed);
    while !matches!(stream.next().await.unwrap().unwrap(), ChatEvent::Finished(_)) {}
    assert_eq!(read(engine.chat(spec.clone(), ask())).await.unwrap().0, expected);
    assert_eq!(passes.load(Ordering::Relaxed), ran, "it stays out until the model is loaded anew");
    engine.unload().await;
    engine.shutdown().await;

    // Where there is room for the model alone.
    let (engine, passes) = self::engine(Flaw::Nothing);
    let tight = LoadSpec { available: Some(Bytes(own.total().0 + 1)), ..spec.clone() };
    assert_eq!(read(engine.chat(tight, ask())).await.unwrap().0, expected);
    let tight = LoadSpec { cache_budget: Some(own.kv_cache), ..spec };
    assert_eq!(read(engine.chat(tight, ask())).await.unwrap().0, expected);
    assert_eq!(passes.load(Ordering::Relaxed), 0);
    engine.shutdown().await;
}
