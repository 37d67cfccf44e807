//! The history of decisions: browsing and clearing.

use app::{AskedBy, DecisionEntry, DecisionId, DecisionKind};
use serde::Serialize;
use specta::Type;
use tauri::State;

use super::chat::DecisionDto;
use super::error::ErrorDto;
use crate::Shell;

/// One decision of the history. It holds no text of a message.
#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DecisionEntryDto {
    id: i64,
    at_ms: i64,
    kind: DecisionKindDto,
    asked_by: AskedByDto,
    conversation_id: Option<i64>,
    message_id: Option<i64>,
    model: String,
    /// `here`, a node's id, or empty for nowhere.
    place_id: String,
    decision: DecisionDto,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum DecisionKindDto {
    Start,
    Move,
    Stay,
    Relief,
    Lost,
    Refused,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum AskedByDto {
    Window,
    Gateway,
    Terminal,
}

/// At most `limit` decisions older than `before`, or the newest; the newest first.
#[tauri::command]
#[specta::specta]
pub(crate) async fn list_decisions(
    shell: State<'_, Shell>,
    before: Option<i64>,
    limit: usize,
) -> Result<Vec<DecisionEntryDto>, ErrorDto> {
    let entries = shell.app.decisions(before.map(DecisionId), limit).await?;
    Ok(entries.into_iter().map(DecisionEntryDto::from).collect())
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn clear_decisions(shell: State<'_, Shell>) -> Result<(), ErrorDto> {
    Ok(shell.app.clear_decisions().await?)
}

impl From<DecisionEntry> for DecisionEntryDto {
    fn from(entry: DecisionEntry) -> Self {
        let note = entry.note;
        Self {
            id: entry.id.0,
            at_ms: entry.at_ms,
            kind: match note.kind {
                DecisionKind::Start => DecisionKindDto::Start,
                DecisionKind::Move => DecisionKindDto::Move,
                DecisionKind::Stay => DecisionKindDto::Stay,
                DecisionKind::Relief => DecisionKindDto::Relief,
                DecisionKind::Lost => DecisionKindDto::Lost,
                DecisionKind::Refused => DecisionKindDto::Refused,
            },
            asked_by: match note.asked_by {
                AskedBy::Window => AskedByDto::Window,
                AskedBy::Gateway => AskedByDto::Gateway,
                AskedBy::Terminal => AskedByDto::Terminal,
            },
            conversation_id: note.conversation.map(|id| id.0),
            message_id: note.message.map(|id| id.0),
            model: note.model,
            place_id: note.place_id,
            decision: note.record.into(),
        }
    }
}
