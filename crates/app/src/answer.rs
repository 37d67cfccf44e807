//! One answer: decide where, start it there, and hand its events on. Conversations and stateless callers share this.

use std::sync::Arc;
use std::time::Instant;

use chat::{ChatEvent, ChatRequest};
use engine::{GenerateError, LoadError, LoadSpec};
use futures::StreamExt;
use futures::stream::BoxStream;
use nodes::{NodeError, NodeState};
use routing::{Decision, Demand, LocalModel, OffloadMode, PlaceChoice, Reason, Target, decide, fit};
use tokio::sync::mpsc;

use crate::error::{AppError, ErrorCode, chain, sentence};
use crate::model_list::ModelEntry;
use crate::node_list::same_model;
use crate::{App, DecisionRecord};

/// Room for events that a slow reader hasn't taken; the backend waits when it is full.
const EVENTS_AHEAD: usize = 64;
/// Tokens that an answer should have room for when a context is chosen for it.
const ANSWER_ROOM: usize = 1_024;

/// What is asked.
pub(crate) struct AnswerRequest {
    pub(crate) chat: ChatRequest,
    pub(crate) place: Option<PlaceChoice>,
    pub(crate) stays_local: bool,
}

/// What comes back: `Routed` once for each place that is tried, then chat events, or one failure at the end.
pub(crate) enum AnswerEvent {
    Routed(Routed),
    Chat(ChatEvent),
    Failed(AppError),
}

/// Where an answer goes.
#[derive(Clone, Debug)]
pub(crate) struct Routed {
    pub(crate) decision: DecisionRecord,
    /// `here`, or the node's id.
    pub(crate) place_id: String,
    /// The model's name at that place.
    pub(crate) model: String,
}

/// Starts an answer. Dropping the receiver stops it before the backend's next step.
pub(crate) fn start(app: &App, request: AnswerRequest) -> mpsc::Receiver<AnswerEvent> {
    let (events, receiver) = mpsc::channel(EVENTS_AHEAD);
    let app = app.clone();
    tokio::spawn(async move {
        let _faster_vitals = app.inner.vitals.generating();
        let closed = events.clone();
        tokio::select! {
            () = closed.closed() => {}
            () = run(&app, request, &events) => {}
        }
        app.inner.speeds.end();
    });
    receiver
}

async fn run(app: &App, mut request: AnswerRequest, events: &mpsc::Sender<AnswerEvent>) {
    if !request.stays_local && app.settings().offload != OffloadMode::LocalOnly {
        app.inner.nodes.probe_unknown().await;
    }
    let mut failed_nodes = Vec::new();
    loop {
        let (decision, model) = match route(app, &request, &failed_nodes).await {
            Ok(routed) => routed,
            Err(error) => return send(events, AnswerEvent::Failed(error)).await,
        };
        let record = DecisionRecord::from(&decision);
        let outcome = match decision.target {
            Target::Refuse => {
                let routed = Routed { decision: record, place_id: String::new(), model: String::new() };
                send(events, AnswerEvent::Routed(routed)).await;
                Err((refusal(&decision), false))
            }
            Target::Here { context_len } => {
                let Some(model) = model else {
                    let error = AppError::new(ErrorCode::NoModel, "No model is chosen.");
                    return send(events, AnswerEvent::Failed(error)).await;
                };
                let routed = Routed { decision: record, place_id: "here".to_owned(), model: model.id.clone() };
                let spec = app.load_spec(&model, context_len);
                let stream =
                    app.inner.engine.chat(spec, request.chat.clone()).map(|event| event.map_err(generate_error));
                forward(app, routed, stream.boxed(), events).await
            }
            Target::Node { id } => {
                let outcome = answer_on_node(app, &id, record, &request.chat, events).await;
                if let Err((error, _)) = &outcome {
                    note_failure(app, &id, error);
                }
                match outcome {
                    // Nothing was written yet and the user left the choice to us: choose again without this node.
                    Err((error, false)) if may_choose_again(app, &request, &error) => {
                        tracing::info!(node = id, "node failed before its first token, deciding again");
                        failed_nodes.push(id);
                        request.place = None;
                        continue;
                    }
                    outcome => outcome,
                }
            }
        };
        if let Err((error, _)) = outcome {
            send(events, AnswerEvent::Failed(error)).await;
        }
        return;
    }
}

fn may_choose_again(app: &App, request: &AnswerRequest, error: &AppError) -> bool {
    request.place.is_none()
        && app.settings().offload == OffloadMode::Auto
        && matches!(error.code, ErrorCode::NodeUnreachable | ErrorCode::NodeFailed | ErrorCode::CutOff)
}

