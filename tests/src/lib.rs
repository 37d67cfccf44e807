//! What the system tests share: an application in a folder of its own. The tests are in `tests/`; those of the real
//! window are in `e2e/`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use app::chat::Redacted;
use app::{App, AppConfig, ErrorCode, OffloadMode, ReplyEvent, ReplyStream, SendMessage, StoredMessage};
use futures::StreamExt;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// An application whose chats, settings and models lie in a folder that goes with it.
pub struct Fixture {
    /// The application.
    pub app: App,
    /// Its folder.
    pub folder: TempDir,
}

impl Fixture {
    /// Starts one in `mode`, with these model files beside its own folder.
    pub async fn start(mode: OffloadMode, models: &[PathBuf]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let app = App::start(config(folder.path(), mode, models)).await.expect("the app starts");
        Self { app, folder }
    }

    /// Starts one that writes one answer at a time, and lets as many requests wait as it says.
    pub async fn start_narrow(models: &[PathBuf], most_waiting: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let config = config(folder.path(), OffloadMode::LocalOnly, models);
        let config = AppConfig { slots: Some(1), most_waiting: Some(most_waiting), ..config };
        Self { app: App::start(config).await.expect("the app starts"), folder }
    }

    /// Ends the application and starts it again on the same folder.
    pub async fn restart(self, mode: OffloadMode, models: &[PathBuf]) -> Self {
        let Self { app, folder } = self;
        app.shutdown().await;
        drop(app);
        let app = App::start(config(folder.path(), mode, models)).await.expect("the app starts again");
        Self { app, folder }
    }

    /// Sends `text` in a new chat and reads the answer to its end.
    pub async fn ask(&self, text: &str) -> Reply {
        self.send(SendMessage { text: Some(text.to_owned()), ..SendMessage::default() }).await
    }

    /// Sends a message and reads the answer to its end.
    pub async fn send(&self, message: SendMessage) -> Reply {
        read(self.app.send_message(message).await.expect("the message is accepted")).await
    }
}

fn config(folder: &Path, mode: OffloadMode, models: &[PathBuf]) -> AppConfig {
    AppConfig { data_dir: folder.join("data"), models: models.to_vec(), offload: Some(mode), ..AppConfig::default() }
}

/// What came of one message.
#[derive(Debug, Default)]
pub struct Reply {
    /// All text events, joined.
    pub text: String,
    /// The places it was sent to, in order.
    pub targets: Vec<String>,
    /// The answer as it was stored.
    pub message: Option<StoredMessage>,
    /// Why it failed.
    pub error: Option<ErrorCode>,
}

impl Reply {
    /// The stored answer of a reply that ended.
    pub fn stored(&self) -> &StoredMessage {
        self.message.as_ref().expect("the reply ended")
    }
}

/// Reads a reply to its end.
pub async fn read(mut events: ReplyStream) -> Reply {
    let mut reply = Reply::default();
    while let Some(event) = events.next().await {
        match event {
            ReplyEvent::Text(text) => reply.text.push_str(&text),
            ReplyEvent::Routed(decision) | ReplyEvent::Moved { decision, .. } => reply.targets.push(decision.target),
            ReplyEvent::Finished(message) => reply.message = Some(*message),
            ReplyEvent::Failed { error, message } => {
                reply.error = Some(error.code);
                reply.message = Some(*message);
            }
            ReplyEvent::Accepted { .. }
            | ReplyEvent::Progress(_)
            | ReplyEvent::Thinking(_)
            | ReplyEvent::Note { .. } => {}
        }
    }
    reply
}

/// Serves the gateway of `app` on a free port until the test ends.
pub async fn serve(app: &App, key: Option<&str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
    let address = listener.local_addr().expect("a bound listener has an address");
    let key = key.map(|key| Redacted(key.to_owned()));
    tokio::spawn(gateway::serve(listener, app.clone(), key, std::future::pending(), Duration::ZERO));
    address
}

/// Sends one HTTP request word for word; gives the status and everything after it.
pub async fn http(address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("the gateway accepts");
    let length = body.len();
    let request = format!("{head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.expect("the request is sent");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.expect("the reply is text");
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no status in {reply:?}")), reply)
}
