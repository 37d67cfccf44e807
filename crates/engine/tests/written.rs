//! An answer that goes on from where another engine left it, after any of its tokens, is the one that would have been.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic")]

use std::path::Path;

use chat::{
    ChatEvent, ChatRequest, Finish, FinishReason, Message, OutputConstraint, Redacted, Role, SamplingParams, Tool,
    ToolCall, Written,
};
use engine::{EngineConfig, EngineHandle, GenerateError, LoadSpec};
use futures::StreamExt;
use testkit::gguf::{tiny_model, tiny_model_with};

const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
                        {% endfor %}<|im_start|>assistant\n{# <think> <tool_call> #}";

/// What came of one answer, and after which of its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
struct Record {
    tokens: Vec<u32>,
    text: String,
    thinking: String,
    calls: Vec<ToolCall>,
    finish: Option<Finish>,
    /// As far as it had come before each token.
    steps: Vec<Written>,
}

impl Record {
    fn written(&self) -> Written {
        Written {
            tokens: self.tokens.clone(),
            text: Redacted(self.text.clone()),
            thinking: Redacted(self.thinking.clone()),
            calls: self.calls.len(),
        }
    }

    fn assert_same(&self, whole: &Self, case: &str) {
        assert_eq!(self.text, whole.text, "{case}");
        assert_eq!(self.thinking, whole.thinking, "{case}");
        assert_eq!(self.calls, whole.calls, "{case}");
        assert_eq!(self.tokens, whole.tokens, "{case}");
        let end = |record: &Self| record.finish.map(|finish| (finish.reason, finish.usage.unwrap().completion_tokens));
        assert_eq!(end(self), end(whole), "{case}");
    }
}

/// Answers `request`, which may go on with what is in `from`.
async fn answer(
    engine: &EngineHandle,
    spec: &LoadSpec,
    request: &ChatRequest,
    from: &Written,
    calls: &[ToolCall],
) -> Result<Record, GenerateError> {
    let mut record = Record {
        tokens: from.tokens.clone(),
        text: from.text.expose().to_owned(),
        thinking: from.thinking.expose().to_owned(),
        calls: calls.to_vec(),
        ..Record::default()
    };
    let written = (!from.is_empty()).then(|| from.clone());
    let mut events = engine.chat(spec.clone(), ChatRequest { written, tells_tokens: true, ..request.clone() });
    while let Some(event) = events.next().await {
        match event? {
            ChatEvent::Tokens { from, ids } => {
                record.steps.push(record.written());
                record.tokens.truncate(from);
                record.tokens.extend(ids);
            }
            ChatEvent::Text(text) => record.text.push_str(&text),
            ChatEvent::Thinking(text) => record.thinking.push_str(&text),
            ChatEvent::ToolCall { index, call } => {
                assert_eq!(index, record.calls.len());
                record.calls.push(call);
            }
            ChatEvent::Finished(finish) => record.finish = Some(finish),
            ChatEvent::Progress(_) | ChatEvent::Logprobs(_) => {}
        }
    }
    assert!(record.finish.is_some());
    Ok(record)
}

fn spec(folder: &Path) -> LoadSpec {
    let path =
        tiny_model_with(1, TEMPLATE, &["<think>", "</think>", "<tool_call>"]).write(folder, "tiny.gguf").unwrap();
    LoadSpec::new(path, 512)
}

fn ask(sampling: SamplingParams, tools: &[&str]) -> ChatRequest {
    let tools = tools.iter().map(|name| Tool { name: (*name).to_owned(), ..Tool::default() }).collect();
    ChatRequest { messages: vec![Message::new(Role::User, "Hi")], sampling, tools, ..ChatRequest::default() }
}

fn random(seed: u64) -> SamplingParams {
    SamplingParams { temperature: Some(1.5), seed: Some(seed), max_tokens: Some(40), ..SamplingParams::default() }
}

/// Thinking, text of two-byte letters, a call and a stop string, each in random words.
fn every_part() -> ChatRequest {
    let grammar = r#"start: "<think>" /[a-zü]{6}/ "</think>\n\n" /[äöü]{5}/ "<tool_call>" call "</tool_call>" /[a-c]{4}/ "STOP" /[a-z]{9}/
call: "{\"name\": \"f\", \"arguments\": {\"x\": \"" /[a-z]{5}/ "\"}}""#;
    let constraint = Some(OutputConstraint::Grammar(grammar.to_owned()));
    ask(SamplingParams { constraint, stop: vec!["STOP".to_owned()], max_tokens: Some(200), ..random(4) }, &["f"])
}

#[tokio::test]
async fn an_answer_goes_on_after_any_token_as_if_nothing_had_happened() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = spec(folder.path());
    let penalties = SamplingParams {
        repetition_penalty: Some(1.3),
        presence_penalty: Some(0.5),
        frequency_penalty: Some(0.5),
        ..random(2)
    };
    let greedy = SamplingParams { temperature: Some(0.0), ..random(0) };
    for (name, request) in [
        ("random", ask(random(1), &[])),
        ("penalties", ask(penalties, &[])),
        ("greedy", ask(greedy, &[])),
        ("every part", every_part()),
    ] {
        let whole = answer(&engine, &spec, &request, &Written::default(), &[]).await.unwrap();
        assert!(whole.tokens.len() > 20, "{name}: {whole:?}");
        for (step, written) in whole.steps.iter().enumerate() {
            // The tokens of the step itself had been told as well, or had not.
            for tokens in [step, step + 1] {
                let from = Written { tokens: whole.tokens[..tokens].to_vec(), ..written.clone() };
                let calls = &whole.calls[..from.calls];
                let rest = answer(&engine, &spec, &request, &from, calls).await.unwrap();
                rest.assert_same(&whole, &format!("{name} after {tokens} tokens"));
            }
        }
    }
    let whole = answer(&engine, &spec, &every_part(), &Written::default(), &[]).await.unwrap();
    assert_eq!((whole.thinking.chars().count(), whole.calls.len()), (6, 1), "{whole:?}");
    let halves = whole.steps.iter().filter(|step| !step.text.expose().is_empty()).count();
    assert!(halves > 0 && !whole.text.contains("ST"), "{whole:?}");
    engine.shutdown().await;
}

