use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use chat::{ChatEvent, ChatRequest, Finish, FinishReason, Usage};
use futures::StreamExt;
use routing::{Advice, Concern, Continuation, Decision, Measure, Place, Running, Target};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::host::{BackendStream, Failure, Host, Opened, Signal, Watch};
use crate::ledger::{Ended, Ledger};
use crate::{Takeover, continue_request};

/// How long a backend may be silent before it is asked whether it is still there, and again after each time that it was.
const SILENCE: Duration = Duration::from_secs(10);
/// The least of it in the middle of an answer: to ask in vain costs a round trip, and what it says meanwhile counts more.
const SHORT_SILENCE: Duration = Duration::from_secs(2);
/// In between, it may be silent for so many times its longest pause in this answer.
const PAUSES: u32 = 4;
/// How long one that is there may be silent in the middle of an answer: nothing that is written takes as long.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// The same before its first token: many servers read a long prompt without a word.
const LONGEST_PROMPT: Duration = Duration::from_secs(180);
/// How long the old place waits, with what it has written on, for the first token of the new one.
const FIRST_TOKEN: Duration = Duration::from_secs(20);
/// How long the new place may take to read what is written so far, while the old one writes on.
const WARM_UP: Duration = Duration::from_secs(120);
/// How long an answer stays where it is when it was to move and there was no place to go.
const STAYS: Duration = Duration::from_secs(5);
/// How long an answer that has no other place to go waits for the one that it was cut off from: a network that changes, and
/// a server that is started again, are back within seconds.
const RETURNS: Duration = Duration::from_secs(15);
/// How often it is asked meanwhile.
const ASKED_AGAIN: Duration = Duration::from_secs(1);
/// The most times an answer waits so.
const MOST_RETURNS: usize = 3;
/// Events of the old place that wait for the first token of the new one; the old place waits when there are more.
const HELD_BACK: usize = 512;

/// What comes back: `Routed` for every place that is tried, then what it says; one `Finished` or one `Failed` at the end.
#[derive(Debug)]
pub enum HandoffEvent<E> {
    /// The answer begins there, or goes on there from the point that it has reached.
    Routed {
        /// Where, and why.
        decision: Box<Decision>,
        /// The same as in the decision's target; `None` where it refuses.
        place: Option<Place>,
        /// The model's name there.
        model: String,
        /// How it goes on; `None` where the answer begins.
        continuation: Option<Continuation>,
    },
    /// Room was made here, and why.
    Relieved {
        /// How.
        measure: Measure,
        /// Why.
        concern: Box<Concern>,
    },
    /// The answer was to move, and stays where it is, as this decision says.
    Stayed(Box<Decision>),
    /// The place that wrote failed, in these words; the answer goes on elsewhere, or fails.
    Lost(String),
    /// What the backend says.
    Chat(ChatEvent),
    /// The answer is not whole, and no place can go on with it.
    Failed(E),
}

/// Writes an answer, and gives the ledger of it at the end. Dropping the future stops it. The request needs a seed where
/// tokens are drawn at random: the places that write an answer draw by the same.
pub async fn answer<H: Host>(
    host: &H,
    request: ChatRequest,
    events: &mpsc::Sender<HandoffEvent<H::Failure>>,
) -> Ledger {
    let tells_tokens = request.tells_tokens;
    let request = ChatRequest { tells_tokens: true, ..request };
    let (ledger, failed, last_told) = (Ledger::default(), Vec::new(), Instant::now());
    let mut answer = Answer {
        host,
        request,
        tells_tokens,
        events,
        ledger,
        failed,
        last_told,
        said_to_be_whole: None,
        cut_off: None,
        returns: 0,
    };
    answer.run().await;
    answer.ledger
}

struct Answer<'a, H: Host> {
    host: &'a H,
    request: ChatRequest,
    /// Whoever asked wants the tokens, too.
    tells_tokens: bool,
    events: &'a mpsc::Sender<HandoffEvent<H::Failure>>,
    ledger: Ledger,
    /// Places that failed during this answer.
    failed: Vec<Place>,
    last_told: Instant,
    /// A place that added nothing says that the answer is whole.
    said_to_be_whole: Option<Finish>,
    /// The place that wrote last, where the answer was cut off from it.
    cut_off: Option<Place>,
    returns: usize,
}

