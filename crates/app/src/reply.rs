//! Answers inside a conversation: what is asked and what is written is in the store before anybody sees it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use chat::{ChatEvent, ChatRequest, Finish, FinishReason, Message, Progress, Role, SamplingParams};
use futures::Stream;
use routing::PlaceChoice;
use store::{
    Conversation, ConversationId, MessageEnd, MessageId, MessageState, NewMessage, Segment, Store, StoreError,
    StoredMessage,
};
use tokio::sync::mpsc;

use crate::answer::{self, AnswerEvent, AnswerRequest, Routed};
use crate::error::{AppError, ErrorCode};
use crate::{App, DecisionRecord};

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
        let request = AnswerRequest { chat, place: message.place, stays_local: conversation.stays_local };
        let (events, stream) = mpsc::channel(64);
        let accepted = ReplyEvent::Accepted { conversation: conversation.id, user_message, message: answer };
        let _ = events.send(accepted).await;
        let writing = Writing { app: self.clone(), id: answer, events, pending: Pending::default(), routed: None };
        let task = tokio::spawn(writing.run(request));
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
    pending: Pending,
    routed: Option<Routed>,
}

impl Writing {
    async fn run(mut self, request: AnswerRequest) {
        let mut answer = answer::start(&self.app, request);
        let closed = self.events.clone();
        let mut closing = self.app.inner.closing.subscribe();
        loop {
            let event = tokio::select! {
                biased;
                () = closed.closed() => {
                    drop(answer);
                    return self.end(MessageState::Stopped, None, None).await;
                }
                _ = closing.changed() => {
                    drop(answer);
                    return self.end(MessageState::Stopped, None, None).await;
                }
                event = answer.recv() => event,
            };
            match event {
                Some(AnswerEvent::Routed(routed)) => {
                    self.tell(ReplyEvent::Routed(routed.decision.clone())).await;
                    self.routed = Some(routed);
                }
                Some(AnswerEvent::Chat(ChatEvent::Progress(progress))) => {
                    self.tell(ReplyEvent::Progress(progress)).await;
                }
                Some(AnswerEvent::Chat(ChatEvent::Text(text))) => {
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
        let segments = self.segment(finish).into_iter().collect();
        let decision = self.routed.as_ref().and_then(|routed| serde_json::to_string(&routed.decision).ok());
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

    fn segment(&self, finish: Option<Finish>) -> Option<Segment> {
        let routed = self.routed.as_ref().filter(|routed| !routed.place_id.is_empty())?;
        let timings = finish.map(|finish| finish.timings).unwrap_or_default();
        Some(Segment {
            place: routed.decision.place.clone(),
            model: routed.model.clone(),
            reason: routed.decision.reason.clone(),
            sentence: routed.decision.sentence.clone(),
            decode_tokens_per_sec: timings.decode_tokens_per_sec,
            ttft_ms: timings.ttft.map(|ttft| ttft.as_millis() as u64),
            completion_tokens: finish.and_then(|finish| finish.usage).map(|usage| usage.completion_tokens),
            place_id: routed.place_id.clone(),
            ..Segment::default()
        })
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
