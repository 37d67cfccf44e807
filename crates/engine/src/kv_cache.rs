mod compressed;

use candle_core::{Device, Tensor};
pub(crate) use compressed::{Blocks, Compressed, CompressedTail, SLACK};
use kernels::KvLayer;

use crate::device::KvType;
use crate::spec::{MixerSpec, StateShape};

/// Tokens by which a cache grows: large enough that copying is rare, small enough that a short chat stays small.
pub(crate) const GROWTH_STEP: usize = 1024;

/// Checkpoints of one sequence: the ends of its last prompts, where a next request most often goes on from.
pub(crate) const MOST_CHECKPOINTS: usize = 2;

/// What every layer of a model remembers of one sequence. Owned by a slot and passed to the model.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) layers: Vec<LayerState>,
    n_past: usize,
    /// A forward is under way, or failed: layers may be further than `n_past`.
    is_torn: bool,
    checkpoints: Vec<Checkpoint>,
}

/// What one layer remembers.
#[derive(Debug)]
pub(crate) enum LayerState {
    /// Keys and values of tokens.
    Tokens(KvLayer),
    /// A state of fixed size, which cannot be wound back.
    Recurrent(Recurrent),
    /// The last tokens, and blocks of those before.
    Compressed(Compressed),
    /// Nothing: the layer uses another's.
    Nothing,
}

/// The state of a layer that mixes tokens by recurrence. Tensors are never written in place, so a copy is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Recurrent {
    pub(crate) shape: StateShape,
    pub(crate) device: Device,
    /// The last inputs of the convolution; `None` is zeros.
    pub(crate) conv: Option<Tensor>,
    /// The delta rule's memory; `None` is zeros.
    pub(crate) memory: Option<Tensor>,
}

/// What layers cannot be wound back to, as it was after `n_past` tokens.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) n_past: usize,
    /// Of each layer that needs one.
    pub(crate) states: Vec<State>,
}

#[derive(Clone, Debug)]
pub(crate) enum State {
    Recurrent(Recurrent),
    Compressed(CompressedTail),
}

impl Recurrent {
    pub(crate) fn new(shape: StateShape, device: &Device) -> Self {
        Self { shape, device: device.clone(), conv: None, memory: None }
    }

    fn forget(&mut self) {
        (self.conv, self.memory) = (None, None);
    }

    fn allocated_bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        [&self.conv, &self.memory].into_iter().flatten().map(bytes).sum()
    }
}

impl LayerState {
    /// An empty one for a layer of the decoder.
    pub(crate) fn new(mixer: &MixerSpec, hidden: usize, kv_type: KvType, device: &Device) -> Self {
        if let Some(shape) = mixer.kv_shape() {
            Self::Tokens(KvLayer::new(shape, GROWTH_STEP, mixer.kv_format(kv_type), device))
        } else if let Some(shape) = mixer.state_shape(hidden) {
            Self::Recurrent(Recurrent::new(shape, device))
        } else {
            Self::Nothing
        }
    }

    /// Whether it can be wound back to `n_past` tokens by itself.
    fn can_trim(&self, n_past: usize) -> bool {
        match self {
            Self::Tokens(tokens) => tokens.can_trim(n_past),
            Self::Compressed(compressed) => compressed.can_trim(n_past),
            Self::Recurrent(_) => false,
            Self::Nothing => true,
        }
    }

    /// Whether it is in a checkpoint.
    pub(crate) const fn needs_state(&self) -> bool {
        matches!(self, Self::Recurrent(_) | Self::Compressed(_))
    }

    /// What a checkpoint keeps of it.
    fn state(&self) -> Option<candle_core::Result<State>> {
        match self {
            Self::Recurrent(state) => Some(Ok(State::Recurrent(state.clone()))),
            Self::Compressed(compressed) => Some(compressed.tail().map(State::Compressed)),
            Self::Tokens(_) | Self::Nothing => None,
        }
    }

    /// Winds back to `n_past` tokens: to the state after them, where there is one.
    fn trim(&mut self, n_past: usize, state: Option<State>) {
        match (self, state) {
            (Self::Tokens(tokens), _) => tokens.trim(n_past),
            (Self::Recurrent(recurrent), Some(State::Recurrent(state))) => *recurrent = state,
            (Self::Recurrent(recurrent), _) => recurrent.forget(),
            (Self::Compressed(compressed), Some(State::Compressed(tail))) => compressed.restore(&tail, n_past),
            (Self::Compressed(compressed), _) => compressed.trim(n_past),
            (Self::Nothing, _) => {}
        }
    }

    /// A copy with the first `n_past` tokens; of one that is in checkpoints, as much of them as it still has.
    fn copy(&self, n_past: usize) -> candle_core::Result<Self> {
        Ok(match self {
            Self::Tokens(tokens) => Self::Tokens(tokens.copy(n_past)?),
            Self::Recurrent(state) => Self::Recurrent(state.clone()),
            Self::Compressed(compressed) => Self::Compressed(compressed.copy(n_past)?),
            Self::Nothing => Self::Nothing,
        })
    }