fn note_failure(app: &App, id: &str, error: &AppError) {
    let state = match error.code {
        ErrorCode::NodeUnreachable | ErrorCode::CutOff => NodeState::Unreachable(error.sentence.clone()),
        ErrorCode::NodeUnauthorized => NodeState::Unauthorized,
        _ => return,
    };
    app.inner.nodes.update(id, |view| {
        if let Some(status) = &mut view.status {
            status.state = state;
        }
    });
}

async fn answer_on_node(
    app: &App,
    id: &str,
    decision: DecisionRecord,
    request: &ChatRequest,
    events: &mpsc::Sender<AnswerEvent>,
) -> Result<(), (AppError, bool)> {
    let gone = || (AppError::new(ErrorCode::NotFound, format!("The node “{id}” is not on the list.")), false);
    let (client, view) = app.inner.nodes.client(id).ok_or_else(gone)?;
    let model = match view.model_for(request.model.as_deref()) {
        Some(model) => model.to_owned(),
        None => {
            let error = AppError::new(ErrorCode::NodeFailed, format!("{} has no model to answer with.", view.name));
            return Err((error.with_hint("Load one there, then test the node again."), false));
        }
    };
    let name = view.name.clone();
    let mut request = request.clone();
    if view.status.as_ref().and_then(|status| status.engine.as_deref()) == Some("mlx_lm") {
        // It ends answers after 512 tokens where a request doesn't say; the others go on to the end of the context.
        request.sampling.max_tokens.get_or_insert(app.settings().context_len);
    }
    let stream = client.chat(&model, request).map(move |event| event.map_err(|error| node_error(&name, &error)));
    let routed = Routed { decision, place_id: id.to_owned(), model };
    forward(app, routed, stream.boxed(), events).await
}

/// Hands a backend's events on; the error says whether text had come before it.
async fn forward(
    app: &App,
    routed: Routed,
    mut stream: BoxStream<'_, Result<ChatEvent, AppError>>,
    events: &mpsc::Sender<AnswerEvent>,
) -> Result<(), (AppError, bool)> {
    let speeds = &app.inner.speeds;
    speeds.begin(&routed.place_id, &routed.model);
    send(events, AnswerEvent::Routed(routed.clone())).await;
    let mut has_text = false;
    while let Some(event) = stream.next().await {
        let event = event.map_err(|error| (error, has_text))?;
        match &event {
            ChatEvent::Text(_) | ChatEvent::Thinking(_) | ChatEvent::ToolCall { .. } => {
                has_text = true;
                speeds.piece(Instant::now());
            }
            ChatEvent::Finished(finish) => {
                if let (Some(usage), Some(speed)) = (finish.usage, finish.timings.decode_tokens_per_sec) {
                    speeds.record(&routed.place_id, &routed.model, usage.completion_tokens, speed);
                    app.inner.nodes.update(&routed.place_id, |view| view.decode_tokens_per_sec = Some(speed));
                    app.save_speeds();
                }
            }
            ChatEvent::Progress(_) | ChatEvent::Logprobs(_) | ChatEvent::Tokens { .. } => {}
        }
        let finished = matches!(event, ChatEvent::Finished(_));
        send(events, AnswerEvent::Chat(event)).await;
        if finished {
            return Ok(());
        }
    }
    Err((AppError::new(ErrorCode::CutOff, "The answer ended in the middle."), has_text))
}

async fn send(events: &mpsc::Sender<AnswerEvent>, event: AnswerEvent) {
    // A closed channel ends the task through `closed`, so there is nothing to do about it here.
    let _ = events.send(event).await;
}

