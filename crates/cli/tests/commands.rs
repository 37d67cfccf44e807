//! The real `tidegate` program, with the starter model and with broken files.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use testkit::gguf::tiny_model;

fn tidegate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).env_remove("TIDEGATE_MODELS_DIR").env_remove("TIDEGATE_KEY");
    command
}

fn starter() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
    assert!(path.exists(), "the starter model is missing: run `make setup`");
    path
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn ask(data: &Path, prompt: &str, more: &[&str]) -> Output {
    tidegate(&["chat", "--once", prompt, "--seed", "1", "--temp", "0", "--offload", "local", "--data"])
        .arg(data)
        .arg("--model")
        .arg(starter())
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn one_answer_is_printed_alone() {
    let data = tempfile::tempdir().unwrap();
    let output = ask(data.path(), "What is 7 times 8?", &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "7 times 8 is 56.\n");
}

#[test]
fn json_has_the_answer_the_decision_and_the_figures() {
    let data = tempfile::tempdir().unwrap();
    let output = ask(data.path(), "What is 7 times 8?", &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["text"], "7 times 8 is 56.");
    assert_eq!(json["decision"]["target"], "here");
    assert_eq!(json["finish_reason"], "stop");
    assert!(json["decode_tokens_per_sec"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_chat_in_the_terminal_answers_lines_and_remembers() {
    let data = tempfile::tempdir().unwrap();
    let mut child = tidegate(&["chat", "--temp", "0", "--offload", "local", "--data"])
        .arg(data.path())
        .arg("--model")
        .arg(starter())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "What is 7 times 8?\n/quit").unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let printed = text(&output.stdout);
    assert!(printed.contains("7 times 8 is 56."), "{printed}");
    assert!(printed.contains("Here"), "the line under the answer says where it ran: {printed}");
}

#[test]
fn fit_tells_what_the_starter_model_is() {
    let data = tempfile::tempdir().unwrap();
    let output = tidegate(&["fit", "--json", "--data"]).arg(data.path()).arg(starter()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["architecture"], "qwen2");
    assert_eq!(json["quantization"], "Q4_K_M");
    assert_eq!(json["context_len"], 32_768);
    assert_eq!(json["file_bytes"], 491_400_064);
}

#[test]
fn a_file_larger_than_any_memory_does_not_fit_and_says_so_by_its_exit_code() {
    let data = tempfile::tempdir().unwrap();
    // A real header whose last tensor takes 4 TiB, in a file with a hole of that size.
    let elements = 1_usize << 40;
    let path =
        tiny_model(1).raw_tensor("huge.weight", &[elements], 0, Vec::new()).write(data.path(), "huge.gguf").unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() + 64 + 4 * elements as u64).unwrap();
    let output = tidegate(&["fit", "--data"]).arg(data.path()).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn broken_input_is_one_clear_line_and_exit_code_one() {
    let data = tempfile::tempdir().unwrap();
    let broken = data.path().join("broken.gguf");
    fs::write(&broken, &fs::read(starter()).unwrap()[..1_000_000]).unwrap();
    for (arguments, word) in [
        (vec!["fit", broken.to_str().unwrap()], "incomplete"),
        (vec!["fit", data.path().to_str().unwrap()], "folder"),
        (vec!["chat", "--once", "x", "--model", "none.gguf"], "none.gguf"),
        (vec!["serve", "--listen", "0.0.0.0:0"], "key"),
        (vec!["serve", "--node", "ftp://studio"], "ftp"),
    ] {
        let output = tidegate(&arguments).arg("--data").arg(data.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let error = text(&output.stderr);
        assert!(error.contains(word) && output.stdout.is_empty(), "{arguments:?}: {error}");
        assert!(!error.contains('\u{1b}'), "colours only on a terminal: {error:?}");
    }
    assert_eq!(tidegate(&["chat", "--nonsense"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn vitals_are_shown_as_a_table_as_json_and_word_for_word() {
    let table = tidegate(&["vitals"]).output().unwrap();
    assert!(text(&table.stdout).contains("Memory available"));
    let json: serde_json::Value =
        serde_json::from_slice(&tidegate(&["vitals", "--json"]).output().unwrap().stdout).unwrap();
    assert!(json["memory"]["total_bytes"].as_u64().unwrap() > 0);
    assert!(!tidegate(&["vitals", "--raw"]).output().unwrap().stdout.is_empty());
}

#[test]
fn a_route_is_explained_with_its_reason_its_numbers_and_what_would_change_it() {
    let explain = |words: &[&str]| tidegate(&["route", "--explain"]).args(words).output().unwrap();
    let output = explain(&["free=4GiB", "node=studio/up/speed:40"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    for part in
        ["On studio · here would swap", "2.4 GB can be used", "Would stay here if 6.4 GB were free", "Free memory"]
    {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let output = explain(&["free=lots"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("`free=lots` isn't understood: expected an amount such as 4GiB"));
    assert!(text(&tidegate(&["route", "--words"]).output().unwrap().stdout).contains("swap_in="));
    let json = tidegate(&["route", "--json", "--explain", "node=up"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["place"], &json["reason"]), (&"Here".into(), &"fits".into()));
}

#[test]
fn serve_says_where_it_listens_and_ends_on_a_signal() {
    let data = tempfile::tempdir().unwrap();
    let mut child = tidegate(&["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(data.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.starts_with("listening on http://127.0.0.1:"), "{line}");
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success() && child.wait().unwrap().success());
}

#[test]
fn a_server_that_is_told_to_stop_ends_its_answers_first() {
    let data = tempfile::tempdir().unwrap();
    let model = tiny_model(7).write(data.path(), "tiny.gguf").unwrap();
    let mut child = tidegate(&["serve", "--listen", "127.0.0.1:0", "--slots", "1", "--data"])
        .arg(data.path().join("data"))
        .arg("--model")
        .arg(model)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    let address = line.strip_prefix("listening on http://").unwrap().to_owned();
    let body = r#"{"messages":[{"role":"user","content":"hello"}],"max_tokens":300,"stream":true}"#;
    let ask = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close";
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream
    };
    // One is written, and the others wait for it.
    let mut answers = [ask(), ask(), ask()];
    answers[0].read_exact(&mut [0; 16]).unwrap();
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    for mut answer in answers {
        let mut reply = String::new();
        answer.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("[DONE]"), "{reply}");
    }
    assert!(child.wait().unwrap().success());
    assert!(TcpStream::connect(&address).is_err());
}

#[test]
fn log_shows_where_answers_went_and_why_until_it_is_cleared() {
    use app::{AlternativeRecord, AskedBy, DecisionKind, DecisionNote, DecisionRecord, ReadingRecord};

    let data = tempfile::tempdir().unwrap();
    let log = |more: &[&str]| {
        let output = tidegate(&["log", "--data"]).arg(data.path()).args(more).output().unwrap();
        assert!(output.status.success(), "{more:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let json = |more: &[&str]| serde_json::from_str::<serde_json::Value>(&log(more)).unwrap();
    assert_eq!(json(&["--json"]), serde_json::json!([]));

    let record = DecisionRecord {
        target: "node".into(),
        place: "On studio".into(),
        reason: "swap".into(),
        sentence: "here swaps in 40.0 MB/s".into(),
        counterfactual: Some("Would stay here below 4.0 MB/s".into()),
        readings: vec![ReadingRecord {
            name: "Swap in".into(),
            value: "40.0 MB/s".into(),
            limit: Some("4.0 MB/s".into()),
            exceeded: Some(true),
        }],
        alternatives: vec![AlternativeRecord { place: "Here".into(), outcome: "6.0 tok/s".into() }],
    };
    let note = |kind| DecisionNote {
        kind,
        asked_by: AskedBy::Gateway,
        conversation: None,
        message: None,
        model: "qwen3-8b".into(),
        place_id: "studio".into(),
        record: record.clone(),
    };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let config = app::AppConfig { data_dir: data.path().to_owned(), ..app::AppConfig::default() };
        let app = app::App::start(config).await.unwrap();
        app.note_decision(note(DecisionKind::Start)).await;
        app.note_decision(note(DecisionKind::Move)).await;
        app.shutdown().await;
    });

    let lines = log(&[]);
    let [newest, oldest] = lines.lines().collect::<Vec<_>>()[..] else { panic!("{lines}") };
    assert!(newest.contains("Moved") && oldest.contains("Began"), "{lines}");
    assert!(newest.ends_with("On studio · here swaps in 40.0 MB/s  qwen3-8b, by a program"), "{newest}");
    let entries = json(&["--json", "--limit", "1"]);
    assert_eq!(entries.as_array().map(Vec::len), Some(1));
    assert_eq!(entries[0]["kind"], "move");
    let id = entries[0]["id"].to_string();
    assert_eq!(json(&["--json", "--why", &id])["decision"]["readings"][0]["limit"], "4.0 MB/s");
    let card = log(&["--why", &id]);
    for part in ["Moved: On studio", "Swap in", "over the limit", "Instead", "6.0 tok/s", "Would stay here below"] {
        assert!(card.contains(part), "{part}: {card}");
    }

    log(&["--clear"]);
    assert_eq!(json(&["--json"]), serde_json::json!([]));
    let gone = tidegate(&["log", "--why", &id, "--data"]).arg(data.path()).output().unwrap();
    assert_eq!(gone.status.code(), Some(1));
}
