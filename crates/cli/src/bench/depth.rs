//! `tidegate bench --depth` and `--sustained`: how fast prefill and decode are behind a context, and whether decode stays
//! so; as a table, as JSON to share and as a picture.

use std::time::Duration;

use anyhow::Context;
use app::vitals::{Machine, machine};
use app::{App, AppConfig, DepthPlan, DepthSpeed, ModelEntry, Spread, SustainedSpeed};
use serde_json::{Value, json};

use super::depth_chart::{self, Card};
use super::heat;
use crate::args::DepthArgs;
use crate::style;

/// What was measured, with all that it depends on.
struct Report<'a> {
    app: &'a App,
    model: ModelEntry,
    machine: Machine,
    threads: usize,
    bandwidth: f64,
    plan: DepthPlan,
    heat: [&'static str; 2],
    speeds: Vec<DepthSpeed>,
    sustained: Vec<SustainedSpeed>,
}

pub(super) async fn run(config: AppConfig, args: &DepthArgs, runs: usize, is_json: bool) -> anyhow::Result<()> {
    // Neither the user's settings nor the caches of their chats have a part in it.
    let data = tempfile::tempdir().context("cannot make a folder for this run")?;
    let (threads, machine) = (config.threads, machine());
    let app = App::start(AppConfig { data_dir: data.path().to_owned(), ..config }).await?;
    let measured = measure(&app, args, runs, threads, machine, !is_json).await;
    let told = measured.and_then(|report| {
        if let Some(path) = &args.svg {
            let picture = depth_chart::svg(&report.card(), &report.speeds, &report.sustained);
            std::fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if is_json {
            println!("{}", serde_json::to_string_pretty(&report.json())?);
        }
        Ok(())
    });
    app.shutdown().await;
    told
}

async fn measure<'a>(
    app: &'a App,
    args: &DepthArgs,
    runs: usize,
    threads: Option<usize>,
    machine: Machine,
    is_told: bool,
) -> anyhow::Result<Report<'a>> {
    let model = app.model_for(None).context("there is no model: name one with --model FILE")?;
    let header = model.header.clone().map_err(anyhow::Error::msg)?;
    let threads = threads.unwrap_or(machine.cores);
    let plan = DepthPlan { prefill_tokens: args.pp, decode_tokens: args.tg, depths: args.depth.clone(), runs };
    let bandwidth = app.measure_bandwidth().await?;
    let now = || heat(&app.watch_vitals().borrow().snapshot);
    let mut report = Report {
        app,
        model,
        machine,
        threads,
        bandwidth,
        plan,
        heat: [now(); 2],
        speeds: Vec::new(),
        sustained: Vec::new(),
    };
    let say = |text: &str| {
        if is_told {
            println!("{text}");
        }
    };
    say(&format!("machine   {}, {} cores, {}", report.machine.chip, report.machine.cores, report.machine.os));
    say(&format!("computes  {}", report.computes()));
    say(&format!("model     {} · {} · {}", report.model.id, header.quantization, header.file_bytes.file_size()));
    if !report.plan.depths.is_empty() {
        say(&format!("\nmedians of {runs} (least–most), tokens/s"));
        say(&format!(
            "{:>7}  {:>24}  {:>24}  {:>12}",
            "depth",
            format!("prefill {}", args.pp),
            format!("decode {}", args.tg),
            "of bandwidth"
        ));
        let tell = |speed: &DepthSpeed| say(&row(speed));
        report.speeds = app.measure_depths(&report.model, &report.plan, bandwidth, tell).await?;
    }
    if let Some(seconds) = args.sustained {
        say("\n seconds  decode, tokens/s  heat");
        let tell = |speed: &SustainedSpeed| {
            let heat = speed.thermal.map_or("unknown", |state| state.as_str());
            say(&format!("{:>8.1}  {:>16.1}  {heat}", speed.at.as_secs_f64(), speed.decode_tokens_per_sec));
        };
        let time = Duration::from_secs(seconds);
        report.sustained = app.measure_sustained(&report.model, args.tg.max(1), time, tell).await?;
    }
    report.heat[1] = now();
    Ok(report)
}

