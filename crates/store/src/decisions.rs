use rusqlite::{OptionalExtension, Row};

use crate::messages::now_ms;
use crate::{ConversationId, DecisionId, DecisionRow, MessageId, NewDecision, Store, StoreError};

/// Decisions that are kept; the oldest go first. At some 2 kB each they take 20 MB.
const KEPT: i64 = 10_000;

const COLUMNS: &str =
    "id, at_ms, kind, asked_by, conversation_id, message_id, model, place_id, place, reason, sentence, decision_json";

impl Store {
    /// Adds a decision to the history, at the time that it is now, and forgets the oldest where there are more than
    /// 10,000.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where its conversation or message was deleted, [`StoreError::DiskFull`].
    pub fn add_decision(&self, decision: &NewDecision) -> Result<DecisionId, StoreError> {
        self.write(|transaction| {
            let added = transaction
                .prepare_cached(concat!(
                    "INSERT INTO decisions (at_ms, kind, asked_by, conversation_id, message_id, model, place_id, place,
                                            reason, sentence, decision_json)
                     SELECT ",
                    now_ms!(),
                    ", ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10
                     WHERE (?3 IS NULL OR EXISTS (SELECT 1 FROM conversations WHERE id = ?3))
                       AND (?4 IS NULL OR EXISTS (SELECT 1 FROM messages WHERE id = ?4))"
                ))?
                .execute((
                    &decision.kind,
                    &decision.asked_by,
                    decision.conversation.map(|id| id.0),
                    decision.message.map(|id| id.0),
                    &decision.model,
                    &decision.place_id,
                    &decision.place,
                    &decision.reason,
                    &decision.sentence,
                    &decision.decision_json,
                ))?;
            if added == 0 {
                return Ok(None);
            }
            let id = DecisionId(transaction.last_insert_rowid());
            transaction
                .prepare_cached(
                    "DELETE FROM decisions
                     WHERE id <= (SELECT id FROM decisions ORDER BY id DESC LIMIT 1 OFFSET ?1)",
                )?
                .execute([KEPT])?;
            Ok(Some(id))
        })?
        .ok_or(StoreError::NotFound("such conversation or message"))
    }

    /// At most `limit` decisions that are older than `before`, or the newest; the newest first.
    ///
    /// # Errors
    /// Only what SQLite says.
    pub fn decisions(&self, before: Option<DecisionId>, limit: usize) -> Result<Vec<DecisionRow>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM decisions WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2"
                ))?
                .query_map((before.map(|id| id.0), limit), decision_row)?
                .collect()
        })
    }

    /// One decision.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where it was cleared.
    pub fn decision(&self, id: DecisionId) -> Result<DecisionRow, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM decisions WHERE id = ?1"))?
                .query_row([id.0], decision_row)
                .optional()
        })?
        .ok_or(StoreError::NotFound("such decision"))
    }

    /// Forgets all decisions; messages keep theirs.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], or what else SQLite says.
    pub fn clear_decisions(&self) -> Result<(), StoreError> {
        self.write(|transaction| transaction.execute("DELETE FROM decisions", [])).map(drop)
    }
}

fn decision_row(row: &Row<'_>) -> rusqlite::Result<DecisionRow> {
    Ok(DecisionRow {
        id: DecisionId(row.get(0)?),
        at_ms: row.get(1)?,
        decision: NewDecision {
            kind: row.get(2)?,
            asked_by: row.get(3)?,
            conversation: row.get::<_, Option<i64>>(4)?.map(ConversationId),
            message: row.get::<_, Option<i64>>(5)?.map(MessageId),
            model: row.get(6)?,
            place_id: row.get(7)?,
            place: row.get(8)?,
            reason: row.get(9)?,
            sentence: row.get(10)?,
            decision_json: row.get(11)?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_keeps_the_newest_decisions() {
        let store = Store::open_in_memory().unwrap();
        let decision = NewDecision { kind: "start".into(), ..NewDecision::default() };
        store
            .write(|transaction| {
                transaction.execute(
                    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                     INSERT INTO decisions SELECT 2 * i, 0, '', '', NULL, NULL, '', '', '', '', '', '' FROM n",
                    [KEPT],
                )
            })
            .unwrap();

        let newest = store.add_decision(&decision).unwrap();

        let kept = store.decisions(None, usize::MAX).unwrap();
        assert_eq!((kept.len(), kept[0].id), (KEPT as usize, newest));
        assert_eq!(kept.last().map(|row| row.id), Some(DecisionId(4)));
    }
}
