//! With llama.cpp's own server as one of the nodes, and the starter model on both: `tests/real-node.sh llama_server` runs it.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use app::{OffloadMode, PlaceChoice, SendMessage};
use system_tests::{Fixture, http};

use crate::answer::{Answer, disturbed};
use crate::node::{Node, Relay};
use crate::set_temperature;

const QUESTION: &str = "Name the seven days of the week, one per line, with one short fact about each.";
const RUNS: usize = 4;

fn starter() -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
    assert!(file.exists(), "{} is missing: cargo xtask setup fetches it", file.display());
    file
}

/// A `llama-server` that ends with the test.
struct LlamaServer {
    process: Child,
    relay: Relay,
}

impl LlamaServer {
    async fn start() -> Self {
        let program = std::env::var("TIDEGATE_LLAMA_SERVER").expect("TIDEGATE_LLAMA_SERVER names the program");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let process = Command::new(program)
            .arg("--model")
            .arg(starter())
            .args(["--alias", "qwen2.5-coder-0.5b-instruct-q4_k_m", "--host", "127.0.0.1", "--ctx-size", "4096"])
            .args(["--port", &port.to_string(), "--parallel", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, relay: Relay::start(address).await };
        let head = format!("GET /health HTTP/1.1\r\nHost: {address}");
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if std::net::TcpStream::connect(address).is_ok() && http(address, &head, "").await.0 == 200 {
                return server;
            }
        }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        // One that was killed already is no failure.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn question() -> SendMessage {
    SendMessage { text: Some(QUESTION.to_owned()), ..SendMessage::default() }
}

async fn front() -> Fixture {
    let front = Fixture::start(OffloadMode::Remote, &[]).await;
    set_temperature(&front.app, 0.0).await;
    front
}

/// How far two texts are the same: other kernels may choose another token.
#[expect(clippy::print_stdout, reason = "a figure for whoever runs it")]
fn compare(what: &str, text: &str, undisturbed: &str) {
    let same = text.chars().zip(undisturbed.chars()).take_while(|(a, b)| a == b).count();
    let (own, other) = (text.chars().count(), undisturbed.chars().count());
    println!("{what}: {same} characters as undisturbed, of {own} and of {other}");
}

/// What the second place was shown is what the first one wrote, to the character.
fn check(answer: &Answer, shown: &str) {
    answer.check();
    let (before, after) = answer.halves();
    assert!(!before.is_empty() && !after.is_empty());
    assert_eq!(shown, before);
}

#[tokio::test]
#[ignore = "needs llama.cpp's server, which tests/real-node.sh starts"]
async fn what_llama_cpp_begins_goes_on_on_another_node() {
    let node = Node::start(&[starter()]).await;
    for run in 0..RUNS {
        let llama = LlamaServer::start().await;
        let front = front().await;
        let llama_id = llama.relay.add_to(&front.app).await;
        let (after, signal) = (5 + run * 17, if run + 1 == RUNS { "-STOP" } else { "-KILL" });
        let mut node_id = String::new();
        let request = serde_json::json!({ "messages": [{ "role": "user", "content": QUESTION }], "temperature": 0 });
        let (_, undisturbed) = llama.relay.undisturbed(&request).await;
        let answer = disturbed(&front.app, question(), after, async |_| {
            node_id = node.relay.add_to(&front.app).await;
            llama.signal(signal);
        })
        .await;
        let takeover = node.relay.asked().pop().unwrap();
        check(&answer, takeover["tidegate_written"]["content"].as_str().unwrap());
        assert_eq!(answer.places(), [llama_id, node_id]);
        assert_eq!(answer.continuations(), [None, Some("text")]);
        assert_eq!(answer.halves().1, node.relay.answer(&takeover).await.1);
        compare(&format!("llama.cpp, {signal} after {after} pieces"), &answer.text, &undisturbed);
    }
}

#[tokio::test]
#[ignore = "needs llama.cpp's server, which tests/real-node.sh starts"]
async fn llama_cpp_goes_on_with_what_another_node_begins() {
    let llama = LlamaServer::start().await;
    for run in 0..RUNS {
        let node = Node::start(&[starter()]).await;
        let front = front().await;
        let node_id = node.relay.add_to(&front.app).await;
        let (after, mut llama_id) = (5 + run * 17, String::new());
        let is_moved = run % 2 == 1;
        let answer = disturbed(&front.app, question(), after, async |id| {
            llama_id = llama.relay.add_to(&front.app).await;
            if is_moved {
                front.app.move_answer(id, PlaceChoice::Node(llama_id.clone())).unwrap();
            } else {
                node.relay.cut();
            }
        })
        .await;
        let asked = node.relay.asked().remove(0);
        let takeover = llama.relay.asked().pop().unwrap();
        check(&answer, takeover["messages"][1]["content"].as_str().unwrap());
        assert_eq!(answer.places(), [node_id, llama_id]);
        assert_eq!(answer.continuations(), [None, Some("prefix")]);
        let (_, undisturbed) = node.relay.undisturbed(&asked).await;
        assert!(undisturbed.starts_with(answer.halves().0), "what ours wrote is what it would have written");
        let how = if is_moved { "moved" } else { "cut off" };
        compare(&format!("ours, {how} after {after} pieces"), &answer.text, &undisturbed);
    }
}

#[tokio::test]
#[ignore = "needs llama.cpp's server, which tests/real-node.sh starts"]
async fn llama_cpp_goes_on_with_the_text_of_an_answer_that_began_here() {
    let (llama, same) = (LlamaServer::start().await, Node::start(&[starter()]).await);
    let request = serde_json::json!({ "messages": [{ "role": "user", "content": QUESTION }], "temperature": 0 });
    let (_, undisturbed) = same.relay.undisturbed(&request).await;
    for run in 0..RUNS {
        let here = Fixture::start(OffloadMode::Auto, &[starter()]).await;
        set_temperature(&here.app, 0.0).await;
        let (after, llama_id) = (5 + run * 9, llama.relay.add_to(&here.app).await);
        let message = SendMessage { place: Some(PlaceChoice::Here), ..question() };
        let to = PlaceChoice::Node(llama_id.clone());
        let answer = disturbed(&here.app, message, after, async |id| here.app.move_answer(id, to).unwrap()).await;
        answer.check();
        assert_eq!(answer.places(), ["here", llama_id.as_str()], "{:?}", answer.notes);
        assert_eq!(answer.continuations(), [None, Some("text")]);
        assert!(undisturbed.starts_with(answer.halves().0));
        compare(&format!("from here, by text, moved after {after} pieces"), &answer.text, &undisturbed);
    }
}
