//! What an answer needs of this program: where it may go, the engine and the nodes, and somebody who watches this machine
//! while it is written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chat::{Bytes, ChatRequest};
use engine::GenerateError;
use futures::{StreamExt, TryStreamExt};
use handoff::{Failure, Host, Opened, Signal, Takeover, Watch};
use nodes::{NodeError, NodeState};
use routing::{
    Advice, Continuation, Decision, Demand, Facts, Guard, Measure, NodeOption, OffloadMode, Place, Policy, Reason,
    Running, Setup, Target, decide, may_leave,
};
use tokio::sync::{OnceCell, mpsc, watch};

use crate::answer::{AnswerRequest, generate_error, id_of};
use crate::disturbance::Disturbance;
use crate::error::{AppError, ErrorCode, chain, sentence};
use crate::model_list::ModelEntry;
use crate::node_list::{NodeView, same_model};
use crate::rendered_answer::{TextAsk, TextFailure};
use crate::takeover::{file_of, probe_unknown, takeover_of_node};
use crate::{App, Vitals};

/// Tokens that an answer should have room for when a context is chosen for it.
const ANSWER_ROOM: usize = 1_024;

/// No pass over a model's weights is over sooner.
const SHORTEST_PASS: Duration = Duration::from_millis(1);

/// The host of one answer.
pub(crate) struct AnswerHost {
    app: App,
    request: AnswerRequest,
    prompt_tokens: OnceCell<Option<usize>>,
    asked: Mutex<Option<Asked>>,
    moves: Arc<tokio::sync::Mutex<mpsc::Receiver<Place>>>,
}

/// What the last decision was made from.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) policy: Policy,
    pub(crate) demand: Demand,
    pub(crate) options: Vec<NodeOption>,
    /// The name by which nodes are asked for the model.
    pub(crate) model: Option<String>,
    /// The model that would run here.
    pub(crate) entry: Option<ModelEntry>,
}

impl AnswerHost {
    pub(crate) fn new(app: App, request: AnswerRequest, moves: mpsc::Receiver<Place>) -> Self {
        let moves = Arc::new(tokio::sync::Mutex::new(moves));
        Self { app, request, prompt_tokens: OnceCell::new(), asked: Mutex::new(None), moves }
    }

    fn asked(&self) -> Option<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gathers what a decision is made from.
    async fn ask(&self, running: Option<&Running>, wanted: Option<&Place>) -> Result<Asked, AppError> {
        let (app, chat) = (&self.app, &self.request.chat);
        let settings = app.settings();
        if running.is_none() && !self.request.stays_local && settings.offload != OffloadMode::LocalOnly {
            app.inner.nodes.probe_unknown().await;
        }
        let name = chat.model.as_deref();
        let entry = app.model_for(name);
        let on_nodes = name.map(str::to_owned).or_else(|| entry.as_ref().map(|entry| entry.id.clone()));
        let views = app.inner.nodes.views();
        let mut options: Vec<_> = views.iter().map(|view| view.option(on_nodes.as_deref())).collect();
        if let Some(name) = name.filter(|_| entry.is_none()) {
            let has_it = |view: &NodeView| {
                view.status.as_ref().is_some_and(|status| status.models.iter().any(|model| same_model(model, name)))
            };
            let having: Vec<&str> = views.iter().filter(|view| has_it(view)).map(|view| view.id.as_str()).collect();
            if having.is_empty() {
                let error =
                    AppError::new(ErrorCode::NotFound, format!("There is no model “{name}” here or on a node."));
                return Err(error.with_hint("`tidegate serve` and the model picker list what there is."));
            }
            options.retain(|option| having.contains(&option.id.as_str()));
        }
        let mut demand = Demand {
            stays_local: self.request.stays_local,
            model_stays_local: on_nodes.as_deref().is_some_and(|model| settings.keeps_here(model)),
            least_trust: settings.least_trust,
            place: wanted.cloned().or_else(|| self.request.place.clone()),
            running: running.cloned(),
            ..Demand::default()
        };
        if let Some((entry, header)) = entry.as_ref().and_then(|entry| Some((entry, entry.usable()?))) {
            let count = || async {
                let count = app.inner.engine.count_prompt_tokens(&entry.path, chat).await;
                count.inspect_err(|error| tracing::warn!(error = chain(error), "prompt not counted")).ok()
            };
            demand.prompt_tokens = *self.prompt_tokens.get_or_init(count).await;
            let written = running.map_or(0, |running| running.tokens);
            let room = chat.sampling.max_tokens.unwrap_or(ANSWER_ROOM).min(ANSWER_ROOM);
            let needed = demand.prompt_tokens.unwrap_or(0) + written + room;
            demand.wanted_context = settings.context_len.max(needed).min(header.context_len);
            demand.model = Some(app.local_model(entry, header));
        }
        let mut asked = Asked { policy: app.policy(), demand, options, model: on_nodes, entry };
        match running {
            // Where nothing is written yet, there is nothing to go on with: any node can begin.
            Some(running) if running.tokens == 0 => {
                asked.options.iter_mut().for_each(|option| option.continuation = Some(Continuation::Prefix));
            }
            Some(running) => probe_unknown(app, &mut asked, chat, running, wanted).await,
            None => {}
        }
        Ok(asked)
    }

