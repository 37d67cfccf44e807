//! Sending a message and streaming its answer.

use app::chat::{Progress, Role};
use app::{
    AskedBy, ConversationId, DecisionRecord, MessageId, MessageState, PlaceChoice, ReplyEvent, Segment, SendMessage,
    StoredMessage,
};
use serde::{Deserialize, Serialize};
use specta::Type;
use specta_typescript::Number;
use tauri::State;
use tauri::ipc::Channel;

use super::error::ErrorDto;
use crate::Shell;

#[derive(Debug, Deserialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SendMessageDto {
    /// Made up by the caller; `stopReply` takes it.
    reply_id: String,
    conversation_id: Option<i64>,
    /// Absent: the last user message is answered again.
    text: Option<String>,
    model: Option<String>,
    /// `policy`, `here`, or a node's id.
    place: String,
}

#[derive(Debug, Clone, Serialize, Type)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum ReplyEventDto {
    Accepted {
        conversation_id: i64,
        user_message_id: i64,
        message_id: i64,
    },
    Routed {
        decision: DecisionDto,
    },
    /// The answer goes on elsewhere from this point on, counted in characters (Unicode scalar values).
    Moved {
        decision: DecisionDto,
        at_char: usize,
        thinking_at_char: usize,
    },
    Note {
        sentence: String,
    },
    Progress {
        phase: PhaseDto,
        done: u64,
        total: u64,
    },
    Text {
        text: String,
    },
    Thinking {
        text: String,
    },
    Finished {
        message: MessageDto,
    },
    Failed {
        error: ErrorDto,
        message: Option<MessageDto>,
    },
}