/// A place that writes.
struct Source<H: Host> {
    place: Place,
    decision: Decision,
    opened: Opened<H::Failure>,
    continuation: Option<Continuation>,
    watch: H::Watch,
    began: Instant,
    pulse: Pulse,
    has_told: bool,
    /// Advice to move isn't heard before: there was no place to go.
    stays_until: Instant,
}

/// How long a place is silent, counted only while somebody listens to it.
#[derive(Clone, Copy)]
struct Pulse {
    /// Since then nothing came.
    since: Instant,
    /// The longest pause between two events from the first token on; `None` before.
    longest_pause: Option<Duration>,
    /// When it is asked whether it is still there.
    ask_at: Instant,
    /// This connection may be dead though the place is there.
    is_disturbed: bool,
}

impl Pulse {
    fn start() -> Self {
        let since = Instant::now();
        Self { since, longest_pause: None, ask_at: since + SILENCE, is_disturbed: false }
    }

    /// Something came.
    fn beat(&mut self) {
        self.is_disturbed = false;
        self.longest_pause = self.longest_pause.map(|longest| longest.max(self.since.elapsed()));
    }

    /// Somebody listens again. What comes from the first token on comes at a pace of its own.
    fn listen(&mut self, has_told: bool) {
        if has_told {
            self.longest_pause.get_or_insert(Duration::ZERO);
        }
        self.since = Instant::now();
        self.ask_at = self.since + self.patience();
    }

    fn patience(&self) -> Duration {
        self.longest_pause.map_or(SILENCE, |pause| (pause * PAUSES).clamp(SHORT_SILENCE, SILENCE))
    }

    /// The machine slept, or its network changed.
    fn disturb(&mut self) {
        self.is_disturbed = true;
        self.ask_at = self.ask_at.min(Instant::now() + self.patience());
    }

    /// Whether it is too long, for one that is there.
    fn is_stuck(&self) -> bool {
        let longest = match self.longest_pause {
            // It writes, but not here.
            Some(_) if self.is_disturbed => self.patience(),
            Some(_) => LONGEST_SILENCE,
            None => LONGEST_PROMPT,
        };
        self.since.elapsed() >= longest
    }
}

/// How a source ended.
enum End<E> {
    /// The answer is at its end; this is left to tell.
    Finished(Finish),
    /// The place failed.
    Lost(E),
}

/// Why a source is left.
enum Left<E> {
    Ended(End<E>),
    /// It should go on elsewhere.
    Move(Why),
}

/// Why a running answer should move.
enum Why {
    Concern(Concern),
    Wanted(Place),
}

