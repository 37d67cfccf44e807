use crate::Redacted;

/// Who wrote a message, in the words of the chat templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions that hold for the whole conversation.
    System,
    /// The person, or the program, that asks.
    User,
    /// The model.
    Assistant,
    /// The result of a tool that the model called.
    Tool,
}

impl Role {
    /// The name that chat templates and every HTTP dialect use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// The role of that name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "system" | "developer" => Some(Self::System),
            "user" => Some(Self::User),
            "assistant" => Some(Self::Assistant),
            "tool" => Some(Self::Tool),
            _ => None,
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who wrote it.
    pub role: Role,
    /// What was written; never logged.
    pub text: Redacted<String>,
}

impl Message {
    /// A message of `role` that says `text`.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { role, text: Redacted(text.into()) }
    }
}

/// How the next token is drawn from the logits. `None` means: as the model's own file says, else the default named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy. Default 0.7.
    pub temperature: Option<f32>,
    /// Only the `top_k` most probable tokens can be drawn; 0 is all of them. Default 40.
    pub top_k: Option<usize>,
    /// Only the smallest set of tokens whose probabilities reach `top_p` can be drawn. Default 0.95.
    pub top_p: Option<f32>,
    /// Only tokens with at least `min_p` times the probability of the best one can be drawn. Default 0.
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens already written. Default 1: off.
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from the logit of a token that was already written. Default 0.
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logit of a token as often as it was already written. Default 0.
    pub frequency_penalty: Option<f32>,
    /// Same seed, same request, same machine: same text. Default: drawn anew.
    pub seed: Option<u64>,
    /// The most tokens to write. Default: what the context has room for.
    pub max_tokens: Option<usize>,
    /// Text that ends the answer and is not part of it.
    pub stop: Vec<String>,
}

/// One answer that is asked for: the conversation so far and how to continue it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRequest {
    /// The model's id as `models` lists it; `None` is the one that is chosen in the app.
    pub model: Option<String>,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
}
