use std::ops::Range;
use std::time::Duration;

use chat::{ChatEvent, ToolCall};
use routing::{Continuation, Place};
use sha2::{Digest, Sha256};

use crate::{Failure, HandoffEvent};

/// Which place wrote which part of an answer, and what was told of it.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    segments: Vec<Segment>,
    text: String,
    thinking: String,
    calls: Vec<ToolCall>,
    /// All tokens of the answer; `None` where a part came without them.
    tokens: Option<Vec<u32>>,
    /// What their ids mean.
    tokenizer: Option<String>,
    /// Pieces of text and thinking, for where tokens aren't told.
    pieces: usize,
}

/// A part of an answer that one place wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Where.
    pub place: Place,
    /// The model's name there.
    pub model: String,
    /// How it went on with what was there; `None` for the first.
    pub continuation: Option<Continuation>,
    /// The bytes of the text that it wrote.
    pub text: Range<usize>,
    /// The bytes of the thinking.
    pub thinking: Range<usize>,
    /// The calls.
    pub calls: Range<usize>,
    /// The tokens, where all of the answer are known.
    pub tokens: Option<Range<usize>>,
    /// From the last thing that was told before to the first of this segment; `None` for the first, or while nothing came.
    pub gap: Option<Duration>,
    /// Over what it told, once it has ended: see [`Ledger::verify`].
    pub checksum: Option<u64>,
    /// Why it ended; `None` while it is written.
    pub ended: Option<Ended>,
}

/// Why a segment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The answer was whole.
    Finished,
    /// It was handed over, in time.
    HandedOver,
    /// The place failed.
    Failed(String),
    /// Whoever asked stopped it.
    Stopped,
}

/// A ledger that doesn't say what was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// A segment doesn't begin where the one before ends.
    #[error("segment {0} leaves a gap or an overlap")]
    NotContiguous(usize),
    /// A segment's text isn't what its place told.
    #[error("segment {0} was changed")]
    Changed(usize),
    /// The segments end before or after what was told.
    #[error("the segments end elsewhere than the answer")]
    WrongEnd,
}

impl Ledger {
    /// The parts, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// All text that was told.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All thinking that was told.
    pub fn thinking(&self) -> &str {
        &self.thinking
    }

