//! `make bench`: Tidegate beside llama.cpp on the same files with as many threads, in turn, into docs/BENCHMARKS.md.
//! `figures.rs` is what is compared, `document.rs` how it is told.

mod document;
mod figures;
mod peer;
mod server;

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::run::build_release;
use crate::setup;
use crate::steps::{Steps, shell_line};
use crate::workspace::Workspace;
use document::{ModelFigures, Report};
use figures::{Figure, Machine, median, of_llama_bench, of_tidegate};
use peer::Peer;
use server::Server;

const USAGE: &str = "cargo xtask bench [--rounds N] [--threads N] [--model MODEL]… [--no-quantizations]
  --rounds            how often either side has its turn; medians count (5)
  --threads           of each side (one for each core)
  --model             a further GGUF file, or a name of models/catalog.toml, beside the starter model
  --no-quantizations  leave the quantizations of a small model out";
/// Tokens of context for each of the four answers of a server.
const CONTEXT: usize = 4096;
/// What is requantized.
const SMALL: &str = "smollm2-135m-instruct-q4_1";
const TOGETHER: usize = 4;
/// What llama-quantize makes of the small model; the name, the base type and the type of all matrices where that differs.
const QUANTIZATIONS: [(&str, &str, Option<&str>); 7] = [
    ("q4_0", "Q4_0", None),
    ("q4_1", "Q4_1", None),
    ("q5_k_m", "Q5_K_M", None),
    ("q6_k", "Q6_K", None),
    ("q8_0", "Q8_0", None),
    ("f16", "F16", None),
    // As a base type it is for experts alone.
    ("mxfp4", "Q8_0", Some("mxfp4")),
];
/// One token of most vocabularies each; a long conversation is made of them.
const WORDS: [&str; 8] = ["river", "stone", "garden", "winter", "bridge", "island", "music", "light"];

#[derive(Debug, PartialEq, Eq)]
struct Plan {
    rounds: usize,
    threads: usize,
    models: Vec<PathBuf>,
    has_quantizations: bool,
}

impl Plan {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut plan = Self { rounds: 5, threads: cores(), models: Vec::new(), has_quantizations: true };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} wants a value\n{USAGE}"));
            match argument.as_str() {
                "--rounds" => plan.rounds = value()?.parse().context("--rounds wants a number")?,
                "--threads" => plan.threads = value()?.parse().context("--threads wants a number")?,
                "--model" => plan.models.push(PathBuf::from(value()?)),
                "--no-quantizations" => plan.has_quantizations = false,
                other => bail!("what is `{other}`?\n{USAGE}"),
            }
        }
        ensure!(plan.rounds > 0 && plan.threads > 0, "there is nothing to measure with none\n{USAGE}");
        Ok(plan)
    }
}

/// Both programs on one machine.
struct Bench {
    tidegate: PathBuf,
    peer: Peer,
    threads: usize,
}

/// A file and how much of it is measured.
struct Subject {
    file: PathBuf,
    /// A long context and the servers too, not only the products of matrices.
    is_whole: bool,
}

#[derive(Clone, Copy)]
enum Side {
    Ours,
    Theirs,
}

/// What either side does in one turn.
#[derive(Clone, Copy)]
enum Part {
    /// The model alone: `tidegate bench` and `llama-bench`.
    Prompt(Lengths),
    /// A server, asked over HTTP.
    Server,
    /// The command line, from its start to its first byte.
    Start,
}

/// Tokens of a prefill and of a decode, and how often they run, in the words of a command line.
#[derive(Clone, Copy)]
struct Lengths {
    prefill: &'static str,
    decode: &'static str,
    is_deep: bool,
    runs: &'static str,
}

impl Part {
    const OF_MATRICES: [Self; 2] = [
        Self::Prompt(Lengths { prefill: "512", decode: "128", is_deep: true, runs: "1" }),
        Self::Prompt(Lengths { prefill: "32", decode: "0", is_deep: false, runs: "5" }),
    ];
    const ALL: [Self; 4] = [Self::OF_MATRICES[0], Self::OF_MATRICES[1], Self::Server, Self::Start];
}

impl Lengths {
    const fn depths(self, subject: &Subject) -> &'static str {
        if self.is_deep && subject.is_whole { "0,2048" } else { "0" }
    }
}

