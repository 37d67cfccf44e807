//! The store through its front door.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use chat::Role;
use store::{
    ConversationId, DecisionId, MessageEnd, MessageId, MessageState, NewDecision, NewMessage, NodeRow, Segment, Store,
    StoreError, StoredMessage,
};

fn add(store: &Store, conversation_id: ConversationId, role: Role, text: &str, state: MessageState) -> MessageId {
    store.add_message(&NewMessage { conversation_id, role, text: text.to_owned(), state }).unwrap()
}

fn message(store: &Store, conversation: ConversationId, id: MessageId) -> StoredMessage {
    let messages = store.conversation(conversation).unwrap().messages;
    messages.into_iter().find(|message| message.id == id).unwrap()
}

fn segment(place: &str, started_at_char: usize) -> Segment {
    Segment {
        place: place.into(),
        model: "qwen3-8b".into(),
        reason: "fits".into(),
        sentence: "fits with 3.1 GB to spare".into(),
        decode_tokens_per_sec: Some(41.5),
        ttft_ms: Some(230),
        started_at_char,
        ..Segment::default()
    }
}

#[test]
fn an_answer_is_written_piece_by_piece_and_then_whole() {
    let store = Store::open_in_memory().unwrap();
    let conversation = store.create_conversation("Tides", false).unwrap();
    let question = add(&store, conversation, Role::User, "Why?", MessageState::Done);
    let answer = add(&store, conversation, Role::Assistant, "", MessageState::Writing);
    store.set_decision(answer, r#"{"target":"here"}"#).unwrap();
    for (text, thinking) in [("The ", true), ("The Moon", false), ("Sun?", true), ("\0, mostly 🌊", false), ("", false)]
    {
        store.append_text(answer, text, thinking).unwrap();
    }

    let so_far = message(&store, conversation, answer);
    assert_eq!((so_far.text.as_str(), so_far.thinking.as_str()), ("The Moon\0, mostly 🌊", "The Sun?"));
    assert_eq!(so_far.state, MessageState::Writing);

    let moved = Segment {
        place_id: "studio".into(),
        decode_tokens_per_sec: None,
        thinking_at_char: 4,
        continuation: Some("tokens".into()),
        gap_ms: Some(42),
        ended: Some("finished".into()),
        checksum: Some("00ff".into()),
        decision_json: Some(r#"{"target":"node"}"#.into()),
        ..segment("studio", 8)
    };
    let segments = vec![segment("Here", 0), moved];
    let end = MessageEnd { state: MessageState::Done, segments: segments.clone() };
    let finished = store.finish_message(answer, &end).unwrap();
    assert_eq!(finished, StoredMessage { state: MessageState::Done, segments, ..so_far });
    assert_eq!(finished.decision_json.as_deref(), Some(r#"{"target":"here"}"#));
    let kept = store.conversation(conversation).unwrap();
    assert_eq!(kept.messages[1], finished);
    assert_eq!((kept.messages[0].id, kept.messages[0].role, kept.messages.len()), (question, Role::User, 2));

    assert!(matches!(store.append_text(answer, "more", false), Err(StoreError::NotFound(_))));
    assert!(matches!(store.finish_message(answer, &end), Err(StoreError::NotFound(_))));
}

#[test]
fn a_failure_keeps_its_sentence_and_what_had_come() {
    let store = Store::open_in_memory().unwrap();
    let conversation = store.create_conversation("", false).unwrap();
    for state in [MessageState::Stopped, MessageState::Failed { sentence: "studio went away".into() }] {
        let answer = add(&store, conversation, Role::Assistant, "a", MessageState::Writing);
        store.append_text(answer, "b", false).unwrap();
        let end = MessageEnd { state: state.clone(), segments: Vec::new() };
        assert_eq!(store.finish_message(answer, &end).unwrap().text, "ab");
        assert_eq!(message(&store, conversation, answer).state, state);
    }
}

#[test]
fn the_list_has_the_newest_message_first() {
    let store = Store::open_in_memory().unwrap();
    let [first, second, third] =
        ["first", "second", "third"].map(|title| store.create_conversation(title, title == "third").unwrap());
    let titles = |store: &Store| -> Vec<String> {
        store.conversations().unwrap().into_iter().map(|conversation| conversation.title).collect()
    };
    for conversation in [first, third, second, first] {
        add(&store, conversation, Role::User, "hi", MessageState::Done);
    }
    assert_eq!(titles(&store), ["first", "second", "third"]);
    let stays: Vec<bool> = store.conversations().unwrap().iter().map(|conversation| conversation.stays_local).collect();
    assert_eq!(stays, [false, false, true]);

    store.rename(third, "a title with 'quotes'").unwrap();
    store.set_stays_local(third, false).unwrap();
    assert_eq!(titles(&store), ["first", "second", "a title with 'quotes'"]);
    assert!(!store.conversation(third).unwrap().stays_local);
}

#[test]
fn a_deleted_conversation_takes_everything_with_it() {
    let store = Store::open_in_memory().unwrap();
    let conversation = store.create_conversation("gone", false).unwrap();
    let answer = add(&store, conversation, Role::Assistant, "", MessageState::Writing);
    store.append_text(answer, "text", false).unwrap();
    store.save_draft(Some(conversation), "draft").unwrap();

    store.delete(conversation).unwrap();

    let is_gone = |result: Result<(), StoreError>| matches!(result, Err(StoreError::NotFound(_)));
    assert!(is_gone(store.conversation(conversation).map(drop)));
    assert!(is_gone(store.append_text(answer, "late", false)));
    assert!(is_gone(store.set_decision(answer, "{}")));
    assert!(is_gone(
        store.finish_message(answer, &MessageEnd { state: MessageState::Done, segments: vec![] }).map(drop)
    ));
    assert!(is_gone(store.save_draft(Some(conversation), "late")));
    assert!(is_gone(store.rename(conversation, "late")));
    assert!(is_gone(store.set_stays_local(conversation, true)));
    assert!(is_gone(store.delete(conversation)));
    let late =
        NewMessage { conversation_id: conversation, role: Role::User, text: "x".into(), state: MessageState::Done };
    assert!(is_gone(store.add_message(&late).map(drop)));
    assert_eq!(store.draft(Some(conversation)).unwrap(), "");
    // An id is never given twice: a late event can't reach another conversation.
    assert_ne!(store.create_conversation("next", false).unwrap(), conversation);
}

fn decision(sentence: &str, of: Option<(ConversationId, MessageId)>) -> NewDecision {
    NewDecision {
        kind: "move".into(),
        asked_by: "window".into(),
        conversation: of.map(|of| of.0),
        message: of.map(|of| of.1),
        model: "qwen3-8b".into(),
        place_id: "studio".into(),
        place: "On studio".into(),
        reason: "swap".into(),
        sentence: sentence.into(),
        decision_json: r#"{"target":"node"}"#.into(),
    }
}

#[test]
fn decisions_are_read_newest_first_and_page_by_page() {
    let store = Store::open_in_memory().unwrap();
    let ids: Vec<DecisionId> =
        ["a", "b", "c"].iter().map(|sentence| store.add_decision(&decision(sentence, None)).unwrap()).collect();
    let sentences = |before, limit| -> String {
        store.decisions(before, limit).unwrap().into_iter().map(|row| row.decision.sentence).collect()
    };
    assert_eq!([sentences(None, 2), sentences(Some(ids[1]), 2), sentences(None, 0)], ["cb", "a", ""]);
    let row = store.decision(ids[2]).unwrap();
    assert_eq!((row.id, &row.decision), (ids[2], &decision("c", None)));
    assert!(row.at_ms > 1_600_000_000_000);

    store.clear_decisions().unwrap();

    assert_eq!(sentences(None, 9), "");
    assert!(matches!(store.decision(ids[2]), Err(StoreError::NotFound(_))));
    // What somebody looks at page by page never begins anew.
    assert!(store.add_decision(&decision("d", None)).unwrap() > ids[2]);
}

#[test]
fn a_conversation_takes_its_decisions_with_it() {
    let store = Store::open_in_memory().unwrap();
    let [gone, stays] = ["gone", "stays"].map(|title| {
        let conversation = store.create_conversation(title, false).unwrap();
        (conversation, add(&store, conversation, Role::Assistant, "", MessageState::Writing))
    });
    for of in [Some(gone), None, Some(stays)] {
        store.add_decision(&decision("", of)).unwrap();
    }

    store.delete(gone.0).unwrap();

    let left: Vec<_> = store.decisions(None, 9).unwrap().into_iter().map(|row| row.decision.conversation).collect();
    assert_eq!(left, [Some(stays.0), None]);
    assert!(matches!(store.add_decision(&decision("late", Some(gone))), Err(StoreError::NotFound(_))));
}

#[test]
fn drafts_settings_nodes_and_models_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("data/tidegate.db");
    let odd_path = PathBuf::from(std::ffi::OsString::from_vec(b"/models/\xff.gguf".to_vec()));
    let node = |id: &str, url: &str| NodeRow { id: id.into(), url: url.into(), name: id.to_uppercase(), trust: None };
    let trusted = |row: NodeRow| NodeRow { trust: Some("team".into()), ..row };
    let conversation = {
        let store = Store::open(&database).unwrap();
        let conversation = store.create_conversation("c", false).unwrap();
        for (place, text) in [(None, "new"), (Some(conversation), "old"), (Some(conversation), "there")] {
            store.save_draft(place, text).unwrap();
        }
        store.set_setting("settings", "{}").unwrap();
        store.set_setting("settings", r#"{"theme":"dark"}"#).unwrap();
        for row in [node("studio", "http://a"), node("attic", "http://b"), node("studio", "http://c")] {
            store.add_node(&row).unwrap();
        }
        store.set_node_trust("studio", "team").unwrap();
        store.add_node(&node("studio", "http://d")).unwrap();
        assert!(matches!(store.set_node_trust("cellar", "own"), Err(StoreError::NotFound(_))));
        for path in [Path::new("/b.gguf"), &odd_path, Path::new("/a.gguf"), Path::new("/b.gguf")] {
            store.add_model_path(path).unwrap();
        }
        conversation
    };

    let store = Store::open(&database).unwrap();
    assert_eq!((store.draft(None).unwrap(), store.draft(Some(conversation)).unwrap()), ("new".into(), "there".into()));
    store.save_draft(None, "").unwrap();
    assert_eq!((store.draft(None).unwrap(), store.draft(Some(conversation)).unwrap()), ("".into(), "there".into()));
    assert_eq!(store.get_setting("settings").unwrap().as_deref(), Some(r#"{"theme":"dark"}"#));
    assert_eq!(store.get_setting("other").unwrap(), None);
    assert_eq!(store.nodes().unwrap(), [trusted(node("studio", "http://d")), node("attic", "http://b")]);
    store.remove_node("studio").unwrap();
    assert!(matches!(store.remove_node("studio"), Err(StoreError::NotFound(_))));
    assert_eq!(store.nodes().unwrap(), [node("attic", "http://b")]);
    assert_eq!(store.added_models().unwrap(), [Path::new("/b.gguf"), &odd_path, Path::new("/a.gguf")]);
    store.remove_model_path(&odd_path).unwrap();
    assert!(matches!(store.remove_model_path(&odd_path), Err(StoreError::NotFound(_))));
    assert_eq!(store.added_models().unwrap(), [Path::new("/b.gguf"), Path::new("/a.gguf")]);
}

#[test]
fn only_this_user_can_read_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let store = Store::open(&data.join("tidegate.db")).unwrap();
    store.set_setting("a", "b").unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&data).unwrap() {
        let entry = entry.unwrap();
        names.push(entry.file_name().into_string().unwrap());
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{names:?}");
    }
    names.sort();
    assert_eq!(names, ["tidegate.db", "tidegate.db-shm", "tidegate.db-wal", "tidegate.db.lock"]);
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o077, 0);
}

/// Makes a store with enough in it to have many pages, closes it, and gives the file to `damage`.
fn check_damage(damage: impl Fn(&Path, Vec<u8>)) {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("tidegate.db");
    for n in 1..=2 {
        {
            let store = Store::open(&database).unwrap();
            let conversation = store.create_conversation("c", false).unwrap();
            for _ in 0..200 {
                add(&store, conversation, Role::User, &"text ".repeat(100), MessageState::Done);
            }
        }
        damage(&database, std::fs::read(&database).unwrap());
        let damaged = std::fs::read(&database).unwrap();

        let store = Store::open(&database).unwrap();

        let set_aside = store.set_aside().expect("the damage is noticed");
        assert_eq!(set_aside.moved_to, folder.path().join(format!("tidegate.db.broken-{n}")));
        assert!(!set_aside.why.is_empty());
        assert_eq!(std::fs::read(&set_aside.moved_to).unwrap(), damaged);
        assert_eq!(store.conversations().unwrap(), []);
        store.create_conversation("works", false).unwrap();
        drop(store);
        assert_eq!(Store::open(&database).unwrap().set_aside(), None);
    }
}

#[test]
fn a_file_that_is_no_database_is_moved_aside() {
    check_damage(|path, _| std::fs::write(path, "this was a database once; ".repeat(500)).unwrap());
}

#[test]
fn a_file_with_a_broken_page_is_moved_aside() {
    check_damage(|path, mut bytes| {
        assert!(bytes.len() > 20 * 4096);
        bytes[4096..].chunks_mut(4096).step_by(3).for_each(|page| page[..200].fill(0x5a));
        std::fs::write(path, bytes).unwrap();
    });
}

#[test]
fn a_file_that_was_cut_is_moved_aside() {
    check_damage(|path, bytes| std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap());
}

#[test]
fn a_file_of_a_newer_tidegate_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("tidegate.db");
    drop(Store::open(&database).unwrap());
    rusqlite::Connection::open(&database).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = std::fs::read(&database).unwrap();

    let error = Store::open(&database).unwrap_err();

    assert!(matches!(error, StoreError::TooNew { found: 99, .. }), "{error:?}");
    assert!(error.to_string().ends_with(
        "tidegate.db was written by a newer Tidegate (format 99; this one knows formats up to 2): update Tidegate to open it"
    ));
    assert_eq!(std::fs::read(&database).unwrap(), before);
}

#[test]
fn a_second_process_leaves_the_first_ones_answer_alone() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("tidegate.db");
    let first = Store::open(&database).unwrap();
    let conversation = first.create_conversation("c", false).unwrap();
    let answer = add(&first, conversation, Role::Assistant, "", MessageState::Writing);

    let second = Store::open(&database).unwrap();
    first.append_text(answer, "still here", false).unwrap();
    assert_eq!(message(&second, conversation, answer).state, MessageState::Writing);
    assert_eq!(message(&second, conversation, answer).text, "still here");

    // The last one to go leaves an answer that nobody writes; the next one to come finds it.
    drop(first);
    let third = Store::open(&database).unwrap();
    assert_eq!(message(&third, conversation, answer).state, MessageState::Writing);
    drop((second, third));
    let fourth = Store::open(&database).unwrap();
    assert_eq!(message(&fourth, conversation, answer).state, MessageState::Interrupted);
    assert_eq!(message(&fourth, conversation, answer).text, "still here");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Store::open(&file.join("data/tidegate.db")).unwrap_err();
    assert!(matches!(&error, StoreError::Access { .. }), "{error:?}");
}
