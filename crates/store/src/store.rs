use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::{StoreError, schema};

/// How long a statement waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The open database. Calls block, also on each other: one runs at a time.
///
/// Several processes may open the same file. Only one that finds itself alone repairs: it marks answers that a process
/// which is gone was writing as interrupted, and moves a damaged file aside.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    path: PathBuf,
    set_aside: Option<SetAside>,
    // Held as long as the store is open, so that another process sees that it isn't alone.
    _lock: Option<File>,
}

/// A damaged file that was moved aside when the store was opened. The store that took its place is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where the damaged file is now: `tidegate.db.broken-1` beside the new one.
    pub moved_to: PathBuf,
    /// What SQLite said about it.
    pub why: String,
}

impl Store {
    /// Opens the file at `path`; makes it, and the folder it is in, where they are missing. Both can be read by this
    /// user only. Every answer that was being written by a process that is gone becomes interrupted.
    ///
    /// A damaged file is moved aside and a fresh one is opened: [`Store::set_aside`] tells.
    ///
    /// # Errors
    /// [`StoreError::TooNew`] for a file of a newer Tidegate, which is not touched; [`StoreError::Corrupt`] for a
    /// damaged file that another process has open; else what the volume says.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent() {
            make_private_folder(folder)?;
        }
        let lock = open_private(&beside(path, ".lock")).map_err(|error| StoreError::from_io(path, error))?;
        let is_alone = match lock.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => return Err(StoreError::from_io(path, error)),
        };
        let (mut connection, set_aside) = match open_file(path, is_alone) {
            Ok(connection) => (connection, None),
            Err(StoreError::Corrupt { source, .. }) if is_alone => {
                let moved_to = move_aside(path)?;
                (open_file(path, is_alone)?, Some(SetAside { moved_to, why: source.to_string() }))
            }
            Err(error) => return Err(error),
        };
        if is_alone {
            interrupt(&mut connection).map_err(|error| StoreError::from_sqlite(path, error))?;
            // Whoever gets the exclusive lock in between repairs again, which changes nothing: nothing is written yet.
            lock.unlock().map_err(|error| StoreError::from_io(path, error))?;
        }
        lock.lock_shared().map_err(|error| StoreError::from_io(path, error))?;
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned(), set_aside, _lock: Some(lock) })
    }

    /// A store that is gone when it is dropped.
    ///
    /// # Errors
    /// Only where memory is short.
    pub fn open_in_memory() -> Result<Self, StoreError> {
        let path = PathBuf::from(":memory:");
        let connection = Connection::open_in_memory()
            .and_then(|mut connection| {
                connection.pragma_update(None, "foreign_keys", true)?;
                schema::migrate(&mut connection, schema::MIGRATIONS)?;
                Ok(connection)
            })
            .map_err(|error| StoreError::from_sqlite(&path, error))?;
        Ok(Self { connection: Mutex::new(connection), path, set_aside: None, _lock: None })
    }

    /// The damaged file that was moved aside when this store was opened.
    pub fn set_aside(&self) -> Option<&SetAside> {
        self.set_aside.as_ref()
    }

    /// Runs `read` on the connection.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        // A panic in mid-call rolled its transaction back, so the connection is sound.
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        read(&connection).map_err(|error| StoreError::from_sqlite(&self.path, error))
    }

    /// Runs `write` in a transaction that is kept as a whole or not at all.
    pub(crate) fn write<T>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection
            // Immediate, because a transaction that reads first and then writes can't wait for another writer.
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .and_then(|transaction| {
                let value = write(&transaction)?;
                transaction.commit()?;
                Ok(value)
            })
            .map_err(|error| StoreError::from_sqlite(&self.path, error))
    }
}

/// Opens and migrates the file; checks it as a whole where `is_alone`.
fn open_file(path: &Path, is_alone: bool) -> Result<Connection, StoreError> {
    if !path.exists() {
        // SQLite gives its log the mode of the file. An existing file is not opened here: closing it again would drop
        // the locks that SQLite holds on it in this process.
        open_private(path).map_err(|error| StoreError::from_io(path, error))?;
    }
    let sqlite = |error| StoreError::from_sqlite(path, error);
    let mut connection = Connection::open(path).map_err(sqlite)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
    let (found, known) = (schema::version(&connection).map_err(sqlite)?, schema::MIGRATIONS.len() as i64);
    if found > known {
        return Err(StoreError::TooNew { path: path.to_owned(), found, known });
    }
    connection.pragma_update(None, "journal_mode", "wal").map_err(sqlite)?;
    // With a write-ahead log this survives the death of the process; a power cut may cost the last moments, not the file.
    connection.pragma_update(None, "synchronous", "normal").map_err(sqlite)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(sqlite)?;
    if is_alone {
        let verdict: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(sqlite)?;
        if verdict != "ok" {
            return Err(StoreError::Corrupt { path: path.to_owned(), source: verdict.into() });
        }
    }
    schema::migrate(&mut connection, schema::MIGRATIONS).map_err(sqlite)?;
    Ok(connection)
}

/// Answers that a process which is gone was writing keep what had come.
fn interrupt(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let ids: Vec<i64> = transaction
        .prepare("SELECT id FROM messages WHERE state = 'writing'")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for id in ids {
        crate::messages::join_pieces(&transaction, id)?;
        transaction.execute("UPDATE messages SET state = 'interrupted' WHERE id = ?1", [id])?;
    }
    transaction.commit()
}

/// Moves the file and its log to the first free `….broken-<n>`.
fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let moved_to = (1..)
        .map(|n| beside(path, &format!(".broken-{n}")))
        .find(|candidate| !candidate.exists())
        .expect("a folder doesn't hold every number");
    for suffix in ["-wal", "-shm", ""] {
        let from = beside(path, suffix);
        if from.exists() {
            std::fs::rename(&from, beside(&moved_to, suffix)).map_err(|error| StoreError::from_io(&from, error))?;
        }
    }
    Ok(moved_to)
}

/// `path` with `suffix` after its last character.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(crate) fn make_private_folder(folder: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| StoreError::from_io(folder, error))
}

fn open_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use chat::Role;

    use super::*;
    use crate::{MessageState, NewMessage};

    #[test]
    fn a_full_volume_changes_nothing_and_the_same_text_can_be_appended_later() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("tidegate.db")).unwrap();
        let conversation_id = store.create_conversation("c", false).unwrap();
        let answer =
            NewMessage { conversation_id, role: Role::Assistant, text: String::new(), state: MessageState::Writing };
        let id = store.add_message(&answer).unwrap();
        store.append_text(id, "before", false).unwrap();
        // SQLite gives the same error for a file that may not grow as for a volume that has no room.
        let set_limit = |pages: i64| {
            store.read(|connection| {
                connection.pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0))
            })
        };
        set_limit(1).unwrap();
        let long = "long ".repeat(10_000);

        let error = store.append_text(id, &long, false).unwrap_err();

        assert!(matches!(error, StoreError::DiskFull(_)), "{error:?}");
        let text = |store: &Store| store.conversation(conversation_id).unwrap().messages[0].text.clone();
        assert_eq!(text(&store), "before");
        set_limit(100_000).unwrap();
        store.append_text(id, &long, false).unwrap();
        assert_eq!(text(&store), format!("before{long}"));
    }
}
