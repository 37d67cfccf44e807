//! An answer from its request to its end, wherever it is written: `handoff` runs it, with [`AnswerHost`] for what it needs
//! of this program; here its events are put into our own words, kept in the history and counted.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use chat::{ChatEvent, ChatRequest, Finish};
use engine::{GenerateError, LoadError, LoadSpec};
use handoff::{HandoffEvent, Ledger};
use routing::{LocalModel, Measure, Place, PlaceChoice, fit};
use store::{ConversationId, MessageId};
use tokio::sync::mpsc;

use crate::answer_host::AnswerHost;
use crate::error::{AppError, ErrorCode, chain, sentence};
use crate::history::{AskedBy, DecisionKind, DecisionNote};
use crate::model_list::ModelEntry;
use crate::{App, DecisionRecord};

/// Room for events that a slow reader hasn't taken; the backend waits when it is full.
const EVENTS_AHEAD: usize = 64;

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct AnswerRequest {
    pub(crate) chat: ChatRequest,
    pub(crate) place: Option<PlaceChoice>,
    pub(crate) stays_local: bool,
    pub(crate) asked_by: AskedBy,
    /// The answer's message, and the conversation that it is in.
    pub(crate) message: Option<(ConversationId, MessageId)>,
}

/// What comes back: `Routed` for each place that is tried, then what it says; `Finished` or one failure at the end.
#[derive(Clone, Debug)]
pub(crate) enum AnswerEvent {
    Routed(Routed),
    /// What was done for a running answer, or why it stays where it is.
    Note(String),
    Chat(ChatEvent),
    Failed(AppError),
}

/// Where an answer goes, or goes on.
#[derive(Clone, Debug)]
pub(crate) struct Routed {
    pub(crate) decision: DecisionRecord,
    /// `here`, or the node's id; empty where it goes nowhere.
    pub(crate) place_id: String,
    /// The model's name at that place.
    pub(crate) model: String,
}

/// An answer that is being written. Dropping it stops the answer before the backend's next step.
pub(crate) struct Answering {
    app: App,
    asked_by: AskedBy,
    message: Option<(ConversationId, MessageId)>,
    events: mpsc::Receiver<HandoffEvent<AppError>>,
    moves: mpsc::Sender<Place>,
    /// For the history, in order.
    notes: mpsc::UnboundedSender<DecisionNote>,
    /// Which place wrote which part of what was told so far.
    ledger: Ledger,
    told_at: Instant,
    routed: Option<Routed>,
}

/// Starts an answer.
pub(crate) fn start(app: &App, mut request: AnswerRequest) -> Answering {
    let (sender, events) = mpsc::channel(EVENTS_AHEAD);
    let (moves, wanted) = mpsc::channel(1);
    let host = AnswerHost::new(app.clone(), request.clone(), wanted);
    // All places draw by the same seed.
    request.chat.sampling.seed.get_or_insert_with(fresh_seed);
    let (task, chat) = (app.clone(), request.chat);
    tokio::spawn(async move {
        let _faster_vitals = task.inner.vitals.generating();
        let answer = Box::pin(handoff::answer(&host, chat, &sender));
        tokio::select! {
            () = sender.closed() => {}
            _ = answer => {}
        }
        task.inner.speeds.end();
    });
    let (notes, noted) = mpsc::unbounded_channel();
    app.inner.replies.track(tokio::spawn(keep_history(app.clone(), noted)));
    Answering {
        app: app.clone(),
        asked_by: request.asked_by,
        message: request.message,
        events,
        moves,
        notes,
        ledger: Ledger::default(),
        told_at: Instant::now(),
        routed: None,
    }
}

/// A seed that every server understands.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) >> 33
}

