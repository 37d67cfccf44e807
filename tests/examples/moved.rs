//! Begins an answer here and moves it to a real node in the middle:
//! `cargo run -p system-tests --example moved -- MODEL_FILE NODE_URL [QUESTION]`.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use app::{OffloadMode, PlaceChoice, ReplyEvent, SendMessage};
use futures::StreamExt;
use system_tests::Fixture;

/// Characters after which it is moved.
const HERE: usize = 60;
const MOST_TRIES: usize = 3;
const QUESTION: &str = "Write the numbers from 1 to 60, with a space between them and nothing else.";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let model = PathBuf::from(args.next().context("which model file?")?);
    let url = args.next().context("which node? give its URL")?;
    let question = args.next().unwrap_or_else(|| QUESTION.to_owned());
    let fixture = Fixture::start(OffloadMode::Auto, &[model]).await;
    let greedy = app::Settings { temperature: Some(0.0), ..fixture.app.settings() };
    fixture.app.save_settings(greedy).await?;
    let node = fixture.app.add_node(&url, None).await?;
    // A slow node may still be loading its model while the first answer is written.
    for _ in 0..MOST_TRIES {
        if moved(&fixture, &question, &node.id).await? {
            return Ok(());
        }
    }
    bail!("it was never moved")
}

/// Answers once; whether the answer went on at the node.
async fn moved(fixture: &Fixture, question: &str, node: &str) -> anyhow::Result<bool> {
    let message =
        SendMessage { text: Some(question.to_owned()), place: Some(PlaceChoice::Here), ..SendMessage::default() };
    let mut events = fixture.app.send_message(message).await?;
    let (mut answer, mut text, mut is_asked) = (None, String::new(), false);
    while let Some(event) = events.next().await {
        match event {
            ReplyEvent::Accepted { message, .. } => answer = Some(message),
            ReplyEvent::Text(piece) => text.push_str(&piece),
            ReplyEvent::Moved { decision, at_char, .. } => {
                println!("goes on at {} after {at_char} characters: {}", decision.target, decision.sentence);
            }
            ReplyEvent::Note { sentence } => {
                println!("{sentence}");
                return Ok(false);
            }
            ReplyEvent::Failed { error, .. } => bail!("{error:?}"),
            ReplyEvent::Finished(message) => {
                for segment in &message.segments {
                    let how = segment.continuation.as_deref().unwrap_or("begins");
                    println!("{}: {how} at {}, gap {:?} ms", segment.place, segment.started_at_char, segment.gap_ms);
                }
                println!("{}", message.text);
                return Ok(message.segments.len() > 1);
            }
            ReplyEvent::Routed(_) | ReplyEvent::Progress(_) | ReplyEvent::Thinking(_) => {}
        }
        if !is_asked
            && text.len() > HERE
            && let Some(answer) = answer
        {
            is_asked = true;
            fixture.app.move_answer(answer, PlaceChoice::Node(node.to_owned()))?;
        }
    }
    bail!("the answer ended without a word")
}
