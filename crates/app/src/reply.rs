//! Answers inside a conversation: what is asked and what is written is in the store before anybody sees it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use chat::{ChatEvent, ChatRequest, Finish, FinishReason, Message, Progress, Role, SamplingParams};
use futures::Stream;
use handoff::Ended;
use routing::{Continuation, Place, PlaceChoice};
use store::{
    Conversation, ConversationId, MessageEnd, MessageId, MessageState, NewMessage, Segment, Store, StoreError,
    StoredMessage,
};
use tokio::sync::mpsc;

use crate::answer::{self, AnswerEvent, AnswerRequest, Answering, Routed};
use crate::error::{AppError, ErrorCode};
use crate::{App, AskedBy, DecisionRecord};

/// The most that a crash can take of an answer.
const SAVE_EVERY: Duration = Duration::from_millis(250);
/// Characters of a conversation's title.
const TITLE_LEN: usize = 60;

/// A message to send in a conversation.
#[derive(Clone, Debug, Default)]
pub struct SendMessage {
    /// The conversation; `None` starts a new one.
    pub conversation: Option<ConversationId>,
    /// What the user says; `None` answers the last thing they said again.
    pub text: Option<String>,
    /// The id of the model; `None` is the chosen one.
    pub model: Option<String>,
    /// Where to answer; `None` leaves it to the offload switch.
    pub place: Option<PlaceChoice>,
    /// Who asks; the history of decisions says so.
    pub asked_by: AskedBy,
}

/// What happens while a message is answered.
#[derive(Clone, Debug)]
pub enum ReplyEvent {
    /// The question is stored.
    Accepted {
        /// The conversation, which may be new.
        conversation: ConversationId,
        /// The user's message.
        user_message: MessageId,
        /// The answer that is about to be written.
        message: MessageId,
    },
    /// Where the answer runs. Comes again when that place failed before its first token and another one was chosen.
    Routed(DecisionRecord),
    /// The running answer goes on at another place, from here on.
    Moved {
        /// Where, and why.
        decision: DecisionRecord,
        /// The characters of text before it (Unicode scalar values).
        at_char: usize,
        /// The characters of thinking before it.
        thinking_at_char: usize,
    },
    /// What was done here to make room for the running answer, or why it stays where it is, as a sentence.
    Note {
        /// What to tell.
        sentence: String,
    },
    /// What happens before the first token.
    Progress(Progress),
    /// Text to append.
    Text(String),
    /// Thinking to append.
    Thinking(String),
    /// The answer as it is stored: whole, or stopped by the user.
    Finished(Box<StoredMessage>),
    /// The answer failed; what had come of it is stored.
    Failed {
        /// Why.
        error: AppError,
        /// The answer as far as it came.
        message: Box<StoredMessage>,
    },
}

/// The events of one reply. Dropping it stops the answer; what was written stays.
#[derive(Debug)]
pub struct ReplyStream(mpsc::Receiver<ReplyEvent>);

impl Stream for ReplyStream {
    type Item = ReplyEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ReplyEvent>> {
        self.0.poll_recv(context)
    }
}

impl App {
    /// Stores the message and answers it.
    ///
    /// # Errors
    /// `BadRequest` for an empty message, `NotFound` for an unknown conversation, `DiskFull` where the message can't
    /// be stored. Everything later comes as [`ReplyEvent::Failed`].
    pub async fn send_message(&self, message: SendMessage) -> Result<ReplyStream, AppError> {
        let text = message.text.as_deref().map(str::trim).map(str::to_owned);
        if text.as_deref() == Some("") {
            return Err(AppError::new(ErrorCode::BadRequest, "The message is empty."));
        }
        let known = message.conversation;
        let (conversation, user_message, answer) = self.with_store(move |store| begin(store, known, text)).await??;
        self.publish_conversations().await;

        let settings = self.settings();
        let chat = ChatRequest {
            model: message.model,
            messages: prompt(&conversation, &settings.system_prompt),
            sampling: SamplingParams { temperature: settings.temperature, ..SamplingParams::default() },
            ..ChatRequest::default()
        };
        // Their count is told with the answer.
        let chat = ChatRequest { tells_tokens: true, ..chat };
        let request = AnswerRequest {
            chat,
            place: message.place,
            stays_local: conversation.stays_local,
            asked_by: message.asked_by,
            message: Some((conversation.id, answer)),
        };
        let (events, stream) = mpsc::channel(64);
        let accepted = ReplyEvent::Accepted { conversation: conversation.id, user_message, message: answer };
        let _ = events.send(accepted).await;
        let answering = answer::start(self, request);
        self.inner.moves.add(answer, answering.moves());
        let writing = Writing {
            app: self.clone(),
            id: answer,
            events,
            answering,
            pending: Pending::default(),
            routes: Vec::new(),
            decision: None,
            began: Instant::now(),
            ttft: None,
        };
        let task = tokio::spawn(writing.run());
        self.inner.replies.track(task);
        Ok(ReplyStream(stream))
    }
}

