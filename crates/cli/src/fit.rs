//! `tidegate fit`: what a file is and whether it would run, from its header alone.

use std::process::ExitCode;

use app::{App, AppConfig, FileVerdict, Fit, Verdict};
use serde_json::json;

use crate::args::{FitArgs, data_dir};
use crate::{DOES_NOT_FIT, style};

pub(crate) async fn run(args: FitArgs) -> anyhow::Result<ExitCode> {
    let app = App::start(AppConfig { data_dir: data_dir(args.data)?, ..AppConfig::default() }).await?;
    let verdict = app.inspect_file(args.file, args.context).await;
    app.shutdown().await;
    let model = match verdict {
        FileVerdict::Refused(refusal) => {
            if args.json {
                let object = json!({ "refused": refusal.title, "sentence": refusal.sentence, "hint": refusal.hint });
                println!("{}", serde_json::to_string_pretty(&object)?);
                return Ok(ExitCode::FAILURE);
            }
            let hint = refusal.hint.map(|hint| format!("\n{hint}")).unwrap_or_default();
            anyhow::bail!("{}. {}{hint}", refusal.title, refusal.sentence);
        }
        FileVerdict::Model(model) => model,
    };
    let fits_first = model.fits.first().is_some_and(|fit| fit.verdict != Verdict::TooBig);
    let header = &model.header;
    if args.json {
        let object = json!({
            "name": header.name,
            "architecture": header.architecture,
            "quantization": header.quantization,
            "parameters": header.parameters,
            "file_bytes": header.file_bytes.0,
            "context_len": header.context_len,
            "license": header.license,
            "elapsed_ms": model.elapsed.as_millis() as u64,
            "fits": model.fits.iter().map(fit_json).collect::<Vec<_>>(),
        });
        println!("{}", serde_json::to_string_pretty(&object)?);
    } else {
        let style = style::stdout();
        println!(
            "{}\n{}",
            style.strong(header.name.as_deref().unwrap_or("Model without a name")),
            style.muted(&format!(
                "{} · {} · {:.1} billion parameters · {} · trained for {} tokens",
                header.architecture,
                header.quantization,
                header.parameters as f64 / 1e9,
                header.file_bytes.file_size(),
                header.context_len
            ))
        );
        println!();
        let mut by_context: Vec<&Fit> = model.fits.iter().collect();
        by_context.sort_by_key(|fit| fit.context_len);
        for fit in by_context {
            let word = match fit.verdict {
                Verdict::RunsWell => style.calm("runs well"),
                Verdict::Tight => style.near("tight"),
                Verdict::TooBig => style.critical("too big"),
                Verdict::Unknown => style.muted("unknown"),
            };
            let budget =
                fit.budget.map_or_else(|| "free memory unknown".to_owned(), |budget| format!("{budget} to give"));
            println!("  {:>9} context  {:>10} needed  {budget:>18}  {word}", fit.context_len, fit.needed.to_string());
        }
        if let Some(fit) = model.fits.first() {
            println!("\n{}", fit.sentence);
        }
    }
    Ok(if fits_first { ExitCode::SUCCESS } else { ExitCode::from(DOES_NOT_FIT) })
}

fn fit_json(fit: &Fit) -> serde_json::Value {
    json!({
        "context_len": fit.context_len,
        "verdict": match fit.verdict {
            Verdict::RunsWell => "runs_well",
            Verdict::Tight => "tight",
            Verdict::TooBig => "too_big",
            Verdict::Unknown => "unknown",
        },
        "needed_bytes": fit.needed.0,
        "budget_bytes": fit.budget.map(|budget| budget.0),
        "max_context": fit.max_context,
        "sentence": fit.sentence,
    })
}
