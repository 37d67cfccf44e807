//! `make bench`: Tidegate beside llama.cpp on the same files with as many threads, in turn, into docs/BENCHMARKS.md.
//!
//! `subjects.rs` is which files, `turn.rs` what is run of each, `figures.rs` what comes out, `document.rs` how it is told.
//! `counts.rs` is `make bench-count`.

mod counts;
mod document;
mod figures;
mod peer;
mod process;
mod server;
mod subjects;
mod turn;

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Instant;

use crate::run::build_release;
use crate::setup;
use crate::steps::Steps;
use crate::workspace::Workspace;
pub(crate) use counts::bench_count;
use document::{FileFigures, Report};
use figures::{Machine, Side, of_tidegate};
use peer::Peer;
use process::said_by;
use subjects::{KNOWN, Subject};
use turn::{Bench, Part};

const USAGE: &str = "cargo xtask bench [--rounds N] [--threads N] [--only NAME,…] [--model MODEL]…
  --rounds   how often either side has its turn; medians count (3)
  --threads  of each side (one for each core)
  --only     some files (0.5b, 1.5b, gemma, q4_0, q4_1, q5_k_m, q6_k, q8_0, f16, mxfp4, moe), some measurements (decode,
             prefill, server, start), or some measurements of some files; the document keeps its other rows
  --model    a further GGUF file, or a name of models/catalog.toml";
/// What products on the CPU may be computed with, as Linux and macOS call it.
const FEATURES: [&str; 18] = [
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
    "FEAT_DotProd",
    "FEAT_I8MM",
    "FEAT_SME",
];

#[derive(Debug, PartialEq, Eq)]
struct Plan {
    rounds: usize,
    threads: usize,
    /// Files and parts; all where none are named.
    only: Vec<String>,
    models: Vec<PathBuf>,
}

impl Plan {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut plan = Self { rounds: 3, threads: cores(), only: Vec::new(), models: Vec::new() };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} wants a value\n{USAGE}"));
            match argument.as_str() {
                "--rounds" => plan.rounds = value()?.parse().context("--rounds wants a number")?,
                "--threads" => plan.threads = value()?.parse().context("--threads wants a number")?,
                "--only" => plan.only.extend(value()?.split(',').map(str::to_owned)),
                "--model" => plan.models.push(PathBuf::from(value()?)),
                other => bail!("what is `{other}`?\n{USAGE}"),
            }
        }
        ensure!(plan.rounds > 0 && plan.threads > 0, "there is nothing to measure with none\n{USAGE}");
        let is_known = |name: &str| Part::NAMES.contains(&name) || KNOWN.iter().any(|known| known.name == name);
        if let Some(unknown) = plan.only.iter().find(|name| !is_known(name)) {
            bail!("--only knows no `{unknown}`\n{USAGE}");
        }
        Ok(plan)
    }

    /// Whether the file that `--only` calls `name` is measured.
    fn has_file(&self, name: &str) -> bool {
        self.only.iter().all(|only| Part::NAMES.contains(&only.as_str())) || self.only.iter().any(|only| only == name)
    }

    fn has_part(&self, part: Part) -> bool {
        let mut parts = self.only.iter().filter(|only| Part::NAMES.contains(&only.as_str())).peekable();
        parts.peek().is_none() || parts.any(|only| only == part.name())
    }
}