/// Stores the question and an empty answer.
fn begin(
    store: &Store,
    known: Option<ConversationId>,
    text: Option<String>,
) -> Result<(Conversation, MessageId, MessageId), AppError> {
    let id = match known {
        Some(id) => id,
        None => {
            let text = text.as_deref().ok_or_else(|| AppError::new(ErrorCode::BadRequest, "The message is empty."))?;
            store.create_conversation(&title(text), false)?
        }
    };
    if let Some(text) = text {
        store.add_message(&NewMessage { conversation_id: id, role: Role::User, text, state: MessageState::Done })?;
        store.save_draft(known, "")?;
    }
    let conversation = store.conversation(id)?;
    let user_message = conversation
        .messages
        .iter()
        .rev()
        .find(|message| message.role == Role::User)
        .map(|message| message.id)
        .ok_or_else(|| AppError::new(ErrorCode::BadRequest, "There is no message to answer."))?;
    let answer = store.add_message(&NewMessage {
        conversation_id: id,
        role: Role::Assistant,
        text: String::new(),
        state: MessageState::Writing,
    })?;
    Ok((conversation, user_message, answer))
}

/// The first line of the first message, cut at a word.
fn title(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("New chat");
    if line.chars().count() <= TITLE_LEN {
        return line.to_owned();
    }
    let cut: String = line.chars().take(TITLE_LEN - 1).collect();
    let whole = cut.rsplit_once(' ').map_or(cut.as_str(), |(words, _)| words);
    format!("{}…", whole.trim_end_matches([',', '.', ';', ':']))
}

/// The conversation as the model is to read it: up to the last thing the user said, and of several answers to one
/// question the last.
fn prompt(conversation: &Conversation, system_prompt: &str) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    if !system_prompt.trim().is_empty() {
        messages.push(Message::new(Role::System, system_prompt.trim()));
    }
    for stored in &conversation.messages {
        if stored.text.is_empty() {
            continue;
        }
        let message = Message::new(stored.role, stored.text.clone());
        match messages.last_mut() {
            Some(last) if last.role == Role::Assistant && stored.role == Role::Assistant => *last = message,
            _ => messages.push(message),
        }
    }
    while messages.last().is_some_and(|message| message.role == Role::Assistant) {
        messages.pop();
    }
    messages
}

#[derive(Default)]
struct Pending {
    text: String,
    thinking: String,
    /// When something was saved last.
    saved: Option<Instant>,
    /// Why it couldn't be saved then. What is pending stays, and the next save tries again.
    failed: Option<AppError>,
}

/// An answer that is being written.
struct Writing {
    app: App,
    id: MessageId,
    events: mpsc::Sender<ReplyEvent>,
    answering: Answering,
    pending: Pending,
    /// The places that were tried, in order: one for each segment of the ledger.
    routes: Vec<Routed>,
    /// Where it began, or why it didn't.
    decision: Option<DecisionRecord>,
    began: Instant,
    /// From the beginning to the first thing that was told.
    ttft: Option<Duration>,
}

impl Writing {
    async fn run(mut self) {
        let closed = self.events.clone();
        let mut closing = self.app.inner.closing.subscribe();
        loop {
            let event = tokio::select! {
                biased;
                () = closed.closed() => {
                    self.answering.stop();
                    return self.end(MessageState::Stopped, None, None).await;
                }
                _ = closing.changed() => {
                    self.answering.stop();
                    return self.end(MessageState::Stopped, None, None).await;
                }
                event = self.answering.next() => event,
            };
            match event {
                Some(AnswerEvent::Routed(routed)) => {
                    let event = self.route(routed);
                    self.tell(event).await;
                }
                Some(AnswerEvent::Note(sentence)) => self.tell(ReplyEvent::Note { sentence }).await,
                Some(AnswerEvent::Chat(ChatEvent::Progress(progress))) => {
                    self.tell(ReplyEvent::Progress(progress)).await;
                }
                Some(AnswerEvent::Chat(ChatEvent::Text(text))) => {
                    self.ttft.get_or_insert_with(|| self.began.elapsed());
                    self.pending.text.push_str(&text);
                    self.tell(ReplyEvent::Text(text)).await;
                    self.save_now_and_then().await;
                }
                Some(AnswerEvent::Chat(ChatEvent::ToolCall { call, .. })) => {
                    // No tool was offered. A node's model that calls one all the same is shown, not obeyed.
                    let text = format!("{}({})", call.name, call.arguments.expose());
                    self.pending.text.push_str(&text);
                    self.tell(ReplyEvent::Text(text)).await;
                }
                Some(AnswerEvent::Chat(ChatEvent::Thinking(text))) => {
                    self.ttft.get_or_insert_with(|| self.began.elapsed());
                    self.pending.thinking.push_str(&text);
                    self.tell(ReplyEvent::Thinking(text)).await;
                    self.save_now_and_then().await;
                }
                Some(AnswerEvent::Chat(ChatEvent::Finished(finish))) => {
                    let state = match finish.reason {
                        FinishReason::Cancelled => MessageState::Stopped,
                        FinishReason::Stop | FinishReason::Length => MessageState::Done,
                    };
                    return self.end(state, Some(finish), None).await;
                }
                // Only callers of the HTTP server ask for them.
                Some(AnswerEvent::Chat(ChatEvent::Logprobs(_) | ChatEvent::Tokens { .. })) => {}
                Some(AnswerEvent::Failed(error)) => {
                    let state = MessageState::Failed { sentence: error.to_string() };
                    return self.end(state, None, Some(error)).await;
                }
                None => {
                    let error = AppError::new(ErrorCode::Internal, "The answer ended without a word.");
                    return self.end(MessageState::Interrupted, None, Some(error)).await;
                }
            }
        }
    }

