//! The part of docs/BENCHMARKS.md that `make bench` writes: a table for each file, with the rows of earlier runs where only
//! some were measured anew.

use anyhow::{Context, Result, ensure};
use std::fmt::Write;

use super::figures::{Figure, Figures, Machine, Values, median};

const BEGIN: &str = "<!-- `make bench` writes from here … -->\n";
const END: &str = "<!-- … to here -->\n";
const HEAD: &str = "| | Tidegate | llama.cpp | ratio | target | limit of the memory | measured |\n\
                    | --- | ---: | ---: | ---: | :--- | ---: | :--- |";
/// Letters of a reason in a table.
const REASON: usize = 60;

/// All that was measured and what it depends on.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) machine: Machine,
    /// What the processor has that products can be computed with.
    pub(super) features: String,
    /// When this was measured, and of which commit.
    pub(super) measured: String,
    pub(super) rustc: String,
    pub(super) peer: String,
    /// What else wanted the processor before the first round, as `uptime` has it: the averages of 1, 5 and 15 minutes.
    pub(super) load: String,
    pub(super) threads: usize,
    /// The commands of one model, as one would type them.
    pub(super) commands: Vec<String>,
    pub(super) files: Vec<FileFigures>,
}

/// What was measured of one file.
#[derive(Debug)]
pub(super) struct FileFigures {
    pub(super) name: String,
    pub(super) figures: Figures,
}

impl FileFigures {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), figures: Figures::new() }
    }
}

/// A table of the document: its heading and its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    name: String,
    rows: Vec<Row>,
}

/// A line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    figure: String,
    line: String,
}

impl Row {
    fn cell(&self, index: usize) -> &str {
        self.line.split('|').nth(index + 1).unwrap_or_default().trim()
    }
}

/// Whether the rows of `document` were measured on this machine in the same way, so that others may stand beside them.
///
/// # Errors
/// When they were not, with where that was.
pub(super) fn check_same_machine(document: &str, report: &Report) -> Result<()> {
    let (_, old, _) = parts(document)?;
    let place = old.lines().next().unwrap_or_default();
    ensure!(
        tables(old).is_empty() || place == whereabouts(report),
        "the rows of docs/BENCHMARKS.md are of another machine, so all must be measured anew.\n  there: {place}\n  here:  {}",
        whereabouts(report)
    );
    Ok(())
}

/// `document` with `report` as its generated part, and with those of its rows that `report` doesn't have where `keeps`.
pub(super) fn with_report(document: &str, report: &Report, keeps: bool) -> Result<String> {
    let (before, old, after) = parts(document)?;
    let old = if keeps { tables(old) } else { Vec::new() };
    let new = report.files.iter().map(|file| table(file, &report.measured)).filter(|table| !table.rows.is_empty());
    Ok(format!("{before}{BEGIN}{}{END}{after}", section(report, &merged(old, new.collect()))))
}

fn parts(document: &str) -> Result<(&str, &str, &str)> {
    let lacks = |mark: &str| format!("docs/BENCHMARKS.md lacks the line {mark:?}");
    let (before, rest) = document.split_once(BEGIN).with_context(|| lacks(BEGIN))?;
    let (old, after) = rest.split_once(END).with_context(|| lacks(END))?;
    Ok((before, old, after))
}

/// The tables of a generated part.
fn tables(section: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in section.lines() {
        if let Some(name) = line.strip_prefix("### ") {
            tables.push(Table { name: name.to_owned(), rows: Vec::new() });
        } else if let (Some(table), Some(cells)) = (tables.last_mut(), line.strip_prefix("| ")) {
            let figure = cells.split('|').next().unwrap_or_default().trim();
            if !figure.is_empty() && !figure.starts_with("---") {
                table.rows.push(Row { figure: figure.to_owned(), line: line.to_owned() });
            }
        }
    }
    tables
}

/// The rows of both; where both have one, the new one in the place of the old one.
fn merged(mut tables: Vec<Table>, new: Vec<Table>) -> Vec<Table> {
    for table in new {
        let Some(old) = tables.iter_mut().find(|old| old.name == table.name) else {
            tables.push(table);
            continue;
        };
        for row in table.rows {
            match old.rows.iter_mut().find(|old| old.figure == row.figure) {
                Some(place) => *place = row,
                None => old.rows.push(row),
            }
        }
    }
    tables
}

