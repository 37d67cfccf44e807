use chat::Role;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{
    ConversationId, MessageEnd, MessageId, MessageState, NewMessage, Segment, Store, StoreError, StoredMessage,
};

/// The time now, in milliseconds since 1970, as SQL. SQLite's clock is the same wall clock.
macro_rules! now_ms {
    () => {
        "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)"
    };
}
pub(crate) use now_ms;

/// A message's columns; what was appended and not yet joined comes after what its row holds.
const COLUMNS: &str = "id, conversation_id, role, state, failure, decision_json, created_at_ms,
    text || coalesce((SELECT group_concat(p.text, '' ORDER BY p.n) FROM pieces p
                      WHERE p.message_id = messages.id AND NOT p.thinking), ''),
    thinking || coalesce((SELECT group_concat(p.text, '' ORDER BY p.n) FROM pieces p
                          WHERE p.message_id = messages.id AND p.thinking), '')";

/// A segment's columns after its message and number; [`segment`] reads them after the message's id.
const SEGMENT_COLUMNS: &str = "place, model, reason, sentence, decode_tokens_per_sec, ttft_ms, completion_tokens,
    started_at_char, place_id, thinking_at_char, continuation, gap_ms, ended, checksum, decision_json";

const NOT_WRITING: StoreError = StoreError::NotFound("such message that is being written");

impl Store {
    /// Adds a message to the end of its conversation, and moves the conversation to the top of the list.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the conversation was deleted, [`StoreError::DiskFull`].
    pub fn add_message(&self, message: &NewMessage) -> Result<MessageId, StoreError> {
        let (state, failure) = state_columns(&message.state);
        self.write(|transaction| {
            let found = transaction.execute(
                concat!("UPDATE conversations SET updated_at_ms = ", now_ms!(), " WHERE id = ?1"),
                [message.conversation_id.0],
            )?;
            if found == 0 {
                return Ok(None);
            }
            transaction.execute(
                concat!(
                    "INSERT INTO messages (conversation_id, role, text, state, failure, created_at_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ",
                    now_ms!(),
                    ")"
                ),
                (message.conversation_id.0, message.role.as_str(), &message.text, state, failure),
            )?;
            Ok(Some(MessageId(transaction.last_insert_rowid())))
        })?
        .ok_or(StoreError::NotFound("such conversation"))
    }

    /// Keeps the routing decision of a message, in the caller's own encoding.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the message was deleted, [`StoreError::DiskFull`].
    pub fn set_decision(&self, id: MessageId, decision_json: &str) -> Result<(), StoreError> {
        let changed = self.write(|transaction| {
            transaction.execute("UPDATE messages SET decision_json = ?2 WHERE id = ?1", (id.0, decision_json))
        })?;
        if changed == 0 { Err(StoreError::NotFound("such message")) } else { Ok(()) }
    }

    /// Appends to a message that is being written: to its thinking, or to its text. What was appended before this
    /// returns survives the death of the process. Costs the same however long the message is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the message was deleted or has ended. [`StoreError::DiskFull`]: nothing was
    /// appended, so the same text can be appended later.
    pub fn append_text(&self, id: MessageId, text: &str, thinking: bool) -> Result<(), StoreError> {
        let appended = self.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO pieces (message_id, n, thinking, text)
                     SELECT id, coalesce((SELECT max(n) FROM pieces WHERE message_id = ?1), 0) + 1, ?2, ?3
                     FROM messages WHERE id = ?1 AND state = 'writing'",
                )?
                .execute((id.0, thinking, text))
        })?;
        if appended == 0 { Err(NOT_WRITING) } else { Ok(()) }
    }

    /// Ends a message that was being written, and returns it as it is kept.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the message was deleted or has ended. [`StoreError::DiskFull`]: nothing was
    /// changed, so it can be ended later.
    pub fn finish_message(&self, id: MessageId, end: &MessageEnd) -> Result<StoredMessage, StoreError> {
        let (state, failure) = state_columns(&end.state);
        self.write(|transaction| {
            let found = transaction.execute(
                "UPDATE messages SET state = ?2, failure = ?3 WHERE id = ?1 AND state = 'writing'",
                (id.0, state, failure),
            )?;
            if found == 0 {
                return Ok(None);
            }
            join_pieces(transaction, id.0)?;
            transaction.execute("DELETE FROM segments WHERE message_id = ?1", [id.0])?;
            for (n, segment) in end.segments.iter().enumerate() {
                insert_segment(transaction, id, n, segment)?;
            }
            let sql = format!("SELECT {COLUMNS} FROM messages WHERE id = ?1");
            let mut message = transaction.prepare_cached(&sql)?.query_row([id.0], stored_message).optional()?;
            if let Some(message) = &mut message {
                message.segments.clone_from(&end.segments);
            }
            Ok(message)
        })?
        .ok_or(NOT_WRITING)
    }
}

