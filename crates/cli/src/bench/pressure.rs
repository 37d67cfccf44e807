//! `tidegate bench --pressure`: answers while memory is taken step by step, without the guard and with it; as a table, as
//! JSON and as a picture.

use std::path::Path;

use anyhow::Context;
use app::chat::Bytes;
use app::vitals::machine;
use app::{
    App, AppConfig, NoThresholds, OffloadMode, PressureCurve, PressureEnd, PressurePlan, PressureStep,
    PressureThresholds,
};
use serde_json::{Value, json};
use tokio::process::Command;

use super::chart;
use crate::args::PressureArgs;
use crate::style;

/// One pass through all steps.
#[derive(Debug)]
pub(super) struct Phase {
    /// Answers could leave the machine.
    pub(super) guarded: bool,
    pub(super) curve: PressureCurve,
}

pub(super) async fn run(config: AppConfig, args: &PressureArgs) -> anyhow::Result<()> {
    let folder = args.out.as_deref().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let unguarded = AppConfig { offload: Some(OffloadMode::LocalOnly), ..config.clone() };
    let (plan, mut report) = with_app(unguarded.clone(), async |app: &App| {
        let (machine, snapshot) = (machine(), app.watch_vitals().borrow().snapshot.clone());
        let plan = PressurePlan::new(&machine, &snapshot).context(
            "there is no swap that could be measured: on Linux set some up, or run scripts/pressure-bench.sh as root",
        )?;
        let model = app.model_for(None).context("there is no model: name one with --model FILE")?;
        let header = model.usable().context("the model can't be used")?;
        println!("machine   {}, {} cores, {}", machine.chip, machine.cores, machine.os);
        println!("computes  {}", app::device_name());
        println!("model     {} · {} · {}", model.id, header.quantization, header.file_bytes.file_size());
        println!("plan      {} at a time up to {}; ends when swap grew by {}", plan.step, plan.most, plan.most_swap);
        let memory = snapshot.memory;
        let report = json!({
            "machine": {
                "model": machine.model, "chip": machine.chip, "cores": machine.cores, "os": machine.os,
                "computes": app::device_name(),
                "ram_bytes": memory.map(|memory| memory.total.0),
                "limit_bytes": memory.and_then(|memory| memory.limit).map(|limit| limit.0),
                "swap_bytes": snapshot.swap.map(|swap| swap.total.0),
            },
            "model": {
                "id": model.id, "quantization": header.quantization, "file_bytes": header.file_bytes.0,
            },
            "plan": {
                "step_bytes": plan.step.0, "most_bytes": plan.most.0, "most_swap_bytes": plan.most_swap.0,
                "step_seconds": plan.step_time.as_secs_f64(),
            },
        });
        Ok((plan, report))
    })
    .await?;
    let mut phases = Vec::new();
    // With the guard first: without it, answers become so slow that the next ones wouldn't begin here.
    if config.nodes.is_empty() {
        eprintln!("No node was given (--node URL), so the guard isn't measured.");
    } else {
        let guarded = AppConfig { offload: Some(OffloadMode::Auto), ..config.clone() };
        let curve = with_app(guarded, async |app: &App| measure(app, &plan, true).await).await?;
        phases.push(Phase { guarded: true, curve });
    }
    let curve = with_app(unguarded, async |app: &App| measure(app, &plan, false).await).await?;
    let thresholds = PressureThresholds::find(&curve.steps);
    phases.push(Phase { guarded: false, curve });
    report["phases"] = phases.iter().map(phase_json).collect();
    report["thresholds"] = thresholds.as_ref().ok().map(thresholds_json).into();
    let (json, svg) = (folder.join("pressure.json"), folder.join("pressure.svg"));
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write(&json, serde_json::to_string_pretty(&report)? + "\n")?;
    write(&svg, chart::svg(&phases, thresholds.as_ref().ok()))?;
    println!("\nwritten   {}, {}", json.display(), svg.display());
    tell(config, thresholds, args.apply).await
}

/// Starts the app, runs `work` and ends it: the next one begins with nothing in memory.
async fn with_app<T>(config: AppConfig, work: impl AsyncFnOnce(&App) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let app = App::start(config).await?;
    let outcome = work(&app).await;
    app.shutdown().await;
    outcome
}

async fn measure(app: &App, plan: &PressurePlan, is_guarded: bool) -> anyhow::Result<PressureCurve> {
    let title = if is_guarded { "with the guard" } else { "without the guard" };
    println!("\n{}", style::stdout().strong(title));
    println!(
        "{:>9} {:>10} {:>9} {:>11}  {:<9} {:>9} {:>8} {:>9}  where",
        "taken", "available", "swap", "swap-in", "pressure", "tokens/s", "itl p50", "itl p99"
    );
    let mut command = Command::new(std::env::current_exe().context("cannot tell where this program is")?);
    command.args(["hold-memory", "--most", &plan.most.0.to_string()]);
    let curve = app.measure_pressure(plan, is_guarded, command, |step| println!("{}", row(step))).await?;
    println!("It ended because {}.", curve.end.as_str());
    Ok(curve)
}

