//! The gateway as a service: how it is, and how it ends.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use app::OffloadMode;
use serde_json::Value;
use system_tests::{Fixture, http, serve};
use testkit::gguf::tiny_model;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
    let asking = futures::future::join_all((0..24).map(|_| http(address, &keyed, LONG)));
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
    let asking = tokio::spawn(futures::future::join_all((0..24).map(|_| http(address, POST, LONG))));
    while health(address).await.2["requests_running"].as_u64() < Some(8) {}
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
    // Those that came too late were refused, and all others were ended.
    let (begun, late): (Vec<_>, Vec<_>) = replies.into_iter().partition(|(status, _)| *status == 200);
    assert!(begun.len() >= 8 && begun.iter().all(|(_, reply)| reply.contains("[DONE]")));
    assert!(late.iter().all(|(status, reply)| *status == 503 && reply.contains("draining")));
    server.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

/// The samples of a page of metrics by name and labels. Fails where the page isn't Prometheus' text format 0.0.4.
fn samples(reply: &str) -> BTreeMap<String, f64> {
    assert!(reply.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{reply}");
    let page = reply.split_once("\r\n\r\n").unwrap().1;
    assert!(page.ends_with('\n'));
    let (mut samples, mut families, mut family) = (BTreeMap::new(), BTreeSet::new(), String::new());
    let mut kind = "";
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split_once(' ').unwrap().0.to_owned();
            assert!(families.insert(family.clone()), "{family} is there twice");
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            kind = typed.strip_prefix(&format!("{family} ")).unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let part = name.strip_prefix(&family).unwrap();
            assert!(part.is_empty() || kind == "histogram" && ["_bucket", "_sum", "_count"].contains(&part), "{line}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
            assert!(series.ends_with('}') == series.contains('{'), "{line}");
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} is there twice");
        }
    }
    samples
}

#[tokio::test]
async fn metrics_count_what_was_asked_answered_refused_and_left() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(7).write(folder.path(), "tiny.gguf").unwrap();
    let fixture = Fixture::start_narrow(&[model], 64).await;
    let address = serve(&fixture.app, Some("key")).await;
    let metrics = async || {
        let get = "GET /metrics HTTP/1.1\r\nHost: localhost";
        assert_eq!(http(address, get, "").await.0, 401);
        samples(&http(address, &format!("{get}\r\nAuthorization: Bearer key"), "").await.1)
    };
    let before = metrics().await;
    assert_eq!(before["tidegate_slots"], 1.0);
    assert_eq!(before["tidegate_health{state=\"ok\"}"], 1.0);
    assert!(before["tidegate_memory_resident_bytes"] > 1e6 && before["process_start_time_seconds"] > 1.6e9);
    assert_eq!(before["tidegate_tokens_generated_total"], 0.0);

    let post = format!("{POST}\r\nAuthorization: Bearer key");
    let whole = LONG.replace("300", "12").replace("true", "false");
    let (_, reply) = http(address, &post, &whole).await;
    let usage: Value = serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let usage = |name: &str| usage["usage"][name].as_f64().unwrap();
    let messages = post.replace("/v1/chat/completions", "/v1/messages");
    assert_eq!(http(address, &messages, &whole.replace("hello", "hi")).await.0, 200);
    assert_eq!(http(address, &post, &whole.replace("tiny", "gpt-9")).await.0, 404);
    assert_eq!(http(address, &post, "{").await.0, 400);
    assert_eq!(http(address, POST, &whole).await.0, 401);

    // One that is left while it waits for others.
    let others = tokio::spawn(futures::future::join_all((0..12).map({
        let post = post.clone();
        move |_| {
            let post = post.clone();
            async move { http(address, &post, LONG).await }
        }
    })));
    while health(address).await.2["queue_length"].as_u64() < Some(6) {}
    let mut left = TcpStream::connect(address).await.unwrap();
    let request = format!("{post}\r\nContent-Length: {}\r\n\r\n{LONG}", LONG.len());
    left.write_all(request.as_bytes()).await.unwrap();
    left.read_exact(&mut [0; 16]).await.unwrap();
    drop(left);
    assert!(others.await.unwrap().iter().all(|(status, _)| *status == 200));

    let after = metrics().await;
    let of = |name: &str| after.get(name).copied().unwrap_or_default();
    assert_eq!(of("tidegate_answers_total{outcome=\"finished\"}"), 14.0);
    assert_eq!(of("tidegate_answers_total{outcome=\"failed\"}"), 1.0);
    assert_eq!(of("tidegate_answers_total{outcome=\"cancelled\"}"), 1.0);
    for (dialect, status, count) in [
        ("openai", 200, 14.0),
        ("openai", 400, 1.0),
        ("openai", 401, 1.0),
        ("openai", 404, 1.0),
        ("anthropic", 200, 1.0),
    ] {
        let series = format!("tidegate_requests_total{{dialect=\"{dialect}\",status=\"{status}\"}}");
        assert_eq!(of(&series), count, "{series}");
    }
    // Those of the other dialect and of the twelve come on top.
    assert!(of("tidegate_prompt_tokens_total") > usage("prompt_tokens"));
    assert!(of("tidegate_tokens_generated_total") >= usage("completion_tokens") + 13.0);
    let ttft = "tidegate_time_to_first_token_seconds";
    // What a tiny model draws may end before a word of it can be seen.
    let counted = of(&format!("{ttft}_count"));
    assert!((10.0..=14.0).contains(&counted), "{counted}");
    assert_eq!(of(&format!("{ttft}_bucket{{le=\"+Inf\"}}")), counted);
    let buckets: Vec<f64> =
        after.iter().filter(|(name, _)| name.starts_with(&format!("{ttft}_bucket"))).map(|it| *it.1).collect();
    assert_eq!(buckets.len(), 13);
    assert!(of(&format!("{ttft}_sum")) > 0.0);
    assert_eq!(
        (of("tidegate_queue_length"), of("tidegate_slots_busy"), of("tidegate_requests_running")),
        (0.0, 0.0, 0.0)
    );
}