/// Moves what was appended to a message into its row.
pub(crate) fn join_pieces(connection: &Connection, id: i64) -> rusqlite::Result<()> {
    connection.execute(
        "UPDATE messages SET
            text = text || coalesce((SELECT group_concat(p.text, '' ORDER BY p.n) FROM pieces p
                                     WHERE p.message_id = ?1 AND NOT p.thinking), ''),
            thinking = thinking || coalesce((SELECT group_concat(p.text, '' ORDER BY p.n) FROM pieces p
                                             WHERE p.message_id = ?1 AND p.thinking), '')
         WHERE id = ?1",
        [id],
    )?;
    connection.execute("DELETE FROM pieces WHERE message_id = ?1", [id])?;
    Ok(())
}

/// The messages of a conversation with their segments, oldest first.
pub(crate) fn messages_of(connection: &Connection, id: ConversationId) -> rusqlite::Result<Vec<StoredMessage>> {
    let mut messages: Vec<StoredMessage> = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM messages WHERE conversation_id = ?1 ORDER BY id"))?
        .query_map([id.0], stored_message)?
        .collect::<rusqlite::Result<_>>()?;
    let mut segments = connection.prepare_cached(&format!(
        "SELECT message_id, {SEGMENT_COLUMNS} FROM segments
         WHERE message_id IN (SELECT id FROM messages WHERE conversation_id = ?1) ORDER BY message_id, n"
    ))?;
    let mut rows = segments.query([id.0])?;
    while let Some(row) = rows.next()? {
        let message_id = MessageId(row.get(0)?);
        if let Ok(at) = messages.binary_search_by_key(&message_id, |message| message.id) {
            messages[at].segments.push(segment(row)?);
        }
    }
    Ok(messages)
}

fn insert_segment(connection: &Connection, id: MessageId, n: usize, segment: &Segment) -> rusqlite::Result<()> {
    connection
        .prepare_cached(&format!(
            "INSERT INTO segments (message_id, n, {SEGMENT_COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)"
        ))?
        .execute(params![
            id.0,
            to_column(n),
            segment.place,
            segment.model,
            segment.reason,
            segment.sentence,
            segment.decode_tokens_per_sec,
            segment.ttft_ms.map(ms_to_column),
            segment.completion_tokens.map(to_column),
            to_column(segment.started_at_char),
            segment.place_id,
            to_column(segment.thinking_at_char),
            segment.continuation,
            segment.gap_ms.map(ms_to_column),
            segment.ended,
            segment.checksum,
            segment.decision_json,
        ])
        .map(drop)
}

fn segment(row: &Row<'_>) -> rusqlite::Result<Segment> {
    let ms = |at| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.and_then(|ms| u64::try_from(ms).ok()));
    Ok(Segment {
        place: row.get(1)?,
        model: row.get(2)?,
        reason: row.get(3)?,
        sentence: row.get(4)?,
        decode_tokens_per_sec: row.get(5)?,
        ttft_ms: ms(6)?,
        completion_tokens: row.get::<_, Option<i64>>(7)?.and_then(|tokens| usize::try_from(tokens).ok()),
        started_at_char: usize::try_from(row.get::<_, i64>(8)?).unwrap_or(0),
        place_id: row.get(9)?,
        thinking_at_char: usize::try_from(row.get::<_, i64>(10)?).unwrap_or(0),
        continuation: row.get(11)?,
        gap_ms: ms(12)?,
        ended: row.get(13)?,
        checksum: row.get(14)?,
        decision_json: row.get(15)?,
    })
}

fn stored_message(row: &Row<'_>) -> rusqlite::Result<StoredMessage> {
    let state = match row.get::<_, StateWord>(3)?.0 {
        MessageState::Failed { .. } => MessageState::Failed { sentence: row.get(4)? },
        state => state,
    };
    Ok(StoredMessage {
        id: MessageId(row.get(0)?),
        conversation_id: ConversationId(row.get(1)?),
        role: row.get::<_, RoleWord>(2)?.0,
        state,
        decision_json: row.get(5)?,
        created_at_ms: row.get(6)?,
        text: row.get(7)?,
        thinking: row.get(8)?,
        segments: Vec::new(),
    })
}

/// Counts in this file are far below 2⁶³.
fn to_column(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn ms_to_column(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn state_columns(state: &MessageState) -> (&'static str, &str) {
    match state {
        MessageState::Writing => ("writing", ""),
        MessageState::Done => ("done", ""),
        MessageState::Stopped => ("stopped", ""),
        MessageState::Interrupted => ("interrupted", ""),
        MessageState::Failed { sentence } => ("failed", sentence),
    }
}

struct StateWord(MessageState);

impl FromSql for StateWord {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(Self(match value.as_str()? {
            "writing" => MessageState::Writing,
            "done" => MessageState::Done,
            "stopped" => MessageState::Stopped,
            "interrupted" => MessageState::Interrupted,
            "failed" => MessageState::Failed { sentence: String::new() },
            _ => return Err(FromSqlError::InvalidType),
        }))
    }
}

struct RoleWord(Role);

impl FromSql for RoleWord {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Role::parse(value.as_str()?).map(Self).ok_or(FromSqlError::InvalidType)
    }
}
