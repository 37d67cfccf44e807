//! The part of docs/BENCHMARKS.md that `make bench` writes.

use anyhow::{Context, Result};
use std::fmt::Write;

use super::figures::{Figure, Figures, Machine, median};

const BEGIN: &str = "<!-- `make bench` writes from here … -->\n";
const END: &str = "<!-- … to here -->\n";

/// All that was measured and what it depends on.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) machine: Machine,
    /// The commit, marked where there are changes beside it.
    pub(super) commit: String,
    pub(super) rustc: String,
    pub(super) peer: String,
    /// What else wanted the processor before the first round, as `uptime` has it: the averages of 1, 5 and 15 minutes.
    pub(super) load: String,
    pub(super) threads: usize,
    pub(super) rounds: usize,
    /// The commands of one model, as one would type them.
    pub(super) commands: Vec<String>,
    pub(super) models: Vec<ModelFigures>,
}

/// What was measured of one file.
#[derive(Debug, Default)]
pub(super) struct ModelFigures {
    pub(super) file: String,
    pub(super) quantization: String,
    pub(super) figures: Figures,
    /// The part of the memory's bandwidth that decode reaches.
    pub(super) bandwidth_ratios: Figures,
}

/// A figure on both sides.
struct Row {
    figure: Figure,
    ours: f64,
    theirs: f64,
    /// Tokens per second that decode could have, were memory all that it waits for.
    limit: Option<f64>,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.ours / self.theirs
    }

    fn is_behind(&self) -> bool {
        if self.figure.is_cost() { self.ratio() > 1.0 } else { self.ratio() < 1.0 }
    }

    fn target(&self) -> String {
        let Some(target) = self.figure.target() else { return String::new() };
        let (reached, sign) = match self.figure {
            Figure::Gain => (self.ours >= target, "ours ≥"),
            figure if figure.is_cost() => (self.ratio() <= target, "≤"),
            _ => (self.ratio() >= target, "≥"),
        };
        format!("{sign} {target:.1} {}", if reached { "✓" } else { "✗" })
    }
}

impl ModelFigures {
    /// Of what was measured on both sides, medians.
    fn rows(&self) -> Vec<Row> {
        let both = self.figures.iter().filter_map(|(figure, sides)| {
            let (ours, theirs) = (median(&sides.ours)?, median(&sides.theirs)?);
            let ratio = self.bandwidth_ratios.get(figure).and_then(|sides| median(&sides.ours));
            Some(Row { figure: *figure, ours, theirs, limit: ratio.map(|ratio| ours / ratio) })
        });
        both.collect()
    }
}

/// `document` with its generated part replaced by `report`.
pub(super) fn with_report(document: &str, report: &Report) -> Result<String> {
    let lacks = |mark: &str| format!("docs/BENCHMARKS.md lacks the line {mark:?}");
    let (before, rest) = document.split_once(BEGIN).with_context(|| lacks(BEGIN))?;
    let (_, after) = rest.split_once(END).with_context(|| lacks(END))?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", section(report)))
}

fn section(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = String::new();
    // Writing to a string can't fail.
    let mut say = |line: &str| {
        let _ = writeln!(text, "{line}");
    };
    say(&format!(
        "Measured on {}, {} cores, {:.0} GB of memory read at {:.0} GB/s, {}, with {} threads each. Medians of {}, in \
         each of which either side has its turn; the load average was {} before.\n",
        machine.chip,
        machine.cores,
        machine.ram_bytes as f64 / 1e9,
        machine.bandwidth_bytes_per_sec / 1e9,
        machine.os,
        report.threads,
        if report.rounds == 1 { "one round".to_owned() } else { format!("{} rounds", report.rounds) },
        report.load
    ));
    say(&format!("- {} ({}), {}", machine.engine, report.commit, report.rustc));
    say(&format!("- {}\n", report.peer));
    for model in &report.models {
        say(&format!("### {} ({})", model.file, model.quantization));
        say("| | Tidegate | llama.cpp | ratio | target | limit of the memory |");
        say("| --- | ---: | ---: | ---: | :--- | ---: |");
        for row in model.rows() {
            let value = |value: f64| row.figure.value(value);
            let limit = row.limit.map(value).unwrap_or_default();
            say(&format!(
                "| {} | {} | {} | {:.2} | {} | {limit} |",
                row.figure,
                value(row.ours),
                value(row.theirs),
                row.ratio(),
                row.target()
            ));
        }
        say(&format!("\n{}\n", standing(&model.rows())));
    }
    say("The commands, of the first model:\n\n```sh");
    report.commands.iter().for_each(|command| say(command));
    say("```");
    text
}

