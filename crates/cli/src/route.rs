//! `tidegate route`: where an answer would be made, and why, on a machine that is described in words.

use std::process::ExitCode;

use app::case::{Case, WORDS};
use serde_json::json;

use crate::args::RouteArgs;
use crate::style;

pub(crate) fn run(args: &RouteArgs) -> anyhow::Result<ExitCode> {
    if args.words {
        println!("{WORDS}");
        return Ok(ExitCode::SUCCESS);
    }
    let words = args.explain.as_deref().unwrap_or_default();
    let decision = Case::parse(&words.join(" "))?.decide();
    if args.json {
        let readings = decision.readings.iter().map(|reading| {
            let (name, value, limit) = (reading.name, &reading.value, &reading.limit);
            json!({ "name": name, "value": value, "limit": limit, "exceeded": reading.exceeded })
        });
        let alternatives =
            decision.alternatives.iter().map(|other| json!({ "place": other.place, "outcome": other.outcome }));
        let object = json!({
            "place": decision.place,
            "reason": decision.reason.as_str(),
            "sentence": decision.sentence,
            "counterfactual": decision.counterfactual,
            "readings": readings.collect::<Vec<_>>(),
            "alternatives": alternatives.collect::<Vec<_>>(),
        });
        println!("{}", serde_json::to_string_pretty(&object)?);
        return Ok(ExitCode::SUCCESS);
    }
    let style = style::stdout();
    println!("{}", style.strong(&decision.line()));
    println!("  {:<16} {}", "Reason", decision.reason.as_str());
    if let Some(counterfactual) = &decision.counterfactual {
        println!("  {:<16} {counterfactual}", "Otherwise");
    }
    println!();
    for reading in &decision.readings {
        let mark = match reading.exceeded {
            Some(true) => style.critical("over"),
            Some(false) => style.calm("fine"),
            None => style.muted("—"),
        };
        let limit = reading.limit.as_deref().unwrap_or("");
        println!("  {:<16} {:<34} {:<44} {mark}", reading.name, reading.value, limit);
    }
    if !decision.alternatives.is_empty() {
        println!();
    }
    for other in &decision.alternatives {
        println!("  {:<16} {}", other.place, other.outcome);
    }
    Ok(ExitCode::SUCCESS)
}
