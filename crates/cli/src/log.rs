//! `tidegate log`: where answers went and why.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use app::{App, AppConfig, AskedBy, DecisionEntry, DecisionId, DecisionKind, DecisionRecord};
use serde_json::{Value, json};

use crate::args::{LogArgs, data_dir};
use crate::style::{self, Style};

pub(crate) async fn run(args: LogArgs) -> anyhow::Result<ExitCode> {
    let app = App::start(AppConfig { data_dir: data_dir(args.data.clone())?, ..AppConfig::default() }).await?;
    let outcome = print(&app, &args).await;
    app.shutdown().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn print(app: &App, args: &LogArgs) -> anyhow::Result<()> {
    let style = style::stdout();
    if args.clear {
        app.clear_decisions().await?;
        println!("The history is empty now.");
    } else if let Some(id) = args.why {
        let entry = app.decision(DecisionId(id)).await?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&as_json(&entry))?);
        } else {
            print_card(&entry, style);
        }
    } else {
        let entries = app.decisions(None, args.limit).await?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&entries.iter().map(as_json).collect::<Vec<_>>())?);
        } else if entries.is_empty() {
            eprintln!("Nothing was decided yet. Where an answer goes, and why, is kept from the next question on.");
        } else {
            entries.iter().for_each(|entry| print_line(entry, style));
        }
    }
    Ok(())
}

fn print_line(entry: &DecisionEntry, style: Style) {
    let aside = match (entry.note.model.as_str(), asked_by(entry.note.asked_by)) {
        ("", asked_by) => asked_by.to_owned(),
        (model, asked_by) => format!("{model}, {asked_by}"),
    };
    println!(
        "{:>6}  {:<11}  {}  {}  {}",
        entry.id.0,
        ago(entry.at_ms),
        style.strong(&format!("{:<9}", kind(entry.note.kind))),
        line(&entry.note.record),
        style.muted(&aside),
    );
}

fn print_card(entry: &DecisionEntry, style: Style) {
    let record = &entry.note.record;
    println!("{}", style.strong(&format!("{}: {}", kind(entry.note.kind), line(record))));
    let facts = [Some(ago(entry.at_ms)), Some(format!("asked {}", asked_by(entry.note.asked_by)))];
    let model = (!entry.note.model.is_empty()).then(|| entry.note.model.clone());
    println!("{}", style.muted(&facts.into_iter().chain([model]).flatten().collect::<Vec<_>>().join(", ")));
    if !record.readings.is_empty() {
        println!("\n  {}", style.muted(&format!("{:<24}{:<16}{}", "Reading", "then", "limit")));
        for reading in &record.readings {
            let limit = reading.limit.as_deref().unwrap_or("none");
            let row = format!("{:<24}{:<16}{limit}", reading.name, reading.value);
            let over = if reading.exceeded == Some(true) { style.near("  over the limit") } else { String::new() };
            println!("  {row}{over}");
        }
    }
    if !record.alternatives.is_empty() {
        println!("\n  {}", style.muted(&format!("{:<24}{}", "Instead", "outcome")));
        for other in &record.alternatives {
            println!("  {:<24}{}", other.place, other.outcome);
        }
    }
    if let Some(counterfactual) = &record.counterfactual {
        println!("\n{counterfactual}.");
    }
}

/// Place and reason, as under an answer.
fn line(record: &DecisionRecord) -> String {
    if record.target == "refuse" { record.sentence.clone() } else { format!("{} · {}", record.place, record.sentence) }
}

fn kind(kind: DecisionKind) -> &'static str {
    match kind {
        DecisionKind::Start => "Began",
        DecisionKind::Move => "Moved",
        DecisionKind::Stay => "Stayed",
        DecisionKind::Relief => "Made room",
        DecisionKind::Lost => "Failed",
        DecisionKind::Refused => "Refused",
    }
}

fn asked_by(asked_by: AskedBy) -> &'static str {
    match asked_by {
        AskedBy::Window => "in the window",
        AskedBy::Gateway => "by a program",
        AskedBy::Terminal => "in a terminal",
    }
}

fn ago(at_ms: i64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(u64::try_from(at_ms).unwrap_or(0));
    // A clock that was set back makes everything new.
    passed(SystemTime::now().duration_since(at).unwrap_or_default())
}

fn passed(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..60 => format!("{seconds} s ago"),
        seconds @ 60..3600 => format!("{} min ago", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

fn as_json(entry: &DecisionEntry) -> Value {
    json!({
        "id": entry.id.0,
        "at_ms": entry.at_ms,
        "kind": entry.note.kind.as_str(),
        "asked_by": entry.note.asked_by.as_str(),
        "conversation_id": entry.note.conversation.map(|id| id.0),
        "message_id": entry.note.message.map(|id| id.0),
        "model": entry.note.model,
        "place_id": entry.note.place_id,
        "decision": entry.note.record,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_down() {
        let seconds = [0, 59, 60, 3599, 3600, 172_799, 172_800];
        let words = seconds.map(|seconds| passed(Duration::from_secs(seconds)));
        assert_eq!(words.join(", "), "0 s ago, 59 s ago, 1 min ago, 59 min ago, 1 h ago, 47 h ago, 2 days ago");
    }
}