impl Answering {
    /// The next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<AnswerEvent> {
        poll_fn(|context| self.poll_next(context)).await
    }

    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<AnswerEvent>> {
        loop {
            let Some(event) = ready!(self.events.poll_recv(context)) else { return Poll::Ready(None) };
            self.ledger.take(&event, self.told_at.elapsed());
            if let Some(event) = self.in_our_words(event) {
                return Poll::Ready(Some(event));
            }
        }
    }

    /// Which place wrote which part of what was told so far.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whoever asked stopped it.
    pub(crate) fn stop(&mut self) {
        self.events.close();
        self.ledger.stop();
    }

    /// Through which the user says where it shall go on.
    pub(crate) fn moves(&self) -> mpsc::Sender<Place> {
        self.moves.clone()
    }

    fn in_our_words(&mut self, event: HandoffEvent<AppError>) -> Option<AnswerEvent> {
        match event {
            HandoffEvent::Routed { decision, place, model, continuation } => {
                let place_id = place.as_ref().map_or_else(String::new, id_of);
                let routed = Routed { decision: DecisionRecord::from(&*decision), place_id, model };
                let kind = match (&place, continuation) {
                    (None, _) => DecisionKind::Refused,
                    (Some(_), None) => DecisionKind::Start,
                    (Some(_), Some(_)) => DecisionKind::Move,
                };
                self.note(kind, &routed);
                if place.is_some() {
                    self.app.inner.speeds.begin(&routed.place_id, &routed.model);
                    self.told_at = Instant::now();
                }
                self.routed = Some(routed.clone());
                Some(AnswerEvent::Routed(routed))
            }
            HandoffEvent::Relieved { measure, concern } => {
                let note = format!("this machine {}, so {}", concern.sentence, described(measure));
                if let Some(routed) = self.routed.clone() {
                    let decision = DecisionRecord::of_concern(&routed.decision, &concern, &note);
                    self.note(DecisionKind::Relief, &Routed { decision, ..routed });
                }
                Some(AnswerEvent::Note(sentence(&note)))
            }
            HandoffEvent::Stayed(decision) => {
                let record = DecisionRecord::from(&*decision);
                let note = sentence(&format!("it stays where it is: {}", decision.sentence));
                if let Some(routed) = self.routed.clone() {
                    self.note(DecisionKind::Stay, &Routed { decision: record, ..routed });
                }
                Some(AnswerEvent::Note(note))
            }
            HandoffEvent::Lost(why) => {
                if let Some(routed) = self.routed.clone() {
                    let decision = DecisionRecord { sentence: why, ..routed.decision.clone() };
                    self.note(DecisionKind::Lost, &Routed { decision, ..routed });
                }
                None
            }
            HandoffEvent::Chat(event) => {
                match &event {
                    ChatEvent::Text(_) | ChatEvent::Thinking(_) | ChatEvent::ToolCall { .. } => {
                        self.told_at = Instant::now();
                        self.app.inner.speeds.piece(self.told_at);
                    }
                    ChatEvent::Finished(finish) => self.note_speed(finish),
                    ChatEvent::Progress(_) | ChatEvent::Logprobs(_) | ChatEvent::Tokens { .. } => {}
                }
                Some(AnswerEvent::Chat(event))
            }
            HandoffEvent::Failed(error) => Some(AnswerEvent::Failed(error)),
        }
    }

    /// The place that wrote last was this fast.
    fn note_speed(&self, finish: &Finish) {
        let (Some(routed), Some(last)) = (&self.routed, self.ledger.segments().last()) else { return };
        let Some(speed) = finish.passes_per_sec() else { return };
        let own = last.tokens.as_ref().filter(|tokens| !tokens.is_empty()).map(ExactSizeIterator::len);
        let is_all = self.ledger.segments().len() == 1;
        let whole = finish.usage.map(|usage| usage.completion_tokens).filter(|_| is_all);
        if let Some(tokens) = own.or(whole) {
            self.app.inner.speeds.record(&routed.place_id, &routed.model, tokens, speed);
            self.app.save_speeds();
        }
        self.app.inner.nodes.update(&routed.place_id, |view| view.decode_tokens_per_sec = Some(speed));
        if is_all && last.place == Place::Here {
            self.app.note_speed(&routed.model, finish);
        }
    }

    fn note(&self, kind: DecisionKind, routed: &Routed) {
        let (conversation, message) = self.message.unzip();
        let note = DecisionNote {
            kind,
            asked_by: self.asked_by,
            conversation,
            message,
            model: routed.model.clone(),
            place_id: routed.place_id.clone(),
            record: routed.decision.clone(),
        };
        // Nobody takes it any more where the application ends.
        let _ = self.notes.send(note);
    }
}

