//! `tidegate bench`: how fast a model answers on this machine, with all that the figures depend on; what the machine can
//! do at all; how speed falls with the context's depth and with time; what guesses bring; what memory pressure does to it; and how long a
//! reader waits when an answer moves.

mod calibrate;
mod chart;
mod depth;
mod depth_chart;
mod guesses;
mod handoff;
mod pressure;

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use app::chat::{Bytes, ChatEvent, ChatRequest, Finish, Message, Role, SamplingParams};
use app::vitals::{Snapshot, machine};
use app::{App, GuessPlan, ModelHeader, Perplexity, Vitals};
use futures::StreamExt;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::args::BenchArgs;
use crate::style;

/// About 500 tokens for most tokenizers.
const PARAGRAPH: &str = "A tide gate is an opening through which water may flow freely when the tide sets in one \
    direction, but which closes by itself when it sets in the other. It lets the water of the marsh drain at low tide \
    and keeps the sea out at high tide, and nobody has to stand beside it. ";
const REPEATS: usize = 8;

pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let config = args.setup.config()?;
    if args.handoff {
        let plan = handoff::Plan { runs: args.runs.max(1), half: (args.tokens / 2).max(1), is_json: args.json };
        return handoff::run(config, plan).await.map(|()| ExitCode::SUCCESS);
    }
    if args.guesses {
        let temperature = args.temperature.unwrap_or(0.0);
        let plan = GuessPlan { tasks: Vec::new(), tokens: args.tokens, temperature, runs: args.runs.max(1) };
        return guesses::run(config, plan, args.json).await.map(|()| ExitCode::SUCCESS);
    }
    if args.pressure.pressure {
        return pressure::run(config, &args.pressure).await.map(|()| ExitCode::SUCCESS);
    }
    if args.depth.is_wanted() {
        let runs = args.runs.max(1);
        return depth::run(config, &args.depth, runs, args.json).await.map(|()| ExitCode::SUCCESS);
    }
    let app = App::start(config).await?;
    let outcome = match args.perplexity {
        Some(text) => perplexity(&app, &text, args.window).await,
        None if args.calibrate => calibrate::run(&app).await,
        None => {
            let _trace = args.trace.map(|path| trace(&app, &path)).transpose()?;
            measure(&app, args.runs.max(1), args.tokens).await
        }
    };
    app.shutdown().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// A task that ends when this is dropped.
struct Trace(JoinHandle<()>);

impl Drop for Trace {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Writes each reading to `path` from now on.
fn trace(app: &App, path: &Path) -> anyhow::Result<Trace> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let (mut vitals, started) = (app.watch_vitals(), Instant::now());
    Ok(Trace(tokio::spawn(async move {
        let mut file = BufWriter::new(file);
        while vitals.changed().await.is_ok() {
            let line = trace_line(started.elapsed().as_secs_f64(), &vitals.borrow_and_update());
            // Each line at once: somebody may wait for it.
            if let Err(error) = writeln!(file, "{line}").and_then(|()| file.flush()) {
                return eprintln!("the trace ended: {error}");
            }
        }
    })))
}

fn trace_line(seconds: f64, vitals: &Vitals) -> serde_json::Value {
    let snapshot = &vitals.snapshot;
    json!({
        "seconds": (seconds * 1e3).round() / 1e3,
        "decode_tokens_per_sec": vitals.decode_tokens_per_sec,
        "baseline_tokens_per_sec": vitals.baseline_tokens_per_sec,
        "thermal": snapshot.thermal.map(|state| state.as_str()),
        "pressure": snapshot.pressure.map(|level| level.as_str()),
        "available_bytes": snapshot.memory.map(|memory| memory.available.0),
        "swap_used_bytes": snapshot.swap.map(|swap| swap.used.0),
        "cpu_busy_ratio": snapshot.cpu.map(|cpu| cpu.busy_ratio),
    })
}

async fn perplexity(app: &App, text: &Path, window: usize) -> anyhow::Result<()> {
    let model = app.model_for(None).context("there is no model: name one with --model FILE")?;
    let text = std::fs::read_to_string(text).with_context(|| format!("cannot read {}", text.display()))?;
    let Perplexity { value, tokens } = app.perplexity(&model, text, window).await?;
    println!("computes    {}", app::device_name());
    println!("model       {}", model.id);
    println!("perplexity  {value:.4} over {tokens} tokens, in windows of {window}");
    Ok(())
}

