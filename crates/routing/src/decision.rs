use chat::Bytes;

/// Where an answer is made, why, and from which numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Where.
    pub target: Target,
    /// The place in words: "Here", "On studio" or "Nowhere".
    pub place: String,
    /// Why, for programs.
    pub reason: Reason,
    /// Why, for people: the part after the place in "Here · fits with 3.1 GB to spare", and a whole sentence, starting
    /// with a capital, for [`Target::Refuse`]. Never empty, never with a final dot.
    pub sentence: String,
    /// What would have to be different, as a sentence: "Fits with context up to 16k".
    pub counterfactual: Option<String>,
    /// Every reading that the policy has a rule for, unknown ones too.
    pub readings: Vec<ReadingCheck>,
    /// What would have happened in the other places.
    pub alternatives: Vec<Alternative>,
}

impl Decision {
    /// Place and reason in one line: "Here · fits with 3.1 GB to spare".
    pub fn line(&self) -> String {
        match self.target {
            Target::Refuse => self.sentence.clone(),
            Target::Here { .. } | Target::Node { .. } => format!("{} · {}", self.place, self.sentence),
        }
    }
}

/// Where an answer is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// On this machine, with a context of so many tokens.
    Here {
        /// The context to load the model with.
        context_len: usize,
    },
    /// On the node of this id.
    Node {
        /// [`crate::NodeOption::id`].
        id: String,
    },
    /// Nowhere: the sentence says what is missing.
    Refuse,
}

/// Why an answer goes where it goes. The first one that holds is named; the readings show the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The user wants it there, by choice of a place or of [`crate::OffloadMode::Remote`].
    Chosen,
    /// [`crate::OffloadMode::LocalOnly`].
    OnlyHere,
    /// The conversation is marked to stay.
    StaysLocal,
    /// The model is marked to stay.
    ModelStays,
    /// The node is trusted less than this chat wants.
    Trust,
    /// It fits, and no reading is over its limit.
    Fits,
    /// It fits with a smaller context than the settings ask for.
    SmallerContext,
    /// The answer or the conversation is there already, and moving it would take longer.
    Cached,
    /// A node is needed and none is set up.
    NoNode,
    /// It doesn't fit, or it isn't known whether it does.
    Memory,
    /// It fits, but memory runs short before the answer is done if the last minute goes on.
    MemorySoon,
    /// This machine swaps more than the policy allows.
    Swap,
    /// The system reports memory pressure.
    Pressure,
    /// This machine is too hot.
    Thermal,
    /// The model decodes too slowly here.
    TooSlow,
    /// The prompt has more tokens than the model can read.
    TooLong,
    /// There is no model file here.
    NoModel,
    /// It broke off in this answer.
    Failed,
    /// The answer is half written, and the node takes new messages only.
    CannotContinue,
    /// A node is needed and none answers, or the chosen one doesn't.
    NodeUnreachable,
}

impl Reason {
    /// A stable name for headers, logs and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::OnlyHere => "only_here",
            Self::StaysLocal => "stays_local",
            Self::ModelStays => "model_stays",
            Self::Trust => "trust",
            Self::Fits => "fits",
            Self::SmallerContext => "smaller_context",
            Self::Cached => "cached",
            Self::NoNode => "no_node",
            Self::Memory => "memory",
            Self::MemorySoon => "memory_soon",
            Self::Swap => "swap",
            Self::Pressure => "pressure",
            Self::Thermal => "thermal",
            Self::TooSlow => "too_slow",
            Self::TooLong => "too_long",
            Self::NoModel => "no_model",
            Self::Failed => "failed",
            Self::CannotContinue => "cannot_continue",
            Self::NodeUnreachable => "node_unreachable",
        }
    }
}

/// One reading against the policy's limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadingCheck {
    /// What was read, as the window calls it.
    pub name: &'static str,
    /// The reading with its unit, or "unknown".
    pub value: String,
    /// What it is compared to.
    pub limit: Option<String>,
    /// Whether it is over the limit; `None` where the reading is unknown.
    pub exceeded: Option<bool>,
}

/// A place that the answer doesn't go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// "Here" or a node's name.
    pub place: String,
    /// What would happen there, or why it isn't asked.
    pub outcome: String,
}

/// Whether a model fits here now, and with how much context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// In one word.
    pub verdict: Verdict,
    /// The context that was asked for, in tokens, cut to what the model was trained for.
    pub context_len: usize,
    /// Weights, KV cache and scratch with that context.
    pub needed: Bytes,
    /// What may be used; `None` where it is unknown.
    pub budget: Option<Bytes>,
    /// The most context that fits, in tokens; `Some(0)` where the model doesn't fit with any, `None` where unknown.
    pub max_context: Option<usize>,
    /// For people: "With 8k context 5.1 GB, 11.3 GB can be used".
    pub sentence: String,
}

/// How well a model fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It fits with room to spare.
    RunsWell,
    /// It fits, with less than an eighth of its size to spare or while the system is short of memory.
    Tight,
    /// It doesn't fit now.
    TooBig,
    /// The free memory is unknown.
    Unknown,
}