impl ReplyEventDto {
    /// Where the answer runs, for the event that tells it.
    pub(crate) fn runs_on_node(&self) -> Option<bool> {
        match self {
            Self::Routed { decision } | Self::Moved { decision, .. } => {
                Some(matches!(decision.target, TargetDto::Node))
            }
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum PhaseDto {
    Loading,
    Waiting,
    Prefill,
}

/// Where an answer runs, and every number that decided it.
#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DecisionDto {
    target: TargetDto,
    place: String,
    reason: String,
    sentence: String,
    counterfactual: Option<String>,
    readings: Vec<ReadingCheckDto>,
    alternatives: Vec<AlternativeDto>,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum TargetDto {
    Here,
    Node,
    Refuse,
}

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReadingCheckDto {
    name: String,
    value: String,
    limit: Option<String>,
    exceeded: Option<bool>,
}

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AlternativeDto {
    place: String,
    outcome: String,
}

#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageDto {
    id: i64,
    conversation_id: i64,
    role: RoleDto,
    text: String,
    thinking: String,
    state: MessageStateDto,
    error: Option<String>,
    segments: Vec<SegmentDto>,
    decision: Option<DecisionDto>,
    created_at_ms: i64,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum RoleDto {
    System,
    User,
    Assistant,
    Tool,
}

#[derive(Debug, Clone, Copy, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum MessageStateDto {
    Writing,
    Done,
    Stopped,
    Interrupted,
    Failed,
}

/// One stretch of an answer that one place wrote.
#[derive(Debug, Clone, Serialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SegmentDto {
    place: String,
    /// `here` or a node's id; empty for answers of before that was kept.
    place_id: String,
    model: String,
    reason: String,
    sentence: String,
    #[specta(type = Option<Number>)]
    decode_tokens_per_sec: Option<f64>,
    #[specta(type = Option<Number>)]
    ttft_ms: Option<f64>,
    completion_tokens: Option<u64>,
    /// Counted in characters (Unicode scalar values) of the whole answer.
    started_at_char: usize,
    /// The same, in the thinking.
    thinking_at_char: usize,
    /// How it went on with what was there: `tokens`, `text` or `prefix`.
    continuation: Option<String>,
    /// From the last word before it to its first.
    #[specta(type = Option<Number>)]
    gap_ms: Option<f64>,
    /// How it ended: `finished`, `handed over`, `stopped`, or why it failed.
    ended: Option<String>,
    /// Why it moved; nothing for the first segment.
    decision: Option<DecisionDto>,
}

/// Starts an answer and returns; everything that happens comes over `on_event`, failures of the start too.
#[tauri::command]
#[specta::specta]
pub(crate) async fn send_message(
    shell: State<'_, Shell>,
    request: SendMessageDto,
    on_event: Channel<ReplyEventDto>,
) -> Result<(), ErrorDto> {
    let reply_id = request.reply_id.clone();
    let stream = shell.app.send_message(request.into()).await?;
    shell.replies.start(shell.app.clone(), reply_id, stream, on_event);
    Ok(())
}

/// Stops an answer; what was written stays. A reply that has ended already is no error.
#[tauri::command]
#[specta::specta]
pub(crate) async fn stop_reply(shell: State<'_, Shell>, reply_id: String) -> Result<(), ErrorDto> {
    shell.replies.stop(&reply_id);
    Ok(())
}

/// Lets an answer that is being written go on at `here` or a node. Whether it did comes with the reply's events.
#[tauri::command]
#[specta::specta]
pub(crate) async fn move_answer(shell: State<'_, Shell>, message_id: i64, place_id: String) -> Result<(), ErrorDto> {
    Ok(shell.app.move_answer(MessageId(message_id), place(place_id))?)
}

/// `here`, or a node's id.
fn place(id: String) -> PlaceChoice {
    if id == "here" { PlaceChoice::Here } else { PlaceChoice::Node(id) }
}

impl From<SendMessageDto> for SendMessage {
    fn from(dto: SendMessageDto) -> Self {
        let place = (dto.place != "policy").then(|| place(dto.place));
        let conversation = dto.conversation_id.map(ConversationId);
        Self { conversation, text: dto.text, model: dto.model, place, asked_by: AskedBy::Window }
    }
}

impl From<ReplyEvent> for ReplyEventDto {
    fn from(event: ReplyEvent) -> Self {
        match event {
            ReplyEvent::Accepted { conversation, user_message, message } => Self::Accepted {
                conversation_id: conversation.0,
                user_message_id: user_message.0,
                message_id: message.0,
            },
            ReplyEvent::Routed(decision) => Self::Routed { decision: decision.into() },
            ReplyEvent::Moved { decision, at_char, thinking_at_char } => {
                Self::Moved { decision: decision.into(), at_char, thinking_at_char }
            }
            ReplyEvent::Note { sentence } => Self::Note { sentence },
            ReplyEvent::Progress(Progress::Loading { done, total }) => {
                Self::Progress { phase: PhaseDto::Loading, done: done.0, total: total.0 }
            }
            ReplyEvent::Progress(Progress::Waiting { ahead }) => {
                Self::Progress { phase: PhaseDto::Waiting, done: 0, total: ahead as u64 }
            }
            ReplyEvent::Progress(Progress::Prefill { done, total }) => {
                Self::Progress { phase: PhaseDto::Prefill, done: done as u64, total: total as u64 }
            }
            ReplyEvent::Text(text) => Self::Text { text },
            ReplyEvent::Thinking(text) => Self::Thinking { text },
            ReplyEvent::Finished(message) => Self::Finished { message: (*message).into() },
            ReplyEvent::Failed { error, message } => {
                // An answer that could not even be stored has no id to show it under.
                let message = (message.conversation_id.0 != 0).then(|| (*message).into());
                Self::Failed { error: error.into(), message }
            }
        }
    }
}

impl From<DecisionRecord> for DecisionDto {
    fn from(decision: DecisionRecord) -> Self {
        let readings = decision.readings.into_iter().map(|reading| ReadingCheckDto {
            name: reading.name,
            value: reading.value,
            limit: reading.limit,
            exceeded: reading.exceeded,
        });
        let alternatives = decision.alternatives.into_iter();
        Self {
            target: match decision.target.as_str() {
                "here" => TargetDto::Here,
                "node" => TargetDto::Node,
                _ => TargetDto::Refuse,
            },
            place: decision.place,
            reason: decision.reason,
            sentence: decision.sentence,
            counterfactual: decision.counterfactual,
            readings: readings.collect(),
            alternatives: alternatives
                .map(|other| AlternativeDto { place: other.place, outcome: other.outcome })
                .collect(),
        }
    }
}

impl From<StoredMessage> for MessageDto {
    fn from(message: StoredMessage) -> Self {
        let decision = app::decision_of(&message).map(DecisionDto::from);
        let (state, error) = match message.state {
            MessageState::Writing => (MessageStateDto::Writing, None),
            MessageState::Done => (MessageStateDto::Done, None),
            MessageState::Stopped => (MessageStateDto::Stopped, None),
            MessageState::Interrupted => (MessageStateDto::Interrupted, None),
            MessageState::Failed { sentence } => (MessageStateDto::Failed, Some(sentence)),
        };
        Self {
            id: message.id.0,
            conversation_id: message.conversation_id.0,
            role: match message.role {
                Role::System => RoleDto::System,
                Role::User => RoleDto::User,
                Role::Assistant => RoleDto::Assistant,
                Role::Tool => RoleDto::Tool,
            },
            text: message.text,
            thinking: message.thinking,
            state,
            error,
            segments: message.segments.into_iter().map(SegmentDto::from).collect(),
            decision,
            created_at_ms: message.created_at_ms,
        }
    }
}

impl From<Segment> for SegmentDto {
    fn from(segment: Segment) -> Self {
        let decision = app::decision_of_segment(&segment).map(DecisionDto::from);
        Self {
            place: segment.place,
            place_id: segment.place_id,
            model: segment.model,
            reason: segment.reason,
            sentence: segment.sentence,
            decode_tokens_per_sec: segment.decode_tokens_per_sec,
            ttft_ms: segment.ttft_ms.map(|ms| ms as f64),
            completion_tokens: segment.completion_tokens.map(|tokens| tokens as u64),
            started_at_char: segment.started_at_char,
            thinking_at_char: segment.thinking_at_char,
            continuation: segment.continuation,
            gap_ms: segment.gap_ms.map(|ms| ms as f64),
            ended: segment.ended,
            decision,
        }
    }
}