impl<H: Host> Answer<'_, H> {
    async fn run(&mut self) {
        let mut lost = None;
        loop {
            let Some(mut source) = self.place(lost.take()).await else { return };
            let end = loop {
                let why = match self.follow(&mut source).await {
                    Left::Ended(end) => break end,
                    Left::Move(why) => why,
                };
                match self.hand_over(&mut source, why).await {
                    Ok(None) => source.stays_until = Instant::now() + STAYS,
                    Ok(Some(next)) => source = next,
                    Err(end) => break end,
                }
            };
            let failure = match end {
                End::Finished(finish) if !self.is_doubtful(&source, &finish) => return self.finish(finish).await,
                End::Finished(_) => self.host.cut_off(&source.place),
                End::Lost(failure) => failure,
            };
            self.lose(&source.place, &failure).await;
            if self.said_to_be_whole.is_some() {
                // It said what it has to say, and would say it again.
                self.cut_off = None;
            }
            lost = Some(failure);
        }
    }

    /// Whether a node ended the answer without a word of its own. It may be right, and the answer was whole; but then
    /// another place says so, too.
    fn is_doubtful(&mut self, source: &Source<H>, finish: &Finish) -> bool {
        let said_nothing = !source.has_told && source.place != Place::Here && finish.reason != FinishReason::Length;
        if !said_nothing || self.said_to_be_whole.is_some() {
            return false;
        }
        self.said_to_be_whole = Some(*finish);
        true
    }

    /// Finds a place that begins, or goes on after `lost`. `None` where there is none, which was told.
    async fn place(&mut self, mut lost: Option<H::Failure>) -> Option<Source<H>> {
        loop {
            if lost.as_ref().is_some_and(Failure::is_final) {
                self.give_up(lost.take()?).await;
                return None;
            }
            let decision = match self.host.decide(self.running(None).as_ref(), None).await {
                Ok(decision) => decision,
                Err(failure) => {
                    self.give_up(lost.unwrap_or(failure)).await;
                    return None;
                }
            };
            let Some(place) = self.untried(&decision) else {
                if self.comes_back().await {
                    continue;
                }
                let refusal = self.host.refusal(&decision);
                if lost.is_none() {
                    self.tell_route(&decision, None, String::new(), None).await;
                }
                self.give_up(lost.unwrap_or(refusal)).await;
                return None;
            };
            match self.open(&decision, &place).await {
                Ok(mut source) => {
                    self.begin(&mut source).await;
                    return Some(source);
                }
                Err(None) => self.failed.push(place),
                Err(Some(failure)) => {
                    self.lose_candidate(&place, &failure);
                    lost = Some(failure);
                }
            }
        }
    }

    /// Whether the place that the answer was cut off from can be asked again, within a little while.
    async fn comes_back(&mut self) -> bool {
        let Some(place) = self.cut_off.take().filter(|_| self.returns < MOST_RETURNS) else { return false };
        self.returns += 1;
        let deadline = Instant::now() + RETURNS;
        while !self.host.is_alive(&place).await {
            if Instant::now() + ASKED_AGAIN > deadline {
                return false;
            }
            sleep(ASKED_AGAIN).await;
        }
        self.failed.retain(|failed| *failed != place);
        true
    }

    /// Where the decision leads; a place that has failed leads nowhere, whatever is decided.
    fn untried(&self, decision: &Decision) -> Option<Place> {
        place_of(decision).filter(|place| !self.failed.contains(place))
    }

    fn running(&self, concern: Option<Concern>) -> Option<Running> {
        let current = self.ledger.segments().last().map(|segment| segment.place.clone());
        current.or_else(|| self.failed.last().cloned()).map(|place| Running {
            place,
            tokens: self.ledger.token_count(),
            failed: self.failed.clone(),
            concern,
        })
    }

    /// Waits for `work` while the place that writes goes on.
    ///
    /// # Errors
    /// When it finished or failed meanwhile.
    async fn meanwhile<T>(
        &mut self,
        source: &mut Source<H>,
        work: impl Future<Output = T>,
    ) -> Result<T, End<H::Failure>> {
        let mut work = pin!(work);
        source.pulse.listen(source.has_told);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                event = listen(self.host, &source.place, &mut source.opened.stream, &mut source.pulse) => {
                    if let Some(end) = self.heard(source, event).await {
                        return Err(end);
                    }
                }
            }
        }
    }

    /// Asks a place to begin, or to go on with what is written; the error is `None` where it can't at this point.
    async fn open(&self, decision: &Decision, place: &Place) -> Result<Source<H>, Option<H::Failure>> {
        let (request, continuation) = match self.ledger.is_empty() {
            true => (self.request.clone(), None),
            false => {
                let takeover = self.host.takeover(place).await;
                let (request, level) = self.continued(&takeover, place).ok_or(None)?;
                (request, Some(level))
            }
        };
        let opened = self.host.open(decision, request)?;
        Ok(self.source(decision, place, opened, continuation))
    }

    fn continued(&self, takeover: &Takeover, place: &Place) -> Option<(ChatRequest, Continuation)> {
        let continued = continue_request(&self.request, &self.ledger, takeover);
        continued.inspect_err(|why| tracing::info!(?place, %why, "a place can't go on with an answer")).ok()
    }

    fn source(
        &self,
        decision: &Decision,
        place: &Place,
        opened: Opened<H::Failure>,
        continuation: Option<Continuation>,
    ) -> Source<H> {
        let (watch, began) = (self.host.watch(place), Instant::now());
        let (place, decision) = (place.clone(), decision.clone());
        Source {
            place,
            decision,
            opened,
            continuation,
            watch,
            began,
            pulse: Pulse::start(),
            has_told: false,
            stays_until: began,
        }
    }

    /// The answer is written by `source` from here on.
    async fn begin(&mut self, source: &mut Source<H>) {
        let Opened { model, tokenizer, .. } = &source.opened;
        self.ledger.begin(source.place.clone(), model.clone(), source.continuation, tokenizer.clone());
        self.tell_route(&source.decision, Some(source.place.clone()), model.clone(), source.continuation).await;
    }

    /// Hands on what `source` says until it is to be left.
    async fn follow(&mut self, source: &mut Source<H>) -> Left<H::Failure> {
        source.pulse.listen(source.has_told);
        loop {
            tokio::select! {
                biased;
                signal = source.watch.next() => match signal {
                    Signal::Advice(Advice::GoOn) => {}
                    Signal::Advice(Advice::Relieve(measure, concern)) => {
                        self.host.relieve(measure).await;
                        self.send(HandoffEvent::Relieved { measure, concern: Box::new(concern) }).await;
                    }
                    Signal::Advice(Advice::HandOff(_)) if Instant::now() < source.stays_until => {}
                    Signal::Advice(Advice::HandOff(concern)) => return Left::Move(Why::Concern(concern)),
                    Signal::MoveTo(place) if place == source.place => {}
                    Signal::MoveTo(place) => return Left::Move(Why::Wanted(place)),
                    Signal::Disturbed if source.place == Place::Here => {}
                    Signal::Disturbed => source.pulse.disturb(),
                },
                event = listen(self.host, &source.place, &mut source.opened.stream, &mut source.pulse) => {
                    if let Some(end) = self.heard(source, event).await {
                        return Left::Ended(end);
                    }
                }
            }
        }
    }

    /// Takes what came of `source`: `None` where nothing will.
    async fn heard(
        &mut self,
        source: &mut Source<H>,
        event: Option<Result<ChatEvent, H::Failure>>,
    ) -> Option<End<H::Failure>> {
        match event {
            None => Some(End::Lost(self.host.cut_off(&source.place))),
            Some(Err(failure)) => Some(End::Lost(failure)),
            Some(Ok(ChatEvent::Finished(finish))) => Some(End::Finished(finish)),
            Some(Ok(event)) => {
                source.pulse.beat();
                if is_written(&event) {
                    // So it wasn't.
                    self.said_to_be_whole = None;
                    source.has_told = true;
                    source.watch.token(source.began.elapsed());
                }
                self.tell(event).await;
                source.pulse.listen(source.has_told);
                None
            }
        }
    }

    /// Moves the answer: the new place reads what is written while the old one writes on, then takes over. `None` where it
    /// stays, because there is no better place or the new one failed.
    ///
    /// # Errors
    /// When the old place finished or failed meanwhile.
    async fn hand_over(&mut self, source: &mut Source<H>, why: Why) -> Result<Option<Source<H>>, End<H::Failure>> {
        let is_urgent = matches!(&why, Why::Concern(concern) if concern.is_urgent);
        loop {
            let host = self.host;
            let (concern, wanted) = match &why {
                Why::Concern(concern) => (Some(concern.clone()), None),
                Why::Wanted(place) => (None, Some(place)),
            };
            let running = self.running(concern);
            let Ok(decision) = self.meanwhile(source, host.decide(running.as_ref(), wanted)).await? else {
                return Ok(None);
            };
            let Some(place) = self.untried(&decision).filter(|place| *place != source.place) else {
                self.send(HandoffEvent::Stayed(Box::new(decision))).await;
                return Ok(None);
            };
            let takeover = self.meanwhile(source, host.takeover(&place)).await?;
            if self.continued(&takeover, &place).is_none() {
                self.failed.push(place);
                continue;
            }
            if !is_urgent && !self.warm_up(source, &decision, &place, &takeover).await? {
                continue;
            }
            match self.take_over(source, &decision, &place, &takeover, !is_urgent).await? {
                Some(next) => return Ok(Some(next)),
                None => continue,
            }
        }
    }

    /// Lets the new place read what is written, while the old one writes on. False where it failed.
    async fn warm_up(
        &mut self,
        source: &mut Source<H>,
        decision: &Decision,
        place: &Place,
        takeover: &Takeover,
    ) -> Result<bool, End<H::Failure>> {
        let Some((mut request, _)) = self.continued(takeover, place) else { return Ok(false) };
        // One token is drawn, and thrown away: what counts is the cache that it leaves. Where the tokens of what is written
        // aren't known, nobody can say how many the limit has to allow; it is left at the first that comes.
        let is_counted = request.written.as_ref().is_none_or(|written| !written.tokens.is_empty());
        if is_counted {
            let before = request.written.as_ref().map_or(0, |written| written.tokens.len());
            request.sampling.max_tokens = Some(before + 1);
        }
        let mut warm = match self.host.open(decision, request) {
            Ok(opened) => opened.stream,
            Err(failure) => {
                self.lose_candidate(place, &failure);
                return Ok(false);
            }
        };
        let deadline = Instant::now() + WARM_UP;
        source.pulse.listen(source.has_told);
        loop {
            tokio::select! {
                biased;
                event = tokio::time::timeout_at(deadline, warm.next()) => match event {
                    Ok(Some(Ok(ChatEvent::Finished(_)))) => return Ok(true),
                    Ok(Some(Ok(event))) if !is_counted && is_written(&event) => return Ok(true),
                    Ok(Some(Ok(_))) => {}
                    Ok(Some(Err(failure))) => {
                        self.lose_candidate(place, &failure);
                        return Ok(false);
                    }
                    Ok(None) | Err(_) => {
                        let failure = self.host.cut_off(place);
                        self.lose_candidate(place, &failure);
                        return Ok(false);
                    }
                },
                event = listen(self.host, &source.place, &mut source.opened.stream, &mut source.pulse) => {
                    if let Some(end) = self.heard(source, event).await {
                        return Err(end);
                    }
                }
            }
        }
    }

    /// Hands the answer over at this point. What the old place writes meanwhile is held back, and told only where the new
    /// one fails before its first token; then the old one just goes on, and this gives `None`.
    async fn take_over(
        &mut self,
        source: &mut Source<H>,
        decision: &Decision,
        place: &Place,
        takeover: &Takeover,
        is_warm: bool,
    ) -> Result<Option<Source<H>>, End<H::Failure>> {
        let Some((request, continuation)) = self.continued(takeover, place) else {
            self.failed.push(place.clone());
            return Ok(None);
        };
        let opened = match self.host.open(decision, request) {
            Ok(opened) => opened,
            Err(failure) => {
                self.lose_candidate(place, &failure);
                return Ok(None);
            }
        };
        let mut next = self.source(decision, place, opened, Some(continuation));
        let (mut held, mut untold) = (VecDeque::new(), Vec::new());
        let deadline = Instant::now() + if is_warm { FIRST_TOKEN } else { WARM_UP };
        let mut old_has_ended = false;
        let first = loop {
            tokio::select! {
                biased;
                event = tokio::time::timeout_at(deadline, next.opened.stream.next()) => match event {
                    // The old place knows better whether there is more to come.
                    Ok(Some(Ok(ChatEvent::Finished(_)))) if !old_has_ended => break Err(self.host.cut_off(place)),
                    Ok(Some(Ok(event))) if is_written(&event) || matches!(event, ChatEvent::Finished(_)) => break Ok(event),
                    Ok(Some(Ok(event))) => untold.push(event),
                    Ok(Some(Err(failure))) => break Err(failure),
                    Ok(None) | Err(_) => break Err(self.host.cut_off(place)),
                },
                event = source.opened.stream.next(), if !old_has_ended && held.len() < HELD_BACK => {
                    old_has_ended = !matches!(event, Some(Ok(_))) || matches!(event, Some(Ok(ChatEvent::Finished(_))));
                    held.push_back(event);
                }
            }
        };
        match first {
            Ok(first) => {
                self.ledger.end(Ended::HandedOver);
                self.begin(&mut next).await;
                self.host.has_left(&source.place, Some(next.decision.reason));
                untold.push(first);
                for event in untold {
                    if let Some(end) = self.heard(&mut next, Some(Ok(event))).await {
                        *source = next;
                        return Err(end);
                    }
                }
                Ok(Some(next))
            }
            Err(failure) => {
                self.lose_candidate(place, &failure);
                for event in held {
                    if let Some(end) = self.heard(source, event).await {
                        return Err(end);
                    }
                }
                Ok(None)
            }
        }
    }

    /// The place that wrote failed.
    async fn lose(&mut self, place: &Place, failure: &H::Failure) {
        let sentence = failure.sentence();
        self.ledger.end(Ended::Failed(sentence.clone()));
        self.lose_candidate(place, failure);
        self.cut_off = failure.is_cut_off().then(|| place.clone());
        self.send(HandoffEvent::Lost(sentence)).await;
    }

    fn lose_candidate(&mut self, place: &Place, failure: &H::Failure) {
        self.host.has_failed(place, failure);
        self.failed.push(place.clone());
    }

    async fn finish(&mut self, mut finish: Finish) {
        self.ledger.end(Ended::Finished);
        if self.ledger.segments().len() > 1 {
            finish.usage = self.usage(finish.usage);
            // Of the place that wrote last, and so of nothing that anybody waited for.
            finish.timings.ttft = None;
        }
        self.send(HandoffEvent::Chat(ChatEvent::Finished(finish))).await;
    }

    /// Tokens of the whole answer; `None` where they can't be known.
    fn usage(&self, told: Option<Usage>) -> Option<Usage> {
        let (told, last) = (told?, self.ledger.segments().last()?);
        match last.continuation {
            // It counted what was there before it as a part of the prompt.
            Some(Continuation::Prefix) => {
                let before = last.tokens.as_ref()?.start;
                Some(Usage {
                    prompt_tokens: told.prompt_tokens.saturating_sub(before),
                    cached_tokens: told.cached_tokens.min(told.prompt_tokens.saturating_sub(before)),
                    completion_tokens: told.completion_tokens + before,
                })
            }
            _ => Some(told),
        }
    }

    /// No place is left to go on.
    async fn give_up(&mut self, failure: H::Failure) {
        if let Some(finish) = self.said_to_be_whole.take().filter(|_| !self.ledger.is_empty()) {
            return self.finish(finish).await;
        }
        self.ledger.end(Ended::Failed(failure.sentence()));
        self.send(HandoffEvent::Failed(failure)).await;
    }

    async fn tell(&mut self, event: ChatEvent) {
        self.ledger.tell(&event, self.last_told.elapsed());
        if is_written(&event) {
            self.last_told = Instant::now();
        }
        if self.tells_tokens || !matches!(event, ChatEvent::Tokens { .. }) {
            self.send(HandoffEvent::Chat(event)).await;
        }
    }

    async fn tell_route(
        &self,
        decision: &Decision,
        place: Option<Place>,
        model: String,
        continuation: Option<Continuation>,
    ) {
        let decision = Box::new(decision.clone());
        self.send(HandoffEvent::Routed { decision, place, model, continuation }).await;
    }

    async fn send(&self, event: HandoffEvent<H::Failure>) {
        // Nobody listening is noticed by whoever holds this future.
        let _ = self.events.send(event).await;
    }
}

/// What `place` says next; `None` where it ended without an end, is silent and doesn't answer when it is asked, or is
/// silent for too long. What it says while it is asked counts more than what it answers. May be dropped and called again.
async fn listen<H: Host>(
    host: &H,
    place: &Place,
    stream: &mut BackendStream<H::Failure>,
    pulse: &mut Pulse,
) -> Option<Result<ChatEvent, H::Failure>> {
    loop {
        let asked = async {
            sleep_until(pulse.ask_at).await;
            host.is_alive(place).await
        };
        tokio::select! {
            biased;
            event = stream.next() => return event,
            is_alive = asked => {
                if !is_alive || pulse.is_stuck() {
                    return None;
                }
                pulse.ask_at = Instant::now() + SILENCE;
            }
        }
    }
}

fn place_of(decision: &Decision) -> Option<Place> {
    match &decision.target {
        Target::Here { .. } => Some(Place::Here),
        Target::Node { id } => Some(Place::Node(id.clone())),
        Target::Refuse => None,
    }
}

/// Whether the reader sees something of it.
fn is_written(event: &ChatEvent) -> bool {
    matches!(event, ChatEvent::Text(_) | ChatEvent::Thinking(_) | ChatEvent::ToolCall { .. })
}
