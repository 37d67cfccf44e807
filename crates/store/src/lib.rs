//! Keeps what must survive a restart: conversations, drafts, the history of decisions, nodes, settings and models added
//! by reference, in one SQLite file; keys of nodes in a file of their own that only this user can read.
//!
//! SQL appears nowhere else in the workspace. Nothing here decides anything or knows a format of a message or a
//! setting; values that callers encode are kept as they are. All calls block: async callers use a blocking thread.
//! A process that is killed in mid-answer loses nothing that was appended before. Start at [`Store`].

#![warn(missing_docs)]

mod conversations;
mod decisions;
mod error;
mod messages;
mod record;
mod schema;
mod secrets;
mod settings;
mod store;

pub use error::StoreError;
pub use record::{
    Conversation, ConversationId, ConversationSummary, DecisionId, DecisionRow, MessageEnd, MessageId, MessageState,
    NewDecision, NewMessage, NodeRow, Segment, StoredMessage,
};
pub use secrets::Secrets;
pub use store::{SetAside, Store};