    fn open_here(&self, asked: &Asked, context_len: usize, request: ChatRequest) -> Result<Opened<AppError>, AppError> {
        let no_model = || AppError::new(ErrorCode::NoModel, "No model is chosen.");
        let entry = asked.entry.as_ref().ok_or_else(no_model)?;
        let tokenizer = entry.usable().map(|header| header.tokenizer.clone());
        let goes_on = request.written.is_some();
        let failed = move |error: GenerateError| if goes_on { cannot_go_on(error) } else { generate_error(error) };
        let spec = self.app.load_spec(entry, context_len);
        let stream = self.app.inner.engine.chat(spec, request).map(move |event| event.map_err(failed));
        Ok(Opened { stream: stream.boxed(), model: entry.id.clone(), tokenizer })
    }

    fn open_node(&self, asked: &Asked, id: &str, mut request: ChatRequest) -> Result<Opened<AppError>, AppError> {
        let gone = || AppError::new(ErrorCode::NotFound, format!("The node “{id}” is not on the list."));
        let (client, view) = self.app.inner.nodes.client(id).ok_or_else(gone)?;
        let option = asked.options.iter().find(|option| option.id == id).ok_or_else(gone)?;
        let pass = may_leave(&asked.policy, &asked.demand, option).map_err(|refusal| {
            AppError::new(
                ErrorCode::BadRequest,
                sentence(&format!("nothing goes to {}: {}", view.name, refusal.sentence())),
            )
        })?;
        let model = view.model_for(asked.model.as_deref()).map(str::to_owned).ok_or_else(|| {
            AppError::new(ErrorCode::NodeFailed, format!("{} has no model to answer with.", view.name))
                .with_hint("Load one there, then test the node again.")
        })?;
        let engine = view.engine();
        if engine == Some("mlx_lm") {
            // It ends answers after 512 tokens where a request doesn't say; the others go on to the end of the context.
            request.sampling.max_tokens.get_or_insert(self.app.settings().context_len);
        }
        if engine != Some("Tidegate") {
            // Ours draws by the seed alone; another engine's draws can't be gone on with, whatever the seed.
            request.sampling.seed = self.request.chat.sampling.seed;
            request.tells_tokens = engine == Some("vLLM");
        }
        let tokenizer = view.tokenizer_of(&model).map(str::to_owned);
        let name = view.name.clone();
        if request.written.is_some() && tokenizer.is_none() {
            let seam = view.continues(&model).text.flatten();
            let (Some(seam), Some(entry)) = (seam, file_of(asked, &model)) else {
                let sentence = format!("{} can't go on with this answer.", view.name);
                return Err(AppError::new(ErrorCode::NodeFailed, sentence));
            };
            let (engine, path) = (self.app.inner.engine.clone(), entry.path.clone());
            let context_len = asked.demand.wanted_context;
            let ask = TextAsk { engine, path, client, pass, seam, model: model.clone(), request, context_len };
            let failed = move |failure| match failure {
                TextFailure::Rendering(error) => cannot_go_on(error),
                TextFailure::Node(error) => node_error(&name, &error),
            };
            return Ok(Opened { stream: ask.stream().map_err(failed).boxed(), model, tokenizer });
        }
        let stream = client.chat(pass, &model, request).map_err(|error| node_error(&view.name, &error))?;
        let stream = stream.map(move |event| event.map_err(|error| node_error(&name, &error)));
        Ok(Opened { stream: stream.boxed(), model, tokenizer })
    }
}

impl Host for AnswerHost {
    type Failure = AppError;
    type Watch = AnswerWatch;

    async fn decide(&self, running: Option<&Running>, wanted: Option<&Place>) -> Result<Decision, AppError> {
        let mut asked = self.ask(running, wanted).await?;
        let decision = decide(&asked.policy, &asked.demand, &self.app.outlook(), &asked.options);
        if let Target::Here { context_len } = decision.target {
            // The guard foresees the growth of the cache that it gets, not of the one that was wanted.
            asked.demand.wanted_context = context_len;
        }
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
        Ok(decision)
    }

