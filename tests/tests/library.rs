//! Model files: what a dropped one is, adding it, and the folders that are watched.

use std::fs;
use std::time::Duration;

use app::{AddHow, FileVerdict, ModelOrigin, OffloadMode};
use system_tests::Fixture;
use testkit::folder::{StoredAs, write_tiny_folder};
use testkit::gguf::tiny_model;

#[tokio::test]
async fn a_dropped_model_gets_a_verdict_and_can_be_added_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model(1).write(folder.path(), "tiny.gguf").unwrap();
    let fixture = Fixture::start(OffloadMode::LocalOnly, &[]).await;
    let FileVerdict::Model(verdict) = fixture.app.inspect_file(path.clone(), None).await else {
        panic!("it is a model")
    };
    assert_eq!(verdict.header.architecture, "llama");
    assert_eq!(verdict.listed_as, None);
    assert!(verdict.fits.iter().all(|fit| fit.needed.0 > 0));

    let entry = fixture.app.add_model(path.clone(), AddHow::Reference).await.unwrap();
    assert_eq!((entry.id.as_str(), entry.origin), ("tiny", ModelOrigin::Added));
    assert_eq!(fixture.app.settings().model.as_deref(), Some("tiny"), "the added model is the chosen one");
    assert!(fixture.ask("hello").await.error.is_none());

    let fixture = fixture.restart(OffloadMode::LocalOnly, &[]).await;
    assert_eq!(fixture.app.models().len(), 1);
    fixture.app.remove_model("tiny").await.unwrap();
    assert!(fixture.app.models().is_empty());
    assert!(path.exists(), "taking a model off the list leaves the file");
}

#[tokio::test]
async fn a_copied_file_stays_and_a_moved_one_goes() {
    let folder = tempfile::tempdir().unwrap();
    let copied = tiny_model(1).write(folder.path(), "copied.gguf").unwrap();
    let moved = tiny_model(2).write(folder.path(), "moved.gguf").unwrap();
    let fixture = Fixture::start(OffloadMode::LocalOnly, &[]).await;
    fixture.app.add_model(copied.clone(), AddHow::Copy).await.unwrap();
    fixture.app.add_model(moved.clone(), AddHow::Move).await.unwrap();
    assert!(copied.exists() && !moved.exists());
    let ids: Vec<_> = fixture.app.models().iter().map(|model| model.id.clone()).collect();
    assert_eq!(ids, ["copied", "moved"]);
    // A file of the same name is not overwritten.
    let other = tempfile::tempdir().unwrap();
    let same_name = tiny_model(3).write(other.path(), "copied.gguf").unwrap();
    assert!(fixture.app.add_model(same_name, AddHow::Copy).await.is_err());
}

#[tokio::test]
async fn a_model_in_parts_is_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let parts = tiny_model(1).write_split(folder.path(), "tiny", 3).unwrap();
    let fixture = Fixture::start(OffloadMode::LocalOnly, &[]).await;
    let models_folder = fixture.app.settings().models_folder;

    // A name that is taken stops the second part, and the first goes back.
    fs::create_dir_all(&models_folder).unwrap();
    let taken = models_folder.join(parts[1].file_name().unwrap());
    fs::write(&taken, "something else").unwrap();
    fixture.app.add_model(parts[0].clone(), AddHow::Move).await.unwrap_err();
    assert!(parts.iter().all(|part| part.exists()));
    fs::remove_file(taken).unwrap();

    let entry = fixture.app.add_model(parts[2].clone(), AddHow::Copy).await.unwrap();
    assert_eq!(entry.id, "tiny");
    assert_eq!(entry.path, models_folder.join(parts[0].file_name().unwrap()));
    assert_eq!(fixture.app.models().len(), 1);
    assert!(fixture.ask("hello").await.error.is_none());
    let FileVerdict::Model(verdict) = fixture.app.inspect_file(entry.path, None).await else { panic!("it is a model") };
    assert_eq!(verdict.listed_as.as_deref(), Some("tiny"));
    assert_eq!(verdict.header.files.len(), 3);

    fs::remove_file(&parts[0]).unwrap();
    let FileVerdict::Refused(refusal) = fixture.app.inspect_file(parts[1].clone(), None).await else {
        panic!("a part is gone")
    };
    assert_eq!(refusal.title, "A part is missing");
    assert!(refusal.sentence.contains("`tiny-00001-of-00003.gguf`"), "{}", refusal.sentence);
}

#[tokio::test]
async fn broken_files_are_refused_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let whole = tiny_model(1).build();
    let fixture = Fixture::start(OffloadMode::LocalOnly, &[]).await;
    for (name, content, title) in [
        ("half.gguf", &whole[..whole.len() / 2], "The file is incomplete"),
        ("head.gguf", &whole[..40], "The file is incomplete"),
        ("page.gguf", b"<!DOCTYPE html><html>".as_slice(), "Not a GGUF model"),
        ("notes.txt", b"shopping list".as_slice(), "Not a GGUF model"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        match fixture.app.inspect_file(path.clone(), None).await {
            FileVerdict::Refused(refusal) => {
                assert_eq!(refusal.title, title, "{name}");
                assert!(refusal.sentence.ends_with('.') && refusal.hint.is_some(), "{name}: {}", refusal.sentence);
            }
            FileVerdict::Model(_) => panic!("{name} is not a model"),
        }
        assert!(fixture.app.add_model(path, AddHow::Copy).await.is_err(), "{name}");
    }
    assert!(fixture.app.models().is_empty());
}

#[tokio::test]
async fn a_file_that_appears_in_the_models_folder_appears_on_the_list() {
    let fixture = Fixture::start(OffloadMode::LocalOnly, &[]).await;
    let folder = fixture.app.settings().models_folder;
    let mut models = fixture.app.watch_models();
    models.mark_unchanged();
    let path = tiny_model(1).write(&folder, "new.gguf").unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(20), models.wait_for(|models| models.len() == 1)).await;
    assert_eq!(seen.unwrap().unwrap()[0].path, path);
    fs::remove_file(path).unwrap();
    let gone = tokio::time::timeout(Duration::from_secs(20), models.wait_for(|models| models.is_empty())).await;
    assert!(gone.unwrap().is_ok());
}

#[tokio::test]
async fn a_published_folder_is_a_model_like_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Tiny-1.0B");
    write_tiny_folder(&path, 1, StoredAs::Bf16, 2).unwrap();
    let fixture = Fixture::start(OffloadMode::LocalOnly, &[]).await;
    let FileVerdict::Model(verdict) = fixture.app.inspect_file(path.clone(), None).await else {
        panic!("it is a model")
    };
    assert_eq!((verdict.header.quantization.as_str(), verdict.header.architecture.as_str()), ("BF16", "llama"));
    fixture.app.add_model(path.clone(), AddHow::Move).await.unwrap_err();
    let entry = fixture.app.add_model(path.clone(), AddHow::Reference).await.unwrap();
    assert_eq!((entry.id.as_str(), entry.origin), ("Tiny-1.0B", ModelOrigin::Added));
    assert!(fixture.ask("hello").await.error.is_none());

    // One that lies in the models folder is listed as soon as it is whole.
    let placed = fixture.app.settings().models_folder.join("publisher/Other-1.0B");
    write_tiny_folder(&placed, 2, StoredAs::F32, 1).unwrap();
    let mut models = fixture.app.watch_models();
    let both = models.wait_for(|models| models.iter().filter(|model| model.header.is_ok()).count() == 2);
    let listed = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap().unwrap();
    assert_eq!(listed[0].id, "Other-1.0B");
}
