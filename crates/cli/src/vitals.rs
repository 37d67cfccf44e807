//! `tidegate vitals`: the readings that decisions are made from.

use std::process::ExitCode;
use std::time::Duration;

use app::chat::Bytes;
use app::vitals::{Sampler, Snapshot, machine};
use serde_json::{Value, json};

use crate::args::VitalsArgs;
use crate::style;

/// Rates are taken between two samples this far apart.
const BETWEEN: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &VitalsArgs) -> anyhow::Result<ExitCode> {
    let mut sampler = Sampler::new();
    if args.raw {
        print!("{}", sampler.raw());
        return Ok(ExitCode::SUCCESS);
    }
    sampler.sample();
    let mut pause = BETWEEN;
    loop {
        std::thread::sleep(pause);
        let snapshot = sampler.sample();
        if args.json {
            println!("{}", as_json(&snapshot, &sampler));
        } else {
            print_table(&snapshot, &sampler);
        }
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        pause = Duration::from_secs(1);
    }
}

fn print_table(snapshot: &Snapshot, sampler: &Sampler) {
    let style = style::stdout();
    let machine = machine();
    let model = machine.model.as_deref().map(|model| format!("{model}, ")).unwrap_or_default();
    println!("{}", style.strong(&format!("{model}{}, {}", machine.chip, machine.os)));
    let row = |name: &str, value: Option<String>| {
        println!("  {name:<20} {}", value.unwrap_or_else(|| style.muted("—")));
    };
    let memory = snapshot.memory.as_ref();
    row("Memory used", memory.map(|m| format!("{} of {}", m.used, m.total)));
    row("Memory available", memory.map(|m| m.available.to_string()));
    row("Memory limit", memory.and_then(|m| m.limit).map(|limit| limit.to_string()));
    row("Wired", memory.and_then(|m| m.wired).map(|bytes| bytes.to_string()));
    row("Compressed", memory.and_then(|m| m.compressed).map(|bytes| bytes.to_string()));
    row("Memory pressure", snapshot.pressure.map(|level| format!("{level:?}")));
    let swap = snapshot.swap.as_ref();
    row("Swap used", swap.map(|s| format!("{} of {}", s.used, s.total)));
    row("Swap in, out", swap.and_then(|s| Some(format!("{}/s, {}/s", s.in_per_sec?, s.out_per_sec?))));
    row("Heat", snapshot.thermal.map(|state| format!("{state:?}")));
    row("Thermal pressure", snapshot.thermal_pressure.map(|level| format!("{level:?}")));
    row("Temperature", snapshot.temperature_celsius.map(|celsius| format!("{celsius:.0} °C")));
    row("CPU", snapshot.cpu.as_ref().map(|cpu| format!("{:.0} % of {} cores", cpu.busy_ratio * 100.0, cpu.cores)));
    let gpu = snapshot.gpu.as_ref();
    row("GPU", gpu.map(|gpu| gpu.name.clone().unwrap_or_else(|| "without a name".to_owned())));
    row("GPU busy", gpu.and_then(|gpu| gpu.busy_ratio).map(|ratio| format!("{:.0} %", ratio * 100.0)));
    row("GPU working set", gpu.and_then(|gpu| gpu.working_set_limit).map(|bytes| bytes.to_string()));
    let power = snapshot.power.as_ref();
    row("Power", power.and_then(|power| power.source).map(|source| format!("{source:?}")));
    row(
        "Low power mode",
        power.and_then(|power| power.low_power_mode).map(|on| if on { "on" } else { "off" }.to_owned()),
    );
    row("This process", snapshot.own.as_ref().map(|own| own.footprint.to_string()));
    let unavailable = sampler.unavailable();
    if !unavailable.is_empty() {
        println!("\n{}", style.muted("Not known here:"));
        for (reading, why) in unavailable {
            println!("  {reading:<24} {}", style.muted(&why));
        }
    }
}

fn as_json(snapshot: &Snapshot, sampler: &Sampler) -> Value {
    let bytes = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0);
    let word = |word: Option<String>| word.map(|word| word.to_lowercase());
    json!({
        "memory": snapshot.memory.as_ref().map(|m| json!({
            "total_bytes": m.total.0, "used_bytes": m.used.0, "available_bytes": m.available.0,
            "wired_bytes": bytes(m.wired), "compressed_bytes": bytes(m.compressed), "limit_bytes": bytes(m.limit),
        })),
        "swap": snapshot.swap.as_ref().map(|s| json!({
            "total_bytes": s.total.0, "used_bytes": s.used.0,
            "in_bytes_per_sec": bytes(s.in_per_sec), "out_bytes_per_sec": bytes(s.out_per_sec),
        })),
        "pressure": word(snapshot.pressure.map(|level| format!("{level:?}"))),
        "thermal": word(snapshot.thermal.map(|state| format!("{state:?}"))),
        "thermal_pressure": word(snapshot.thermal_pressure.map(|level| format!("{level:?}"))),
        "temperature_celsius": snapshot.temperature_celsius,
        "cpu": snapshot.cpu.as_ref().map(|cpu| json!({ "busy_ratio": cpu.busy_ratio, "cores": cpu.cores })),
        "gpu": snapshot.gpu.as_ref().map(|gpu| json!({
            "name": gpu.name, "busy_ratio": gpu.busy_ratio,
            "working_set_limit_bytes": bytes(gpu.working_set_limit), "allocated_bytes": bytes(gpu.allocated),
        })),
        "power": snapshot.power.as_ref().map(|power| json!({
            "source": word(power.source.map(|source| format!("{source:?}"))), "low_power_mode": power.low_power_mode,
        })),
        "own_footprint_bytes": snapshot.own.as_ref().map(|own| own.footprint.0),
        "unavailable": sampler.unavailable().into_iter()
            .map(|(reading, why)| json!({ "reading": reading, "why": why })).collect::<Vec<_>>(),
    })
}
