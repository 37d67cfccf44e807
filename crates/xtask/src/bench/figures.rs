//! What is compared, and what both sides' outputs say of it.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// One figure of a model. Their order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    /// Tokens per second behind so many tokens.
    Decode { depth: u64 },
    /// Tokens per second of a prompt of so many, behind so many.
    Prefill { tokens: u64, depth: u64 },
    /// Seconds to the first token of the second turn.
    SecondTurn,
    /// Tokens per second of one answer over HTTP.
    Alone,
    /// Tokens per second of four answers together.
    Together,
    /// `Together` ÷ `Alone`.
    Gain,
    /// Seconds from the start of a process to its first token.
    ColdStart,
    /// Bytes.
    PeakMemory,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Ours,
    Theirs,
}

/// What was measured of one figure on one side.
#[derive(Debug, Default)]
pub(super) struct Values {
    /// Run by run.
    pub(super) values: Vec<f64>,
    /// Why the last run that failed did.
    pub(super) failure: Option<String>,
}

/// What was measured of one figure.
#[derive(Debug, Default)]
pub(super) struct Sides {
    pub(super) ours: Values,
    pub(super) theirs: Values,
    /// The part of the memory's bandwidth that our decode reaches.
    pub(super) bandwidth_ratios: Vec<f64>,
}

impl Side {
    pub(super) const BOTH: &'static [Self] = &[Self::Ours, Self::Theirs];
}

impl Sides {
    pub(super) fn of(&mut self, side: Side) -> &mut Values {
        match side {
            Side::Ours => &mut self.ours,
            Side::Theirs => &mut self.theirs,
        }
    }
}

pub(super) type Figures = BTreeMap<Figure, Sides>;

impl Figure {
    /// Whether less is better.
    pub(super) const fn is_cost(self) -> bool {
        matches!(self, Self::SecondTurn | Self::ColdStart | Self::PeakMemory)
    }

    /// What ours ÷ theirs should be at least, or at most of a cost; of a gain, what ours itself should be.
    pub(super) const fn target(self) -> Option<f64> {
        match self {
            Self::Decode { depth: 0 } => Some(1.1),
            Self::Decode { .. } | Self::Prefill { .. } => Some(1.3),
            Self::SecondTurn | Self::ColdStart | Self::PeakMemory => Some(1.0),
            Self::Gain => Some(2.5),
            Self::Alone | Self::Together => None,
        }
    }

    /// A value with its unit.
    pub(super) fn value(self, value: f64) -> String {
        match self {
            Self::Decode { .. } | Self::Prefill { .. } | Self::Alone | Self::Together if value < 100.0 => {
                format!("{value:.1}")
            }
            Self::Decode { .. } | Self::Prefill { .. } | Self::Alone | Self::Together => format!("{value:.0}"),
            Self::SecondTurn | Self::ColdStart => format!("{:.0} ms", value * 1e3),
            Self::Gain => format!("{value:.2}"),
            Self::PeakMemory => format!("{:.0} MB", value / 1e6),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode { depth: 0 } => f.write_str("decode, empty context, tokens/s"),
            Self::Decode { depth } => write!(f, "decode, {depth} deep, tokens/s"),
            Self::Prefill { tokens, depth: 0 } => write!(f, "prefill {tokens}, tokens/s"),
            Self::Prefill { tokens, depth } => write!(f, "prefill {tokens}, {depth} deep, tokens/s"),
            Self::SecondTurn => f.write_str("second turn of a long conversation, time to first token"),
            Self::Alone => f.write_str("one answer over HTTP, tokens/s"),
            Self::Together => f.write_str("four answers together, tokens/s"),
            Self::Gain => f.write_str("four answers ÷ one"),
            Self::ColdStart => f.write_str("process start to first token"),
            Self::PeakMemory => f.write_str("peak memory of the server"),
        }
    }
}

/// The machine as `tidegate bench` tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Machine {
    pub(super) chip: String,
    pub(super) cores: u64,
    pub(super) os: String,
    pub(super) engine: String,
    /// What products on the CPU are computed with.
    pub(super) instruction_set: String,
    pub(super) ram_bytes: u64,
    pub(super) bandwidth_bytes_per_sec: f64,
}

/// What one run of `tidegate bench --depth … --json` says.
#[derive(Debug, Default)]
pub(super) struct OurRun {
    pub(super) machine: Machine,
    pub(super) figures: Vec<(Figure, f64)>,
    /// Per figure of decode, the part of the memory's bandwidth that it reaches.
    pub(super) bandwidth_ratios: Vec<(Figure, f64)>,
}

