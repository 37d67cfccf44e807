//! Many who wait, and some who don't read: `tidegate serve` holds them all, and answers whoever comes then.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sysinfo::{Pid, ProcessesToUpdate, System};
use testkit::gguf::tiny_model;

const IDLE: usize = 1_000;
const SLOW: usize = 200;
/// For a connection, its buffers and what is kept for its answer.
const BYTES_EACH: usize = 64 << 10;
/// A client that is never answered fails the test.
const PATIENCE: Duration = Duration::from_secs(120);

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // One that was waited for is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn memory(&self) -> usize {
        let pid = Pid::from_u32(self.0.id());
        let mut system = System::new().unwrap();
        system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
        system.process(pid).unwrap().memory() as usize
    }
}

fn ask(address: &str, max_tokens: usize, stream: bool) -> TcpStream {
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"hello"}}],"seed":1,"max_tokens":{max_tokens},"stream":{stream}}}"#
    );
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        client,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    client
}

fn read(mut client: TcpStream) -> String {
    let mut reply = String::new();
    client.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn a_thousand_who_wait_and_two_hundred_who_do_not_read_are_held() {
    // This process has as many connections.
    assert!(rlimit::increase_nofile_limit(4_096).unwrap() >= 4_096);
    let folder = tempfile::tempdir().unwrap();
    tiny_model(7).write(folder.path(), "tiny.gguf").unwrap();
    // As a program begins on a Mac.
    let script = "ulimit -S -n 256; exec \"$@\"";
    let mut child = Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_tidegate"), "serve", "--offload", "local"])
        .args(["--listen", "127.0.0.1:0", "--slots", "8", "--queue", "400", "--models"])
        .arg(folder.path())
        .arg("--data")
        .arg(folder.path().join("data"))
        .env_remove("TIDEGATE_KEY")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let server = Server(child);
    let line = said.next().unwrap().unwrap();
    let address = line.strip_prefix("listening on http://").unwrap();

    // Loaded, and all slots used once.
    let first: Vec<TcpStream> = (0..8).map(|_| ask(address, 16, false)).collect();
    assert!(first.into_iter().map(read).all(|reply| reply.starts_with("HTTP/1.1 200")));
    let before = server.memory();

    let idle: Vec<TcpStream> = (0..IDLE).map(|_| TcpStream::connect(address).unwrap()).collect();
    let slow: Vec<TcpStream> = (0..SLOW).map(|_| ask(address, 16, true)).collect();
    // Whoever comes now is answered in turn, which is after all of them.
    let reply = read(ask(address, 4, false));
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    let grown = server.memory().saturating_sub(before);
    assert!(grown < (IDLE + SLOW) * BYTES_EACH, "{grown} bytes for {IDLE} idle and {SLOW} slow clients");
    for client in slow {
        let reply = read(client);
        assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("data: [DONE]"), "{reply}");
    }
    // Those who waited can still ask.
    let mut last = idle.into_iter().next_back().unwrap();
    write!(last, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    assert!(read(last).starts_with("HTTP/1.1 200"));
    println!("{:.1} MB for {IDLE} idle and {SLOW} slow clients", grown as f64 / 1e6);
}