    async fn tell(&self, event: ReplyEvent) {
        // Nobody listening is noticed by `closed` at the next turn.
        let _ = self.events.send(event).await;
    }

    async fn save_now_and_then(&mut self) {
        if self.pending.saved.is_none_or(|saved| saved.elapsed() >= SAVE_EVERY) {
            self.save().await;
        }
    }

    async fn save(&mut self) {
        self.pending.saved = Some(Instant::now());
        self.pending.failed = None;
        for is_thinking in [true, false] {
            let part = if is_thinking { &mut self.pending.thinking } else { &mut self.pending.text };
            if part.is_empty() {
                continue;
            }
            let (id, text) = (self.id, part.clone());
            let saved = self.app.with_store(move |store| store.append_text(id, &text, is_thinking)).await;
            match saved.and_then(|saved| saved.map_err(AppError::from)) {
                Ok(()) => part.clear(),
                Err(error) => self.pending.failed = Some(error),
            }
        }
    }

    async fn end(mut self, state: MessageState, finish: Option<Finish>, error: Option<AppError>) {
        self.save().await;
        self.app.inner.moves.remove(self.id);
        let segments = self.segments(finish);
        let decision = self.decision.as_ref().and_then(|decision| serde_json::to_string(decision).ok());
        let (id, end) = (self.id, MessageEnd { state, segments });
        let (written, explained) = (end.clone(), decision.clone());
        let stored = self
            .app
            .with_store(move |store| -> Result<StoredMessage, StoreError> {
                if let Some(decision) = decision {
                    store.set_decision(id, &decision)?;
                }
                store.finish_message(id, &end)
            })
            .await
            .and_then(|stored| stored.map_err(AppError::from));
        self.app.publish_conversations().await;
        let event = match (stored, error.or(self.pending.failed.take())) {
            (Ok(message), None) => ReplyEvent::Finished(Box::new(message)),
            (Ok(message), Some(error)) => ReplyEvent::Failed { error, message: Box::new(message) },
            (Err(unsaved), error) => {
                // The text is with whoever listens; what can't be stored is told as it would have been.
                let message = StoredMessage {
                    id: self.id,
                    conversation_id: ConversationId(0),
                    role: Role::Assistant,
                    text: String::new(),
                    thinking: String::new(),
                    state: written.state,
                    segments: written.segments,
                    decision_json: explained,
                    created_at_ms: 0,
                };
                ReplyEvent::Failed { error: error.unwrap_or(unsaved), message: Box::new(message) }
            }
        };
        self.tell(event).await;
    }

    /// The answer goes there, or goes on there.
    fn route(&mut self, routed: Routed) -> ReplyEvent {
        let ledger = self.answering.ledger();
        let decision = routed.decision.clone();
        let (at_char, thinking_at_char) = (ledger.text().chars().count(), ledger.thinking().chars().count());
        if !routed.place_id.is_empty() {
            self.routes.push(routed);
        }
        if at_char + thinking_at_char == 0 {
            self.decision = Some(decision.clone());
            return ReplyEvent::Routed(decision);
        }
        ReplyEvent::Moved { decision, at_char, thinking_at_char }
    }

