//! An answer that is moved, and what must hold of it.

use app::{App, MessageId, MessageState, PlaceChoice, ReplyEvent, Segment, SendMessage, StoredMessage};
use futures::StreamExt;
use sha2::{Digest, Sha256};

/// Pieces of an answer after which it is moved.
pub(crate) const PIECES: usize = 20;

/// An answer that was moved while it was written.
#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) thinking: String,
    /// Where it went, and the characters of text and thinking before.
    pub(crate) moves: Vec<(String, usize, usize)>,
    pub(crate) notes: Vec<String>,
    message: Option<StoredMessage>,
}

impl Answer {
    pub(crate) fn stored(&self) -> &StoredMessage {
        self.message.as_ref().expect("the answer ended")
    }

    /// What was shown is what is stored, the segments cover it, and each still says what its place said.
    pub(crate) fn check(&self) {
        let stored = self.stored();
        assert_eq!(stored.state, MessageState::Done);
        assert_eq!((stored.text.as_str(), stored.thinking.as_str()), (self.text.as_str(), self.thinking.as_str()));
        let starts = |segment: &Segment| (segment.started_at_char, segment.thinking_at_char);
        let moves: Vec<_> =
            self.moves.iter().map(|(place, text, thinking)| (place.as_str(), (*text, *thinking))).collect();
        let segments = &stored.segments;
        let began: Vec<_> = segments[1..].iter().map(|segment| (segment.place.as_str(), starts(segment))).collect();
        assert_eq!(moves, began, "a move is told at the character where the next place begins");
        assert_eq!(starts(&segments[0]), (0, 0));
        let ends = segments[1..].iter().map(starts).chain([(self.text.chars().count(), self.thinking.chars().count())]);
        for (segment, end) in segments.iter().zip(ends) {
            let (from, thinking_from) = starts(segment);
            let part = |text: &str, from: usize, to: usize| text.chars().skip(from).take(to - from).collect::<String>();
            let (text, thinking) = (part(&self.text, from, end.0), part(&self.thinking, thinking_from, end.1));
            assert_eq!(segment.checksum.as_deref(), Some(checksum(&thinking, &text).as_str()), "{segment:?}");
            assert!(!text.is_empty() || !thinking.is_empty(), "{segment:?} wrote nothing");
        }
        assert!(segments[1..].iter().all(|segment| segment.gap_ms.is_some()));
        assert_eq!(self.ended().last(), Some(&"finished"));
    }

    pub(crate) fn ended(&self) -> Vec<&str> {
        self.stored().segments.iter().map(|segment| segment.ended.as_deref().unwrap()).collect()
    }

    /// The text before its only move, and after.
    pub(crate) fn halves(&self) -> (&str, &str) {
        let [(_, at_char, _)] = self.moves.as_slice() else { panic!("{:?}", self.moves) };
        self.text.split_at(self.text.char_indices().nth(*at_char).unwrap().0)
    }

    /// Why it stays where it is.
    pub(crate) fn why_it_stays(&self) -> &str {
        let stays: Vec<_> = self.notes.iter().filter(|note| note.starts_with("It stays where it is")).collect();
        assert_eq!(stays.len(), 1, "{:?}", self.notes);
        stays[0]
    }

    pub(crate) fn places(&self) -> Vec<&str> {
        self.stored().segments.iter().map(|segment| segment.place_id.as_str()).collect()
    }

    pub(crate) fn continuations(&self) -> Vec<Option<&str>> {
        self.stored().segments.iter().map(|segment| segment.continuation.as_deref()).collect()
    }
}

/// As `handoff::Ledger` documents it, for parts without calls of tools.
fn checksum(thinking: &str, text: &str) -> String {
    let mut hash = Sha256::new();
    for part in [thinking, text] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sends a message; after so many pieces of the answer, `disturb` gets the answer's id.
pub(crate) async fn disturbed(
    app: &App,
    message: SendMessage,
    after: usize,
    disturb: impl AsyncFnOnce(MessageId),
) -> Answer {
    let (mut answer, mut id, mut pieces, mut disturb) = (Answer::default(), None::<MessageId>, 0, Some(disturb));
    let mut events = app.send_message(message).await.unwrap();
    while let Some(event) = events.next().await {
        match event {
            ReplyEvent::Accepted { message, .. } => id = Some(message),
            ReplyEvent::Text(text) => {
                answer.text.push_str(&text);
                pieces += 1;
            }
            ReplyEvent::Thinking(text) => {
                answer.thinking.push_str(&text);
                pieces += 1;
            }
            ReplyEvent::Moved { decision, at_char, thinking_at_char } => {
                answer.moves.push((decision.place, at_char, thinking_at_char));
            }
            ReplyEvent::Note { sentence } => answer.notes.push(sentence),
            ReplyEvent::Finished(message) => answer.message = Some(*message),
            ReplyEvent::Failed { error, .. } => panic!("{error:?}, after {:?}", answer.notes),
            ReplyEvent::Routed(_) | ReplyEvent::Progress(_) => {}
        }
        if pieces == after
            && let Some(disturb) = disturb.take()
        {
            disturb(id.unwrap()).await;
        }
    }
    answer
}

/// Asks; after some pieces of the answer, the user says where it shall go on.
pub(crate) async fn moved(app: &App, message: SendMessage, to: PlaceChoice) -> Answer {
    disturbed(app, message, PIECES, async |id| app.move_answer(id, to).unwrap()).await
}
