/// A request that can't be served as it stands. The message is a sentence for whoever wrote the program; it names
/// places and types and never repeats a message's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// What is wrong.
    pub message: String,
    /// Which member is wrong, as a path: `messages[2].content[0].type`.
    pub param: Option<String>,
}

impl RequestError {
    pub(crate) fn at(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()) }
    }
}
