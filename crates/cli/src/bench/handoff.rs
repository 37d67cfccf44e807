//! `tidegate bench --handoff`: how long a reader waits when an answer goes on at another node.
//!
//! Two nodes run on this machine, as processes of this program. Answers begin at one of them and go on at the other in
//! three ways, one after the other so that whatever else the machine does meets all alike: handed over while the first
//! writes on, after the first was killed, and begun anew at the second, which is what a program without handoff does.

use std::hint::black_box;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use app::case::Case;
use app::vitals::machine;
use app::{App, AppConfig, OffloadMode, PlaceChoice, ReplyEvent, ReplyStream, SendMessage, Settings};
use futures::StreamExt;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{PARAGRAPH, REPEATS};
use crate::style;

/// Decisions that are timed together: one is over too fast for the clock.
const DECISIONS: u32 = 1_000;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Answers of each kind.
    pub(super) runs: usize,
    /// Pieces of text after which they move.
    pub(super) half: usize,
    /// Told as JSON.
    pub(super) is_json: bool,
}

/// A node that ends with this.
struct Node {
    process: Child,
    id: String,
    _data: TempDir,
}

impl Node {
    /// Starts one, lets it load its weights, and puts it on the list.
    async fn start(app: &App, model: &Path) -> anyhow::Result<Self> {
        let data = tempfile::tempdir().context("cannot make a folder for a node")?;
        let mut process = Command::new(std::env::current_exe().context("cannot tell where this program is")?)
            .args(["serve", "--listen", "127.0.0.1:0", "--offload", "local", "--data"])
            .arg(data.path())
            .arg("--model")
            .arg(model)
            // Both compute at once while an answer moves, as they would on two machines.
            .arg("--threads")
            .arg((machine().cores / 2).max(1).to_string())
            // A node on loopback needs no key, and must not want one that happens to be set.
            .env_remove("TIDEGATE_KEY")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a node")?;
        let mut lines = BufReader::new(process.stderr.take().context("a node has no output")?).lines();
        let url = loop {
            let line = lines.next_line().await?.context("a node ended before it listened")?;
            if let Some(url) = line.strip_prefix("listening on ") {
                break url.to_owned();
            }
        };
        // What it says later must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let node = app.add_node(&url, None).await?;
        let id = app.probe_node(&node.id).await?.id;
        let mut warm = ask(app, "Say hello.", Some(&id)).await?;
        while let Some(event) = warm.next().await {
            if let ReplyEvent::Text(_) = event {
                break;
            }
        }
        Ok(Self { process, id, _data: data })
    }
}

/// How an answer came to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    HandedOver,
    Killed,
    BegunAnew,
}

impl Way {
    const ALL: [Self; 3] = [Self::HandedOver, Self::Killed, Self::BegunAnew];

    fn name(self) -> &'static str {
        match self {
            Self::HandedOver => "handed over",
            Self::Killed => "its node was killed",
            Self::BegunAnew => "begun anew",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::HandedOver => "handed_over",
            Self::Killed => "killed",
            Self::BegunAnew => "begun_anew",
        }
    }
}

pub(super) async fn run(config: AppConfig, plan: Plan) -> anyhow::Result<()> {
    let [model] = config.models.as_slice() else { bail!("name one model with --model FILE") };
    let data = tempfile::tempdir().context("cannot make a folder for the front")?;
    let front = AppConfig { data_dir: data.path().into(), offload: Some(OffloadMode::Remote), ..AppConfig::default() };
    let app = App::start(front).await?;
    let outcome = measure(&app, model, plan).await;
    app.shutdown().await;
    outcome
}

