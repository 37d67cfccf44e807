/// A node as last heard from. Everything but its id and name can be unknown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeOption {
    /// Its id in the settings.
    pub id: String,
    /// The name that people gave it.
    pub name: String,
    /// Whether it answered last; `None` where it was never asked.
    pub reachable: Option<bool>,
    /// Whether it lists the wanted model.
    pub has_model: bool,
    /// Whose machine it is; `None`, where nobody said, counts as [`Trust::Rented`].
    pub trust: Option<Trust>,
    /// Requests that it would serve before this one; `None` where it doesn't tell.
    pub queue: Option<usize>,
    /// How fast it was measured to decode this model; `None` where it never did.
    pub decode_tokens_per_sec: Option<f64>,
    /// How fast it was measured to prefill this model; `None` where it never did.
    pub prefill_tokens_per_sec: Option<f64>,
    /// Whether the model is in its memory now.
    pub warm: Option<bool>,
    /// How many of the prompt's tokens it still holds from this conversation's last answer.
    pub prefix_tokens: Option<usize>,
    /// The context that it serves this model with, in tokens.
    pub context_len: Option<usize>,
    /// How it takes over an answer that is being written; `None` where that wasn't probed.
    pub continuation: Option<Continuation>,
}

/// Whose machine a node is: the later, the more trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trust {
    /// A stranger's, paid by the hour or the token.
    #[default]
    Rented,
    /// Somebody's that the user works with.
    Team,
    /// The user's.
    Own,
}

impl Trust {
    /// The level in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rented => "rented",
            Self::Team => "team",
            Self::Own => "own",
        }
    }
}

/// How a node goes on with an answer that was begun elsewhere, the most exact way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Continuation {
    /// Token ids in and out; its tokenizer is the same.
    Tokens,
    /// Our own rendered text, through a completion endpoint that renders nothing itself.
    Text,
    /// A chat whose last message is the beginning of the answer.
    Prefix,
    /// Not at all: it takes new messages only.
    None,
}
