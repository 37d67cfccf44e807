//! `tidegate serve`: the gateway without a window.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use app::chat::Redacted;
use app::{App, AppConfig};
use tokio::net::TcpListener;

use crate::args::ServeArgs;
use crate::style;

pub(crate) async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let key = match &args.key_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(text.trim().to_owned())
        }
        None => std::env::var("TIDEGATE_KEY").ok(),
    }
    .filter(|key| !key.is_empty())
    .map(Redacted);
    if !args.listen.ip().is_loopback() && key.is_none() {
        bail!(
            "{} can be reached from other machines, so a key is required: set TIDEGATE_KEY or name a file with --key-file",
            args.listen
        );
    }
    let (slots, most_waiting) = (Some(args.slots.into()), Some(args.queue.into()));
    let app = App::start(AppConfig { slots, most_waiting, ..args.setup.config()? }).await?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr().context("cannot tell the port")?;
    let style = style::stderr();
    // Listened for before anybody is told where to ask.
    let stop = stop_signal()?;
    // Scripts read the address from this line.
    eprintln!("listening on {}", style.strong(&format!("http://{address}")));
    for model in app.models().iter() {
        match &model.header {
            Ok(header) => eprintln!("{}", style.muted(&format!("  {} · {}", model.id, header.file_bytes.file_size()))),
            Err(sentence) => eprintln!("{}", style.near(&format!("  {}: {sentence}", model.path.display()))),
        }
    }
    for node in app.nodes() {
        eprintln!("{}", style.muted(&format!("  node {} at {}", node.name, node.url)));
    }
    let (told, is_told) = tokio::sync::oneshot::channel();
    let stop = async move {
        stop.await;
        eprintln!("{}", style.muted("stopping: running answers are ended first; a second signal ends them at once"));
        // The server may have failed meanwhile.
        let _ = told.send(stop_signal());
    };
    let ended = async {
        match is_told.await {
            Ok(Ok(again)) => again.await,
            _ => std::future::pending().await,
        }
    };
    let served = tokio::select! {
        served = gateway::serve(listener, app.clone(), key, stop, Duration::from_secs(args.drain)) => served,
        () = ended => Ok(()),
    };
    app.shutdown().await;
    served.context("the server stopped")?;
    Ok(ExitCode::SUCCESS)
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).context("signals cannot be listened to");
    let (mut interrupted, mut terminated) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    })
}
