//! Real processes: a `tidegate serve` in front of others with the same weights, of which the one that writes is killed,
//! stopped, or silenced in the middle of an answer. The text at the end is the one of an undisturbed answer.
//!
//! `TIDEGATE_HANDOFF_RUNS` runs more than the usual number of disturbed answers.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chat::{ChatEvent, ChatRequest, Message, Role, SamplingParams};
use futures::StreamExt;
use nodes::{NodeAddress, NodeClient};
use routing::{Demand, NodeOption, Policy, may_leave};
use testkit::gguf::{TINY_TEMPLATE, endless_model};

const USUAL_RUNS: usize = 12;
/// Each waits until the silence is noticed.
const STOPPED_RUNS: usize = 2;

/// A `tidegate serve` that ends with the test.
struct Server {
    process: Child,
    url: String,
    data: tempfile::TempDir,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data.path())
            .args(arguments)
            .env_remove("TIDEGATE_MODELS_DIR")
            .env_remove("TIDEGATE_KEY")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let url = lines.by_ref().find_map(|line| Some(line.unwrap().strip_prefix("listening on ")?.to_owned()));
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, url: url.expect("it says where it listens"), data }
    }

    fn node(model: &Path) -> Self {
        Self::start(&["--offload", "local", "--model", model.to_str().unwrap()])
    }

    fn front(nodes: &[Self]) -> Self {
        let nodes = nodes.iter().flat_map(|node| ["--node", node.url.as_str()]);
        let arguments: Vec<&str> = ["--offload", "remote"].into_iter().chain(nodes).collect();
        Self::start(&arguments)
    }

    fn name(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that was killed already is no failure.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn model(folder: &Path) -> PathBuf {
    endless_model(7, 2048, TINY_TEMPLATE, &[]).write(folder, "tiny.gguf").unwrap()
}

fn request(run: usize) -> ChatRequest {
    // Greedy, and drawn by a seed.
    let sampling = SamplingParams {
        temperature: Some(if run.is_multiple_of(2) { 0.0 } else { 1.2 }),
        seed: Some(run as u64),
        // So many that the answer isn't written before a signal comes.
        max_tokens: Some(1500),
        ..SamplingParams::default()
    };
    ChatRequest { messages: vec![Message::new(Role::User, format!("hello {run}"))], sampling, ..ChatRequest::default() }
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    text: String,
    tokens: Option<usize>,
    /// The longest time between two pieces of text.
    gap: Duration,
    pieces: usize,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pieces, longest pause {:.0} ms", self.pieces, self.gap.as_secs_f64() * 1e3)
    }
}

/// Reads an answer; `disturb` is called after so many pieces of it.
async fn read(url: &str, request: ChatRequest, after: usize, disturb: impl FnOnce()) -> Answer {
    let client = NodeClient::new("front", NodeAddress::parse(url, None).unwrap()).unwrap();
    let node = NodeOption { id: "front".to_owned(), ..NodeOption::default() };
    let pass = may_leave(&Policy::default(), &Demand::default(), &node).unwrap();
    let mut events = client.chat(pass, "tiny", request).unwrap();
    let (mut answer, mut disturb, mut before) = (Answer::default(), Some(disturb), None::<Instant>);
    while let Some(event) = events.next().await {
        match event.expect("the answer goes on") {
            ChatEvent::Text(text) => {
                answer.text.push_str(&text);
                answer.pieces += 1;
                if let Some(before) = before.replace(Instant::now()) {
                    answer.gap = answer.gap.max(before.elapsed());
                }
                if answer.pieces >= after
                    && let Some(disturb) = disturb.take()
                {
                    disturb();
                }
            }
            ChatEvent::Finished(finish) => answer.tokens = finish.usage.map(|usage| usage.completion_tokens),
            _ => {}
        }
    }
    answer
}

async fn undisturbed(node: &Server, run: usize) -> Answer {
    read(&node.url, request(run), usize::MAX, || ()).await
}

fn runs() -> usize {
    std::env::var("TIDEGATE_HANDOFF_RUNS").map_or(USUAL_RUNS, |runs| runs.parse().unwrap())
}

/// How often a decision of that kind is in the front's history.
fn decisions(front: &Server, kind: &str) -> usize {
    let log = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["log", "--json", "--data"])
        .arg(front.data.path())
        .output()
        .unwrap();
    let entries: serde_json::Value = serde_json::from_slice(&log.stdout).unwrap();
    entries.as_array().unwrap().iter().filter(|entry| entry["kind"] == kind).count()
}

/// Sends `signal` to whichever node answers, after a number of pieces that differs from run to run; all are started anew
/// for the next.
#[expect(clippy::print_stdout, reason = "figures for whoever runs it")]
async fn disturbed(signal: &str, count: usize, runs: usize) {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let reference = Server::node(&model);
    let (mut longest, mut lost) = (Vec::new(), 0);
    for run in 0..runs {
        let expected = undisturbed(&reference, run).await;
        let mut nodes: Vec<Server> = (0..count).map(|_| Server::node(&model)).collect();
        let front = Server::front(&nodes);
        // The first by its name answers, as long as nothing is known of their speed.
        nodes.sort_by(|a, b| a.name().cmp(b.name()));
        let after = 1 + (run * 37) % expected.pieces.saturating_sub(1).max(1);
        let answer = read(&front.url, request(run), after, || {
            nodes[0].signal(signal);
        })
        .await;
        assert_eq!(answer.text, expected.text, "run {run}, {signal} after {after} pieces");
        assert_eq!(answer.tokens, expected.tokens, "run {run}, {signal} after {after} pieces");
        // All that it wrote may have been on its way already.
        let is_lost = decisions(&front, "lost") == 1 && decisions(&front, "move") == 1;
        lost += usize::from(is_lost);
        longest.push(answer.gap);
    }
    longest.sort();
    println!(
        "{runs} answers of {count} nodes, {signal} to one in each, {lost} of them moved: longest pause {:?} at the median, {:?} at most",
        longest[runs / 2],
        longest[runs - 1]
    );
    assert!(lost * 2 >= runs, "{lost} of {runs} answers were disturbed at all");
}

#[tokio::test]
async fn an_answer_survives_the_node_that_writes_it() {
    disturbed("-KILL", 2, runs().div_ceil(2)).await;
    disturbed("-KILL", 3, runs() / 2).await;
}

/// It keeps its connections, accepts new ones, and never says a word.
#[tokio::test]
async fn an_answer_survives_a_node_that_stands_still() {
    disturbed("-STOP", 2, STOPPED_RUNS).await;
}
