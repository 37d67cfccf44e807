//! `tidegate chat`: the same backend as the window, in a terminal.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use app::chat::{ChatEvent, ChatRequest, Message, Progress, Role, SamplingParams};
use app::{App, AppError, AskedBy, CompletionEvent, ConversationId, ReplyEvent, Segment, SendMessage};
use futures::StreamExt;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::args::ChatArgs;
use crate::style;

pub(crate) async fn run(args: ChatArgs) -> anyhow::Result<ExitCode> {
    let ChatArgs { setup, once, system, seed, temperature, max_tokens, json } = args;
    let app = App::start(setup.config()?).await?;
    let sampling = SamplingParams { seed, temperature, max_tokens, ..SamplingParams::default() };
    let outcome = match once {
        Some(prompt) => answer_once(&app, prompt, system, sampling, json).await,
        None => talk(&app, system, temperature).await,
    };
    app.shutdown().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn answer_once(
    app: &App,
    prompt: String,
    system: Option<String>,
    sampling: SamplingParams,
    as_json: bool,
) -> anyhow::Result<()> {
    let mut messages: Vec<Message> = system.map(|text| Message::new(Role::System, text)).into_iter().collect();
    messages.push(Message::new(Role::User, prompt));
    let request = ChatRequest { messages, sampling, ..ChatRequest::default() };
    let completion = app.complete(request, None, AskedBy::Terminal).await?;
    let (decision, model) = (completion.decision.clone(), completion.model.clone());
    let mut events = completion.into_events();
    let (mut text, mut out, mut moves) = (String::new(), std::io::stdout(), Vec::new());
    let mut progress = ProgressLine::default();
    while let Some(event) = events.next().await {
        let event = match event? {
            CompletionEvent::Chat(event) => event,
            CompletionEvent::Moved(decision) => {
                moves.push(json!({ "at_char": text.chars().count(), "decision": decision }));
                continue;
            }
        };
        match event {
            ChatEvent::Progress(step) => progress.show(step),
            // It was offered no tool.
            ChatEvent::Thinking(_) | ChatEvent::ToolCall { .. } | ChatEvent::Logprobs(_) | ChatEvent::Tokens { .. } => {
            }
            ChatEvent::Text(piece) => {
                progress.clear();
                text.push_str(&piece);
                if !as_json {
                    write!(out, "{piece}").and_then(|()| out.flush()).context("cannot write the answer")?;
                }
            }
            ChatEvent::Finished(finish) if as_json => {
                let object = json!({
                    "text": text,
                    "model": model,
                    "decision": decision,
                    "moves": moves,
                    "finish_reason": format!("{:?}", finish.reason).to_lowercase(),
                    "prompt_tokens": finish.usage.map(|usage| usage.prompt_tokens),
                    "completion_tokens": finish.usage.map(|usage| usage.completion_tokens),
                    "ttft_ms": finish.timings.ttft.map(|ttft| ttft.as_millis() as u64),
                    "prefill_tokens_per_sec": finish.timings.prefill_tokens_per_sec,
                    "decode_tokens_per_sec": finish.timings.decode_tokens_per_sec,
                });
                println!("{}", serde_json::to_string_pretty(&object)?);
            }
            ChatEvent::Finished(_) => println!(),
        }
    }
    Ok(())
}

async fn talk(app: &App, system: Option<String>, temperature: Option<f32>) -> anyhow::Result<()> {
    let style = style::stdout();
    let mut settings = app.settings();
    if system.is_some() || temperature.is_some() {
        settings.system_prompt = system.unwrap_or(settings.system_prompt);
        settings.temperature = temperature.or(settings.temperature);
        app.save_settings(settings).await?;
    }
    if let Some(notice) = app.notice() {
        eprintln!("{notice}");
    }
    println!("{} {}", style.strong("Tidegate"), style.muted(&format!("on {}", app::device_name())));
    match app.model_for(None) {
        Some(model) => println!("{}", style.muted(&format!("{}. /new starts a new chat, /quit leaves.", model.name()))),
        None if app.nodes().is_empty() => {
            anyhow::bail!("there is no model: `make setup` fetches the starter model, or name one with --model FILE")
        }
        None => println!("{}", style.muted("No model here; answers come from nodes. /new, /quit.")),
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let is_terminal = std::io::stdin().is_terminal();
    let mut conversation = None;
    loop {
        if is_terminal {
            print!("\n{} ", style.strong("›"));
            std::io::stdout().flush()?;
        }
        let line = tokio::select! {
            line = lines.next_line() => line.context("cannot read standard input")?,
            _ = tokio::signal::ctrl_c() => None,
        };
        match line.as_deref().map(str::trim) {
            None | Some("/quit" | "/exit") => return Ok(()),
            Some("") => {}
            Some("/new") => conversation = None,
            Some(text) => match reply(app, conversation, text).await {
                Ok(id) => conversation = Some(id),
                Err(error) => eprintln!("{} {error}", style::stderr().critical("error:")),
            },
        }
    }
}

async fn reply(app: &App, conversation: Option<ConversationId>, text: &str) -> Result<ConversationId, AppError> {
    let style = style::stdout();
    let message = SendMessage {
        conversation,
        text: Some(text.to_owned()),
        asked_by: AskedBy::Terminal,
        ..SendMessage::default()
    };
    let mut events = app.send_message(message).await?;
    let mut id = conversation;
    let mut progress = ProgressLine::default();
    let mut out = std::io::stdout();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            // Leaving the loop drops the stream, which stops the answer.
            _ = tokio::signal::ctrl_c() => { println!("\n{}", style.muted("Stopped.")); break; }
        };
        match event {
            None => break,
            Some(ReplyEvent::Accepted { conversation, .. }) => id = Some(conversation),
            Some(ReplyEvent::Progress(step)) => progress.show(step),
            Some(ReplyEvent::Text(piece)) => {
                progress.clear();
                print!("{piece}");
                // A closed terminal ends the program by its signal; there is nobody to tell.
                let _ = out.flush();
            }
            // Where it went is in the line under the answer.
            Some(
                ReplyEvent::Routed(_) | ReplyEvent::Moved { .. } | ReplyEvent::Note { .. } | ReplyEvent::Thinking(_),
            ) => {}
            Some(ReplyEvent::Finished(message)) => {
                let line = message.segments.last().map(|part| {
                    let speed =
                        part.decode_tokens_per_sec.map(|speed| format!(" · {speed:.0} tok/s")).unwrap_or_default();
                    format!("{}{speed} · {}", places(&message.segments), part.sentence)
                });
                println!("\n{}", style.muted(&line.unwrap_or_default()));
            }
            Some(ReplyEvent::Failed { error, .. }) => {
                progress.clear();
                println!();
                eprintln!("{} {error}", style::stderr().critical("error:"));
            }
        }
    }
    id.ok_or_else(|| AppError {
        code: app::ErrorCode::Internal,
        sentence: "The message was not accepted.".to_owned(),
        hint: None,
    })
}

/// "On studio", or "Here, then on studio" for an answer that moved.
fn places(segments: &[Segment]) -> String {
    let mut places = segments.iter().map(|segment| segment.place.as_str());
    let first = places.next().unwrap_or_default().to_owned();
    places.fold(first, |line, place| {
        // Only the word before a node's name loses its capital.
        let next = place.strip_prefix("On ").map_or_else(|| place.to_lowercase(), |node| format!("on {node}"));
        format!("{line}, then {next}")
    })
}

/// One line on standard error that overwrites itself, on a terminal only.
#[derive(Default)]
struct ProgressLine(bool);

impl ProgressLine {
    fn show(&mut self, step: Progress) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let text = match step {
            Progress::Loading { done, total } => format!("Loading, {} of {}", done.file_size(), total.file_size()),
            Progress::Waiting { ahead } => format!("Waiting, {ahead} before you"),
            Progress::Prefill { done, total } => format!("Reading {total} tokens, {} %", done * 100 / total.max(1)),
        };
        eprint!("\r\x1b[K{}", style::stderr().muted(&text));
        self.0 = true;
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.0) {
            eprint!("\r\x1b[K");
        }
    }
}
