//! Conversations and drafts.

use app::{App, Conversation, ConversationId, ConversationSummary};
use serde::Serialize;
use specta::Type;
use tauri::State;

use super::chat::MessageDto;
use super::error::ErrorDto;
use crate::Shell;

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConversationSummaryDto {
    id: i64,
    title: String,
    updated_at_ms: i64,
    stays_local: bool,
}

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConversationDto {
    id: i64,
    title: String,
    stays_local: bool,
    messages: Vec<MessageDto>,
    draft: String,
}

pub(crate) fn list(app: &App) -> Vec<ConversationSummaryDto> {
    app.conversations().iter().map(Into::into).collect()
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn list_conversations(shell: State<'_, Shell>) -> Result<Vec<ConversationSummaryDto>, ErrorDto> {
    Ok(list(&shell.app))
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn open_conversation(shell: State<'_, Shell>, id: i64) -> Result<ConversationDto, ErrorDto> {
    let (conversation, draft) = shell.app.conversation(ConversationId(id)).await?;
    Ok(ConversationDto::new(conversation, draft))
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn rename_conversation(shell: State<'_, Shell>, id: i64, title: String) -> Result<(), ErrorDto> {
    Ok(shell.app.rename_conversation(ConversationId(id), &title).await?)
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn delete_conversation(shell: State<'_, Shell>, id: i64) -> Result<(), ErrorDto> {
    Ok(shell.app.delete_conversation(ConversationId(id)).await?)
}

#[tauri::command]
#[specta::specta]
pub(crate) async fn set_stays_local(shell: State<'_, Shell>, id: i64, stays_local: bool) -> Result<(), ErrorDto> {
    Ok(shell.app.set_stays_local(ConversationId(id), stays_local).await?)
}

/// Without a conversation it is the draft of the next new chat.
#[tauri::command]
#[specta::specta]
pub(crate) async fn save_draft(
    shell: State<'_, Shell>,
    conversation_id: Option<i64>,
    text: String,
) -> Result<(), ErrorDto> {
    Ok(shell.app.save_draft(conversation_id.map(ConversationId), text).await?)
}

impl From<&ConversationSummary> for ConversationSummaryDto {
    fn from(summary: &ConversationSummary) -> Self {
        Self {
            id: summary.id.0,
            title: summary.title.clone(),
            updated_at_ms: summary.updated_at_ms,
            stays_local: summary.stays_local,
        }
    }
}

impl ConversationDto {
    fn new(conversation: Conversation, draft: String) -> Self {
        Self {
            id: conversation.id.0,
            title: conversation.title,
            stays_local: conversation.stays_local,
            messages: conversation.messages.into_iter().map(MessageDto::from).collect(),
            draft,
        }
    }
}
