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
    /// What the model thought before it wrote this.
    pub reasoning: Option<Redacted<String>>,
    /// The calls that the model made in this turn, in order.
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result this is.
    pub tool_call_id: Option<String>,
    /// The name of the tool whose result this is.
    pub name: Option<String>,
}

impl Message {
    /// A message of `role` that says `text` and nothing else.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            text: Redacted(text.into()),
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }
}

/// A tool that the model may ask to be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does, in words for the model; empty where nobody wrote them.
    pub description: String,
    /// The JSON schema of its arguments, as JSON text; empty where it takes none.
    pub parameters: String,
}

/// A call that the model asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// Ties the result to the call.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments, as the text of a JSON object; a model may have written something else. Never logged.
    pub arguments: Redacted<String>,
}

/// How much a model is to think before it answers, where it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReasoningEffort {
    /// Not at all.
    Off,
    /// A little.
    Low,
    /// As it usually does.
    Medium,
    /// Long.
    High,
}

impl ReasoningEffort {
    /// The name that chat templates and OpenAI's dialect use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    /// The effort of that name; OpenAI has names for one step less and one more, which are taken for the nearest.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::Off),
            "minimal" | "low" => Some(Self::Low),
            "medium" => Some(Self::Medium),
            "high" | "xhigh" | "max" => Some(Self::High),
            _ => None,
        }
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
    /// Added to the logits of these tokens before anything else; −∞ forbids one. Of tokens the model doesn't have,
    /// nothing is said.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tell the probability of each token, and of so many of the most probable ones beside it; at most 20. Default:
    /// nothing is told.
    pub top_logprobs: Option<usize>,
    /// The form that the answer must have. Default: any.
    pub constraint: Option<OutputConstraint>,
}

/// A form that an answer must have. Every answer that ends by itself has it; one that `max_tokens` cuts off is the
/// beginning of one that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputConstraint {
    /// A JSON object, whatever is in it.
    Json,
    /// JSON that this JSON Schema allows.
    JsonSchema(String),
    /// Text that this grammar allows, in llguidance's variant of Lark; `start: /[0-9]+/` is how it takes a regular
    /// expression.
    Grammar(String),
}

/// Text that is gone on with as it stands, without the model's template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawText {
    /// What comes before the answer. Names of control tokens in it stand for these, unless there is a suffix.
    pub prefix: Redacted<String>,
    /// What follows the answer, for models that learned to fill in what is missing between two texts.
    pub suffix: Option<Redacted<String>>,
}

/// One answer that is asked for: the conversation so far and how to continue it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRequest {
    /// The model's id as `models` lists it; `None` is the one that is chosen in the app.
    pub model: Option<String>,
    /// The conversation, oldest first. Where the last message is the assistant's, the answer continues it.
    pub messages: Vec<Message>,
    /// What is gone on with where there is no conversation: no messages, no tools and no thinking.
    pub raw: Option<RawText>,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// How much it is to think; `None` leaves it to the model.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// How far the answer was written elsewhere; it is gone on with from there.
    pub written: Option<Written>,
    /// Tell the ids of the answer's tokens, too.
    pub tells_tokens: bool,
}

/// The beginning of an answer that another backend wrote: with the request, all that one needs to go on with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// All tokens of it, where they are known and the model that goes on has the same. What was drawn and what was told
    /// with them is made out of them again: the state of sampling, penalties, stop strings, constraint and parsers.
    /// Where they are empty, the texts are gone on with.
    pub tokens: Vec<u32>,
    /// The text that was told, and isn't told again.
    pub text: Redacted<String>,
    /// The thinking that was told.
    pub thinking: Redacted<String>,
    /// How many calls were told.
    pub calls: usize,
}

impl Written {
    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.text.expose().is_empty() && self.thinking.expose().is_empty() && self.calls == 0
    }
}
