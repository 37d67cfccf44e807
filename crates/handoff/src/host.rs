use std::future::Future;
use std::time::Duration;

use chat::{ChatEvent, ChatRequest};
use futures::stream::BoxStream;
use routing::{Advice, Continuation, Decision, Measure, Place, Running};

/// What a backend says: any number of events, then `Finished` or one failure. Dropping it stops the backend.
pub type BackendStream<E> = BoxStream<'static, Result<ChatEvent, E>>;

/// Why a backend gave no answer, or no whole one.
pub trait Failure: Send + 'static {
    /// Every place would refuse this request.
    fn is_final(&self) -> bool;

    /// It didn't refuse: it can't be reached, or was cut off, and may come back.
    fn is_cut_off(&self) -> bool;

    /// In a few words, for the ledger: never text of the conversation.
    fn sentence(&self) -> String;
}

/// A backend that was asked.
pub struct Opened<E> {
    /// What it says.
    pub stream: BackendStream<E>,
    /// The name of its model there.
    pub model: String,
    /// Names what its token ids mean, where it tells any: see [`Takeover::tokenizer`].
    pub tokenizer: Option<String>,
}

/// How a place goes on with an answer that was begun elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// The most exact way that it knows.
    pub level: Continuation,
    /// Names what token ids mean there, or to the model by whose template its text is rendered; token ids are handed over
    /// only where both sides have the same name for it.
    pub tokenizer: Option<String>,
}

/// What whoever watches over a running answer has to say.
#[derive(Clone, Debug, PartialEq)]
pub enum Signal {
    /// The guard's advice; never [`Advice::GoOn`].
    Advice(Advice),
    /// The user wants it to go on there.
    MoveTo(Place),
    /// The machine slept, or its network changed: a connection may be dead without having said so.
    Disturbed,
}

/// Watches over one answer as long as it is written in one place.
pub trait Watch: Send {
    /// A token came, so long after the answer began there.
    fn token(&mut self, at: Duration);

    /// Waits for the next thing to do; for ever where there is nothing. May be dropped and called again.
    fn next(&mut self) -> impl Future<Output = Signal> + Send;
}

/// Everything around an answer.
pub trait Host: Send + Sync {
    /// Why a backend failed.
    type Failure: Failure;
    /// Watches over an answer.
    type Watch: Watch;

    /// Decides where the answer begins, or where one that runs goes on: at `wanted`, where the user says so.
    fn decide(
        &self,
        running: Option<&Running>,
        wanted: Option<&Place>,
    ) -> impl Future<Output = Result<Decision, Self::Failure>> + Send;

    /// How `place` would go on with an answer. Asks it where nobody knows yet.
    fn takeover(&self, place: &Place) -> impl Future<Output = Takeover> + Send;

    /// Asks the place that was decided on.
    ///
    /// # Errors
    /// Where it can't even be asked.
    fn open(&self, decision: &Decision, request: ChatRequest) -> Result<Opened<Self::Failure>, Self::Failure>;

    /// Whether a place that has been silent for a while still answers anything.
    fn is_alive(&self, place: &Place) -> impl Future<Output = bool> + Send;

    /// A watch over the answer that begins, or goes on, at `place`.
    fn watch(&self, place: &Place) -> Self::Watch;

    /// Makes room here in the way that was advised.
    fn relieve(&self, measure: Measure) -> impl Future<Output = ()> + Send;

    /// The answer has left `place` for another one: what it held there may go.
    fn has_left(&self, place: &Place, reason: Option<routing::Reason>);

    /// The answer at `place` failed.
    fn has_failed(&self, place: &Place, failure: &Self::Failure);

    /// What to say where no place is left.
    fn refusal(&self, decision: &Decision) -> Self::Failure;

    /// What to say where a place went silent, or ended an answer without an end.
    fn cut_off(&self, place: &Place) -> Self::Failure;
}
