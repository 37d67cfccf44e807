//! What the starter model takes of this process's memory, against what its header predicts; what of it is wired while an
//! answer is written; and what comes back. One test, because all of it is measured on the process.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chat::{Bytes, ChatEvent, ChatRequest, Message, Role, SamplingParams};
use engine::{EngineConfig, EngineHandle, Footprint, KvType, LoadSpec, Wiring, read_header};
use futures::StreamExt;

const CONTEXT: usize = 1024;

fn starter() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
    assert!(path.exists(), "the starter model is missing: run `make setup`, which fetches it");
    path
}

/// The sum of these lines of the process's status, which Linux has in a file; `None` elsewhere.
fn status(names: &[&str]) -> Option<Bytes> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    };
    Some(Bytes(names.iter().map(|name| line(name)).sum()))
}

fn resident() -> Option<Bytes> {
    status(&["RssAnon", "RssFile"])
}

/// What is resident of the files that are mapped and aren't the model: of the program itself, that is. The system may map a page
/// of it when it is run or two megabytes about it, so it is no part of what a model takes.
fn program() -> Bytes {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_program = false;
    let mut kibibytes = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") if is_program => kibibytes += words.next().unwrap().parse::<u64>().unwrap(),
            Some(range) if !range.ends_with(':') => {
                is_program = words.nth(4).is_some_and(|file| file.starts_with('/') && !file.ends_with(".gguf"));
            }
            _ => {}
        }
    }
    Bytes(kibibytes << 10)
}

fn locked() -> Bytes {
    status(&["VmLck"]).unwrap()
}

/// Answers a prompt of more than one chunk; gives the most that was locked meanwhile.
async fn answer(engine: &EngineHandle, tokens: usize) -> Bytes {
    let request = ChatRequest {
        messages: vec![Message::new(Role::User, "The tide comes in and the tide goes out. ".repeat(30))],
        sampling: SamplingParams { temperature: Some(0.0), max_tokens: Some(tokens), ..SamplingParams::default() },
        ..ChatRequest::default()
    };
    let spec = LoadSpec::new(starter(), CONTEXT);
    let mut stream = engine.chat(spec, request);
    let mut most = Bytes::ZERO;
    while let Some(event) = stream.next().await {
        most = most.max(locked());
        if let ChatEvent::Finished(_) = event.unwrap() {
            return most;
        }
    }
    panic!("the stream ended without an end");
}

async fn until_nothing_is_locked() {
    let unlocked = async {
        while locked() != Bytes::ZERO {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), unlocked).await.expect("what is locked is released when idle");
}

#[tokio::test]
async fn memory_is_as_predicted_and_comes_back() {
    let Some(before) = resident() else { return };
    let program_before = program();
    let budget = Arc::new(AtomicU64::new(0));
    let wiring = {
        let budget = budget.clone();
        let budget = Arc::new(move |_: Bytes| Bytes(budget.load(Ordering::Relaxed)));
        Wiring { budget, release_after: Duration::from_millis(300) }
    };
    let config = EngineConfig { wiring: Some(wiring), own_footprint: resident, ..EngineConfig::default() };
    let engine = EngineHandle::start(config);

    assert_eq!(answer(&engine, 16).await, Bytes::ZERO, "without a budget nothing is locked");
    let program = program().saturating_sub(program_before);
    let measured = status(&["VmHWM"]).unwrap().saturating_sub(before).saturating_sub(program);
    let forecast = read_header(&starter()).unwrap().footprint(CONTEXT, KvType::DEFAULT);
    let ratio = forecast.total().0 as f64 / measured.0 as f64;
    let [anonymous, files] = ["RssAnon", "RssFile"].map(|name| status(&[name]).unwrap());
    println!("predicted {}, measured {measured}: {ratio:.3}", forecast.total());
    println!("now {anonymous} of its own and {files} of files; before {before}; more of the program {program}");
    assert!((0.95..1.05).contains(&ratio), "predicted {forecast:?}, measured {measured}");

    // Fewer bytes than a process may lock where nobody raised the limit.
    budget.store(6 << 20, Ordering::Relaxed);
    let most = answer(&engine, 128).await;
    println!("locked {most} of {} that were allowed", Bytes(6 << 20));
    assert!(most > Bytes::ZERO && most <= Bytes(6 << 20), "{most}");
    until_nothing_is_locked().await;
    assert_eq!(engine.loaded().unwrap().path, starter());
    answer(&engine, 32).await;
    budget.store(0, Ordering::Relaxed);

    let unloaded = engine.unload().await.unwrap();
    assert_eq!(engine.watch_unloads().borrow().as_ref(), Some(&unloaded));
    assert_eq!(locked(), Bytes::ZERO);
    let Footprint { weights, .. } = forecast;
    let given_back = unloaded.given_back.unwrap();
    println!("given back {given_back}; weights {weights}, of {} in all", forecast.total());
    assert!(given_back.0 as f64 >= 0.8 * forecast.total().0 as f64, "{given_back} of {}", forecast.total());
    assert_eq!(engine.unload().await, None);
    engine.shutdown().await;
}