    /// How many calls were told.
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        let tokens = self.tokens.as_ref().is_none_or(Vec::is_empty);
        self.text.is_empty() && self.thinking.is_empty() && self.calls.is_empty() && tokens
    }

    /// Tokens so far; where they aren't known, the pieces that came, of which most servers make one for each.
    pub fn token_count(&self) -> usize {
        self.tokens.as_ref().filter(|tokens| !tokens.is_empty()).map_or(self.pieces, Vec::len)
    }

    /// The tokens of the whole answer, where they are known.
    pub fn tokens(&self) -> Option<&[u32]> {
        self.tokens.as_deref().filter(|tokens| !tokens.is_empty() || self.is_empty())
    }

    /// The same, where they mean the same to a model whose tokenizer has that name.
    pub(crate) fn tokens_for(&self, tokenizer: Option<&str>) -> Option<&[u32]> {
        let is_same = tokenizer.is_some() && self.tokenizer.as_deref() == tokenizer;
        self.tokens().filter(|tokens| is_same && !tokens.is_empty())
    }

    /// Keeps the ledger by the events that [`crate::answer()`] gives: whoever reads them has the same one as it. They come
    /// so long after the last one that was told.
    pub fn take<E: Failure>(&mut self, event: &HandoffEvent<E>, since_last: Duration) {
        match event {
            HandoffEvent::Routed { place: Some(place), model, continuation, .. } => {
                self.end(Ended::HandedOver);
                self.begin(place.clone(), model.clone(), *continuation, None);
            }
            HandoffEvent::Chat(event) => {
                self.tell(event, since_last);
                if matches!(event, ChatEvent::Finished(_)) {
                    self.end(Ended::Finished);
                }
            }
            HandoffEvent::Lost(sentence) => self.end(Ended::Failed(sentence.clone())),
            HandoffEvent::Failed(failure) => self.end(Ended::Failed(failure.sentence())),
            HandoffEvent::Routed { .. } | HandoffEvent::Relieved { .. } | HandoffEvent::Stayed(_) => {}
        }
    }

    /// Whoever asked stopped the answer.
    pub fn stop(&mut self) {
        self.end(Ended::Stopped);
    }

    /// A place begins, or goes on.
    pub(crate) fn begin(
        &mut self,
        place: Place,
        model: String,
        continuation: Option<Continuation>,
        tokenizer: Option<String>,
    ) {
        let (text, thinking, calls) = (self.text.len(), self.thinking.len(), self.calls.len());
        let tokens = self.tokens().map(|tokens| tokens.len()..tokens.len());
        // By its tokens, what follows follows those that are there; else what tokens the beginning has there isn't known
        // until the place tells them.
        if continuation != Some(Continuation::Tokens) {
            self.tokens = self.is_empty().then(Vec::new);
            self.tokenizer = tokenizer;
        }
        self.segments.push(Segment {
            place,
            model,
            continuation,
            text: text..text,
            thinking: thinking..thinking,
            calls: calls..calls,
            tokens,
            gap: None,
            checksum: None,
            ended: None,
        });
    }

    /// Something was told, so long after the last thing.
    pub(crate) fn tell(&mut self, event: &ChatEvent, since_last: Duration) {
        let is_moved = self.segments.len() > 1;
        let Some(segment) = self.segments.last_mut() else { return };
        match event {
            ChatEvent::Text(text) => self.text.push_str(text),
            ChatEvent::Thinking(text) => self.thinking.push_str(text),
            ChatEvent::ToolCall { call, .. } => self.calls.push(call.clone()),
            // They are counted from the end of the message that was gone on with, whose own aren't known.
            ChatEvent::Tokens { .. } if segment.continuation == Some(Continuation::Prefix) => return,
            ChatEvent::Tokens { from, ids } => {
                self.tokens = merged(self.tokens.take(), *from, ids);
                let start = segment.tokens.as_ref().map_or(0, |tokens| tokens.start);
                segment.tokens = self.tokens.as_ref().map(|tokens| start.min(tokens.len())..tokens.len());
                return;
            }
            ChatEvent::Progress(_) | ChatEvent::Logprobs(_) | ChatEvent::Finished(_) => return,
        }
        self.pieces += 1;
        if is_moved {
            segment.gap.get_or_insert(since_last);
        }
        segment.text.end = self.text.len();
        segment.thinking.end = self.thinking.len();
        segment.calls.end = self.calls.len();
    }

    /// The segment that is written ends.
    pub(crate) fn end(&mut self, ended: Ended) {
        let Some(segment) = self.segments.last_mut().filter(|segment| segment.ended.is_none()) else { return };
        segment.ended = Some(ended);
        let checksum = self.segments.last().map(|segment| self.checksum(segment));
        if let Some(segment) = self.segments.last_mut() {
            segment.checksum = checksum;
        }
    }

    /// The first 8 bytes of SHA-256 over the lengths and the bytes of a segment's thinking and text, and of the names and
    /// arguments of its calls.
    fn checksum(&self, segment: &Segment) -> u64 {
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(self.thinking.get(segment.thinking.clone()).unwrap_or_default());
        add(self.text.get(segment.text.clone()).unwrap_or_default());
        for call in self.calls.get(segment.calls.clone()).unwrap_or_default() {
            add(&call.name);
            add(call.arguments.expose());
        }
        let bytes = hash.finalize();
        u64::from_be_bytes(bytes[..8].try_into().expect("SHA-256 has 32 bytes"))
    }

    /// Whether the segments cover exactly what was told, and those that ended still say what they said then.
    ///
    /// # Errors
    /// Where they don't.
    pub fn verify(&self) -> Result<(), LedgerError> {
        let mut at = (0, 0, 0);
        for (index, segment) in self.segments.iter().enumerate() {
            if (segment.text.start, segment.thinking.start, segment.calls.start) != at {
                return Err(LedgerError::NotContiguous(index));
            }
            if segment.checksum.is_some_and(|known| known != self.checksum(segment)) {
                return Err(LedgerError::Changed(index));
            }
            at = (segment.text.end, segment.thinking.end, segment.calls.end);
        }
        if at == (self.text.len(), self.thinking.len(), self.calls.len()) { Ok(()) } else { Err(LedgerError::WrongEnd) }
    }
}

