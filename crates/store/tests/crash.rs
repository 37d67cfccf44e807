//! A process is killed in the middle of an answer; the next one finds everything that was appended.
//!
//! It has no test harness: the same program, started with an argument, is the process that gets killed.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "the whole program is a test")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use chat::Role;
use store::{MessageState, NewMessage, Store};

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("write-until-killed") {
        return write_until_killed(Path::new(&arguments.next().unwrap()));
    }
    for appends in [0, 1, 2, 50, 700] {
        check(appends);
    }
    println!("an answer survives the death of the process: ok");
}

fn piece(n: usize) -> String {
    format!("piece {n} – ünd so wéiter 🌊; ")
}

/// Appends for ever and tells each append once it is done.
fn write_until_killed(database: &Path) {
    let store = Store::open(database).unwrap();
    let conversation_id = store.create_conversation("crash", true).unwrap();
    let mut message = NewMessage { conversation_id, role: Role::User, text: "go on".into(), state: MessageState::Done };
    store.add_message(&message).unwrap();
    message = NewMessage { role: Role::Assistant, text: String::new(), state: MessageState::Writing, ..message };
    let id = store.add_message(&message).unwrap();
    store.set_decision(id, "{}").unwrap();
    let mut out = std::io::stdout();
    for n in 0.. {
        writeln!(out, "{n}").unwrap();
        out.flush().unwrap();
        store.append_text(id, &piece(n), n % 3 == 0).unwrap();
    }
}

/// Kills the process after it told of `appends` appends, and looks at what it left.
fn check(appends: usize) {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("tidegate.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("write-until-killed")
        .arg(&database)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The line of a number comes when all the appends before it are done.
    for _ in 0..=appends {
        lines.next().unwrap().unwrap();
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    // What it told until the kill reached it is still in the pipe; the last line may be cut.
    let told = appends + lines.map_while(Result::ok).count();

    let store = Store::open(&database).unwrap();

    assert_eq!(store.set_aside(), None);
    let conversations = store.conversations().unwrap();
    let conversation = store.conversation(conversations[0].id).unwrap();
    assert!(conversation.stays_local);
    let [question, answer] = &conversation.messages[..] else { panic!("{:?}", conversation.messages) };
    assert_eq!((question.text.as_str(), &question.state), ("go on", &MessageState::Done));
    assert_eq!((&answer.state, answer.decision_json.as_deref()), (&MessageState::Interrupted, Some("{}")));
    let found = (0..)
        .take_while(|&n| n < told + 2 && [&answer.text, &answer.thinking].iter().any(|t| t.contains(&piece(n))))
        .count();
    let written = |thinking: bool| (0..found).filter(|n| (n % 3 == 0) == thinking).map(piece).collect::<String>();
    assert_eq!((&answer.text, &answer.thinking), (&written(false), &written(true)));
    // The one append that was under way may be there or not; a cut last line counts as told.
    assert!(found + 1 >= told && found <= told + 1, "{found} pieces are there, {told} were told of");
    assert!(found >= appends, "{found} pieces are there, {appends} were waited for");
    assert!(store.append_text(answer.id, "more", false).is_err());
}