    /// Which place wrote which part: those that wrote something, or the last where none did.
    fn segments(&self, finish: Option<Finish>) -> Vec<Segment> {
        let ledger = self.answering.ledger();
        let parts = ledger.segments();
        let is_kept = |index: usize, part: &handoff::Segment| {
            !part.text.is_empty() || !part.thinking.is_empty() || !part.calls.is_empty() || index + 1 == parts.len()
        };
        let mut segments = Vec::new();
        for (index, (part, routed)) in parts.iter().zip(&self.routes).enumerate() {
            if !is_kept(index, part) {
                continue;
            }
            let last = finish.filter(|_| index + 1 == parts.len());
            let is_first = segments.is_empty();
            let whole = last.and_then(|finish| finish.usage).filter(|_| is_first).map(|usage| usage.completion_tokens);
            let tokens = part.tokens.as_ref().map(ExactSizeIterator::len).filter(|count| *count > 0);
            segments.push(Segment {
                place: routed.decision.place.clone(),
                place_id: routed.place_id.clone(),
                model: routed.model.clone(),
                reason: routed.decision.reason.clone(),
                sentence: routed.decision.sentence.clone(),
                decode_tokens_per_sec: last.and_then(|finish| finish.timings.decode_tokens_per_sec),
                ttft_ms: self.ttft.filter(|_| is_first).map(|ttft| ttft.as_millis() as u64),
                completion_tokens: whole.or(tokens),
                started_at_char: ledger.text()[..part.text.start].chars().count(),
                thinking_at_char: ledger.thinking()[..part.thinking.start].chars().count(),
                continuation: part.continuation.map(|level| continuation_name(level).to_owned()),
                gap_ms: part.gap.map(|gap| gap.as_millis() as u64),
                ended: part.ended.as_ref().map(ended_words),
                checksum: part.checksum.map(|checksum| format!("{checksum:016x}")),
                decision_json: serde_json::to_string(&routed.decision).ok(),
            });
        }
        segments
    }
}

fn continuation_name(level: Continuation) -> &'static str {
    match level {
        Continuation::Tokens => "tokens",
        Continuation::Text => "text",
        Continuation::Prefix => "prefix",
        Continuation::None => "none",
    }
}

fn ended_words(ended: &Ended) -> String {
    match ended {
        Ended::Finished => "finished".to_owned(),
        Ended::HandedOver => "handed over".to_owned(),
        Ended::Stopped => "stopped".to_owned(),
        Ended::Failed(why) => why.clone(),
    }
}

/// The ways to running answers through which the user moves them.
#[derive(Default)]
pub(crate) struct Moves(Mutex<HashMap<MessageId, mpsc::Sender<Place>>>);

impl Moves {
    fn add(&self, id: MessageId, way: mpsc::Sender<Place>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, way);
    }

    fn remove(&self, id: MessageId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

impl App {
    /// Lets a running answer go on at another place, from the token that it has reached. Whether it did is told in its
    /// events: it stays where it is where the place can't go on with it.
    ///
    /// # Errors
    /// `NotFound` where the answer isn't being written any more.
    pub fn move_answer(&self, answer: MessageId, place: PlaceChoice) -> Result<(), AppError> {
        let ways = self.inner.moves.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || AppError::new(ErrorCode::NotFound, "This answer isn't being written any more.");
        // One wish waits at most; a second one meanwhile means the same.
        match ways.get(&answer).ok_or_else(gone)?.try_send(place) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(gone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(turns: &[(Role, &str)]) -> Conversation {
        let messages = turns
            .iter()
            .enumerate()
            .map(|(n, (role, text))| StoredMessage {
                id: MessageId(n as i64),
                conversation_id: ConversationId(1),
                role: *role,
                text: (*text).to_owned(),
                thinking: String::new(),
                state: MessageState::Done,
                segments: Vec::new(),
                decision_json: None,
                created_at_ms: 0,
            })
            .collect();
        Conversation { id: ConversationId(1), title: String::new(), updated_at_ms: 0, stays_local: false, messages }
    }

    fn check(turns: &[(Role, &str)], expected: &[&str]) {
        let conversation = conversation(turns);
        let messages = prompt(&conversation, "");
        assert_eq!(messages.iter().map(|message| message.text.expose()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn of_several_answers_the_last_is_read_and_an_unfinished_one_is_asked_again() {
        use Role::{Assistant, User};
        check(&[(User, "a"), (Assistant, "half"), (Assistant, "whole"), (User, "b")], &["a", "whole", "b"]);
        check(&[(User, "a"), (Assistant, "half")], &["a"]);
        check(&[(User, "a"), (Assistant, ""), (User, "b")], &["a", "b"]);
    }

    #[test]
    fn titles_are_the_first_line_cut_at_a_word() {
        assert_eq!(title("\n  Why is the sky blue?\nAnd so on"), "Why is the sky blue?");
        let long = title(&"word ".repeat(40));
        assert!(long.chars().count() <= TITLE_LEN && long.ends_with("word…"), "{long}");
        assert!(title(&"x".repeat(200)).chars().count() <= TITLE_LEN);
    }
}
