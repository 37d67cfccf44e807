//! `tidegate serve` as a service: the real program, its file, and what a signal changes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use testkit::gguf::tiny_model;

struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    address: String,
}

impl Server {
    fn start(config: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["serve", "--offload", "local", "--config"])
            .arg(config)
            .args(arguments)
            .env_remove("TIDEGATE_MODELS_DIR")
            .env_remove("TIDEGATE_KEY")
            .env_remove("TIDEGATE_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let address = line.strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, lines, address }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// The next line that has this word.
    fn told(&mut self, word: &str) -> String {
        self.lines.by_ref().map(Result::unwrap).find(|line| line.contains(word)).unwrap()
    }

    fn begin(&self, head: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(
            stream,
            "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    fn get(&self, path: &str) -> (String, serde_json::Value) {
        let mut reply = String::new();
        self.begin(&format!("GET {path}"), "").read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), serde_json::from_str(body).unwrap())
    }

    fn stop(mut self) {
        self.signal("-TERM");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that was waited for is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn starter() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
    assert!(path.exists(), "the starter model is missing: run `make setup`");
    path
}

#[test]
fn an_answer_goes_on_while_the_file_is_read_anew() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tidegate.toml");
    let file = "listen = \"127.0.0.1:0\"\ndata = \"data\"\nmodels = [\"one\"]\nslots = 1\nqueue = 2\n\
        [log]\nlevel = \"info\"\nfile = \"log\"\n";
    fs::write(&config, file).unwrap();
    let two = folder.path().join("two");
    fs::create_dir(&two).unwrap();
    tiny_model(7).write(&two, "second.gguf").unwrap();
    let starter = starter();
    let mut server = Server::start(&config, &["--model", starter.to_str().unwrap()]);
    assert_eq!(
        (server.get("/health").1["slots"].clone(), server.get("/health").1["models"].clone()),
        (1.into(), 1.into())
    );

    let body = r#"{"messages":[{"role":"user","content":"Count from one to two hundred in words."}],"temperature":0,
        "max_tokens":200,"stream":true}"#;
    let mut answer = BufReader::new(server.begin("POST /v1/chat/completions", body));
    let mut loading = None;
    loop {
        let (head, json) = server.get("/health");
        match json["status"].as_str() {
            Some("loading") => loading = Some(head),
            Some("busy") if loading.is_some() => break,
            _ => {}
        }
    }
    let loading = loading.unwrap();
    assert!(loading.starts_with("http/1.1 503 ") && loading.contains("retry-after: 2"), "{loading}");
    let mut line = String::new();
    while !line.contains("\"content\":\"") {
        line.clear();
        assert_ne!(answer.read_line(&mut line).unwrap(), 0);
    }
    assert_eq!(server.get("/health").1["status"], "busy");

    let moved = folder.path().join("log.moved");
    fs::rename(folder.path().join("log"), &moved).unwrap();
    let changed = file.replace("slots = 1", "slots = 3").replace("\"one\"", "\"two\"").replace("0.1:0", "0.1:1");
    fs::write(&config, &changed).unwrap();
    server.signal("-HUP");
    let told = server.told("reloaded");
    assert!(told.contains("a restart is needed for listen"), "{told}");
    let (_, json) = server.get("/health");
    assert_eq!((&json["slots"], &json["slots_busy"], &json["models"]), (&3.into(), &1.into(), &2.into()), "{json}");
    assert_eq!(json["status"], "ok");
    assert!(folder.path().join("log").exists(), "the log is opened anew");

    fs::write(&config, "slots = 0\n").unwrap();
    server.signal("-HUP");
    let told = server.told("not reloaded");
    assert!(told.contains("tidegate.toml"), "{told}");
    assert_eq!(server.get("/health").1["slots"], 3);

    let mut rest = String::new();
    answer.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"content\":\"") && rest.contains("[DONE]"), "the stream was cut: {rest}");
    server.stop();
}

#[test]
fn a_file_that_makes_no_sense_is_told_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tidegate.toml");
    let refused = |text: &str| {
        fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = command.args(["serve", "--config"]).arg(&config).env_remove("TIDEGATE_KEY").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let told = refused("slots = 2\nslot = 3\n");
    assert!(told.contains("tidegate.toml") && told.contains("line 2") && told.contains("`queue`"), "{told}");
    let told = refused("listen = \"0.0.0.0:0\"\n");
    assert!(told.contains("key is required"), "{told}");
    let told = refused("listen = \"127.0.0.1:0\"\n[keys]\nrequired = true\n");
    assert!(told.contains("keys.required"), "{told}");
}