/// `cargo xtask bench`.
pub(crate) fn bench(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let plan = Plan::parse(arguments)?;
    let mut steps = Steps::new(workspace.notes())?;
    let starter = setup::starter_model(workspace, &mut steps)?;
    let peer = Peer::ensure(workspace, &mut steps)?;
    build_release(&mut steps, "cli")?;
    let bench = Bench { tidegate: workspace.target.join("release/tidegate"), peer, threads: plan.threads };
    let mut subjects = vec![Subject { file: starter, is_whole: true }];
    for model in plan.models {
        let file = if model.exists() { model } else { setup::model(workspace, &mut steps, &model.to_string_lossy())? };
        subjects.push(Subject { file, is_whole: true });
    }
    if plan.has_quantizations {
        let files = bench.quantizations(workspace, &mut steps)?;
        subjects.extend(files.into_iter().map(|file| Subject { file, is_whole: false }));
    }
    let mut report = Report {
        machine: Machine::default(),
        commit: commit(workspace)?,
        rustc: said_by(Command::new("rustc").arg("--version"))?,
        peer: bench.peer.version.clone(),
        load: load(&said_by(&mut Command::new("uptime"))?),
        threads: plan.threads,
        rounds: plan.rounds,
        commands: bench.commands(workspace, &subjects[0]),
        models: Vec::new(),
    };
    for subject in &subjects {
        let name = subject.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut model = ModelFigures { file: name.clone(), ..ModelFigures::default() };
        for round in 1..=plan.rounds {
            steps.work(&format!("{name}, round {round} of {}", plan.rounds), || {
                let machine = bench.round(subject, round, &mut model)?;
                report.machine = machine;
                Ok(String::new())
            });
        }
        report.models.push(model);
    }
    steps.all_passed()?;
    let path = workspace.root.join("docs/BENCHMARKS.md");
    let document = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    fs::write(&path, document::with_report(&document, &report)?)?;
    println!("written  {}", path.display());
    Ok(())
}

/// Logical cores that this process may use.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn commit(workspace: &Workspace) -> Result<String> {
    let git = |arguments: &[&str]| said_by(Command::new("git").arg("-C").arg(&workspace.root).args(arguments));
    let is_changed = !git(&["status", "--porcelain"])?.is_empty();
    Ok(git(&["show", "--no-patch", "--format=%h of %cs"])? + if is_changed { " with changes" } else { "" })
}

/// The load averages in what `uptime` prints.
fn load(uptime: &str) -> String {
    let averages = uptime.rsplit_once("average").and_then(|(_, averages)| averages.split_once(": "));
    averages.map_or_else(|| "unknown".to_owned(), |(_, averages)| averages.to_owned())
}

