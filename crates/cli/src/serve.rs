//! `tidegate serve`: the gateway without a window.

use std::convert::Infallible;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use app::chat::Redacted;
use app::{App, AppConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::ServeArgs;
use crate::logging::Logging;
use crate::service::Service;
use crate::{explain, style};

pub(crate) async fn run(args: ServeArgs, logging: &Logging) -> anyhow::Result<ExitCode> {
    let service = Service::read(&args)?;
    logging.write_to(service.log_file.as_deref())?;
    if args.config.is_some() {
        logging.set_level(service.level.as_str());
    }
    let key = match &service.key_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(text.trim().to_owned())
        }
        None => std::env::var("TIDEGATE_KEY").ok(),
    }
    .filter(|key| !key.is_empty())
    .map(Redacted);
    if key.is_none() && !service.listen.ip().is_loopback() {
        bail!(
            "{} can be reached from other machines, so a key is required: set TIDEGATE_KEY or name a file with --key-file",
            service.listen
        );
    }
    if key.is_none() && service.key_required {
        bail!("keys.required is set, and there is no key: set TIDEGATE_KEY or name a file as keys.file");
    }
    let app = App::start(config(&args, &service)?).await?;
    let listener =
        TcpListener::bind(service.listen).await.with_context(|| format!("cannot listen on {}", service.listen))?;
    let address = listener.local_addr().context("cannot tell the port")?;
    let style = style::stderr();
    // Listened for before anybody is told where to ask.
    let stop = stop_signal()?;
    // Without a file there is nothing to read anew, and a terminal that is closed ends what runs in it.
    let hang_up = args.config.is_some().then(|| signal(SignalKind::hangup())).transpose();
    let hang_up = hang_up.context("signals cannot be listened to")?;
    // Scripts read the address from this line.
    tell(&format!("listening on {}", style.strong(&format!("http://{address}"))));
    for model in app.models().iter() {
        match &model.header {
            Ok(header) => tell(&style.muted(&format!("  {} · {}", model.id, header.file_bytes.file_size()))),
            Err(sentence) => tell(&style.near(&format!("  {}: {sentence}", model.path.display()))),
        }
    }
    for node in app.nodes() {
        tell(&style.muted(&format!("  node {} at {}", node.name, node.url)));
    }
    let (told, is_told) = tokio::sync::oneshot::channel();
    let stop = async move {
        stop.await;
        tell(&style.muted("stopping: running answers are ended first; a second signal ends them at once"));
        // The server may have failed meanwhile.
        let _ = told.send(stop_signal());
    };
    let ended = async {
        match is_told.await {
            Ok(Ok(again)) => again.await,
            _ => std::future::pending().await,
        }
    };
    let drain = service.drain;
    let served = tokio::select! {
        served = gateway::serve(listener, app.clone(), key, stop, drain) => served,
        () = ended => Ok(()),
        never = reload_on(hang_up, &app, &args, service, logging) => match never {},
    };
    app.shutdown().await;
    served.context("the server stopped")?;
    Ok(ExitCode::SUCCESS)
}

fn config(args: &ServeArgs, service: &Service) -> anyhow::Result<AppConfig> {
    let mut setup = args.setup.clone();
    setup.data = service.data.clone();
    setup.models_dirs = service.models_dirs.clone();
    let (slots, most_waiting) = (Some(service.slots.into()), Some(service.queue.into()));
    Ok(AppConfig { slots, most_waiting, context_len: service.context, ..setup.config()? })
}

/// Reads the file anew each time it is told to, and acts on what can change while answers run.
async fn reload_on(
    hang_up: Option<Signal>,
    app: &App,
    args: &ServeArgs,
    mut service: Service,
    logging: &Logging,
) -> Infallible {
    let style = style::stderr();
    let Some(mut hang_up) = hang_up else { return std::future::pending().await };
    loop {
        if hang_up.recv().await.is_none() {
            return std::future::pending().await;
        }
        let reloaded = match Service::read(args) {
            Ok(new) => reload(app, &service, new, logging).await.map(|(now, restart)| {
                service = now;
                restart
            }),
            Err(error) => Err(error),
        };
        match reloaded {
            Ok(restart) if restart.is_empty() => tell(&style.muted("reloaded")),
            Ok(restart) => {
                let names = restart.join(", ");
                tell(&style.near(&format!("reloaded; a restart is needed for {names}")));
            }
            Err(error) => tell(&format!("{} {}", style.critical("not reloaded:"), explain(&error))),
        }
    }
}

/// What holds now, and what would need a restart.
async fn reload(
    app: &App,
    old: &Service,
    new: Service,
    logging: &Logging,
) -> anyhow::Result<(Service, Vec<&'static str>)> {
    logging.write_to(new.log_file.as_deref())?;
    logging.set_level(new.level.as_str());
    app.set_capacity(new.slots.into(), new.queue.into());
    if new.models_dirs != old.models_dirs {
        app.set_models_dirs(new.models_dirs.clone()).await;
    }
    let restart = old.needs_restart(&new);
    let (slots, queue) = (new.slots, new.queue);
    let now =
        Service { slots, queue, models_dirs: new.models_dirs, level: new.level, log_file: new.log_file, ..old.clone() };
    Ok((now, restart))
}

/// Writes a line for whoever started this, who may have gone: `eprintln!` would panic then, in the middle of answers.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let listen = |kind| signal(kind).context("signals cannot be listened to");
    let (mut interrupted, mut terminated) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    })
}
