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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Segment {
    /// Where, in words: "Here", "studio".
    pub place: String,
    /// Where, for programs: `here` or a node's id; empty for an answer of before that was known.
    pub place_id: String,
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
    /// Where in the message's thinking it starts, in characters.
    pub thinking_at_char: usize,
    /// How it went on with what was there: `tokens`, `text` or `prefix`; `None` for the first.
    pub continuation: Option<String>,
    /// From the last thing that came before to the first of this part, in milliseconds; `None` for the first.
    pub gap_ms: Option<u64>,
    /// How it ended: `finished`, `handed over`, `stopped`, or why it failed, in a few words.
    pub ended: Option<String>,
    /// Of what the backend told, as hexadecimal digits.
    pub checksum: Option<String>,
    /// The routing decision of the move that began it, in the caller's own encoding; `None` for the first, whose decision
    /// is the message's.
    pub decision_json: Option<String>,
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
    /// Whose machine it is, in the caller's own word; `None` where nobody said.
    pub trust: Option<String>,
}

/// The row id of a decision. A later decision has a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DecisionId(pub i64);

/// A decision to be added to the history. It holds no text of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewDecision {
    /// What was decided, in one word: `start`, `move`, `stay`, `relief`, `lost` or `refused`.
    pub kind: String,
    /// Who asked: `window`, `gateway` or `terminal`.
    pub asked_by: String,
    /// The conversation it was for; `None` for a request without one. The decision is deleted with it.
    pub conversation: Option<ConversationId>,
    /// The answer it was for. The decision is deleted with it.
    pub message: Option<MessageId>,
    /// The model's name at the place; empty where none was reached.
    pub model: String,
    /// `here`, a node's id, or empty for nowhere.
    pub place_id: String,
    /// The place in words.
    pub place: String,
    /// Why, for programs.
    pub reason: String,
    /// Why, for people.
    pub sentence: String,
    /// All of it, in the caller's own encoding.
    pub decision_json: String,
}

/// A decision of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionRow {
    /// Its id.
    pub id: DecisionId,
    /// When it was added, in milliseconds since 1970.
    pub at_ms: i64,
    /// What was decided.
    pub decision: NewDecision,
}
