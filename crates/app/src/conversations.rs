use std::sync::Arc;

use store::{Conversation, ConversationId, ConversationSummary};
use tokio::sync::watch;

use crate::App;
use crate::error::{AppError, ErrorCode};

impl App {
    /// All conversations, the newest first.
    pub fn conversations(&self) -> Arc<Vec<ConversationSummary>> {
        self.inner.conversations.borrow().clone()
    }

    /// The list and every change to it.
    pub fn watch_conversations(&self) -> watch::Receiver<Arc<Vec<ConversationSummary>>> {
        self.inner.conversations.subscribe()
    }

    /// One conversation with its messages and the draft that waits in it.
    ///
    /// # Errors
    /// `NotFound` where it was deleted.
    pub async fn conversation(&self, id: ConversationId) -> Result<(Conversation, String), AppError> {
        let found = self
            .with_store(move |store| Ok::<_, store::StoreError>((store.conversation(id)?, store.draft(Some(id))?)))
            .await??;
        Ok(found)
    }

    /// Gives a conversation another title.
    ///
    /// # Errors
    /// `BadRequest` for an empty title, `NotFound` where the conversation was deleted.
    pub async fn rename_conversation(&self, id: ConversationId, title: &str) -> Result<(), AppError> {
        let title = title.trim().to_owned();
        if title.is_empty() {
            return Err(AppError::new(ErrorCode::BadRequest, "A chat needs a title."));
        }
        self.with_store(move |store| store.rename(id, &title)).await??;
        self.publish_conversations().await;
        Ok(())
    }

    /// Deletes a conversation with its messages and draft.
    ///
    /// # Errors
    /// `NotFound` where it is gone already.
    pub async fn delete_conversation(&self, id: ConversationId) -> Result<(), AppError> {
        self.with_store(move |store| store.delete(id)).await??;
        // Which cache is this conversation's isn't known, and what somebody deletes must not stay in one.
        self.inner.engine.forget_caches().await;
        self.publish_conversations().await;
        Ok(())
    }

    /// Keeps a conversation on this machine, or lets it follow the offload switch again.
    ///
    /// # Errors
    /// `NotFound` where it was deleted.
    pub async fn set_stays_local(&self, id: ConversationId, stays_local: bool) -> Result<(), AppError> {
        self.with_store(move |store| store.set_stays_local(id, stays_local)).await??;
        self.publish_conversations().await;
        Ok(())
    }

    /// The draft of the chat that isn't begun yet.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub async fn new_chat_draft(&self) -> Result<String, AppError> {
        Ok(self.with_store(|store| store.draft(None)).await??)
    }

    /// Keeps what is typed and not sent; `None` is the chat that isn't begun yet.
    ///
    /// # Errors
    /// `DiskFull` where it can't be kept.
    pub async fn save_draft(&self, id: Option<ConversationId>, text: String) -> Result<(), AppError> {
        Ok(self.with_store(move |store| store.save_draft(id, &text)).await??)
    }

    pub(crate) async fn publish_conversations(&self) {
        match self.with_store(|store| store.conversations()).await {
            Ok(Ok(list)) => {
                self.inner.conversations.send_replace(Arc::new(list));
            }
            Ok(Err(error)) => tracing::warn!(%error, "conversations not listed"),
            Err(error) => tracing::warn!(%error, "conversations not listed"),
        }
    }
}