fn table(file: &FileFigures, measured: &str) -> Table {
    let row = |(figure, sides): (&Figure, &super::figures::Sides)| {
        let (ours, theirs) = (median(&sides.ours.values), median(&sides.theirs.values));
        let both = ours.zip(theirs);
        let limit = ours
            .zip(median(&sides.bandwidth_ratios))
            .map_or_else(String::new, |(ours, ratio)| format!("{} ({:.0} %)", figure.value(ours / ratio), ratio * 1e2));
        let rounds = sides.ours.values.len().min(sides.theirs.values.len());
        let line = format!(
            "| {figure} | {} | {} | {} | {} | {limit} | {measured}, {rounds} {} |",
            cell(*figure, &sides.ours),
            cell(*figure, &sides.theirs),
            both.map_or_else(|| "–".to_owned(), |(ours, theirs)| format!("{:.2}", ours / theirs)),
            target(*figure, both),
            if rounds == 1 { "round" } else { "rounds" }
        );
        Row { figure: figure.to_string(), line }
    };
    Table { name: file.name.clone(), rows: file.figures.iter().map(row).collect() }
}

fn cell(figure: Figure, values: &Values) -> String {
    match (median(&values.values), &values.failure) {
        (Some(value), _) => figure.value(value),
        (None, Some(reason)) => {
            let reason: String = reason.replace(['|', '\n'], " ").chars().take(REASON).collect();
            format!("failed: {reason}")
        }
        (None, None) => "–".to_owned(),
    }
}

/// What the ratio should be, and whether it is.
fn target(figure: Figure, both: Option<(f64, f64)>) -> String {
    let Some(target) = figure.target() else { return String::new() };
    let sign = match figure {
        Figure::Gain => "ours ≥",
        figure if figure.is_cost() => "≤",
        _ => "≥",
    };
    let is_met = both.is_some_and(|(ours, theirs)| match figure {
        Figure::Gain => ours >= target,
        figure if figure.is_cost() => ours / theirs <= target,
        _ => ours / theirs >= target,
    });
    format!("{sign} {target:.1} {}", if is_met { MET } else { MISSED })
}

const MET: char = '✓';
const MISSED: char = '✗';

/// Where and how it was measured, as far as rows of several runs must have it in common.
fn whereabouts(report: &Report) -> String {
    let machine = &report.machine;
    format!(
        "On {}, {} cores, {:.0} GB of memory, {}, with {} threads each; Tidegate's products by `{}`.",
        machine.chip,
        machine.cores,
        machine.ram_bytes as f64 / 1e9,
        machine.os,
        report.threads,
        machine.instruction_set
    )
}

fn section(report: &Report, tables: &[Table]) -> String {
    let machine = &report.machine;
    let mut text = String::new();
    // Writing to a string can't fail.
    let mut say = |line: &str| {
        let _ = writeln!(text, "{line}");
    };
    say(&whereabouts(report));
    say(
        "Each row says when it was measured and of which commit; its figures are medians of rounds in which either side has its turn.\n",
    );
    say(&format!("- {}, {}", machine.engine, report.rustc));
    say(&format!("- {}", report.peer));
    say(&format!(
        "- The processor has {}; the memory was read at {:.0} GB/s, and the load average was {} before the last run.\n",
        report.features,
        machine.bandwidth_bytes_per_sec / 1e9,
        report.load
    ));
    say(&format!("{}\n", standing(tables)));
    for table in tables {
        say(&format!("### {}\n{HEAD}", table.name));
        table.rows.iter().for_each(|row| say(&row.line));
        say("");
    }
    say("The commands, of the first file:\n\n```sh");
    report.commands.iter().for_each(|command| say(command));
    say("```");
    text
}