    async fn takeover(&self, place: &Place) -> Takeover {
        let none = Takeover { level: Continuation::None, tokenizer: None };
        let Some(asked) = self.asked() else { return none };
        match place {
            Place::Here => {
                let header = asked.entry.as_ref().and_then(|entry| entry.usable());
                header.map_or(none, |header| Takeover {
                    level: Continuation::Tokens,
                    tokenizer: Some(header.tokenizer.clone()),
                })
            }
            Place::Node(id) => takeover_of_node(&self.app, &asked, &self.request.chat, id).await.unwrap_or(none),
        }
    }

    fn open(&self, decision: &Decision, request: ChatRequest) -> Result<Opened<AppError>, AppError> {
        let asked = self.asked().ok_or_else(|| AppError::new(ErrorCode::Internal, "Nothing was decided."))?;
        match &decision.target {
            Target::Here { context_len } => self.open_here(&asked, *context_len, request),
            Target::Node { id } => self.open_node(&asked, id, request),
            Target::Refuse => Err(self.refusal(decision)),
        }
    }

    async fn is_alive(&self, place: &Place) -> bool {
        match place {
            Place::Here => true,
            Place::Node(id) => {
                let view = self.app.inner.nodes.probe(id).await;
                view.is_some_and(|view| view.status.is_some_and(|status| status.state == NodeState::Ready))
            }
        }
    }

    fn watch(&self, place: &Place) -> AnswerWatch {
        let vitals = self.app.inner.vitals.subscribe();
        let (asked, began) = (self.asked(), Instant::now());
        let usual_tokens_per_sec =
            asked.as_ref().and_then(|asked| self.app.inner.speeds.usual(&id_of(place), &asked.entry.as_ref()?.id));
        let setup = Setup { answer_tokens: None, usual_tokens_per_sec };
        let local = asked.filter(|_| *place == Place::Here);
        let local = local.map(|asked| Local {
            guard: Guard::new(setup),
            n_past: asked.demand.prompt_tokens.unwrap_or(0)
                + asked.demand.running.as_ref().map_or(0, |running| running.tokens),
            last_token: Duration::ZERO,
            most_tokens: self.request.chat.sampling.max_tokens,
            asked,
        });
        let connection = (*place != Place::Here).then(Disturbance::watch);
        AnswerWatch { app: self.app.clone(), vitals, moves: self.moves.clone(), local, began, connection }
    }

    async fn relieve(&self, measure: Measure) {
        let engine = &self.app.inner.engine;
        match measure {
            // The engine has one model at a time, and another one than this is unloaded before this begins.
            Measure::UnloadIdleModels => {}
            Measure::TrimCaches => engine.trim_caches().await,
            Measure::CapContext(tokens) => engine.cap_context(Some(tokens)),
            Measure::Pace(tokens_per_sec) => engine.set_pace(Some(tokens_per_sec)),
        }
    }

    fn has_left(&self, place: &Place, reason: Option<Reason>) {
        let frees_memory =
            matches!(reason, Some(Reason::Swap | Reason::Pressure | Reason::Memory | Reason::MemorySoon));
        if *place == Place::Here && frees_memory {
            // That was the point of it. Other answers that run here are waited for.
            let app = self.app.clone();
            self.app.in_background(async move {
                app.inner.engine.unload().await;
            });
        }
    }

    fn has_failed(&self, place: &Place, failure: &AppError) {
        let Place::Node(id) = place else { return };
        let state = match failure.code {
            ErrorCode::NodeUnreachable | ErrorCode::CutOff => NodeState::Unreachable(failure.sentence.clone()),
            ErrorCode::NodeUnauthorized => NodeState::Unauthorized,
            _ => return,
        };
        self.app.inner.nodes.update(id, |view| {
            if let Some(status) = &mut view.status {
                status.state = state;
            }
        });
    }

    fn refusal(&self, decision: &Decision) -> AppError {
        let code = match decision.reason {
            Reason::NoModel => ErrorCode::NoModel,
            Reason::TooLong => ErrorCode::ContextFull,
            Reason::NoNode | Reason::NodeUnreachable | Reason::Failed | Reason::CannotContinue => {
                ErrorCode::NodeUnreachable
            }
            _ => ErrorCode::DoesNotFit,
        };
        let error = AppError::new(code, sentence(&decision.sentence));
        match &decision.counterfactual {
            Some(hint) => error.with_hint(sentence(hint)),
            None => error,
        }
    }

    fn cut_off(&self, place: &Place) -> AppError {
        let name = match place {
            Place::Here => None,
            Place::Node(id) => self.app.inner.nodes.client(id).map(|(_, view)| view.name),
        };
        let sentence = match name {
            Some(name) => format!("{name} went silent in the middle of the answer."),
            None => "The answer ended in the middle.".to_owned(),
        };
        AppError::new(ErrorCode::CutOff, sentence)
    }
}

impl Failure for AppError {
    fn is_final(&self) -> bool {
        self.code == ErrorCode::BadRequest
    }

