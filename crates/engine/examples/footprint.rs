//! Compares what a header predicts with what the process then takes: `cargo run -p engine --example footprint --
//! MODEL.gguf [CONTEXT]`. Fills the context: a long prompt, then an answer. One model for each process, since a peak is a
//! process's. Needs Linux, whose `/proc` tells it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chat::{Bytes, ChatEvent, ChatRequest, Message, Role, SamplingParams};
use engine::{EngineConfig, EngineHandle, KvType, LoadSpec, device_name, read_header};
use futures::StreamExt;

/// Tokens that are written.
const ANSWER: usize = 48;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the program's output")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().context("which model?")?);
    let context_len: usize = arguments.next().map_or(Ok(1024), |n| n.parse()).context("how much context?")?;
    let header = read_header(&path)?;
    header.check_supported()?;
    let context_len = if header.context_len == 0 { context_len } else { context_len.min(header.context_len) };
    let engine = EngineHandle::start(EngineConfig { own_footprint: resident, ..EngineConfig::default() });
    let before = resident().context("/proc/self/status, which only Linux has")?;
    let spec = LoadSpec::new(path.clone(), context_len);
    let request = longest_request(&engine, &path, context_len).await?;
    let with_tokenizer = resident().context("the resident size")?;
    let mut stream = engine.chat(spec, request);
    let mut usage = None;
    while let Some(event) = stream.next().await {
        if let ChatEvent::Finished(finish) = event? {
            usage = finish.usage;
        }
    }
    let peak = status(&["VmHWM"]).context("the peak")?;
    let measured = peak.saturating_sub(before);
    let forecast = header.footprint(context_len, KvType::DEFAULT);
    let tokens = usage.map_or(0, |usage| usage.prompt_tokens + usage.completion_tokens);
    println!("{}: {}, {tokens} tokens of {context_len}", path.display(), device_name());
    println!(
        "  predicted {}: weights {} ({} in the file), kv cache {}, scratch {}",
        forecast.total(),
        forecast.weights,
        header.weight_bytes,
        forecast.kv_cache,
        forecast.scratch
    );
    let ratio = forecast.total().0 as f64 / measured.0 as f64;
    println!("  measured  {measured} at the peak: predicted / measured = {ratio:.3}");
    let now = |name| status(&[name]).unwrap_or(Bytes::ZERO);
    println!(
        "  now anonymous {}, of files {}; tokenizer and header {}; before {before}",
        now("RssAnon"),
        now("RssFile"),
        with_tokenizer.saturating_sub(before)
    );
    let unloaded = engine.unload().await.and_then(|unloaded| unloaded.given_back).context("what was given back")?;
    println!("  given back {unloaded}, of {measured}");
    engine.shutdown().await;
    Ok(())
}

/// A request of which the prompt fills the context but for the answer.
async fn longest_request(engine: &EngineHandle, path: &Path, context_len: usize) -> Result<ChatRequest> {
    let request = |words: usize| ChatRequest {
        messages: vec![Message::new(Role::User, "the tide ".repeat(words))],
        sampling: SamplingParams { temperature: Some(0.0), max_tokens: Some(ANSWER), ..SamplingParams::default() },
        ..ChatRequest::default()
    };
    let room = context_len.saturating_sub(ANSWER);
    let (mut fits, mut too_long) = (0, context_len);
    while fits + 1 < too_long {
        let words = usize::midpoint(fits, too_long);
        if engine.count_prompt_tokens(path, &request(words)).await? <= room { fits = words } else { too_long = words }
    }
    Ok(request(fits))
}

/// The memory that this process takes.
fn resident() -> Option<Bytes> {
    status(&["RssAnon", "RssFile"])
}

/// The sum of these lines of the process's status.
fn status(names: &[&str]) -> Option<Bytes> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let kib: Option<u64> = names.iter().map(|name| line(name)).sum();
    Some(Bytes(kib? << 10))
}
