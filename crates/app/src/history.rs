//! The history of decisions: where answers went and why. It never holds a word of what was asked or answered.

use store::{ConversationId, DecisionId, DecisionRow, MessageId, NewDecision, StoreError};

use crate::error::AppError;
use crate::{App, DecisionRecord};

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecisionKind {
    /// Where an answer begins.
    Start,
    /// Where a running answer goes on.
    Move,
    /// A running answer was to move and stays where it is.
    Stay,
    /// Room was made here for a running answer.
    Relief,
    /// The place of a running answer failed.
    Lost,
    /// No place can answer.
    Refused,
}

impl DecisionKind {
    const ALL: [Self; 6] = [Self::Start, Self::Move, Self::Stay, Self::Relief, Self::Lost, Self::Refused];

    /// A stable name for the database and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Move => "move",
            Self::Stay => "stay",
            Self::Relief => "relief",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

/// Who asked for an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AskedBy {
    /// The user, in the window.
    #[default]
    Window,
    /// A program, over HTTP.
    Gateway,
    /// The user, on the command line.
    Terminal,
}

impl AskedBy {
    const ALL: [Self; 3] = [Self::Window, Self::Gateway, Self::Terminal];

    /// A stable name for the database and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Gateway => "gateway",
            Self::Terminal => "terminal",
        }
    }
}

/// A decision for the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionNote {
    /// What was decided.
    pub kind: DecisionKind,
    /// Who asked.
    pub asked_by: AskedBy,
    /// The conversation it was for; `None` for a request without one. The decision is deleted with it.
    pub conversation: Option<ConversationId>,
    /// The answer it was for.
    pub message: Option<MessageId>,
    /// The model's name at the place; empty where none was reached.
    pub model: String,
    /// `here`, a node's id, or empty for nowhere.
    pub place_id: String,
    /// All of it, as it was explained.
    pub record: DecisionRecord,
}

/// A decision of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionEntry {
    /// Its id; a later one has a larger id.
    pub id: DecisionId,
    /// When it was made, in milliseconds since 1970.
    pub at_ms: i64,
    /// What was decided.
    pub note: DecisionNote,
}

impl App {
    /// Adds a decision to the history. One that can't be kept is told to the log: no answer waits for it or fails by it.
    pub async fn note_decision(&self, note: DecisionNote) {
        let record = match serde_json::to_string(&note.record) {
            Ok(record) => record,
            Err(error) => return tracing::warn!(%error, "decision not kept"),
        };
        let decision = NewDecision {
            kind: note.kind.as_str().to_owned(),
            asked_by: note.asked_by.as_str().to_owned(),
            conversation: note.conversation,
            message: note.message,
            model: note.model,
            place_id: note.place_id,
            place: note.record.place,
            reason: note.record.reason,
            sentence: note.record.sentence,
            decision_json: record,
        };
        match self.with_store(move |store| store.add_decision(&decision)).await {
            // A conversation that was deleted meanwhile wants no trace of it.
            Ok(Ok(_) | Err(StoreError::NotFound(_))) => {}
            Ok(Err(error)) => tracing::warn!(%error, "decision not kept"),
            Err(error) => tracing::warn!(%error, "decision not kept"),
        }
    }

    /// At most `limit` decisions that are older than `before`, or the newest; the newest first.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub async fn decisions(&self, before: Option<DecisionId>, limit: usize) -> Result<Vec<DecisionEntry>, AppError> {
        let rows = self.with_store(move |store| store.decisions(before, limit)).await??;
        Ok(rows.into_iter().filter_map(entry).collect())
    }

    /// One decision of the history.
    ///
    /// # Errors
    /// `NotFound` where it was cleared.
    pub async fn decision(&self, id: DecisionId) -> Result<DecisionEntry, AppError> {
        let row = self.with_store(move |store| store.decision(id)).await??;
        entry(row).ok_or_else(|| StoreError::NotFound("such decision").into())
    }

    /// Forgets the history. What is told under an answer stays with the answer.
    ///
    /// # Errors
    /// `DiskFull` where even that takes room.
    pub async fn clear_decisions(&self) -> Result<(), AppError> {
        Ok(self.with_store(|store| store.clear_decisions()).await??)
    }
}

/// `None`, and a word in the log, for a row that another version wrote in its own way.
fn entry(row: DecisionRow) -> Option<DecisionEntry> {
    let DecisionRow { id, at_ms, decision } = row;
    let kind = DecisionKind::ALL.into_iter().find(|kind| kind.as_str() == decision.kind);
    let asked_by = AskedBy::ALL.into_iter().find(|asked_by| asked_by.as_str() == decision.asked_by);
    let record = serde_json::from_str::<DecisionRecord>(&decision.decision_json);
    let (Some(kind), Some(asked_by), Ok(record)) = (kind, asked_by, record) else {
        tracing::warn!(id = id.0, "a decision of the history is not understood");
        return None;
    };
    let NewDecision { conversation, message, model, place_id, .. } = decision;
    Some(DecisionEntry {
        id,
        at_ms,
        note: DecisionNote { kind, asked_by, conversation, message, model, place_id, record },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AppConfig;

    fn note(kind: DecisionKind, conversation: Option<ConversationId>) -> DecisionNote {
        DecisionNote {
            kind,
            asked_by: AskedBy::Gateway,
            conversation,
            message: None,
            model: "qwen3-8b".into(),
            place_id: "studio".into(),
            record: DecisionRecord {
                target: "node".into(),
                place: "On studio".into(),
                reason: "swap".into(),
                sentence: "here swaps in 40.0 MB/s".into(),
                counterfactual: Some("Would stay here with context up to 16k".into()),
                readings: Vec::new(),
                alternatives: Vec::new(),
            },
        }
    }

    #[tokio::test]
    async fn what_is_noted_is_read_again_until_it_is_cleared() {
        let data = tempfile::tempdir().unwrap();
        let app = App::start(AppConfig { data_dir: data.path().to_owned(), ..AppConfig::default() }).await.unwrap();
        for kind in DecisionKind::ALL {
            app.note_decision(note(kind, None)).await;
        }
        // As after a deletion.
        app.note_decision(note(DecisionKind::Move, Some(ConversationId(99)))).await;

        let newest = app.decisions(None, 2).await.unwrap();
        assert_eq!(newest[0].note, note(DecisionKind::Refused, None));
        let older = app.decisions(Some(newest[1].id), 100).await.unwrap();
        assert_eq!((newest.len(), older.len()), (2, DecisionKind::ALL.len() - 2));
        assert_eq!(app.decision(older[0].id).await.unwrap(), older[0]);

        app.clear_decisions().await.unwrap();

        assert_eq!(app.decisions(None, 100).await.unwrap(), []);
        assert!(app.decision(older[0].id).await.is_err());
        app.shutdown().await;
    }
}