/// Keeps the decisions of one answer, each after the one before it, until the answer or the application ends.
async fn keep_history(app: App, mut notes: mpsc::UnboundedReceiver<DecisionNote>) {
    let mut closing = app.inner.closing.subscribe();
    loop {
        tokio::select! {
            biased;
            note = notes.recv() => match note {
                Some(note) => app.note_decision(note).await,
                None => return,
            },
            _ = closing.changed() => return,
        }
    }
}

/// `here`, or the node's id.
pub(crate) fn id_of(place: &Place) -> String {
    match place {
        Place::Here => "here".to_owned(),
        Place::Node(id) => id.clone(),
    }
}

fn described(measure: Measure) -> String {
    match measure {
        Measure::UnloadIdleModels => "models that nobody uses were unloaded".to_owned(),
        Measure::TrimCaches => "memory that it can be written without was given back".to_owned(),
        Measure::CapContext(tokens) => format!("this answer ends at {tokens} tokens of context"),
        Measure::Pace(speed) => format!("the answer is written at {speed:.0} tok/s until it has cooled"),
    }
}

impl App {
    /// How the engine is to load a model, within the memory that is free now.
    pub(crate) fn load_spec(&self, entry: &ModelEntry, context_len: usize) -> LoadSpec {
        let model = entry.usable().map(|header| self.local_model(entry, header));
        let available =
            model.as_ref().and_then(|model| fit(model, &self.policy(), self.outlook().snapshot(), context_len).budget);
        let cache_budget = available
            .zip(model)
            .map(|(available, model)| available.saturating_sub(model.weights).saturating_sub(model.scratch));
        let kv_type = self.settings().kv_type();
        let draft = self.draft_for(entry);
        LoadSpec { path: entry.path.clone(), context_len, kv_type, draft, cache_budget, available }
    }

    /// What routing needs to know of a model file, with what the engine holds of it now.
    pub(crate) fn local_model(&self, entry: &ModelEntry, header: &Arc<engine::ModelHeader>) -> LocalModel {
        let held = self.inner.engine.loaded().map(|loaded| {
            let caches = self.inner.engine.caches();
            (loaded.path, loaded.footprint.weights.saturating_add(loaded.footprint.scratch).saturating_add(caches))
        });
        let (own, other) = match held {
            Some((path, held)) if path == entry.path => (Some(held), chat::Bytes::ZERO),
            Some((_, held)) => (None, held),
            None => (None, chat::Bytes::ZERO),
        };
        let kv_type = self.settings().kv_type();
        let footprint = header.footprint(header.context_len, kv_type);
        let calibration = self.calibration();
        LocalModel {
            weights: footprint.weights,
            kv_per_token: header.kv_bytes_per_token(kv_type),
            scratch: footprint.scratch.saturating_add(header.state_bytes(kv_type)),
            trained_context: header.context_len,
            already_loaded: own,
            other_loaded: other,
            prefix_tokens: None,
            decode_tokens_per_sec: self.inner.speeds.usual("here", &entry.id),
            prefill_tokens_per_sec: calibration
                .as_ref()
                .filter(|calibration| calibration.model == entry.id)
                .map(|calibration| calibration.prefill_tokens_per_sec),
            bytes_per_token: Some(header.bytes_per_token(0, kv_type)),
            flops_per_token: Some(header.flops_per_token()),
            calibration: calibration.map(|calibration| calibration.for_forecasts()),
        }
    }
}

pub(crate) fn generate_error(error: GenerateError) -> AppError {
    tracing::warn!(error = chain(&error), "answer failed here");
    let code = match &error {
        GenerateError::Load(LoadError::NotEnoughMemory { .. }) => ErrorCode::DoesNotFit,
        GenerateError::ContextFull { .. } => ErrorCode::ContextFull,
        GenerateError::Load(_) => ErrorCode::BadFile,
        GenerateError::InvalidRequest(_) => ErrorCode::BadRequest,
        GenerateError::Busy(_) => ErrorCode::Busy,
        _ => ErrorCode::EngineFailed,
    };
    AppError::new(code, sentence(&error.to_string()))
}