/// What a command prints.
fn said_by(command: &mut Command) -> Result<String> {
    let line = shell_line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {line}"))?;
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{line}: {}", error.lines().last().unwrap_or("it failed without a word"));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Bench {
    /// The small model in each quantization, made where it isn't there yet.
    fn quantizations(&self, workspace: &Workspace, steps: &mut Steps) -> Result<Vec<PathBuf>> {
        let source = setup::model(workspace, steps, SMALL)?;
        let folder = workspace.target.join("peer/quantizations");
        fs::create_dir_all(&folder)?;
        let make = |(name, base, matrices): (&str, &str, Option<&str>)| {
            let file = folder.join(format!("smollm2-135m-{name}.gguf"));
            if !file.exists() {
                let new = file.with_extension("new");
                let mut quantize = self.peer.command("llama-quantize");
                // Its source is quantized already: good for measuring speed, and for nothing else.
                quantize.arg("--allow-requantize");
                if let Some(matrices) = matrices {
                    quantize.args(["--tensor-type", &format!("attn={matrices}")]);
                    quantize.args(["--tensor-type", &format!("ffn={matrices}")]);
                }
                said_by(quantize.arg(&source).arg(&new).arg(base))?;
                fs::rename(&new, &file)?;
            }
            Ok(file)
        };
        QUANTIZATIONS.into_iter().map(make).collect()
    }

    /// Either side's turn at each part, the other one first every other round. Tells the machine.
    fn round(&self, subject: &Subject, round: usize, model: &mut ModelFigures) -> Result<Machine> {
        let mut order = [Side::Ours, Side::Theirs];
        order.rotate_left(round % 2);
        let parts = if subject.is_whole { &Part::ALL[..] } else { &Part::OF_MATRICES[..] };
        let mut machine = Machine::default();
        for (part, side) in parts.iter().flat_map(|part| order.map(|side| (*part, side))) {
            machine = self.turn(subject, part, side, model)?.unwrap_or(machine);
        }
        Ok(machine)
    }

    fn turn(&self, subject: &Subject, part: Part, side: Side, model: &mut ModelFigures) -> Result<Option<Machine>> {
        let mut take = |figure: Figure, value: f64| {
            let sides = model.figures.entry(figure).or_default();
            match side {
                Side::Ours => sides.ours.push(value),
                Side::Theirs => sides.theirs.push(value),
            }
        };
        let data = scratch_folder(&self.tidegate)?;
        match (part, side) {
            (Part::Prompt(lengths), Side::Ours) => {
                let run = of_tidegate(&said_by(&mut self.our_bench(subject, lengths))?)?;
                run.figures.into_iter().for_each(|(figure, value)| take(figure, value));
                for (figure, ratio) in run.bandwidth_ratios {
                    model.bandwidth_ratios.entry(figure).or_default().ours.push(ratio);
                }
                model.quantization = run.quantization;
                return Ok(Some(run.machine));
            }
            (Part::Prompt(lengths), Side::Theirs) => {
                let figures = of_llama_bench(&said_by(&mut self.their_bench(subject, lengths))?)?;
                figures.into_iter().for_each(|(figure, value)| take(figure, value));
            }
            (Part::Server, Side::Ours) => over_http(|port| self.our_server(subject, &data, port), &mut take)?,
            (Part::Server, Side::Theirs) => over_http(|port| self.their_server(subject, port), &mut take)?,
            (Part::Start, Side::Ours) => {
                take(Figure::ColdStart, first_byte(self.our_start(subject, &data))?.as_secs_f64());
            }
            (Part::Start, Side::Theirs) => {
                take(Figure::ColdStart, first_byte(self.their_start(subject))?.as_secs_f64());
            }
        }
        Ok(None)
    }

    fn our_bench(&self, subject: &Subject, lengths: Lengths) -> Command {
        let mut command = Command::new(&self.tidegate);
        command.arg("bench").arg("--model").arg(&subject.file).args(["--pp", lengths.prefill, "--tg", lengths.decode]);
        command.args(["--depth", lengths.depths(subject), "--runs", lengths.runs]);
        command.args(["--threads", &self.threads.to_string(), "--json"]);
        command
    }

    fn their_bench(&self, subject: &Subject, lengths: Lengths) -> Command {
        let mut command = self.peer.command("llama-bench");
        command.arg("-m").arg(&subject.file).args(["-p", lengths.prefill, "-n", lengths.decode]);
        command.args(["-d", lengths.depths(subject), "-r", lengths.runs]);
        command.args(["-t", &self.threads.to_string(), "-o", "json"]);
        command
    }

    fn our_server(&self, subject: &Subject, data: &Path, port: u16) -> Command {
        let mut command = Command::new(&self.tidegate);
        command.arg("serve").arg("--model").arg(&subject.file).args(["--offload", "local"]);
        command.args(["--threads", &self.threads.to_string(), "--listen", &format!("127.0.0.1:{port}")]);
        command.arg("--data").arg(data);
        command
    }

    fn their_server(&self, subject: &Subject, port: u16) -> Command {
        let mut command = self.peer.command("llama-server");
        command.arg("-m").arg(&subject.file).args(["-t", &self.threads.to_string()]);
        command.args(["-np", &TOGETHER.to_string(), "-c", &(TOGETHER * CONTEXT).to_string(), "--no-ui"]);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command
    }

    fn our_start(&self, subject: &Subject, data: &Path) -> Command {
        let mut command = Command::new(&self.tidegate);
        command.args(["chat", "--once", "Hello", "--max-tokens", "1", "--temp", "0", "--offload", "local"]);
        command.arg("--model").arg(&subject.file).args(["--threads", &self.threads.to_string()]);
        command.arg("--data").arg(data);
        command
    }

    fn their_start(&self, subject: &Subject) -> Command {
        let mut command = self.peer.command("llama-completion");
        command.args(["-p", "Hello", "-n", "1", "--temp", "0", "-cnv", "-st", "--no-display-prompt", "--no-warmup"]);
        command.arg("-m").arg(&subject.file).args(["-c", &CONTEXT.to_string(), "-t", &self.threads.to_string()]);
        command
    }

    /// What is run, as one would type it in the checkout.
    fn commands(&self, workspace: &Workspace, subject: &Subject) -> Vec<String> {
        let data = Path::new("DIR");
        let of = |part: Part| match part {
            Part::Prompt(lengths) => [self.our_bench(subject, lengths), self.their_bench(subject, lengths)],
            Part::Server => [self.our_server(subject, data, 8080), self.their_server(subject, 8080)],
            Part::Start => [self.our_start(subject, data), self.their_start(subject)],
        };
        let root = format!("{}/", workspace.root.display());
        let all = Part::ALL.into_iter().flat_map(of);
        all.map(|command| shell_line(&command).replace(&root, "")).collect()
    }
}

