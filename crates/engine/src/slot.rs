use crate::GenerateError;
use crate::kv_cache::KvCache;
use crate::models::TokenId;

/// A place that runs one sequence: its tokens so far, and their keys and values.
pub(crate) struct Slot {
    sequence: Vec<TokenId>,
    cache: KvCache,
}

/// Tokens in common that make it worth copying them out of a slot that is in use: fewer are run again as fast.
const LEAST_COPIED: usize = 32;

impl Slot {
    const fn new(empty: KvCache) -> Self {
        Self { sequence: Vec::new(), cache: empty }
    }

    /// A slot whose cache was kept elsewhere.
    pub(crate) const fn restored(sequence: Vec<TokenId>, cache: KvCache) -> Self {
        Self { sequence, cache }
    }

    /// The tokens and their cache, to be kept elsewhere.
    pub(crate) fn content(&self) -> (&[TokenId], &KvCache) {
        (&self.sequence, &self.cache)
    }

    /// Whether tokens can be forgotten at no cost.
    pub(crate) fn rewinds(&self) -> bool {
        self.cache.rewinds()
    }

    /// Tokens in the sequence.
    pub(crate) const fn len(&self) -> usize {
        self.sequence.len()
    }

    /// The cache, which the model moves on by some tokens; then comes [`Self::extend`] or [`Self::undo`].
    pub(crate) const fn cache(&mut self) -> &mut KvCache {
        &mut self.cache
    }

    /// The cache has `tokens` more.
    pub(crate) fn extend(&mut self, tokens: &[TokenId]) {
        self.sequence.extend_from_slice(tokens);
    }

    /// The model failed: whatever layers it got to are wound back.
    pub(crate) fn undo(&mut self) {
        let left = self.cache.trim(self.sequence.len());
        self.sequence.truncate(left);
    }

    /// The prompt is in: a next turn may go on from here.
    pub(crate) fn checkpoint(&mut self) {
        self.cache.checkpoint();
    }

    /// Bytes that its cache takes now.
    pub(crate) fn allocated(&self) -> chat::Bytes {
        self.cache.allocated()
    }

    /// Tokens of `prompt` that needn't be run in it.
    pub(crate) fn common_prefix(&self, prompt: &[TokenId]) -> usize {
        common_prefix(&self.sequence, prompt)
    }

    /// Forgets the tokens from there on, and as many more as the cache takes for it.
    pub(crate) fn keep(&mut self, tokens: usize) {
        let kept = self.cache.trim(tokens);
        self.sequence.truncate(kept);
    }
}

/// Tokens of `prompt` that needn't be run after `sequence`.
pub(crate) fn common_prefix(sequence: &[TokenId], prompt: &[TokenId]) -> usize {
    let common = sequence.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    // The last token's logits are needed, so it is run again.
    common.min(prompt.len().saturating_sub(1))
}

/// Slots that run nothing now, the longest unused first. Their caches are kept for requests that begin alike.
#[derive(Default)]
pub(crate) struct FreeSlots {
    slots: Vec<Slot>,
}

impl FreeSlots {
    /// A slot for `prompt`: the free one with the longest common beginning, or a copy of one in use that has more of
    /// it. Only its beginning in common is left in it. `room_for_more`: whether a slot may be made beside those there
    /// are, with an `empty` cache.
    pub(crate) fn take<'a>(
        &mut self,
        empty: impl Fn() -> KvCache,
        prompt: &[TokenId],
        in_use: impl Iterator<Item = &'a Slot>,
        room_for_more: bool,
    ) -> Result<Slot, GenerateError> {
        let best_in_use = in_use.map(|slot| (slot.common_prefix(prompt), slot)).max_by_key(|(common, _)| *common);
        let best_free =
            self.slots.iter().map(|slot| slot.common_prefix(prompt)).enumerate().max_by_key(|(_, common)| *common);
        if let Some((common, slot)) = best_in_use
            && common >= best_free.map_or(0, |(_, common)| common) + LEAST_COPIED
            && let Some(cache) = slot.cache.copy(common)?
        {
            if !room_for_more && !self.slots.is_empty() {
                self.slots.remove(0);
            }
            return Ok(Slot { sequence: slot.sequence[..cache.n_past()].to_vec(), cache });
        }
        let mut slot = match best_free {
            // One that has nothing in common is worth more to whoever used it last than to this prompt.
            Some((_, 0)) if room_for_more => Slot::new(empty()),
            Some((_, 0)) => self.slots.remove(0),
            Some((index, _)) => self.slots.remove(index),
            None => Slot::new(empty()),
        };
        slot.keep(slot.common_prefix(prompt));
        Ok(slot)
    }

    /// Takes a slot back.
    pub(crate) fn put(&mut self, slot: Slot) {
        self.slots.push(slot);
    }

    pub(crate) const fn len(&self) -> usize {
        self.slots.len()
    }

    /// Gives the memory of the longest unused one back; false where there is none.
    pub(crate) fn forget_one(&mut self) -> bool {
        if self.slots.is_empty() {
            return false;
        }
        self.slots.remove(0);
        true
    }

    /// The slots, the longest unused first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Slot> {
        self.slots.iter()
    }

    /// Bytes that their caches take.
    pub(crate) fn allocated(&self) -> chat::Bytes {
        chat::Bytes(self.slots.iter().map(|slot| slot.allocated().0).sum())
    }
}
