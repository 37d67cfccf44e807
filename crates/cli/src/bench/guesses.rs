//! `tidegate bench --guesses`: how much sooner answers of several kinds come for tokens that are guessed.

use anyhow::{Context, ensure};
use app::vitals::machine;
use app::{App, AppConfig, Draft, GuessPlan, GuessSpeed, Guesses};
use serde_json::{Value, json};

use crate::style;

/// Of much that was written before in the answer, of some, and of little.
const TASKS: [(&str, &str); 3] = [
    ("chat", include_str!("guesses/chat.txt")),
    ("edit", include_str!("guesses/edit.txt")),
    ("summary", include_str!("guesses/summary.txt")),
];

pub(super) async fn run(config: AppConfig, mut plan: GuessPlan, is_json: bool) -> anyhow::Result<()> {
    // Neither the user's settings nor the caches of their chats have a part in it.
    let data = tempfile::tempdir().context("cannot make a folder for this run")?;
    plan.tasks = TASKS.map(|(name, prompt)| (name.to_owned(), prompt.to_owned())).to_vec();
    let app = App::start(AppConfig { data_dir: data.path().to_owned(), ..config }).await?;
    let measured = measure(&app, &plan, is_json).await;
    app.shutdown().await;
    let speeds = measured?;
    ensure!(speeds.iter().all(|speed| speed.is_same), "an answer was another with guesses than without: that is a bug");
    Ok(())
}

async fn measure(app: &App, plan: &GuessPlan, is_json: bool) -> anyhow::Result<Vec<GuessSpeed>> {
    let model = app.model_for(None).context("there is no model: name one with --model FILE")?;
    let machine = machine();
    let draft = match app.draft_for(&model) {
        Draft::None => None,
        Draft::Named(path) | Draft::Found(path) => path.file_stem().map(|name| name.to_string_lossy().into_owned()),
    };
    if is_json {
        let speeds = app.measure_guesses(&model, plan, |_| {}).await?;
        let told = json!({
            "machine": { "chip": machine.chip, "cores": machine.cores, "computes": app::device_name() },
            "model": model.id,
            "draft": draft,
            "temperature": plan.temperature,
            "runs": plan.runs,
            "rows": rows(&speeds),
        });
        println!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(speeds);
    }
    println!("machine   {}, {} cores, {}", machine.chip, machine.cores, machine.os);
    println!("computes  {}", app::device_name());
    println!("model     {}, draft {}", model.id, draft.as_deref().unwrap_or("none"));
    println!("\nmedians of {} (least–most)", plan.runs);
    println!(
        "{:<8} {:<8} {:>22} {:>8} {:>14} {:>7}  text",
        "task", "guesses", "tokens/s", "ratio", "passes/token", "tokens"
    );
    let mut plain = 0.0;
    let speeds = app
        .measure_guesses(&model, plan, |speed| {
            if speed.guesses == Guesses::None {
                plain = speed.decode.median;
            }
            println!("{}", row(speed, plain));
        })
        .await?;
    Ok(speeds)
}

/// `plain`: tokens per second without guesses.
fn row(speed: &GuessSpeed, plain: f64) -> String {
    let decode = format!("{:.1} ({:.1}–{:.1})", speed.decode.median, speed.decode.least, speed.decode.most);
    let row = format!(
        "{:<8} {:<8} {decode:>22} {:>8.2} {:>14.2} {:>7}  {}",
        speed.task,
        name(speed.guesses),
        speed.decode.median / plain,
        speed.passes_per_token,
        speed.tokens,
        if speed.is_same { "the same" } else { "ANOTHER" }
    );
    if speed.guesses == Guesses::None { row } else { style::stdout().strong(&row) }
}

fn rows(speeds: &[GuessSpeed]) -> Vec<Value> {
    let row = |speed: &GuessSpeed| {
        json!({
            "task": speed.task,
            "guesses": name(speed.guesses),
            "decode_tokens_per_sec": speed.decode.median,
            "passes_per_token": speed.passes_per_token,
            "tokens": speed.tokens,
            "is_same": speed.is_same,
        })
    };
    speeds.iter().map(row).collect()
}

const fn name(guesses: Guesses) -> &'static str {
    match guesses {
        Guesses::None => "none",
        Guesses::Lookup => "lookup",
        Guesses::Draft => "draft",
        Guesses::All => "both",
    }
}