async fn measure(app: &App, runs: usize, tokens: usize) -> anyhow::Result<()> {
    let model = app.model_for(None).context("there is no model: name one with --model FILE")?;
    let header = model.usable().context("the model can't be used")?.clone();
    let before = app.watch_vitals().borrow().snapshot.clone();
    let machine = machine();
    let style = style::stdout();
    println!("machine   {}, {} cores, {}", machine.chip, machine.cores, machine.os);
    println!("computes  {}", app::device_name());
    println!("model     {} · {} · {}", model.id, header.quantization, header.file_bytes.file_size());

    // The first run loads the weights and is told apart.
    let (at_start, mut peak) = (own(app), own(app));
    let cold = answer(app, 0, tokens, &mut peak).await?;
    let footprint = footprint(app, &header, &cold, peak.zip(at_start));
    let mut warm = Vec::new();
    for run in 1..=runs {
        warm.push(answer(app, run, tokens, &mut peak).await?);
    }
    let after = app.watch_vitals().borrow().snapshot.clone();
    let usage = warm.first().and_then(|finish| finish.usage).unwrap_or_default();
    println!(
        "prompt    {} tokens, answer {} tokens, {runs} runs, medians",
        usage.prompt_tokens, usage.completion_tokens
    );
    println!("heat      {} before, {} after", heat(&before), heat(&after));
    let row =
        |name: &str, value: Option<String>| println!("{name:<26}{}", style.strong(value.as_deref().unwrap_or("—")));
    let ms = |finish: &Finish| finish.timings.ttft.map(|ttft| ttft.as_secs_f64() * 1e3);
    println!();
    row("ttft, weights not loaded", ms(&cold).map(|ms| format!("{ms:.0} ms")));
    row("ttft", median(&warm, ms).map(|ms| format!("{ms:.0} ms")));
    row("prefill", median(&warm, |f| f.timings.prefill_tokens_per_sec).map(|speed| format!("{speed:.0} tokens/s")));
    row("decode", median(&warm, |f| f.timings.decode_tokens_per_sec).map(|speed| format!("{speed:.1} tokens/s")));
    row("memory of this process", peak.map(|bytes| bytes.to_string()));
    row("footprint, one answer", footprint);
    Ok(())
}

/// What the header says that the model takes for one answer, against what it took.
fn footprint(app: &App, header: &ModelHeader, cold: &Finish, held: Option<(Bytes, Bytes)>) -> Option<String> {
    let usage = cold.usage?;
    let forecast = header.footprint(usage.prompt_tokens + usage.completion_tokens, app.settings().kv_type()).total();
    let (peak, at_start) = held?;
    let measured = peak.saturating_sub(at_start);
    let ratio = forecast.0 as f64 / measured.0.max(1) as f64;
    Some(format!("{forecast} forecast, {measured} measured, ratio {ratio:.3}"))
}

async fn answer(app: &App, run: usize, tokens: usize, peak: &mut Option<Bytes>) -> anyhow::Result<Finish> {
    // A number at the very start keeps the cache of one run from helping the next.
    let prompt = format!("{run}. {}\nContinue this text.", PARAGRAPH.repeat(REPEATS));
    let request = ChatRequest {
        messages: vec![Message::new(Role::System, format!("Run {run}.")), Message::new(Role::User, prompt)],
        sampling: SamplingParams { temperature: Some(0.0), max_tokens: Some(tokens), ..SamplingParams::default() },
        ..ChatRequest::default()
    };
    let completion = app.complete(request, Some(app::PlaceChoice::Here), app::AskedBy::Terminal).await?;
    let mut events = completion.into_chat_events();
    while let Some(event) = events.next().await {
        *peak = (*peak).max(own(app));
        if let ChatEvent::Finished(finish) = event? {
            return Ok(finish);
        }
    }
    bail!("the answer ended in the middle")
}

fn median(finishes: &[Finish], figure: impl Fn(&Finish) -> Option<f64>) -> Option<f64> {
    let mut figures: Vec<f64> = finishes.iter().filter_map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

fn own(app: &App) -> Option<Bytes> {
    app.watch_vitals().borrow().snapshot.own.as_ref().map(|own| own.footprint)
}

fn heat(snapshot: &Snapshot) -> &'static str {
    snapshot.thermal.map_or("unknown", |state| state.as_str())
}