#[tokio::test]
async fn another_engine_goes_on_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = [(); 2].map(|()| EngineHandle::start(EngineConfig::default()));
    let spec = spec(folder.path());
    let whole = answer(&first, &spec, &every_part(), &Written::default(), &[]).await.unwrap();
    let half = &whole.steps[whole.steps.len() / 2];
    let rest = answer(&second, &spec, &every_part(), half, &whole.calls[..half.calls]).await.unwrap();
    rest.assert_same(&whole, "half of it");
    let all = answer(&second, &spec, &every_part(), &whole.written(), &whole.calls).await.unwrap();
    all.assert_same(&whole, "all of it");
}

#[tokio::test]
async fn without_its_tokens_an_answer_goes_on_by_what_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = spec(folder.path());
    let request = ask(SamplingParams { temperature: Some(0.0), ..random(0) }, &[]);
    for (thinking, text) in [("", "Grüße an a"), ("hm <think>", ""), ("hm", "Grüße <|im_end|> </think>")] {
        let from = Written { thinking: thinking.to_owned().into(), text: text.to_owned().into(), ..Written::default() };
        let rest = answer(&engine, &spec, &request, &from, &[]).await.unwrap();
        assert!(rest.text.starts_with(text) && rest.thinking.starts_with(thinking), "{rest:?}");
        assert!(rest.text.len() + rest.thinking.len() > text.len() + thinking.len(), "{rest:?}");
        // Its tokens are known from here on: the rest is the same by them.
        let again = answer(&engine, &spec, &request, rest.steps.last().unwrap(), &[]).await.unwrap();
        again.assert_same(&rest, "by its tokens");
    }
    let called = Written { calls: 1, ..Written::default() };
    let refused = answer(&engine, &spec, &request, &called, &[]).await.unwrap_err();
    assert!(matches!(refused, GenerateError::InvalidRequest(_)), "{refused}");
    engine.shutdown().await;
}

#[tokio::test]
async fn what_is_written_counts_whole_where_it_is_more_tokens_than_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = LoadSpec { path: tiny_model(1).write(folder.path(), "m.gguf").unwrap(), ..spec(folder.path()) };
    // Three tokens a character here, so that the limit falls into one.
    let from = Written { text: "���".to_owned().into(), ..Written::default() };
    let request = ask(SamplingParams { max_tokens: Some(4), ..random(1) }, &[]);
    let rest = answer(&engine, &spec, &request, &from, &[]).await.unwrap();
    let finish = rest.finish.unwrap();
    assert_eq!((rest.text.as_str(), finish.reason, rest.tokens.len()), ("���", FinishReason::Length, 9));
    engine.shutdown().await;
}

#[tokio::test]
async fn tokens_that_say_something_else_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(EngineConfig::default());
    let spec = LoadSpec { path: tiny_model(1).write(folder.path(), "m.gguf").unwrap(), ..spec(folder.path()) };
    let request = ask(random(1), &[]);
    for from in [
        Written { tokens: vec![70, 71, 72], text: "another".to_owned().into(), ..Written::default() },
        Written { tokens: vec![70, u32::MAX], ..Written::default() },
    ] {
        let refused = answer(&engine, &spec, &request, &from, &[]).await.unwrap_err();
        assert!(matches!(refused, GenerateError::InvalidRequest(_)), "{refused}");
    }
    // An engine that refused goes on working.
    assert!(answer(&engine, &spec, &request, &Written::default(), &[]).await.is_ok());
    engine.shutdown().await;
}