/// In how many figures we are ahead, and the others. A gain says nothing by itself: who is slow alone gains more.
fn standing(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.figure != Figure::Gain).collect();
    let behind: Vec<String> =
        rows.iter().filter(|row| row.is_behind()).map(|row| format!("{} ({:.2})", row.figure, row.ratio())).collect();
    let ahead = format!("Tidegate is ahead in {} of {}", rows.len() - behind.len(), rows.len());
    if behind.is_empty() { format!("{ahead}.") } else { format!("{ahead}, behind in: {}.", behind.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::super::figures::Sides;
    use super::*;

    fn report() -> Report {
        let sides = |ours: f64, theirs: f64| Sides { ours: vec![ours], theirs: vec![theirs] };
        let decode = Figure::Decode { depth: 0 };
        let figures = Figures::from([
            (decode, sides(62.0, 50.0)),
            (Figure::Prefill { tokens: 512, depth: 0 }, sides(60.0, 300.0)),
            (Figure::SecondTurn, sides(0.3, 0.2)),
            (Figure::Gain, sides(2.6, 3.0)),
            (Figure::ColdStart, Sides { ours: vec![0.5], theirs: vec![] }),
        ]);
        let bandwidth_ratios = Figures::from([(decode, sides(0.5, 0.0))]);
        let model = ModelFigures { file: "m.gguf".into(), quantization: "Q4_K_M".into(), figures, bandwidth_ratios };
        Report {
            machine: Machine { chip: "M3".into(), cores: 8, engine: "Tidegate 0.1.0".into(), ..Machine::default() },
            commit: "abc".into(),
            rustc: "rustc 1.95".into(),
            peer: "llama.cpp".into(),
            load: "0.10, 0.20, 0.30".into(),
            threads: 4,
            rounds: 3,
            commands: vec!["tidegate bench".into()],
            models: vec![model],
        }
    }

    #[test]
    fn it_says_where_we_are_behind() {
        let text = section(&report());
        assert!(text.contains("| decode, empty context, tokens/s | 62.0 | 50.0 | 1.24 | ≥ 1.1 ✓ | 124 |"), "{text}");
        assert!(text.contains("| prefill 512, tokens/s | 60.0 | 300 | 0.20 | ≥ 1.3 ✗ |  |"), "{text}");
        assert!(text.contains("ahead in 1 of 3, behind in: prefill 512, tokens/s (0.20); second turn"), "{text}");
        assert!(text.contains("| four answers ÷ one | 2.60 | 3.00 | 0.87 | ours ≥ 2.5 ✓ |"), "{text}");
        assert!(!text.contains("process start"), "measured on one side only");
    }

    #[test]
    fn only_the_generated_part_is_replaced() {
        let document = format!("# Ours\n{BEGIN}old\n{END}more\n");
        let new = with_report(&document, &report()).unwrap();
        assert!(
            new.starts_with("# Ours\n") && new.ends_with("```\n<!-- … to here -->\nmore\n") && !new.contains("old")
        );
        assert_eq!(with_report(&new, &report()).unwrap(), new);
        assert!(with_report("# Ours\n", &report()).unwrap_err().to_string().contains("lacks the line"));
    }
}