/// `cargo xtask bench`.
pub(crate) fn bench(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let plan = Plan::parse(arguments)?;
    let started = Instant::now();
    let mut steps = Steps::new(workspace.notes())?;
    let starter = setup::starter_model(workspace, &mut steps)?;
    let peer = Peer::ensure(workspace, &mut steps)?;
    build_release(&mut steps, "cli")?;
    let tidegate = workspace.target.join("release/tidegate");
    let bench = Bench { tidegate, peer, threads: plan.threads, scratch: workspace.target.join("peer/scratch") };
    let (subjects, missing) = subjects(workspace, &plan, &bench, &mut steps)?;
    let path = workspace.root.join("docs/BENCHMARKS.md");
    let read = || fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()));
    let first = subjects.first().context("there is nothing to measure")?;
    let mut report = Report {
        machine: machine(&bench, starter)?,
        features: features(),
        measured: measured(workspace)?,
        rustc: line_of("rustc", &["--version"])?,
        peer: bench.peer.version.clone(),
        load: load(&line_of("uptime", &[])?),
        threads: plan.threads,
        commands: bench.command_lines(workspace, first),
        files: subjects.iter().map(|subject| FileFigures::new(&subject.name)).chain(missing).collect(),
    };
    if !plan.only.is_empty() {
        document::check_same_machine(&read()?, &report)?;
    }
    let mut left = Left::new(plan.rounds, &subjects);
    // Round after round over all files: what disturbs the machine for a minute is in one round of a figure, not in all.
    for round in 1..=plan.rounds {
        for (subject, file) in subjects.iter().zip(&mut report.files) {
            for part in &subject.parts {
                let name = format!("{round}/{} {} {part}", plan.rounds, subject.name);
                steps.work(&name, || {
                    let (told, failures) = bench.turns(subject, *part, round, &mut file.figures);
                    ensure!(failures.is_empty(), "{}\n{told}", failures.join("\n"));
                    Ok(format!("{told}  {}", left.after(subject, *part)))
                });
            }
        }
        // After each round: who stops this keeps what is there.
        fs::write(&path, document::with_report(&read()?, &report, !plan.only.is_empty())?)?;
        println!("written  {}, {} min so far", path.display(), started.elapsed().as_secs() / 60);
    }
    steps.all_passed()
}

/// The files of the plan, and those that could not be had.
fn subjects(
    workspace: &Workspace,
    plan: &Plan,
    bench: &Bench,
    steps: &mut Steps,
) -> Result<(Vec<Subject>, Vec<FileFigures>)> {
    let (mut subjects, mut missing) = (Vec::new(), Vec::new());
    for known in KNOWN.iter().filter(|known| plan.has_file(known.name)) {
        match known.subject(workspace, &bench.peer) {
            Ok(subject) => subjects.push(subject),
            Err(error) => {
                let mut file = FileFigures::new(&known.title());
                let parts = known.parts.iter().filter(|part| plan.has_part(**part));
                parts.for_each(|part| part.fail(Side::BOTH, &format!("{error:#}"), &mut file.figures));
                missing.push(file);
                steps.work(known.name, || Err(error));
            }
        }
    }
    for model in &plan.models {
        let id = model.to_string_lossy();
        let file = if model.exists() { model.clone() } else { setup::model(workspace, steps, &id)? };
        subjects.push(Subject::new(file, &Part::ALL));
    }
    for subject in &mut subjects {
        subject.parts.retain(|part| plan.has_part(*part));
    }
    subjects.retain(|subject| !subject.parts.is_empty());
    Ok((subjects, missing))
}

/// How long the rest takes, if it takes as long by its work as what is done.
struct Left {
    started: Instant,
    done: u64,
    all: u64,
}

impl Left {
    fn new(rounds: usize, subjects: &[Subject]) -> Self {
        let works = subjects.iter().flat_map(|subject| subject.parts.iter().map(|part| Self::work(subject, *part)));
        Self { started: Instant::now(), done: 0, all: works.sum::<u64>() * rounds as u64 }
    }

    /// By the size of the file, and something for the start of the programs.
    fn work(subject: &Subject, part: Part) -> u64 {
        let mb = fs::metadata(&subject.file).map_or(0, |metadata| metadata.len() / 1_000_000);
        part.work() * (100 + mb)
    }

    /// What is left after this.
    fn after(&mut self, subject: &Subject, part: Part) -> String {
        self.done += Self::work(subject, part);
        let rest = self.all.saturating_sub(self.done) as f64 / self.done.max(1) as f64;
        format!("(about {:.0} min left)", (self.started.elapsed().as_secs_f64() * rest / 60.0).ceil())
    }
}

/// Logical cores that this process may use.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The machine, as Tidegate knows it.
fn machine(bench: &Bench, starter: PathBuf) -> Result<Machine> {
    let mut command = Command::new(&bench.tidegate);
    command.args(["bench", "--pp", "8", "--tg", "0", "--depth", "0", "--runs", "1", "--json", "--model"]).arg(starter);
    command.args(["--threads", &bench.threads.to_string()]);
    Ok(of_tidegate(&said_by(&mut command)?.output)?.machine)
}

