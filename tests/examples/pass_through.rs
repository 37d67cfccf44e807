//! What it costs to pass a node's stream through the gateway: a node writes the time into every piece of its answers, and a
//! client reads them from it and through the gateway in turn. `cargo run -p system-tests --example pass_through`.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use app::OffloadMode;
use system_tests::{Fixture, serve};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval};

const ROUNDS: usize = 10;
const PIECES: usize = 300;
/// 200 tokens per second.
const APART: Duration = Duration::from_millis(5);
const HEAD: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: ";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let node = listener.local_addr()?;
    tokio::spawn(be_a_node(listener));
    let fixture = Fixture::start(OffloadMode::Remote, &[]).await;
    fixture.app.add_node(&format!("http://{node}"), None).await?;
    let gateway = serve(&fixture.app, None).await;
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        direct.extend(delays(node).await?);
        through.extend(delays(gateway).await?);
    }
    println!("{} pieces each way, {APART:?} apart; node, gateway and client in one process", direct.len());
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (direct, through) = (quantile(&mut direct, share), quantile(&mut through, share));
        println!("{name}: direct {direct:.0} µs, through the gateway {through:.0} µs: {:.0} µs more", through - direct);
    }
    Ok(())
}

/// Microseconds since the first call.
fn now() -> u128 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_micros()
}

fn quantile(delays: &mut [f64], share: f64) -> f64 {
    delays.sort_by(f64::total_cmp);
    delays[((delays.len() - 1) as f64 * share).round() as usize]
}

async fn be_a_node(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            if let Err(error) = answer(stream).await {
                println!("the node: {error}");
            }
        });
    }
}

async fn answer(stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    stream.read_line(&mut first).await?;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    stream.read_exact(&mut vec![0; length]).await?;
    if !first.starts_with("POST /v1/chat/completions") {
        let list = r#"{"object":"list","data":[{"id":"clock","object":"model"}]}"#;
        stream.write_all(format!("{HEAD}application/json\r\n\r\n{list}").as_bytes()).await?;
        return Ok(stream.shutdown().await?);
    }
    stream.write_all(format!("{HEAD}text/event-stream\r\n\r\n").as_bytes()).await?;
    let mut ticks = interval(APART);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..PIECES {
        ticks.tick().await;
        let piece = format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{} \"}}}}]}}\n\n", now());
        stream.write_all(piece.as_bytes()).await?;
    }
    let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    stream.write_all(end.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

/// How long each piece of one answer took, in microseconds.
async fn delays(address: SocketAddr) -> anyhow::Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address).await?;
    let body = r#"{"model":"clock","messages":[{"role":"user","content":"what time is it?"}],"stream":true}"#;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    let request = format!("{head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await?;
    let (mut lines, mut delays) = (BufReader::new(stream).lines(), Vec::new());
    while let Some(line) = lines.next_line().await? {
        if let Some((_, told)) = line.split_once("\"content\":\"") {
            let told: u128 = told.split(' ').next().context("no time")?.parse().context(line.clone())?;
            delays.push(now().saturating_sub(told) as f64);
        } else if line.contains("\"error\"") {
            bail!("{line}");
        }
    }
    ensure!(delays.len() == PIECES, "{} of {PIECES} pieces came", delays.len());
    Ok(delays)
}