/// Gathers the demand and asks routing. The model is the one that would run here.
async fn route(
    app: &App,
    request: &AnswerRequest,
    failed_nodes: &[String],
) -> Result<(Decision, Option<ModelEntry>), AppError> {
    let wanted = request.chat.model.as_deref();
    let settings = app.settings();
    let entry = app.model_for(wanted);
    let wanted_on_nodes = wanted.map(str::to_owned).or_else(|| entry.as_ref().map(|entry| entry.id.clone()));
    let mut options: Vec<_> = app
        .inner
        .nodes
        .views()
        .iter()
        .map(|view| {
            let mut option = view.option(wanted_on_nodes.as_deref());
            if failed_nodes.contains(&option.id) {
                option.reachable = Some(false);
            }
            option
        })
        .collect();
    if let Some(wanted) = wanted
        && entry.is_none()
    {
        let has_it = |view: &crate::NodeView| {
            view.status.as_ref().is_some_and(|status| status.models.iter().any(|model| same_model(model, wanted)))
        };
        let having: Vec<String> = app.inner.nodes.views().into_iter().filter(has_it).map(|view| view.id).collect();
        options.retain(|option| having.contains(&option.id));
        if having.is_empty() {
            return Err(AppError::new(ErrorCode::NotFound, format!("There is no model “{wanted}” here or on a node."))
                .with_hint("`tidegate serve` and the model picker list what there is."));
        }
    }

    let mut demand = Demand { stays_local: request.stays_local, place: request.place.clone(), ..Demand::default() };
    if let Some(entry) = &entry
        && let Ok(header) = &entry.header
    {
        let prompt_tokens = app.inner.engine.count_prompt_tokens(&entry.path, &request.chat).await;
        demand.prompt_tokens =
            prompt_tokens.inspect_err(|error| tracing::warn!(error = chain(error), "prompt not counted")).ok();
        let needed = demand.prompt_tokens.unwrap_or(0)
            + request.chat.sampling.max_tokens.unwrap_or(ANSWER_ROOM).min(ANSWER_ROOM);
        demand.wanted_context = settings.context_len.max(needed).min(header.context_len);
        demand.model = Some(app.local_model(entry, header));
    }
    Ok((decide(&app.policy(), &demand, &app.outlook(), &options), entry))
}

impl App {
    /// How the engine is to load a model, within the memory that is free now.
    fn load_spec(&self, entry: &ModelEntry, context_len: usize) -> LoadSpec {
        let model = entry.usable().map(|header| self.local_model(entry, header));
        let available =
            model.as_ref().and_then(|model| fit(model, &self.policy(), self.outlook().snapshot(), context_len).budget);
        let cache_budget = available
            .zip(model)
            .map(|(available, model)| available.saturating_sub(model.weights).saturating_sub(model.scratch));
        let kv_type = self.settings().kv_type();
        LoadSpec { path: entry.path.clone(), context_len, kv_type, cache_budget, available }
    }

    /// What routing needs to know of a model file, with what the engine holds of it now.
    pub(crate) fn local_model(&self, entry: &ModelEntry, header: &Arc<engine::ModelHeader>) -> LocalModel {
        let loaded = self.inner.engine.loaded();
        let (own, other) = match loaded {
            Some(loaded) if loaded.path == entry.path => (Some(loaded.footprint.total()), chat::Bytes::ZERO),
            Some(loaded) => (None, loaded.footprint.total()),
            None => (None, chat::Bytes::ZERO),
        };
        let kv_type = self.settings().kv_type();
        let footprint = header.footprint(header.context_len, kv_type);
        LocalModel {
            weights: footprint.weights,
            kv_per_token: header.kv_bytes_per_token(kv_type),
            scratch: footprint.scratch.saturating_add(header.state_bytes(kv_type)),
            trained_context: header.context_len,
            already_loaded: own,
            other_loaded: other,
            decode_tokens_per_sec: self.inner.speeds.usual("here", &entry.id),
            ..LocalModel::default()
        }
    }
}

fn refusal(decision: &Decision) -> AppError {
    let code = match decision.reason {
        Reason::NoModel => ErrorCode::NoModel,
        Reason::NoNode | Reason::NodeUnreachable => ErrorCode::NodeUnreachable,
        _ => ErrorCode::DoesNotFit,
    };
    let error = AppError::new(code, sentence(&decision.sentence));
    match &decision.counterfactual {
        Some(hint) => error.with_hint(sentence(hint)),
        None => error,
    }
}

pub(crate) fn generate_error(error: GenerateError) -> AppError {
    tracing::warn!(error = chain(&error), "answer failed here");
    let code = match &error {
        GenerateError::Load(LoadError::NotEnoughMemory { .. }) | GenerateError::ContextFull { .. } => {
            ErrorCode::DoesNotFit
        }
        GenerateError::Load(_) => ErrorCode::BadFile,
        GenerateError::InvalidRequest(_) => ErrorCode::BadRequest,
        _ => ErrorCode::EngineFailed,
    };
    AppError::new(code, sentence(&error.to_string()))
}

fn node_error(name: &str, error: &NodeError) -> AppError {
    tracing::warn!(node = name, error = chain(error), "answer failed on a node");
    let code = match error {
        NodeError::BadAddress { .. } => ErrorCode::BadRequest,
        NodeError::Unauthorized => ErrorCode::NodeUnauthorized,
        NodeError::Unreachable { .. } => ErrorCode::NodeUnreachable,
        NodeError::CutOff | NodeError::TimedOut { .. } => ErrorCode::CutOff,
        _ => ErrorCode::NodeFailed,
    };
    AppError::new(code, format!("{name}: {}", sentence(&error.to_string())))
}
