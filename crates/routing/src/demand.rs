use chat::Bytes;

/// What one answer needs, and where the user wants it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// The model's file here; `None` where there is none.
    pub model: Option<LocalModel>,
    /// Tokens of the rendered prompt; `None` where they weren't counted, and then the context is never shrunk.
    pub prompt_tokens: Option<usize>,
    /// The context that the settings ask for, in tokens.
    pub wanted_context: usize,
    /// The conversation is marked "stays on this Mac".
    pub stays_local: bool,
    /// Where the user wants this answer; `None` leaves it to the policy.
    pub place: Option<PlaceChoice>,
}

/// A place that the user chose for one answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PlaceChoice {
    /// On this machine.
    Here,
    /// On the node of this id.
    Node(String),
}

/// What running a model here takes: its header's numbers, and what this process holds already.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalModel {
    /// The weights in memory.
    pub weights: Bytes,
    /// The KV cache of one token.
    pub kv_per_token: Bytes,
    /// Working memory of prefill and decode.
    pub scratch: Bytes,
    /// The context that the model was trained for, in tokens; 0 where its file doesn't say.
    pub trained_context: usize,
    /// What this very model holds in memory now; `None` where it isn't loaded.
    pub already_loaded: Option<Bytes>,
    /// What unloading our other, idle models gives back.
    pub other_loaded: Bytes,
    /// How fast this model was measured to decode here; `None` where it never ran.
    pub decode_tokens_per_sec: Option<f64>,
}

/// Tokens by which the engine's KV cache grows.
pub(crate) const CACHE_STEP: usize = 1024;

impl LocalModel {
    /// Weights, KV cache and scratch for a context of `context_len` tokens, as the engine allocates them: the cache in
    /// whole steps.
    pub fn needed(&self, context_len: usize) -> Bytes {
        let cached = context_len.checked_next_multiple_of(CACHE_STEP).unwrap_or(usize::MAX);
        let kv_cache = Bytes(self.kv_per_token.0.saturating_mul(cached as u64));
        self.weights.saturating_add(kv_cache).saturating_add(self.scratch)
    }
}

/// A node as last heard from.
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
    /// Requests that it would serve before this one; `None` where it doesn't tell.
    pub queue: Option<usize>,
    /// How fast it was measured to decode this model; `None` where it never did.
    pub decode_tokens_per_sec: Option<f64>,
}