fn row(speed: &DepthSpeed) -> String {
    let spread = |spread: Option<Spread>| {
        spread.map_or_else(|| "—".to_owned(), |s| format!("{:.1} ({:.1}–{:.1})", s.median, s.least, s.most))
    };
    let ratio = speed.bandwidth_ratio.map_or_else(|| "—".to_owned(), |ratio| format!("{ratio:.2}"));
    let row = format!("{:>7}  {:>24}  {:>24}  {ratio:>12}", speed.depth, spread(speed.prefill), spread(speed.decode));
    style::stdout().strong(&row)
}

impl Report<'_> {
    fn computes(&self) -> String {
        let (device, set) = (app::device_name(), app::instruction_set());
        format!("{device}, {} threads, {set}; memory {:.1} GB/s", self.threads, self.bandwidth / 1e9)
    }

    fn card(&self) -> Card {
        let Machine { chip, ram, os, .. } = &self.machine;
        let header = self.model.usable();
        let name = header.and_then(|header| header.name.clone()).unwrap_or_else(|| self.model.id.clone());
        let packed = header.map_or_else(String::new, |header| format!(" · {}", header.quantization));
        let ram = ram.map_or_else(String::new, |ram| format!(" · {:.0} GiB", ram.0 as f64 / f64::from(1 << 30)));
        let runs = match self.plan.runs {
            1 => "one run".to_owned(),
            runs => format!("medians of {runs} runs, with the least and the most"),
        };
        Card {
            title: format!("{name}{packed}"),
            machine: format!("{chip}{ram} · {os} · {}", self.computes()),
            prefill_tokens: self.plan.prefill_tokens,
            decode_tokens: self.plan.decode_tokens,
            footer: format!("Tidegate {VERSION} · tidegate bench · {runs}"),
        }
    }

    fn json(&self) -> Value {
        let header = self.model.usable();
        json!({
            "machine": {
                "model": self.machine.model, "chip": self.machine.chip, "cores": self.machine.cores,
                "ram_bytes": self.machine.ram.map(|ram| ram.0), "computes": app::device_name(),
                "instruction_set": app::instruction_set(), "bandwidth_bytes_per_sec": self.bandwidth.round(),
            },
            "os": self.machine.os,
            "engine": format!("Tidegate {VERSION}"),
            "threads": self.threads,
            "kv_type": format!("{:?}", self.app.settings().kv_type()).to_lowercase(),
            "model": self.model.id,
            "quantization": header.map(|header| header.quantization.to_string()),
            "file_bytes": header.map(|header| header.file_bytes.0),
            "prefill_tokens": self.plan.prefill_tokens,
            "decode_tokens": self.plan.decode_tokens,
            "runs": self.plan.runs,
            "heat": { "before": self.heat[0], "after": self.heat[1] },
            "rows": self.speeds.iter().map(row_json).collect::<Vec<_>>(),
            "sustained": self.sustained.iter().map(|speed| json!({
                "seconds": rounded(speed.at.as_secs_f64()),
                "decode_tokens_per_sec": rounded(speed.decode_tokens_per_sec),
                "heat": speed.thermal.map(|state| state.as_str()),
            })).collect::<Vec<_>>(),
        })
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn row_json(speed: &DepthSpeed) -> Value {
    let of = |spread: Option<Spread>, figure: fn(Spread) -> f64| spread.map(figure).map(rounded);
    json!({
        "depth": speed.depth,
        "prefill_tokens_per_sec": of(speed.prefill, |spread| spread.median),
        "prefill_least": of(speed.prefill, |spread| spread.least),
        "prefill_most": of(speed.prefill, |spread| spread.most),
        "decode_tokens_per_sec": of(speed.decode, |spread| spread.median),
        "decode_least": of(speed.decode, |spread| spread.least),
        "decode_most": of(speed.decode, |spread| spread.most),
        "bandwidth_ratio": speed.bandwidth_ratio.map(rounded),
    })
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_was_not_measured_is_null() {
        let decode = Spread { median: 51.23456, least: 50.0, most: 52.0 };
        let speed = DepthSpeed { depth: 2048, prefill: None, decode: Some(decode), bandwidth_ratio: Some(0.5) };
        let json = row_json(&speed);
        assert_eq!(json["depth"], 2048);
        assert_eq!(json["prefill_tokens_per_sec"], Value::Null);
        assert_eq!(json["decode_tokens_per_sec"], 51.235);
        assert!(row(&speed).contains("51.2 (50.0–52.0)"));
    }
}
