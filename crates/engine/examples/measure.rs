//! Measures one model: `cargo run --release -p engine --example measure -- MODEL.gguf [PROMPT_REPEATS]`.
//! Prints header time, time to load, ttft, prefill and decode speed, and the peak memory of the process.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use chat::{ChatEvent, ChatRequest, Message, Role, SamplingParams};
use engine::{EngineConfig, EngineHandle, KvType, LoadSpec, device_name, read_header};
use futures::StreamExt;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the program's output")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().context("which model?")?);
    let repeats: usize = arguments.next().map_or(Ok(40), |n| n.parse()).context("how often?")?;
    let started = Instant::now();
    let header = read_header(&path)?;
    println!("header {:?}: {} {}", started.elapsed(), header.architecture, header.quantization);
    header.check_supported()?;
    let footprint = header.footprint(4096, KvType::DEFAULT);
    println!(
        "{}; predicted at 4096: weights {}, kv cache {}, scratch {}",
        device_name(),
        footprint.weights,
        footprint.kv_cache,
        footprint.scratch
    );
    let engine = EngineHandle::start(EngineConfig::default());
    println!("before the tokenizer: {}", memory());
    engine.count_prompt_tokens(&path, &ask("Hi", SamplingParams::default())).await?;
    println!("with the tokenizer: {}", memory());
    let spec = LoadSpec::new(path.clone(), 4096);
    let long = "The tide comes in and the tide goes out, and the gate lets the water pass. ".repeat(repeats);
    for (name, text, max_tokens) in [
        ("cold", "What is 7 times 8?".to_owned(), 16),
        ("warm", "Write a long story about the sea.".to_owned(), 128),
        ("long prompt", format!("{long}\nSummarise this."), 64),
    ] {
        let sampling =
            SamplingParams { temperature: Some(0.0), max_tokens: Some(max_tokens), ..SamplingParams::default() };
        let mut stream = engine.chat(spec.clone(), ask(&text, sampling));
        while let Some(event) = stream.next().await {
            if let ChatEvent::Finished(finish) = event? {
                println!("{name}: {:?} {:?} {:?}", finish.reason, finish.usage, finish.timings);
            }
        }
        println!("  {}", memory());
    }
    engine.unload().await;
    println!("unloaded: {}", memory());
    engine.shutdown().await;
    Ok(())
}

fn ask(text: &str, sampling: SamplingParams) -> ChatRequest {
    ChatRequest { messages: vec![Message::new(Role::User, text)], sampling, ..ChatRequest::default() }
}

/// Peak and present memory, where the system tells it in a file.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines = status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("Rss"));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}