async fn measure(app: &App, model: &Path, plan: Plan) -> anyhow::Result<()> {
    app.save_settings(Settings { temperature: Some(0.0), ..app.settings() }).await?;
    let mut nodes = [Node::start(app, model).await?, Node::start(app, model).await?];
    let Plan { runs, half, .. } = plan;
    let (mut waits, mut itls) = (vec![Vec::new(); Way::ALL.len()], Vec::new());
    for run in 0..runs {
        for (way, waits) in Way::ALL.into_iter().zip(&mut waits) {
            let (wait, own) = wait(app, &mut nodes, model, way, run, half).await.with_context(|| way.name())?;
            waits.push(wait);
            itls.extend(own);
        }
    }
    waits.iter_mut().for_each(|waits| waits.sort());
    // The mean, for what was guessed comes together.
    let itl = itls.iter().sum::<Duration>() / u32::try_from(itls.len().max(1)).unwrap_or(u32::MAX);
    let decision = decision_time()?;
    let machine = machine();
    let name = model.file_name().map(|name| name.to_string_lossy().into_owned());
    if plan.is_json {
        let ways = Way::ALL.into_iter().zip(&waits).map(|(way, waits)| {
            let wait = |percent| percentile(waits, percent).as_secs_f64() * 1e3;
            let figures = json!({ "p50_ms": wait(50), "p95_ms": wait(95), "count": waits.len() });
            (way.key().to_owned(), figures)
        });
        let report = json!({
            "machine": { "chip": machine.chip, "cores": machine.cores, "os": machine.os, "computes": app::device_name() },
            "model": name, "pieces_before": half, "itl_mean_ms": itl.as_secs_f64() * 1e3,
            "decision_us": decision.as_secs_f64() * 1e6,
            "visible_gap": ways.collect::<serde_json::Map<_, _>>(),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!("machine   {}, {} cores, {}", machine.chip, machine.cores, machine.os);
    println!("computes  {}", app::device_name());
    println!("model     {}", name.unwrap_or_default());
    println!(
        "answers   {runs} of each, interleaved; they move after {half} pieces of text, between two nodes of this machine, each with half of its cores"
    );
    println!();
    println!("{:<26}{}", "inter-token time", ms(itl));
    println!("{:<26}{:.1} µs", "a decision", decision.as_secs_f64() * 1e6);
    println!("\n{:<26}{:>12}{:>12}{:>24}", "visible gap", "p50", "p95", "in inter-token times");
    let style = style::stdout();
    for (way, waits) in Way::ALL.into_iter().zip(&waits) {
        let (p50, p95) = (percentile(waits, 50), percentile(waits, 95));
        let times = |wait: Duration| wait.as_secs_f64() / itl.as_secs_f64();
        let multiples = format!("{:.1} and {:.1}", times(p50), times(p95));
        println!("{:<26}{:>12}{:>12}{:>24}", way.name(), style.strong(&ms(p50)), ms(p95), multiples);
    }
    Ok(())
}

/// Lets an answer go on elsewhere after `half` pieces. Gives how long the reader waited there, and the pauses before.
async fn wait(
    app: &App,
    nodes: &mut [Node; 2],
    model: &Path,
    way: Way,
    run: usize,
    half: usize,
) -> anyhow::Result<(Duration, Vec<Duration>)> {
    // A number at the very start keeps what was read for one answer from helping the next.
    let prompt = format!("{run} {}. {}\nContinue this text at length.", way.key(), PARAGRAPH.repeat(REPEATS));
    let chosen = (way == Way::HandedOver).then(|| nodes[0].id.clone());
    let mut events = ask(app, &prompt, chosen.as_deref()).await?;
    let (mut text, mut pauses, mut writer, mut message, mut before) = (String::new(), Vec::new(), 0, None, None);
    while pauses.len() < half {
        match events.next().await.context("the answer ended too soon")? {
            ReplyEvent::Accepted { message: id, .. } => message = Some(id),
            ReplyEvent::Routed(decision) => {
                let views = app.nodes();
                let is_at =
                    |node: &Node| views.iter().any(|view| view.id == node.id && decision.place.ends_with(&view.name));
                writer = nodes.iter().position(is_at).context("the answer runs at no node of ours")?;
            }
            ReplyEvent::Text(part) => {
                text.push_str(&part);
                let now = Instant::now();
                pauses.extend(before.replace(now).map(|before| now - before));
            }
            ReplyEvent::Failed { error, .. } => bail!("{error}"),
            ReplyEvent::Finished(_) => bail!("the answer is shorter than {half} pieces"),
            _ => {}
        }
    }
    let other = nodes[1 - writer].id.clone();
    let message = message.context("the answer has no id")?;
    let wait = match way {
        Way::HandedOver => {
            app.move_answer(message, PlaceChoice::Node(other))?;
            gap(&mut events).await?
        }
        Way::Killed => {
            nodes[writer].process.kill().await.context("cannot kill a node")?;
            let gap = gap(&mut events).await?;
            app.remove_node(&nodes[writer].id).await?;
            nodes[writer] = Node::start(app, model).await?;
            gap
        }
        Way::BegunAnew => {
            drop(events);
            let (began, mut again) = (Instant::now(), ask(app, &prompt, Some(&other)).await?);
            let mut new = String::new();
            while new.len() <= text.len() {
                match again.next().await.context("the answer ended too soon")? {
                    ReplyEvent::Text(part) => new.push_str(&part),
                    ReplyEvent::Failed { error, .. } => bail!("{error}"),
                    ReplyEvent::Finished(_) => bail!("the second answer is shorter than the first"),
                    _ => {}
                }
            }
            ensure!(new.starts_with(&text), "the second answer is another one");
            began.elapsed()
        }
    };
    Ok((wait, pauses))
}

/// From the last piece of text before the answer moves to the first after it.
async fn gap(events: &mut ReplyStream) -> anyhow::Result<Duration> {
    let (mut before, mut has_moved) = (Instant::now(), false);
    loop {
        match events.next().await.context("the answer ended too soon")? {
            ReplyEvent::Text(_) if has_moved => return Ok(before.elapsed()),
            ReplyEvent::Text(_) => before = Instant::now(),
            ReplyEvent::Moved { .. } => has_moved = true,
            ReplyEvent::Note { sentence } => bail!("{sentence}"),
            ReplyEvent::Failed { error, .. } => bail!("{error}"),
            ReplyEvent::Finished(_) => bail!("the answer ended before it moved"),
            _ => {}
        }
    }
}

async fn ask(app: &App, prompt: &str, node: Option<&str>) -> anyhow::Result<ReplyStream> {
    let place = node.map(|id| PlaceChoice::Node(id.to_owned()));
    let text = Some(prompt.to_owned());
    Ok(app.send_message(SendMessage { text, place, ..SendMessage::default() }).await?)
}

/// How long it takes to decide where a running answer goes on, with four nodes to choose from.
fn decision_time() -> anyhow::Result<Duration> {
    let node = |name: &str, speed: usize| format!("node={name}/up/own/warm/on:tokens/speed:{speed}");
    let nodes = [node("ash", 20), node("birch", 30), node("cedar", 40), node("elder", 25)].join(" ");
    let case = Case::parse(&format!("running=ash/200 failed=ash swap_used=5GiB {nodes}"))?;
    let began = Instant::now();
    for _ in 0..DECISIONS {
        black_box(black_box(&case).decide());
    }
    Ok(began.elapsed() / DECISIONS)
}

/// Of sorted times, the one that so many percent don't exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=20).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(10));
        assert_eq!(percentile(&times, 95), Duration::from_millis(19));
        assert_eq!(percentile(&times[..1], 95), Duration::from_millis(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn the_case_that_is_timed_is_understood() {
        assert!(decision_time().unwrap() > Duration::ZERO);
    }
}