fn row(step: &PressureStep) -> String {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "—".to_owned());
    let bytes = |bytes: Option<Bytes>| or_dash(bytes.map(|bytes| bytes.to_string()));
    let ms =
        |time: Option<std::time::Duration>| or_dash(time.map(|time| format!("{:.0} ms", time.as_secs_f64() * 1e3)));
    format!(
        "{:>9} {:>10} {:>9} {:>11}  {:<9} {:>9.1} {:>8} {:>9}  {}{}",
        step.taken.to_string(),
        bytes(step.available),
        bytes(step.swap_used),
        or_dash(step.swap_in_per_sec.map(|rate| format!("{rate}/s"))),
        or_dash(step.pressure.map(|pressure| pressure.as_str().to_owned())),
        step.tokens_per_sec,
        ms(step.itl_p50),
        ms(step.itl_p99),
        step.place,
        step.failure.as_ref().map(|failure| format!(" · {failure}")).unwrap_or_default(),
    )
}

async fn tell(
    config: AppConfig,
    thresholds: Result<PressureThresholds, NoThresholds>,
    apply: bool,
) -> anyhow::Result<()> {
    let found = match thresholds {
        Ok(found) => found,
        Err(why) => {
            println!("limits    none: {why}");
            return Ok(());
        }
    };
    let limits = [
        found.swap_used.map(|used| format!("swap in use above {used}")),
        found.swap_in_per_sec.map(|rate| format!("swap-in above {rate}/s")),
        found.available.map(|left| format!("less than {left} available")),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    println!(
        "limits    below 85 % of {:.1} tokens/s with {} taken: {}",
        found.undisturbed_tokens_per_sec,
        found.taken,
        if limits.is_empty() { "no reading shows it".to_owned() } else { limits.join(", ") }
    );
    if !apply {
        println!("          --apply makes them the policy's");
        return Ok(());
    }
    // The modes of this run are not to be saved.
    let plain = AppConfig { offload: None, kv_type: None, ..config };
    let settings = with_app(plain, async |app: &App| Ok(app.apply_thresholds(&found).await?)).await?;
    println!(
        "saved     answers leave with swap above {:.1} % of memory, or swap-in above {}/s",
        settings.max_swap_used_ratio * 100.0,
        Bytes(settings.max_swap_in_per_sec)
    );
    if let Some(reserve) = settings.reserve_bytes {
        println!("          models leave {} free", Bytes(reserve));
    }
    Ok(())
}

fn phase_json(phase: &Phase) -> Value {
    json!({
        "guarded": phase.guarded,
        "end": match phase.curve.end {
            PressureEnd::AllTaken => "all_taken",
            PressureEnd::Critical => "critical",
            PressureEnd::SwapLimit => "swap_limit",
            PressureEnd::Collapsed => "collapsed",
            PressureEnd::NoMoreMemory => "no_more_memory",
        },
        "steps": phase.curve.steps.iter().map(step_json).collect::<Vec<_>>(),
    })
}

fn step_json(step: &PressureStep) -> Value {
    let ms = |time: Option<std::time::Duration>| time.map(|time| time.as_secs_f64() * 1e3);
    json!({
        "taken_bytes": step.taken.0,
        "available_bytes": step.available.map(|bytes| bytes.0),
        "swap_used_bytes": step.swap_used.map(|bytes| bytes.0),
        "swap_in_bytes_per_sec": step.swap_in_per_sec.map(|bytes| bytes.0),
        "pressure": step.pressure.map(|pressure| pressure.as_str()),
        "tokens": step.tokens,
        "tokens_per_sec": step.tokens_per_sec,
        "itl_p50_ms": ms(step.itl_p50),
        "itl_p99_ms": ms(step.itl_p99),
        "place": step.place,
        "failure": step.failure,
    })
}

fn thresholds_json(found: &PressureThresholds) -> Value {
    json!({
        "undisturbed_tokens_per_sec": found.undisturbed_tokens_per_sec,
        "taken_bytes": found.taken.0,
        "swap_used_bytes": found.swap_used.map(|bytes| bytes.0),
        "swap_in_bytes_per_sec": found.swap_in_per_sec.map(|bytes| bytes.0),
        "available_bytes": found.available.map(|bytes| bytes.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_null_and_a_dash() {
        let step = PressureStep { taken: Bytes::mib(64), tokens_per_sec: 2.5, ..PressureStep::default() };
        let curve = PressureCurve { steps: vec![step], end: PressureEnd::SwapLimit };
        let json = phase_json(&Phase { guarded: true, curve: curve.clone() });
        assert_eq!(json["end"], "swap_limit");
        assert_eq!(json["steps"][0]["taken_bytes"], 64 << 20);
        assert_eq!(json["steps"][0]["itl_p99_ms"], Value::Null);
        assert!(row(&curve.steps[0]).contains('—'));
    }
}
