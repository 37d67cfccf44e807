//! `cargo xtask fuzz`: builds the fuzz targets in `fuzz/` with the compiler's coverage counters and runs each for a while.
//! What it finds stays in the build folder: inputs that reach new code in `fuzz/corpus/`, those that fail in
//! `fuzz/findings/`.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::steps::Steps;
use crate::workspace::{Workspace, in_ci};

/// For how long each target is run where nobody says.
const SECONDS: u64 = 60;
/// Targets that run at the same time: CI has two cores.
const AT_ONCE: usize = 2;
/// An input that takes longer, in seconds, is a finding. Nothing in the engine should come near, on a busy machine either.
const LONGEST_INPUT: u64 = 30;
/// What a target may have in memory, in MiB; `fuzz/src/lib.rs` limits what the engine claims.
const MOST_MEMORY: u64 = 2048;

/// What cargo-fuzz passes to a stable compiler: libFuzzer's counters and comparisons, no sanitizer. Nearly all of what is
/// fuzzed is safe Rust, where a read out of bounds is a panic.
const INSTRUMENTS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// What is done with a target.
#[derive(Clone, Copy)]
enum Work {
    Run {
        seconds: u64,
    },
    /// Takes the inputs that reach new code into the repository.
    Keep,
}

/// `cargo xtask fuzz [--seconds N | --keep] [TARGET…]`.
pub(crate) fn fuzz(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let (mut work, mut chosen) = (Work::Run { seconds: SECONDS }, Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let number = arguments.next().and_then(|number| number.parse().ok());
            work = Work::Run { seconds: number.context("--seconds wants a number")? };
        } else if argument == "--keep" {
            work = Work::Keep;
        } else {
            chosen.push(argument.clone());
        }
    }
    let known = targets(workspace)?;
    if let Some(unknown) = chosen.iter().find(|name| !known.contains(name)) {
        bail!("no target `{unknown}`; there are {}", known.join(", "));
    }
    let mut steps = Steps::new(workspace.notes())?;
    run(workspace, if chosen.is_empty() { &known } else { &chosen }, work, &mut steps)?;
    steps.summary()
}

/// Every target, for a minute.
pub(crate) fn all(workspace: &Workspace, steps: &mut Steps) -> Result<()> {
    run(workspace, &targets(workspace)?, Work::Run { seconds: SECONDS }, steps)
}

fn run(workspace: &Workspace, targets: &[String], work: Work, steps: &mut Steps) -> Result<()> {
    let folder = workspace.target.join("fuzz");
    let host = host()?;
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--bins", "--target", &host, "--manifest-path"]);
    build.arg(workspace.root.join("fuzz/Cargo.toml"));
    if in_ci() {
        build.arg("--locked");
    }
    build.env("CARGO_TARGET_DIR", &folder).env("RUSTFLAGS", INSTRUMENTS.join(" "));
    if !steps.run("fuzz: build", &mut build) {
        steps.not_run("fuzz", "the build failed");
        return Ok(());
    }
    for targets in targets.chunks(AT_ONCE) {
        let programs = targets.iter().map(|target| {
            let program = folder.join(&host).join("release").join(target);
            Ok((format!("fuzz: {target}"), command(workspace, target, &program, work)?))
        });
        steps.run_together(programs.collect::<Result<_>>()?, statistics);
    }
    Ok(())
}

fn command(workspace: &Workspace, target: &str, program: &Path, work: Work) -> Result<Command> {
    let folder = workspace.target.join("fuzz");
    let [found, findings] = ["corpus", "findings"].map(|name| folder.join(name).join(target));
    for made in [&found, &findings] {
        fs::create_dir_all(made).with_context(|| format!("making {}", made.display()))?;
    }
    let mut command = Command::new(program);
    let kept = corpus(workspace).join(target);
    // New inputs go into the first folder.
    match work {
        Work::Run { seconds } => command.arg(format!("-max_total_time={seconds}")).arg(&found).arg(&kept),
        // One input for each place in the code, not for each number of visits to it.
        Work::Keep => command.args(["-set_cover_merge=1", "-use_counters=0"]).arg(&kept).arg(&found),
    };
    command.args([
        format!("-timeout={LONGEST_INPUT}"),
        format!("-rss_limit_mb={MOST_MEMORY}"),
        format!("-artifact_prefix={}/", findings.display()),
    ]);
    // With one thread the same input takes the same way.
    command.env("RAYON_NUM_THREADS", "1").env("RUST_BACKTRACE", "1");
    // Every input of some targets is written to files, best into memory.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        command.env("TMPDIR", memory);
    }
    Ok(command)
}

fn corpus(workspace: &Workspace) -> PathBuf {
    workspace.root.join("fuzz/corpus")
}

/// The names of the targets, one file each.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.root.join("fuzz/fuzz_targets");
    let files = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let name = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let mut names: Vec<String> = files.filter_map(|file| name(&file.ok()?.path())).collect();
    names.sort();
    Ok(names)
}

/// The triple of this machine. Named to cargo, it keeps the instruments out of build scripts, which lack what they call.
fn host() -> Result<String> {
    let output = Command::new("rustc").args(["--print", "host-tuple"]).output().context("starting rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// How far libFuzzer got, from its last line of statistics:
/// `#1234  DONE   cov: 567 ft: 890 corp: 12/3456b lim: 4096 exec/s: 78 rss: 90Mb`.
fn statistics(output: &str) -> String {
    let line = output.lines().rfind(|line| line.starts_with('#') && line.contains("cov: "));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    let after = |word: &str| words.iter().position(|found| *found == word).and_then(|at| words.get(at + 1));
    match (words.first(), after("cov:"), after("ft:")) {
        (Some(runs), Some(counters), Some(features)) => {
            format!("{} inputs, {counters} counters, {features} features", runs.trim_start_matches('#'))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_statistics_are_told() {
        let output = "INFO: Seed: 1\n#3\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 30Mb\n#70\tDONE   cov: 9 ft: 12 corp: \
                      3/9b lim: 4 exec/s: 35 rss: 31Mb\nDone 70 runs in 2 second(s)";
        assert_eq!(statistics(output), "70 inputs, 9 counters, 12 features");
        assert_eq!(statistics("==1== ERROR"), "");
    }

    #[test]
    fn every_target_has_a_program_and_a_small_corpus() {
        let workspace = Workspace::find().unwrap();
        let manifest = fs::read_to_string(workspace.root.join("fuzz/Cargo.toml")).unwrap();
        let targets = targets(&workspace).unwrap();
        assert!(!targets.is_empty());
        let mut bytes = 0;
        for target in targets {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
            let kept = corpus(&workspace).join(&target).read_dir().unwrap();
            let sizes: Vec<u64> = kept.map(|file| file.unwrap().metadata().unwrap().len()).collect();
            assert!(!sizes.is_empty(), "{target}");
            bytes += sizes.iter().sum::<u64>();
        }
        assert!(bytes < 2 << 20, "{bytes} bytes are kept: merge fewer");
    }
}
