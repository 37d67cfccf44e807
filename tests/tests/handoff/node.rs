//! Nodes, and what they are asked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use app::{App, OffloadMode};
use serde_json::Value;
use system_tests::{Fixture, http, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Passes on to a server what comes to it, and keeps what was asked. Dropping it closes every connection.
pub(crate) struct Relay {
    server: SocketAddr,
    address: SocketAddr,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

/// A node that is a whole application.
pub(crate) struct Node {
    _fixture: Fixture,
    pub(crate) relay: Relay,
}

impl Node {
    pub(crate) async fn start(models: &[PathBuf]) -> Self {
        let fixture = Fixture::start(OffloadMode::LocalOnly, models).await;
        let gateway = serve(&fixture.app, None).await;
        Self { _fixture: fixture, relay: Relay::start(gateway).await }
    }
}

impl Relay {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<Vec<u8>>>>::default());
        let kept = connections.clone();
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                open.spawn(pass_on(client, server, kept.clone()));
            }
        });
        Self { server, address, connections, task }
    }

    /// Ends every connection, and lets nobody connect again.
    pub(crate) fn cut(&self) {
        self.task.abort();
    }

    pub(crate) async fn add_to(&self, app: &App) -> String {
        app.add_node(&format!("http://{}", self.address), None).await.unwrap().id
    }

    /// The answers that it was asked for, in order.
    pub(crate) fn asked(&self) -> Vec<Value> {
        let connections = self.connections.lock().unwrap();
        let bodies = connections.iter().filter(|bytes| bytes.starts_with(b"POST /v1/chat/completions"));
        bodies
            .map(|bytes| {
                let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
                serde_json::from_slice(&bytes[end + 4..]).unwrap()
            })
            .collect()
    }

    /// Thinking and text of its whole answer to `request`.
    pub(crate) async fn answer(&self, request: &Value) -> (String, String) {
        let mut request = request.clone();
        let fields = request.as_object_mut().unwrap();
        fields.insert("stream".into(), false.into());
        // By the name that another node has for it.
        fields.remove("model");
        fields.remove("stream_options");
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json", self.server);
        let (status, reply) = http(self.server, &head, &request.to_string()).await;
        assert_eq!(status, 200, "{reply}");
        let (_, body) = reply.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        let message = &body["choices"][0]["message"];
        let part = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
        (part("reasoning_content"), part("content"))
    }

    /// The same of the answer that was gone on with by `request`, had it been left alone.
    pub(crate) async fn undisturbed(&self, request: &Value) -> (String, String) {
        let mut request = request.clone();
        let fields = request.as_object_mut().unwrap();
        fields.remove("tidegate_written");
        // A place that only warms up is asked for one token.
        fields.remove("max_tokens");
        fields.remove("max_completion_tokens");
        self.answer(&request).await
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass_on(client: TcpStream, server: SocketAddr, kept: Arc<Mutex<Vec<Vec<u8>>>>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let index = {
        let mut kept = kept.lock().unwrap();
        kept.push(Vec::new());
        kept.len() - 1
    };
    let asking = async {
        let mut buffer = [0; 4_096];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            kept.lock().unwrap()[index].extend(&buffer[..count]);
            if to_server.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    // Whoever closes first ends both.
    tokio::select! {
        () = asking => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
}