/// `known` with `ids` from the `from`-th on; `None` where there is a hole before them.
fn merged(known: Option<Vec<u32>>, from: usize, ids: &[u32]) -> Option<Vec<u32>> {
    let mut tokens = match known {
        Some(tokens) => tokens,
        None if from == 0 => Vec::new(),
        None => return None,
    };
    if from > tokens.len() {
        return None;
    }
    tokens.truncate(from);
    tokens.extend(ids);
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_segments() -> Ledger {
        let mut ledger = Ledger::default();
        let tell = |ledger: &mut Ledger, event| ledger.tell(&event, Duration::from_millis(30));
        ledger.begin(Place::Here, "m".into(), None, Some("t".into()));
        tell(&mut ledger, ChatEvent::Tokens { from: 0, ids: vec![1, 2] });
        tell(&mut ledger, ChatEvent::Text("Grü".into()));
        ledger.end(Ended::HandedOver);
        ledger.begin(Place::Node("b".into()), "m".into(), Some(Continuation::Tokens), Some("t".into()));
        tell(&mut ledger, ChatEvent::Tokens { from: 2, ids: vec![3] });
        tell(&mut ledger, ChatEvent::Text("ße".into()));
        ledger.end(Ended::Finished);
        ledger
    }

    #[test]
    fn segments_cover_the_answer_and_know_their_tokens() {
        let ledger = two_segments();
        assert_eq!(ledger.verify(), Ok(()));
        let [first, second] = ledger.segments() else { panic!("{ledger:?}") };
        assert_eq!((first.text.clone(), second.text.clone()), (0..4, 4..7));
        assert_eq!((first.tokens.clone(), second.tokens.clone()), (Some(0..2), Some(2..3)));
        assert_eq!((first.gap, second.gap), (None, Some(Duration::from_millis(30))));
        assert_eq!(ledger.tokens_for(Some("t")), Some([1, 2, 3].as_slice()));
        assert_eq!(ledger.tokens_for(Some("other")), None);
        assert_eq!(ledger.tokens_for(None), None);
    }

    #[test]
    fn what_was_changed_shows() {
        let mut ledger = two_segments();
        ledger.text.replace_range(0..1, "g");
        assert_eq!(ledger.verify(), Err(LedgerError::Changed(0)));
        let mut ledger = two_segments();
        ledger.text.push('!');
        assert_eq!(ledger.verify(), Err(LedgerError::WrongEnd));
        let mut ledger = two_segments();
        ledger.segments[1].text.start = 3;
        assert_eq!(ledger.verify(), Err(LedgerError::NotContiguous(1)));
    }

    #[test]
    fn a_hole_in_the_tokens_makes_them_unknown_until_all_are_told_again() {
        assert_eq!(merged(Some(vec![1, 2]), 2, &[3]), Some(vec![1, 2, 3]));
        assert_eq!(merged(Some(vec![1, 2]), 1, &[3]), Some(vec![1, 3]));
        assert_eq!(merged(Some(vec![1]), 2, &[3]), None);
        assert_eq!(merged(None, 4, &[5]), None);
        assert_eq!(merged(None, 0, &[5]), Some(vec![5]));
    }
}