/// Which of [`FEATURES`] the processor has.
fn features() -> String {
    let told = fs::read_to_string("/proc/cpuinfo")
        .or_else(|_| said_by(Command::new("sysctl").arg("hw.optional.arm")).map(|said| said.output));
    features_in(&told.unwrap_or_default())
}

/// In Linux's list of flags, or macOS's lines of `hw.optional.arm.NAME: 1`.
fn features_in(told: &str) -> String {
    let words: Vec<&str> = match told.lines().find(|line| line.starts_with("flags") || line.starts_with("Features")) {
        Some(line) => line.split_whitespace().collect(),
        None => told.lines().filter_map(|line| line.strip_suffix(": 1")?.rsplit('.').next()).collect(),
    };
    let found: Vec<&str> = FEATURES.into_iter().filter(|feature| words.contains(feature)).collect();
    if found.is_empty() { "no features that are known".to_owned() } else { found.join(" ") }
}

/// The day, and the commit; with a plus where there are changes beside it.
fn measured(workspace: &Workspace) -> Result<String> {
    let root = workspace.root.to_string_lossy();
    let changes = line_of("git", &["-C", &root, "status", "--porcelain", "--", ".", ":!docs/BENCHMARKS.md"])?;
    let commit = line_of("git", &["-C", &root, "show", "--no-patch", "--format=%h"])?;
    Ok(format!("{}, {commit}{}", line_of("date", &["+%F"])?, if changes.is_empty() { "" } else { "+" }))
}

/// The load averages in what `uptime` prints.
fn load(uptime: &str) -> String {
    let averages = uptime.rsplit_once("average").and_then(|(_, averages)| averages.split_once(": "));
    averages.map_or_else(|| "unknown".to_owned(), |(_, averages)| averages.to_owned())
}

/// What a program prints.
fn line_of(program: &str, arguments: &[&str]) -> Result<String> {
    let said = said_by(Command::new(program).args(arguments)).with_context(|| format!("asking {program}"))?;
    Ok(said.output.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Plan> {
        Plan::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_are_read() {
        let plan = parse("--rounds 2 --threads 3 --model a.gguf --only gemma,moe --only decode").unwrap();
        let only = ["gemma", "moe", "decode"].map(str::to_owned).to_vec();
        assert_eq!(plan, Plan { rounds: 2, threads: 3, only, models: vec![PathBuf::from("a.gguf")] });
        assert_eq!(parse("").unwrap().rounds, 3);
        for wrong in ["--rounds", "--rounds x", "--rounds 0", "--depth 0", "--only llama"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_names_files_or_parts_or_both() {
        let check = |only: &str, file: &str, part: Part| {
            let plan = parse(&format!("--only {only}")).unwrap();
            (plan.has_file(file), plan.has_part(part))
        };
        assert_eq!(check("gemma", "gemma", Part::Server), (true, true));
        assert_eq!(check("gemma", "moe", Part::Server), (false, true));
        assert_eq!(check("server", "moe", Part::Server), (true, true));
        assert_eq!(check("server", "moe", Part::Prefill(32)), (true, false));
        assert_eq!(check("moe,prefill", "moe", Part::Prefill(32)), (true, true));
        assert_eq!(check("moe,prefill", "gemma", Part::Decode), (false, false));
    }

    #[test]
    fn load_averages_are_found_on_linux_and_macos() {
        assert_eq!(load(" 16:12:59 up 13:59,  0 user,  load average: 5.18, 4.74, 5.25"), "5.18, 4.74, 5.25");
        assert_eq!(load("16:12  up 3 days, 2 users, load averages: 1.52 1.61 1.70"), "1.52 1.61 1.70");
        assert_eq!(load("?"), "unknown");
    }

    #[test]
    fn features_are_found_on_linux_and_macos() {
        assert_eq!(features_in("model name : x\nflags\t\t: fpu avx2 avx512_vnni\n"), "avx2 avx512_vnni");
        assert_eq!(features_in("hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_SME: 0\n"), "FEAT_DotProd");
        assert_eq!(features_in(""), "no features that are known");
    }
}
