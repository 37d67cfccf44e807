//! The gateway as a service: how it is, and how it ends.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::net::SocketAddr;
use std::time::Duration;

use app::OffloadMode;
use serde_json::Value;
use system_tests::{Fixture, http, serve};
use testkit::gguf::tiny_model;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const POST: &str = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
const LONG: &str = r#"{"model":"tiny","messages":[{"role":"user","content":"hello"}],"max_tokens":300,"stream":true}"#;

/// Status, whole reply and JSON of `GET /health`.
async fn health(address: SocketAddr) -> (u16, String, Value) {
    let (status, reply) = http(address, "GET /health HTTP/1.1\r\nHost: localhost", "").await;
    let json = serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    (status, reply.to_lowercase(), json)
}

#[tokio::test]
async fn health_tells_a_free_server_from_a_full_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(7).write(folder.path(), "tiny.gguf").unwrap();
    let fixture = Fixture::start_narrow(&[model], 64).await;
    let address = serve(&fixture.app, Some("key")).await;
    let (status, _, json) = health(address).await;
    assert_eq!((status, &json["status"]), (200, &"ok".into()), "{json}");
    assert_eq!((&json["slots"], &json["slots_busy"], &json["queue_limit"]), (&1.into(), &0.into(), &64.into()));
    assert_eq!((&json["models"], &json["queue_length"]), (&1.into(), &0.into()));
    let keyed = format!("{POST}\r\nAuthorization: Bearer key");
    let asking = futures::future::join_all((0..12).map(|_| http(address, &keyed, LONG)));
    let watching = async {
        loop {
            let (status, _, json) = health(address).await;
            // The first of them brings the model into memory.
            if json["status"] == "busy" {
                return (status, json);
            }
        }
    };
    let (replies, (status, json)) = futures::join!(asking, watching);
    assert!(replies.iter().all(|(status, _)| *status == 200));
    assert_eq!((status, &json["slots_busy"]), (200, &1.into()), "{json}");
    assert!(json["requests_running"].as_u64() > json["queue_length"].as_u64(), "{json}");
    let (_, _, json) = health(address).await;
    assert_eq!((&json["status"], &json["requests_running"]), (&"ok".into(), &0.into()), "{json}");
}

#[tokio::test]
async fn a_server_whose_model_cannot_be_loaded_says_that_it_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(7).write(folder.path(), "tiny.gguf").unwrap();
    let fixture = Fixture::start(OffloadMode::LocalOnly, std::slice::from_ref(&model)).await;
    let address = serve(&fixture.app, None).await;
    let whole = std::fs::read(&model).unwrap();
    std::fs::write(&model, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(http(address, POST, LONG).await.0, 500);
    let (status, reply, json) = health(address).await;
    assert_eq!((status, &json["status"]), (503, &"broken".into()), "{json}");
    assert!(reply.contains("retry-after: 30"), "{reply}");
    assert!(json["reason"].as_str().is_some_and(|why| why.contains("could not be loaded")), "{json}");
    std::fs::write(&model, &whole).unwrap();
    assert_eq!(http(address, POST, LONG).await.0, 200);
    assert_eq!(health(address).await.0, 200);
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_says_so_until_its_answers_have_ended() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(7).write(folder.path(), "tiny.gguf").unwrap();
    let fixture = Fixture::start_narrow(&[model], 64).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move { stopped.await.unwrap() };
    let server = gateway::serve(listener, fixture.app.clone(), None, stopped, Duration::from_secs(60));
    let server = tokio::spawn(server);
    let asking = tokio::spawn(futures::future::join_all((0..12).map(|_| http(address, POST, LONG))));
    while health(address).await.2["requests_running"] != 12 {}
    stop.send(()).unwrap();
    let (status, reply, json) = loop {
        let health = health(address).await;
        if health.2["status"] == "draining" {
            break health;
        }
    };
    assert_eq!(status, 503, "{json}");
    assert!(reply.contains("retry-after: 10"), "{reply}");
    let (status, reply) = http(address, POST, LONG).await;
    assert!(status == 503 && reply.contains(r#""code":"draining""#), "{reply}");
    assert!(reply.to_lowercase().contains("retry-after: 10"), "{reply}");
    let replies = asking.await.unwrap();
    assert!(replies.iter().all(|(status, reply)| *status == 200 && reply.contains("[DONE]")));
    server.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
