use chat::Role;

/// The row id of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConversationId(pub i64);

/// The row id of a message. A later message of a conversation has a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub i64);

/// A conversation without its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationSummary {
    /// Its id.
    pub id: ConversationId,
    /// What the list shows.
    pub title: String,
    /// When it was made or its newest message was added, in milliseconds since 1970.
    pub updated_at_ms: i64,
    /// It must not leave this machine.
    pub stays_local: bool,
}

/// A conversation with its messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// Its id.
    pub id: ConversationId,
    /// What the list shows.
    pub title: String,
    /// When it was made or its newest message was added, in milliseconds since 1970.
    pub updated_at_ms: i64,
    /// It must not leave this machine.
    pub stays_local: bool,
    /// Oldest first.
    pub messages: Vec<StoredMessage>,
}

/// A message to be added.
#[derive(Clone, Debug, PartialEq)]
pub struct NewMessage {
    /// The conversation it belongs to.
    pub conversation_id: ConversationId,
    /// Who wrote it.
    pub role: Role,
    /// What is written so far: all of it, or nothing yet for an answer.
    pub text: String,
    /// [`MessageState::Writing`] for an answer that is about to come.
    pub state: MessageState,
}

/// How a message that was being written ended.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageEnd {
    /// Anything but [`MessageState::Writing`].
    pub state: MessageState,
    /// Which backend made which part, in order.
    pub segments: Vec<Segment>,
}

/// A message as it was kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredMessage {
    /// Its id.
    pub id: MessageId,
    /// The conversation it belongs to.
    pub conversation_id: ConversationId,
    /// Who wrote it.
    pub role: Role,
    /// What was written.
    pub text: String,
    /// What the model thought before it answered.
    pub thinking: String,
    /// Whether it is whole, and if not, why.
    pub state: MessageState,
    /// Which backend made which part, in order.
    pub segments: Vec<Segment>,
    /// The routing decision, in the caller's own encoding.
    pub decision_json: Option<String>,
    /// When it was added, in milliseconds since 1970.
    pub created_at_ms: i64,
}

/// Whether a message is whole, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageState {
    /// It is being written now.
    Writing,
    /// It is whole.
    Done,
    /// The user stopped it.
    Stopped,
    /// Tidegate ended while it was being written; what had come is kept.
    Interrupted,
    /// Its backend gave up; what had come is kept.
    Failed {
        /// Why, for people.
        sentence: String,
    },
}

/// The part of an answer that one backend made.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Where, in words: "Here", "studio".
    pub place: String,
    /// The model that made it.
    pub model: String,
    /// Why there, for programs.
    pub reason: String,
    /// Why there, for people.
    pub sentence: String,
    /// Tokens written per second after the first.
    pub decode_tokens_per_sec: Option<f64>,
    /// Request accepted → first visible token, in milliseconds.
    pub ttft_ms: Option<u64>,
    /// Tokens of this part.
    pub completion_tokens: Option<usize>,
    /// Where in the message's text it starts, in characters (Unicode scalar values).
    pub started_at_char: usize,
}

/// A node that the user added. Its key is kept by [`crate::Secrets`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// A slug that doesn't change.
    pub id: String,
    /// Where it is.
    pub url: String,
    /// What people call it.
    pub name: String,
}