    fn allocated_bytes(&self) -> u64 {
        match self {
            Self::Tokens(tokens) => tokens.allocated_bytes(),
            Self::Recurrent(state) => state.allocated_bytes(),
            Self::Compressed(compressed) => compressed.allocated_bytes(),
            Self::Nothing => 0,
        }
    }
}

impl KvCache {
    pub(crate) const fn new(layers: Vec<LayerState>) -> Self {
        Self { layers, n_past: 0, is_torn: false, checkpoints: Vec::new() }
    }

    /// One that was taken apart: layers with `n_past` tokens, and checkpoints of them, the oldest first.
    pub(crate) const fn with_tokens(layers: Vec<LayerState>, n_past: usize, checkpoints: Vec<Checkpoint>) -> Self {
        Self { layers, n_past, is_torn: false, checkpoints }
    }

    /// Whether every layer has its `n_past` tokens.
    pub(crate) const fn is_whole(&self) -> bool {
        !self.is_torn
    }

    /// Where it can be wound back to, the oldest first.
    pub(crate) fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    /// Whether it can be wound back by a few tokens, whatever they were.
    pub(crate) fn rewinds(&self) -> bool {
        !self.layers.iter().any(LayerState::needs_state)
    }

    /// Tokens in the cache.
    pub(crate) const fn n_past(&self) -> usize {
        self.n_past
    }

    /// A forward begins; until [`Self::advance`] the cache is not whole.
    pub(crate) const fn begin(&mut self) {
        self.is_torn = true;
    }

    /// Every layer has `tokens` more.
    pub(crate) const fn advance(&mut self, tokens: usize) {
        self.n_past += tokens;
        self.is_torn = false;
    }

    /// Remembers what cannot be wound back as it is now, so that the sequence can be trimmed to here. The oldest are
    /// forgotten.
    pub(crate) fn checkpoint(&mut self) {
        if self.checkpoints.last().is_some_and(|last| last.n_past == self.n_past) {
            return;
        }
        let states: candle_core::Result<Vec<State>> = self.layers.iter().filter_map(LayerState::state).collect();
        // Without memory for it the sequence goes on; it can be trimmed less exactly.
        let Ok(states) = states else { return };
        if states.is_empty() {
            return;
        }
        if self.checkpoints.len() == MOST_CHECKPOINTS {
            self.checkpoints.remove(0);
        }
        self.checkpoints.push(Checkpoint { n_past: self.n_past, states });
    }

    /// Forgets every token from the `n_past`-th on, and where some layer cannot be wound back to there, as many more as
    /// it takes; gives the number of tokens that are left.
    pub(crate) fn trim(&mut self, n_past: usize) -> usize {
        if n_past >= self.n_past && !self.is_torn {
            return self.n_past;
        }
        let target = self.reachable(n_past.min(self.n_past));
        self.checkpoints.retain(|checkpoint| checkpoint.n_past <= target);
        let mut states = match self.checkpoints.last() {
            Some(checkpoint) if checkpoint.n_past == target => checkpoint.states.clone(),
            _ => Vec::new(),
        }
        .into_iter();
        for layer in &mut self.layers {
            let state = if layer.needs_state() { states.next() } else { None };
            layer.trim(target, state);
        }
        (self.n_past, self.is_torn) = (target, false);
        target
    }

    /// A copy with the first `n_past` tokens; `None` where there are fewer, or some layer cannot give them.
    pub(crate) fn copy(&self, n_past: usize) -> candle_core::Result<Option<Self>> {
        if n_past > self.n_past || self.reachable(n_past) != n_past {
            return Ok(None);
        }
        let checkpoints = self.checkpoints.iter().filter(|checkpoint| checkpoint.n_past <= n_past).cloned().collect();
        let layers = self.layers.iter().map(|layer| layer.copy(n_past)).collect::<candle_core::Result<_>>()?;
        let mut copy = Self { layers, n_past: self.n_past, is_torn: true, checkpoints };
        // Puts layers that are in checkpoints back to theirs.
        copy.trim(n_past);
        Ok(Some(copy))
    }

    /// The last position up to `n_past` that every layer can be wound back to.
    fn reachable(&self, n_past: usize) -> usize {
        if self.layers.iter().all(|layer| layer.can_trim(n_past)) {
            return n_past;
        }
        let is_reachable = |at: &usize| self.layers.iter().all(|layer| layer.needs_state() || layer.can_trim(*at));
        let checkpoints = self.checkpoints.iter().rev().map(|checkpoint| checkpoint.n_past);
        checkpoints.filter(|at| *at <= n_past).find(is_reachable).unwrap_or(0)
    }

    /// Bytes that are allocated now, checkpoints among them.
    pub(crate) fn allocated(&self) -> chat::Bytes {
        let states = self.checkpoints.iter().flat_map(|checkpoint| &checkpoint.states);
        let layers = self.layers.iter().map(LayerState::allocated_bytes);
        chat::Bytes(layers.chain(states.map(State::allocated_bytes)).sum())
    }
}

impl State {
    fn allocated_bytes(&self) -> u64 {
        match self {
            Self::Recurrent(state) => state.allocated_bytes(),
            Self::Compressed(tail) => tail.allocated_bytes(),
        }
    }
}
