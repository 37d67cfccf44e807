//! The gateway for the other programs of this machine, while the settings have it on.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use app::App;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Loopback, so that no key is needed; the port that `tidegate serve` takes, too.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 11500);
/// What running answers get to end in when it is turned off.
const DRAIN: Duration = Duration::from_secs(30);

/// How often a port that another program has is tried.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Whether programs are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Programs {
    /// Turned off.
    #[default]
    Off,
    /// At this address.
    Served(SocketAddr),
    /// They were to be served, and can't be; a sentence.
    Failed(String),
}

/// Serves whenever the settings say so, for as long as `app` runs.
pub(crate) fn start(app: &App) -> watch::Receiver<Programs> {
    let (state, told) = watch::channel(Programs::Off);
    let app = app.clone();
    tauri::async_runtime::spawn(async move { while serve(&app, ADDRESS, &state).await.is_ok() {} });
    told
}

/// Waits until it is turned on, and serves until it is turned off; or gives up a port that is taken, to be called again.
///
/// # Errors
/// When the settings have ended.
async fn serve(app: &App, address: SocketAddr, state: &watch::Sender<Programs>) -> Result<(), watch::error::RecvError> {
    let mut settings = app.watch_settings();
    if !settings.borrow().serves_programs {
        tell(state, Programs::Off);
    }
    settings.wait_for(|settings| settings.serves_programs).await?;
    let (listener, address) = match TcpListener::bind(address).await.and_then(|it| Ok((it.local_addr()?, it))) {
        Ok((address, listener)) => (listener, address),
        Err(error) => {
            tracing::debug!(%error, %address, "programs are not served");
            tell(state, Programs::Failed(failure(&error, address)));
            let turned_off = settings.wait_for(|settings| !settings.serves_programs);
            return tokio::time::timeout(TRY_AGAIN, turned_off).await.map_or(Ok(()), |settings| settings.map(drop));
        }
    };
    tell(state, Programs::Served(address));
    let told = state.clone();
    let turned_off = async move {
        // Ends with the settings, too.
        let _ = settings.wait_for(|settings| !settings.serves_programs).await;
        tell(&told, Programs::Off);
    };
    if let Err(error) = gateway::serve(listener, app.clone(), None, turned_off, DRAIN).await {
        tracing::warn!(%error, "the gateway ended");
    }
    Ok(())
}

fn tell(state: &watch::Sender<Programs>, now: Programs) {
    state.send_if_modified(|told| std::mem::replace(told, now.clone()) != now);
}

fn failure(error: &std::io::Error, address: SocketAddr) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("Another program listens at {address}. Once it ends, this begins by itself.")
        }
        _ => format!("Tidegate can’t listen at {address}: {error}."),
    }
}

#[cfg(test)]
mod tests {
    use app::{AppConfig, Settings};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn programs_are_served_until_they_are_turned_off_and_a_taken_port_is_told() {
        let data = tempfile::tempdir().unwrap();
        let app = App::start(AppConfig { data_dir: data.path().to_owned(), ..AppConfig::default() }).await.unwrap();
        let (state, mut told) = watch::channel(Programs::Off);
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (serving, server) = (app.clone(), state.clone());
        let serving = tokio::spawn(async move { serve(&serving, any, &server).await });
        let served = told.wait_for(|state| *state != Programs::Off).await.unwrap().clone();
        let Programs::Served(address) = served else { panic!("{served:?}") };
        assert!(TcpStream::connect(address).await.is_ok());

        let taken = app.clone();
        let (second, mut second_told) = watch::channel(Programs::Off);
        let refused = tokio::spawn(async move { serve(&taken, address, &second).await });
        let state = second_told.wait_for(|state| *state != Programs::Off).await.unwrap().clone();
        assert!(matches!(&state, Programs::Failed(why) if why.contains(&address.to_string())), "{state:?}");

        let off = Settings { serves_programs: false, ..app.settings() };
        app.save_settings(off).await.unwrap();
        assert!(serving.await.unwrap().is_ok() && refused.await.unwrap().is_ok());
        assert!(TcpStream::connect(address).await.is_err());
        app.shutdown().await;
    }
}
