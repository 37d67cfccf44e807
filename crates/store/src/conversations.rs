use rusqlite::{OptionalExtension, Row};

use crate::messages::{messages_of, now_ms};
use crate::{Conversation, ConversationId, ConversationSummary, Store, StoreError};

const NO_CONVERSATION: StoreError = StoreError::NotFound("such conversation");

impl Store {
    /// Every conversation, the one with the newest message first.
    ///
    /// # Errors
    /// Only what SQLite says.
    pub fn conversations(&self) -> Result<Vec<ConversationSummary>, StoreError> {
        self.read(|connection| {
            connection
                // Within one millisecond the order of the newest messages decides.
                .prepare_cached(
                    "SELECT id, title, updated_at_ms, stays_local FROM conversations
                     ORDER BY updated_at_ms DESC,
                              (SELECT max(m.id) FROM messages m WHERE m.conversation_id = conversations.id) DESC,
                              id DESC",
                )?
                .query_map([], summary)?
                .collect()
        })
    }

    /// A conversation with its messages. One that is being written has what was appended so far.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where it was deleted.
    pub fn conversation(&self, id: ConversationId) -> Result<Conversation, StoreError> {
        self.read(|connection| {
            // One view of the file, whatever another process writes meanwhile.
            let view = connection.unchecked_transaction()?;
            let found = view
                .prepare_cached("SELECT id, title, updated_at_ms, stays_local FROM conversations WHERE id = ?1")?
                .query_row([id.0], summary)
                .optional()?;
            let Some(ConversationSummary { id, title, updated_at_ms, stays_local }) = found else {
                return Ok(None);
            };
            let messages = messages_of(&view, id)?;
            Ok(Some(Conversation { id, title, updated_at_ms, stays_local, messages }))
        })?
        .ok_or(NO_CONVERSATION)
    }

    /// Makes an empty conversation.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], or what else SQLite says.
    pub fn create_conversation(&self, title: &str, stays_local: bool) -> Result<ConversationId, StoreError> {
        self.write(|transaction| {
            transaction.execute(
                concat!(
                    "INSERT INTO conversations (title, stays_local, updated_at_ms) VALUES (?1, ?2, ",
                    now_ms!(),
                    ")"
                ),
                (title, stays_local),
            )?;
            Ok(ConversationId(transaction.last_insert_rowid()))
        })
    }

    /// Gives a conversation another title. Its place in the list stays.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where it was deleted.
    pub fn rename(&self, id: ConversationId, title: &str) -> Result<(), StoreError> {
        let changed = self.write(|transaction| {
            transaction.execute("UPDATE conversations SET title = ?2 WHERE id = ?1", (id.0, title))
        })?;
        if changed == 0 { Err(NO_CONVERSATION) } else { Ok(()) }
    }

    /// Marks whether a conversation must stay on this machine.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where it was deleted.
    pub fn set_stays_local(&self, id: ConversationId, stays_local: bool) -> Result<(), StoreError> {
        let changed = self.write(|transaction| {
            transaction.execute("UPDATE conversations SET stays_local = ?2 WHERE id = ?1", (id.0, stays_local))
        })?;
        if changed == 0 { Err(NO_CONVERSATION) } else { Ok(()) }
    }

    /// Deletes a conversation with its messages, its draft and its decisions.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where it was deleted before.
    pub fn delete(&self, id: ConversationId) -> Result<(), StoreError> {
        let changed =
            self.write(|transaction| transaction.execute("DELETE FROM conversations WHERE id = ?1", [id.0]))?;
        if changed == 0 { Err(NO_CONVERSATION) } else { Ok(()) }
    }

    /// What was typed and not sent: in a conversation, or with `None` in a chat that doesn't exist yet. Empty where
    /// nothing was.
    ///
    /// # Errors
    /// Only what SQLite says.
    pub fn draft(&self, conversation_id: Option<ConversationId>) -> Result<String, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT text FROM drafts WHERE conversation_id IS ?1")?
                .query_row([conversation_id.map(|id| id.0)], |row| row.get(0))
                .optional()
        })
        .map(Option::unwrap_or_default)
    }

    /// Keeps what was typed; an empty text forgets it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the conversation was deleted, [`StoreError::DiskFull`].
    pub fn save_draft(&self, conversation_id: Option<ConversationId>, text: &str) -> Result<(), StoreError> {
        let key = conversation_id.map(|id| id.0);
        let is_kept = self.write(|transaction| {
            transaction.execute("DELETE FROM drafts WHERE conversation_id IS ?1", [key])?;
            if text.is_empty() {
                return Ok(true);
            }
            let inserted = transaction.execute(
                "INSERT INTO drafts (conversation_id, text)
                 SELECT ?1, ?2 WHERE ?1 IS NULL OR EXISTS (SELECT 1 FROM conversations WHERE id = ?1)",
                (key, text),
            )?;
            Ok(inserted == 1)
        })?;
        if is_kept { Ok(()) } else { Err(NO_CONVERSATION) }
    }
}

fn summary(row: &Row<'_>) -> rusqlite::Result<ConversationSummary> {
    Ok(ConversationSummary {
        id: ConversationId(row.get(0)?),
        title: row.get(1)?,
        updated_at_ms: row.get(2)?,
        stays_local: row.get(3)?,
    })
}
