//! A server of either kind on a port of this machine, asked in OpenAI's dialect as a chat program asks it, with a clock.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::process::Running;

/// How long a server may take to load its model.
const START_LIMIT: Duration = Duration::from_secs(120);
/// An answer that stands still for this long won't come.
const READ_LIMIT: Duration = Duration::from_secs(300);

/// A server that ends when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    program: Running,
    address: String,
}

/// One answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) tokens: u64,
    pub(super) asked: Instant,
    pub(super) first: Instant,
    pub(super) last: Instant,
}

impl Server {
    /// Starts what `command` makes of a free port, and waits until it is ready. What it complains of goes to `log`.
    pub(super) fn start(log: &Path, command: impl FnOnce(u16) -> Command) -> Result<Self> {
        // Free now, and hardly anybody's in the moment until the server takes it.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = command(port);
        let name = command.get_program().display().to_string();
        let complaints = File::create(log).with_context(|| format!("writing {}", log.display()))?;
        let program = Running::start(command.stdout(Stdio::null()).stderr(complaints))?;
        let mut server = Self { program, address: format!("127.0.0.1:{port}") };
        let started = Instant::now();
        while !server.is_ready() {
            if !server.program.is_running()? {
                let complaints = fs::read(log).map(|text| String::from_utf8_lossy(&text).into_owned());
                let complaints = complaints.unwrap_or_default();
                bail!("{name} ended at its start: {}", complaints.lines().last().unwrap_or("without a word"));
            }
            ensure!(started.elapsed() < START_LIMIT, "{name} does not get ready");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    fn is_ready(&self) -> bool {
        let status = || -> Result<bool> {
            let mut stream = TcpStream::connect(&self.address)?;
            write!(stream, "GET /health HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line.contains(" 200 "))
        };
        status().unwrap_or(false)
    }

    /// Asks for at most `tokens` tokens after these messages (role and text), the likeliest each.
    pub(super) fn ask(&self, messages: &[(&str, &str)], tokens: u32) -> Result<Answer> {
        let messages: Vec<Value> =
            messages.iter().map(|(role, text)| json!({ "role": role, "content": text })).collect();
        let body = json!({
            "messages": messages, "max_tokens": tokens, "temperature": 0,
            "stream": true, "stream_options": { "include_usage": true },
        })
        .to_string();
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(READ_LIMIT))?;
        stream.set_nodelay(true)?;
        let asked = Instant::now();
        write!(
            stream,
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )?;
        let (mut text, mut told, mut times) = (String::new(), None, Vec::new());
        read_events(BufReader::new(stream), |event| {
            if let Some(new) = event["choices"][0]["delta"]["content"].as_str().filter(|new| !new.is_empty()) {
                times.push(Instant::now());
                text.push_str(new);
            }
            told = event["usage"]["completion_tokens"].as_u64().or(told);
        })?;
        let (Some(first), Some(last)) = (times.first().copied(), times.last().copied()) else {
            bail!("the answer was empty")
        };
        Ok(Answer { text, tokens: told.context("the answer has no usage")?, asked, first, last })
    }

    /// Ends it. Returns the most memory that it had, in bytes, with what it mapped of the model.
    pub(super) fn stop(mut self) -> Result<u64> {
        self.program.end()
    }
}

/// Reads a response of server-sent events, each a JSON object, to its end.
fn read_events(mut response: impl BufRead, mut on_event: impl FnMut(&Value)) -> Result<()> {
    let (mut line, mut is_chunked) = (String::new(), false);
    response.read_line(&mut line)?;
    let status = line.trim_end().to_owned();
    ensure!(status.contains(" 200 "), "the server said {status:?}");
    loop {
        line.clear();
        response.read_line(&mut line)?;
        is_chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
        if line.trim_end().is_empty() {
            break;
        }
    }
    let mut pending = Vec::new();
    loop {
        let before = pending.len();
        if is_chunked {
            line.clear();
            response.read_line(&mut line)?;
            let length =
                u64::from_str_radix(line.trim_end(), 16).with_context(|| format!("a chunk of {line:?} bytes"))?;
            response.by_ref().take(length).read_to_end(&mut pending)?;
            response.read_line(&mut String::new())?;
        } else {
            response.read_until(b'\n', &mut pending)?;
        }
        if pending.len() == before {
            return Ok(());
        }
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let event: Vec<u8> = pending.drain(..=end).collect();
            let text = String::from_utf8_lossy(&event);
            match text.trim_end().strip_prefix("data: ") {
                Some("[DONE]") => return Ok(()),
                Some(object) => on_event(&serde_json::from_str(object).with_context(|| format!("in {object:?}"))?),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(response: &str) -> Result<Vec<Value>> {
        let mut seen = Vec::new();
        read_events(response.as_bytes(), |event| seen.push(event.clone())).map(|()| seen)
    }

    #[test]
    fn events_are_read_from_a_body_in_chunks_and_from_a_plain_one() {
        let plain = "HTTP/1.1 200 OK\r\nX: y\r\n\r\ndata: {\"a\":1}\n\n: ping\n\ndata: {\"a\":2}\n\ndata: [DONE]\n\n";
        assert_eq!(events(plain).unwrap(), [json!({"a": 1}), json!({"a": 2})]);
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                       9\r\ndata: {\"a\r\n7\r\n\":1}\n\nd\r\ne\r\nata: {\"a\":2}\n\r\n0\r\n\r\n";
        assert_eq!(events(chunked).unwrap(), [json!({"a": 1}), json!({"a": 2})]);
    }

    #[test]
    fn a_refusal_and_a_broken_chunk_are_errors() {
        assert!(events("HTTP/1.1 503 Loading\r\n\r\n").unwrap_err().to_string().contains("503"));
        assert!(events("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").is_err());
        assert!(events("").is_err());
    }
}