    fn is_cut_off(&self) -> bool {
        matches!(self.code, ErrorCode::CutOff | ErrorCode::NodeUnreachable)
    }

    fn sentence(&self) -> String {
        self.sentence.clone()
    }
}

/// Watches over an answer as long as it is written in one place.
pub(crate) struct AnswerWatch {
    app: App,
    vitals: watch::Receiver<Arc<Vitals>>,
    moves: Arc<tokio::sync::Mutex<mpsc::Receiver<Place>>>,
    /// Where it is written here.
    local: Option<Local>,
    began: Instant,
    /// Where it is written on a node.
    connection: Option<Disturbance>,
}

/// What is watched of an answer that is written here.
struct Local {
    guard: Guard,
    asked: Asked,
    /// Tokens in its cache.
    n_past: usize,
    /// After the beginning.
    last_token: Duration,
    most_tokens: Option<usize>,
}

impl Watch for AnswerWatch {
    fn token(&mut self, at: Duration) {
        if let Some(local) = &mut self.local {
            local.n_past += 1;
            // Guesses that were right come with the token before them, and say nothing of the machine's speed.
            if at.saturating_sub(local.last_token) >= SHORTEST_PASS {
                local.guard.token(at);
            }
            local.last_token = at;
        }
    }

    async fn next(&mut self) -> Signal {
        loop {
            let moves = self.moves.clone();
            let moved = async move {
                match moves.lock().await.recv().await {
                    Some(place) => place,
                    // Nobody can say so any more.
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                place = moved => return Signal::MoveTo(place),
                changed = self.vitals.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    if self.connection.as_mut().is_some_and(Disturbance::happened) {
                        return Signal::Disturbed;
                    }
                    let (app, at) = (self.app.clone(), self.began.elapsed());
                    if let Some(advice) = self.local.as_mut().and_then(|local| local.look(&app, at)) {
                        return Signal::Advice(advice);
                    }
                }
            }
        }
    }
}

impl Drop for AnswerWatch {
    fn drop(&mut self) {
        // What other answers put up with isn't changed for them.
        if self.local.is_some() && self.app.inner.vitals.answers() <= 1 {
            self.app.inner.engine.set_pace(None);
            self.app.inner.engine.cap_context(None);
        }
    }
}

impl Local {
    fn look(&mut self, app: &App, at: Duration) -> Option<Advice> {
        let (policy, outlook) = (app.policy(), app.outlook());
        let entry = self.asked.entry.as_ref()?;
        let model = app.local_model(entry, entry.usable()?);
        // While it is loaded, what it takes is neither free any more nor known to be its own.
        model.already_loaded?;
        let prompt = self.asked.demand.prompt_tokens.unwrap_or(0);
        let context_len = self.asked.demand.wanted_context;
        let context_len = self.most_tokens.map_or(context_len, |most| context_len.min(prompt.saturating_add(most)));
        let can_move = policy.mode != OffloadMode::LocalOnly
            && app.inner.nodes.views().iter().any(|view| {
                let option = view.option(Some(&entry.id));
                let may = may_leave(&policy, &self.asked.demand, &option).is_ok();
                may && option.has_model
                    && option.reachable == Some(true)
                    && option.continuation != Some(Continuation::None)
            });
        let facts =
            Facts { model: &model, n_past: self.n_past, context_len, trimmable: trimmable(app, &model), can_move };
        if self.guard.may_return(at, &policy, &outlook) {
            app.inner.engine.set_pace(None);
        }
        let advice = self.guard.look(at, &policy, &outlook, &facts);
        (advice != Advice::GoOn).then_some(advice)
    }
}

fn trimmable(app: &App, model: &routing::LocalModel) -> Bytes {
    let idle = app.inner.engine.idle_caches();
    model.already_loaded.map_or(Bytes::ZERO, |held| idle.min(held))
}

/// What can't be gone on with in one place may be in another.
fn cannot_go_on(error: GenerateError) -> AppError {
    let error = generate_error(error);
    let code = if error.code == ErrorCode::BadRequest { ErrorCode::EngineFailed } else { error.code };
    AppError { code, ..error }
}

fn node_error(name: &str, error: &NodeError) -> AppError {
    tracing::warn!(node = name, error = chain(error), "answer failed on a node");
    let code = match error {
        NodeError::BadAddress { .. } | NodeError::NoLeave => ErrorCode::BadRequest,
        NodeError::Unauthorized => ErrorCode::NodeUnauthorized,
        NodeError::Unreachable { .. } => ErrorCode::NodeUnreachable,
        NodeError::CutOff | NodeError::TimedOut { .. } => ErrorCode::CutOff,
        _ => ErrorCode::NodeFailed,
    };
    AppError::new(code, format!("{name}: {}", sentence(&error.to_string())))
}
