use chat::{TokenLogprob, ToolCall};

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WholeAnswer {
    /// Its text.
    pub text: String,
    /// What the model thought.
    pub thinking: String,
    /// The calls that it asks for.
    pub calls: Vec<ToolCall>,
    /// Of its tokens, where the request asks for them.
    pub logprobs: Vec<TokenLogprob>,
}