/// An empty folder beside the program, for settings and caches that one run leaves.
fn scratch_folder(beside: &Path) -> Result<PathBuf> {
    let folder = beside.with_file_name("bench-data");
    if folder.exists() {
        fs::remove_dir_all(&folder)?; // of a run that was stopped
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// What a chat program sees of a server: the second turn of a long conversation, and four answers together.
fn over_http(command: impl FnOnce(u16) -> Command, take: &mut impl FnMut(Figure, f64)) -> Result<()> {
    let server = Server::start(command)?;
    // Loads the weights where that wasn't done yet.
    server.ask(&[("user", "Hello")], 1)?;
    let words: Vec<&str> = (0..1_950).map(|i| WORDS[i * i % 37 % WORDS.len()]).collect();
    let long = format!("Here is a list of words. {}. Tell a story with the first three of them.", words.join(" "));
    let told = server.ask(&[("user", &long)], 32)?.text;
    let second = [("user", long.as_str()), ("assistant", &told), ("user", "How does it end?")];
    let answer = server.ask(&second, 4)?;
    take(Figure::SecondTurn, (answer.first - answer.asked).as_secs_f64());

    let prompts: Vec<String> =
        (0..TOGETHER).map(|i| format!("Tell a long story about a {} and what happened there.", WORDS[i])).collect();
    let tell = |prompt: &String| server.ask(&[("user", prompt)], 128);
    let speed = |answers: &[server::Answer]| {
        let (first, last) =
            (answers.iter().map(|answer| answer.first).min(), answers.iter().map(|answer| answer.last).max());
        let time = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first);
        // The first token of each comes out of its prefill.
        let tokens: u64 = answers.iter().map(|answer| answer.tokens.saturating_sub(1)).sum();
        tokens as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
    };
    let alone = speed(&[tell(&prompts[0])?]);
    let answers: Result<Vec<_>> = thread::scope(|scope| {
        let asked: Vec<_> = prompts.iter().map(|prompt| scope.spawn(move || tell(prompt))).collect();
        asked.into_iter().map(|answer| answer.join().expect("asking does not panic")).collect()
    });
    let together = speed(&answers?);
    take(Figure::Alone, alone);
    take(Figure::Together, together);
    take(Figure::Gain, together / alone);
    if let Some(bytes) = server.peak_memory() {
        take(Figure::PeakMemory, bytes as f64);
    }
    Ok(())
}

/// The time from the start of a program to the first byte that it prints; the median of three after one that finds the
/// file in memory.
fn first_byte(mut command: Command) -> Result<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut times = Vec::new();
    for run in 0..4 {
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("starting {}", shell_line(&command)))?;
        let mut byte = [0];
        let read = child.stdout.take().context("its output is a pipe")?.read_exact(&mut byte);
        let time = started.elapsed();
        let status = child.wait()?;
        read.with_context(|| format!("{} printed nothing ({status})", shell_line(&command)))?;
        if run > 0 {
            times.push(time.as_secs_f64());
        }
    }
    Ok(Duration::from_secs_f64(median(&times).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Plan> {
        Plan::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_are_read() {
        let plan = parse("--rounds 2 --threads 3 --model a.gguf --model b.gguf --no-quantizations").unwrap();
        let models = vec![PathBuf::from("a.gguf"), PathBuf::from("b.gguf")];
        assert_eq!(plan, Plan { rounds: 2, threads: 3, models, has_quantizations: false });
        assert_eq!(parse("").unwrap().rounds, 5);
        for wrong in ["--rounds", "--rounds x", "--rounds 0", "--depth 0"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn load_averages_are_found_on_linux_and_macos() {
        assert_eq!(load(" 16:12:59 up 13:59,  0 user,  load average: 5.18, 4.74, 5.25"), "5.18, 4.74, 5.25");
        assert_eq!(load("16:12  up 3 days, 2 users, load averages: 1.52 1.61 1.70"), "1.52 1.61 1.70");
        assert_eq!(load("?"), "unknown");
    }

    #[test]
    fn the_time_to_the_first_byte_does_not_wait_for_the_end() {
        let mut command = Command::new("sh");
        command.args(["-c", "printf x; sleep 0.05"]);
        assert!(first_byte(command).unwrap() > Duration::ZERO);
        assert!(first_byte(Command::new("true")).unwrap_err().to_string().contains("printed nothing"));
    }
}
