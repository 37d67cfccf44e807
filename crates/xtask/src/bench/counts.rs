//! `make bench-count`: how many instructions each kernel takes, counted by callgrind and compared with the counts that are
//! committed. They repeat exactly, on a busy machine too, and tell nothing of memory and of threads: those are
//! `cargo bench --package kernels --bench threads`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::line_of;
use super::process::said_by;
use crate::steps::Steps;
use crate::workspace::{Workspace, which};

const USAGE: &str = "cargo xtask bench-count [--write]
  --write  take the counts of now as those to compare with";
/// A count that grows by more is a failure; compilers alone move them by less.
const MOST_GROWTH: f64 = 0.03;
/// valgrind runs no AVX-512.
const SETS: [&str; 2] = ["avx2", "reference"];
/// The function of `benches/counts.rs` that runs a case.
const COUNTED: &str = "counts::counted_by_callgrind";

/// Instructions by instruction set and case.
type Counts = BTreeMap<(String, String), u64>;

/// `cargo xtask bench-count`.
pub(crate) fn bench_count(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let writes = match arguments {
        [] => false,
        [one] if one == "--write" => true,
        _ => bail!("{USAGE}"),
    };
    let valgrind = which("valgrind").context("valgrind is missing (Debian: apt-get install valgrind)")?;
    let mut steps = Steps::new(workspace.notes())?;
    let mut program = PathBuf::new();
    steps.work("build", || {
        program = build(workspace)?;
        Ok(String::new())
    });
    steps.all_passed()?;
    let mut counts = Counts::new();
    for set in SETS {
        steps.work(&format!("count, {set}"), || {
            let counted = count(workspace, &valgrind, &program, set)?;
            let told = format!("{} kernels", counted.len());
            counts.extend(counted.into_iter().map(|(case, count)| ((set.to_owned(), case), count)));
            Ok(told)
        });
    }
    steps.all_passed()?;
    let path = workspace.root.join("crates/kernels/benches/counts.tsv");
    let compiler = line_of("rustc", &["--version"])?;
    if writes {
        fs::write(&path, table(&compiler, &counts))?;
        println!("written  {}", path.display());
        return Ok(());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let Comparison { told, grown } = compare(&parse(&text)?, &counts);
    print!("{told}");
    let before = compiler_of(&text);
    ensure!(
        grown == 0,
        "{grown} counts (of {compiler}, before of {before}) grew by more than {:.0} %; where that is right, `make bench-count ARGS=--write` and commit it",
        MOST_GROWTH * 1e2
    );
    Ok(())
}

/// The program that runs the cases, as people get the kernels.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "bench",
        "--package",
        "kernels",
        "--bench",
        "counts",
        "--no-run",
        "--message-format",
        "json",
        "--quiet",
    ]);
    let said = said_by(cargo.current_dir(&workspace.root))?.output;
    let executable = said.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "counts").then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executable.context("cargo named no program")
}

/// Runs all cases once with one instruction set.
fn count(workspace: &Workspace, valgrind: &Path, program: &Path, set: &str) -> Result<Vec<(String, u64)>> {
    let folder = workspace.notes().join("callgrind");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let mut run = Command::new(valgrind);
    run.args(["--tool=callgrind", "--quiet"]).arg(format!("--toggle-collect={COUNTED}"));
    // A file for each call, counted on from 1.
    run.arg(format!("--dump-after={COUNTED}")).arg(format!("--callgrind-out-file={}", folder.join("out").display()));
    let said = said_by(run.arg(program).env("TIDEGATE_CPU", set))?.output;
    let (used, cases) = said.split_once('\n').context("the program names no instruction set")?;
    ensure!(used == set, "this processor has no {set}, but {used}");
    let count = |(index, case): (usize, &str)| {
        let dump = folder.join(format!("out.{}", index + 1));
        let text = fs::read_to_string(&dump).with_context(|| format!("reading {}", dump.display()))?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        Ok((case.to_owned(), total.with_context(|| format!("{} has no totals", dump.display()))?))
    };
    cases.lines().enumerate().map(count).collect()
}

/// The counts, under a line that names the compiler.
fn table(compiler: &str, counts: &Counts) -> String {
    counts.iter().fold(format!("# {compiler}\n"), |mut text, ((set, case), count)| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{set}\t{case}\t{count}");
        text
    })
}

fn compiler_of(table: &str) -> &str {
    table.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap_or("an unknown compiler")
}

fn parse(table: &str) -> Result<Counts> {
    let row = |line: &str| {
        let mut cells = line.split('\t');
        let (set, case, count) = (cells.next()?, cells.next()?, cells.next()?.parse().ok()?);
        Some(((set.to_owned(), case.to_owned()), count))
    };
    table.lines().skip(1).map(|line| row(line).with_context(|| format!("what is {line:?} in counts.tsv?"))).collect()
}

struct Comparison {
    /// A line for each count that changed.
    told: String,
    /// How many grew too much, or are not to compare with anything.
    grown: usize,
}

fn compare(old: &Counts, new: &Counts) -> Comparison {
    let mut comparison = Comparison { told: String::new(), grown: 0 };
    for (key, now) in new {
        let change = match old.get(key) {
            Some(before) if before == now => continue,
            Some(before) => {
                let growth = *now as f64 / (*before).max(1) as f64 - 1.0;
                comparison.grown += usize::from(growth > MOST_GROWTH);
                format!("{before} → {now}  {:+.1} %{}", growth * 1e2, if growth > MOST_GROWTH { "  ✗" } else { "" })
            }
            None => {
                comparison.grown += 1;
                format!("{now}, new  ✗")
            }
        };
        // Writing to a string can't fail.
        let _ = writeln!(comparison.told, "  {:<10} {:<36} {change}", key.0, key.1);
    }
    comparison
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> Counts {
        counts.iter().map(|(case, count)| (("avx2".to_owned(), (*case).to_owned()), *count)).collect()
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let some = counts(&[("norm", 12), ("product, Q4_0", 34)]);
        let table = table("rustc 1.95", &some);
        assert_eq!((parse(&table).unwrap(), compiler_of(&table)), (some, "rustc 1.95"));
        assert!(parse("# rustc\navx2\tnorm\n").is_err());
    }

    #[test]
    fn growth_beyond_the_limit_counts_and_nothing_else() {
        let old = counts(&[("a", 1000), ("b", 1000), ("c", 1000), ("gone", 1)]);
        let Comparison { told, grown } = compare(&old, &counts(&[("a", 1000), ("b", 1040), ("c", 1020), ("d", 5)]));
        assert_eq!(grown, 2, "b and the new one:\n{told}");
        assert!(
            !told.contains(" a ") && told.contains("1000 → 1040  +4.0 %  ✗") && told.contains("+2.0 %\n"),
            "{told}"
        );
        assert_eq!(compare(&old, &counts(&[("a", 500)])).grown, 0);
    }
}
