//! `tidegate bench`: how fast a model answers on this machine, with all that the figures depend on.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use app::chat::{Bytes, ChatEvent, ChatRequest, Finish, Message, Role, SamplingParams};
use app::vitals::{Snapshot, machine};
use app::{App, Perplexity};
use futures::StreamExt;

use crate::args::BenchArgs;
use crate::style;

/// About 500 tokens for most tokenizers.
const PARAGRAPH: &str = "A tide gate is an opening through which water may flow freely when the tide sets in one \
    direction, but which closes by itself when it sets in the other. It lets the water of the marsh drain at low tide \
    and keeps the sea out at high tide, and nobody has to stand beside it. ";
const REPEATS: usize = 8;

pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let app = App::start(args.setup.config()?).await?;
    let outcome = match args.perplexity {
        Some(text) => perplexity(&app, &text, args.window).await,
        None => measure(&app, args.runs.max(1), args.tokens).await,
    };
    app.shutdown().await;
    outcome.map(|()| ExitCode::SUCCESS)
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
    let cold = answer(app, 0, tokens).await?;
    let mut warm = Vec::new();
    let mut peak = own(app);
    for run in 1..=runs {
        warm.push(answer(app, run, tokens).await?);
        peak = peak.max(own(app));
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
    Ok(())
}

async fn answer(app: &App, run: usize, tokens: usize) -> anyhow::Result<Finish> {
    // A number at the very start keeps the cache of one run from helping the next.
    let prompt = format!("{run}. {}\nContinue this text.", PARAGRAPH.repeat(REPEATS));
    let request = ChatRequest {
        messages: vec![Message::new(Role::System, format!("Run {run}.")), Message::new(Role::User, prompt)],
        sampling: SamplingParams { temperature: Some(0.0), max_tokens: Some(tokens), ..SamplingParams::default() },
        ..ChatRequest::default()
    };
    let mut events = app.complete(request, Some(app::PlaceChoice::Here)).await?.into_events();
    while let Some(event) = events.next().await {
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