pub(super) fn of_tidegate(output: &str) -> Result<OurRun> {
    let json: Value = serde_json::from_str(output).context("tidegate bench told no JSON")?;
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let machine = Machine {
        chip: text(&json["machine"]["chip"]),
        cores: json["machine"]["cores"].as_u64().unwrap_or(0),
        os: text(&json["os"]),
        engine: text(&json["engine"]),
        instruction_set: text(&json["machine"]["instruction_set"]),
        ram_bytes: json["machine"]["ram_bytes"].as_u64().unwrap_or(0),
        bandwidth_bytes_per_sec: json["machine"]["bandwidth_bytes_per_sec"].as_f64().unwrap_or(0.0),
    };
    let mut run = OurRun { machine, ..OurRun::default() };
    let tokens = json["prefill_tokens"].as_u64().context("it says no prefill_tokens")?;
    for row in json["rows"].as_array().context("it has no rows")? {
        let depth = row["depth"].as_u64().context("a row has no depth")?;
        let (prefill, decode) = (Figure::Prefill { tokens, depth }, Figure::Decode { depth });
        run.figures.extend(row["prefill_tokens_per_sec"].as_f64().map(|speed| (prefill, speed)));
        run.figures.extend(row["decode_tokens_per_sec"].as_f64().map(|speed| (decode, speed)));
        run.bandwidth_ratios.extend(row["bandwidth_ratio"].as_f64().map(|ratio| (decode, ratio)));
    }
    Ok(run)
}

/// What one run of `llama-bench --output json` says.
pub(super) fn of_llama_bench(output: &str) -> Result<Vec<(Figure, f64)>> {
    let json: Vec<Value> = serde_json::from_str(output).context("llama-bench told no JSON")?;
    let figure = |row: &Value| {
        let number = |name: &str| row[name].as_u64().with_context(|| format!("a row of llama-bench has no {name}"));
        let (prompt, generated, depth) = (number("n_prompt")?, number("n_gen")?, number("n_depth")?);
        let figure = if generated == 0 { Figure::Prefill { tokens: prompt, depth } } else { Figure::Decode { depth } };
        Ok((figure, row["avg_ts"].as_f64().context("a row of llama-bench has no avg_ts")?))
    };
    json.iter().map(figure).collect()
}

/// The middle one; of an even number the upper of the two.
pub(super) fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = r#"{"machine": {"chip": "M3", "cores": 8, "ram_bytes": 1, "bandwidth_bytes_per_sec": 1e11,
        "instruction_set": "neon-dot"}, "os": "macOS 26.1", "engine": "Tidegate 0.1.0", "quantization": "Q4_K_M", "prefill_tokens": 512, "rows": [
        {"depth": 0, "prefill_tokens_per_sec": 300.5, "decode_tokens_per_sec": 60.0, "bandwidth_ratio": 0.5},
        {"depth": 2048, "prefill_tokens_per_sec": null, "decode_tokens_per_sec": 50.0, "bandwidth_ratio": 0.4}]}"#;

    #[test]
    fn our_output_is_read() {
        let run = of_tidegate(OURS).unwrap();
        let machine = &run.machine;
        assert_eq!((machine.chip.as_str(), machine.cores, machine.instruction_set.as_str()), ("M3", 8, "neon-dot"));
        let expected = [
            (Figure::Prefill { tokens: 512, depth: 0 }, 300.5),
            (Figure::Decode { depth: 0 }, 60.0),
            (Figure::Decode { depth: 2048 }, 50.0),
        ];
        assert_eq!(run.figures, expected);
        assert_eq!(run.bandwidth_ratios[1], (Figure::Decode { depth: 2048 }, 0.4));
        assert!(of_tidegate("error").is_err());
    }

    #[test]
    fn llama_benchs_output_is_read() {
        let output = r#"[{"n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 307.1},
            {"n_prompt": 0, "n_gen": 128, "n_depth": 2048, "avg_ts": 46.0}]"#;
        let expected = [(Figure::Prefill { tokens: 512, depth: 0 }, 307.1), (Figure::Decode { depth: 2048 }, 46.0)];
        assert_eq!(of_llama_bench(output).unwrap(), expected);
        assert!(of_llama_bench("[{}]").is_err());
    }

    #[test]
    fn medians_and_units() {
        assert_eq!((median(&[]), median(&[3.0, 1.0, 2.0])), (None, Some(2.0)));
        assert_eq!(Figure::SecondTurn.value(0.1234), "123 ms");
        assert_eq!(Figure::Together.value(99.94), "99.9");
        assert_eq!(Figure::PeakMemory.value(1.5e9), "1500 MB");
    }
}
