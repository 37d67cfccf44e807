//! Asks a real node what it is and lets it answer: `cargo run -p nodes --example probe -- URL [MODEL]`.
//! The key comes from the environment variable `TIDEGATE_NODE_KEY`.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::io::Write as _;

use anyhow::{Context as _, anyhow, bail};
use chat::{ChatEvent, ChatRequest, Message, Redacted, Role, SamplingParams};
use futures::StreamExt;
use nodes::{NodeAddress, NodeClient, NodeState};
use routing::{Demand, NodeOption, Policy, may_leave};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let url = args.next().context("which node? give its URL")?;
    let key = std::env::var("TIDEGATE_NODE_KEY").ok().map(Redacted);
    let client = NodeClient::new("node", NodeAddress::parse(&url, key)?)?;
    let status = client.probe().await;
    println!("{status:#?}");
    if status.state != NodeState::Ready {
        bail!("not ready: {}", status.state.sentence().unwrap_or_default());
    }
    let model = args.next().or(status.models.into_iter().next()).context("the node lists no model: name one")?;
    let request = ChatRequest {
        messages: vec![Message::new(Role::User, "Say hello in five words.")],
        sampling: SamplingParams { temperature: Some(0.0), max_tokens: Some(32), ..SamplingParams::default() },
        ..ChatRequest::default()
    };
    let node = NodeOption { id: "node".to_owned(), ..NodeOption::default() };
    let leave =
        || may_leave(&Policy::default(), &Demand::default(), &node).map_err(|refusal| anyhow!(refusal.sentence()));
    println!("goes on with a chat: {:?}", client.continues_chat(&model).await);
    let mut events = client.chat(leave()?, &model, request)?;
    while let Some(event) = events.next().await {
        match event? {
            ChatEvent::Text(text) | ChatEvent::Thinking(text) => print!("{text}"),
            ChatEvent::ToolCall { call, .. } => print!("{}({})", call.name, call.arguments.expose()),
            ChatEvent::Progress(progress) => println!("{progress:?}"),
            ChatEvent::Logprobs(logprobs) => println!("{logprobs:?}"),
            ChatEvent::Tokens { from, ids } => println!("tokens from {from}: {ids:?}"),
            ChatEvent::Finished(finish) => println!("\n{finish:#?}"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