/// How many targets are met, and the others with their ratios.
fn standing(tables: &[Table]) -> String {
    let rows = || tables.iter().flat_map(|table| table.rows.iter().map(move |row| (table, row)));
    let met = rows().filter(|(_, row)| row.cell(4).ends_with(MET)).count();
    let missed: Vec<String> = rows()
        .filter(|(_, row)| row.cell(4).ends_with(MISSED))
        .map(|(table, row)| format!("- {}: {}, {} (target {})", table.name, row.figure, row.cell(3), row.cell(4)))
        .collect();
    let told = format!("{met} of {} targets are met", met + missed.len());
    if missed.is_empty() { format!("{told}.") } else { format!("{told}; not yet:\n\n{}", missed.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::super::figures::Sides;
    use super::*;

    fn values(values: &[f64]) -> Values {
        Values { values: values.to_vec(), failure: None }
    }

    fn sides(ours: f64, theirs: f64) -> Sides {
        Sides { ours: values(&[ours]), theirs: values(&[theirs]), bandwidth_ratios: vec![] }
    }

    fn report(files: Vec<FileFigures>) -> Report {
        Report {
            machine: Machine { chip: "M3".into(), cores: 8, engine: "Tidegate 0.1.0".into(), ..Machine::default() },
            features: "neon".into(),
            measured: "2026-11-23, abc".into(),
            rustc: "rustc 1.95".into(),
            peer: "llama.cpp".into(),
            load: "0.10, 0.20, 0.30".into(),
            threads: 4,
            commands: vec!["tidegate bench".into()],
            files,
        }
    }

    const DECODE: Figure = Figure::Decode { depth: 0 };

    fn file(name: &str, figures: impl Into<Figures>) -> FileFigures {
        FileFigures { name: name.to_owned(), figures: figures.into() }
    }

    fn some() -> Vec<FileFigures> {
        let decode = Sides { bandwidth_ratios: vec![0.5], ..sides(62.0, 50.0) };
        let failed = Values { values: vec![], failure: Some("it failed: a | b".into()) };
        vec![file(
            "m",
            [
                (DECODE, decode),
                (Figure::Prefill { tokens: 512, depth: 0 }, sides(60.0, 300.0)),
                (Figure::SecondTurn, sides(0.3, 0.2)),
                (Figure::Gain, sides(2.6, 3.0)),
                (Figure::ColdStart, Sides { ours: failed, theirs: values(&[0.5]), bandwidth_ratios: vec![] }),
            ],
        )]
    }

    #[test]
    fn each_row_says_whether_its_target_is_met() {
        let report = report(some());
        let text = with_report(&format!("{BEGIN}{END}"), &report, false).unwrap();
        assert!(text.contains("| decode, empty context, tokens/s | 62.0 | 50.0 | 1.24 | ≥ 1.1 ✓ | 124 (50 %) | 2026-11-23, abc, 1 round |"), "{text}");
        assert!(text.contains("| prefill 512, tokens/s | 60.0 | 300 | 0.20 | ≥ 1.3 ✗ |  |"), "{text}");
        assert!(text.contains("| four answers ÷ one | 2.60 | 3.00 | 0.87 | ours ≥ 2.5 ✓ |"), "{text}");
        assert!(text.contains("| failed: it failed: a   b | 500 ms | – | ≤ 1.0 ✗ |"), "{text}");
        assert!(text.contains("2 of 5 targets are met; not yet:\n\n- m: prefill 512, tokens/s, 0.20 (target ≥ 1.3 ✗)"));
    }

    #[test]
    fn a_part_that_is_measured_anew_leaves_the_other_rows() {
        let document = format!("# Ours\n{BEGIN}old\n{END}more\n");
        let first = with_report(&document, &report(some()), true).unwrap();
        assert!(first.starts_with("# Ours\n") && first.ends_with("```\n<!-- … to here -->\nmore\n"));
        let later = Report {
            measured: "2026-12-01, def".into(),
            files: vec![file("m", [(DECODE, sides(70.0, 50.0))]), file("n", [(DECODE, sides(7.0, 5.0))])],
            ..report(vec![])
        };
        let merged = with_report(&first, &later, true).unwrap();
        assert!(merged.contains("| decode, empty context, tokens/s | 70.0 |") && !merged.contains("| 62.0 |"));
        assert!(merged.contains("| prefill 512, tokens/s | 60.0 |") && merged.contains("### n\n"));
        assert_eq!(merged.matches("2026-12-01, def").count(), 2);
        assert_eq!(with_report(&merged, &later, true).unwrap(), merged);
        let alone = with_report(&merged, &later, false).unwrap();
        assert!(!alone.contains("prefill 512"), "a whole run keeps nothing");
        assert!(with_report("# Ours\n", &later, true).unwrap_err().to_string().contains("lacks the line"));
    }

    #[test]
    fn rows_of_another_machine_are_not_mixed_in() {
        let document = with_report(&format!("{BEGIN}{END}"), &report(some()), false).unwrap();
        assert!(check_same_machine(&document, &report(vec![])).is_ok());
        let other = Report { threads: 2, ..report(vec![]) };
        assert!(check_same_machine(&document, &other).unwrap_err().to_string().contains("another machine"));
        assert!(check_same_machine(&format!("{BEGIN}nothing yet\n{END}"), &other).is_ok());
    }
}
