//! One scenario: the machine, its places, the user, and whoever reads the answer.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chat::{Bytes, ChatRequest, Message, Role, SamplingParams};
use handoff::{HandoffEvent, Host, Ledger, Opened, Signal, Takeover, Watch, answer};
use routing::{
    Advice, Concern, Continuation, Decision, Demand, LocalModel, Measure, NodeOption, OffloadMode, Outlook, Place,
    PlaceChoice, Policy, Reason, Running, Target, decide, may_leave,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use vitals::{Memory, MemoryPressure, Snapshot, Swap, ThermalState};

use crate::check::Outcome;
use crate::place::{self, Broken, Fault, Spec};
use crate::random::Random;

/// Longer than any scenario takes; a scenario that takes longer hangs.
const TOO_LONG: Duration = Duration::from_secs(7_200);

/// Something that is said to a running answer, so long after it began in its place.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) after: Duration,
    pub(crate) signal: Signal,
}

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) here: Option<Spec>,
    pub(crate) nodes: Vec<Spec>,
    pub(crate) policy: Policy,
    pub(crate) stays_local: bool,
    pub(crate) wanted: Option<PlaceChoice>,
    pub(crate) snapshot: Snapshot,
    pub(crate) said: Vec<Said>,
    pub(crate) max_tokens: Option<usize>,
    /// The reader takes so long for each event.
    pub(crate) reader_ms: u64,
    /// The reader goes away after so many events.
    pub(crate) reads: Option<usize>,
    pub(crate) probe_ms: u64,
}

const NODES: [&str; 3] = ["ash", "birch", "cedar"];

impl Scenario {
    pub(crate) fn new(random: &mut Random) -> Self {
        let faults = random.pick(&[0, 30, 60, 90]);
        let here = (!random.once_in(5)).then(|| place::random(random, "here", false, faults / 3));
        let count = random.pick(&[0, 1, 2, 2, 3, 3]);
        let nodes = NODES[..count].iter().map(|name| place::random(random, name, true, faults)).collect();
        let mode = random.pick(&[
            OffloadMode::Auto,
            OffloadMode::Auto,
            OffloadMode::Auto,
            OffloadMode::Auto,
            OffloadMode::Remote,
            OffloadMode::Remote,
            OffloadMode::LocalOnly,
        ]);
        let wanted = match random.below(16) {
            0 => Some(Place::Here),
            1 => Some(Place::Node(random.pick(&NODES).to_owned())),
            _ => None,
        };
        Self {
            here,
            nodes,
            policy: Policy { mode, ..Policy::for_machine(Some(Bytes::gib(16))) },
            stays_local: random.once_in(10),
            wanted,
            snapshot: snapshot(random),
            said: (0..random.below(6)).map(|_| said(random)).collect(),
            max_tokens: random.once_in(4).then(|| 1 + random.below(60) as usize),
            reader_ms: random.pick(&[0, 0, 0, 5, 200]),
            reads: random.once_in(10).then(|| random.below(60) as usize),
            probe_ms: random.below(400),
        }
    }

    pub(crate) async fn run(self) -> Outcome {
        let host = World {
            scenario: self.clone(),
            running: Arc::default(),
            began: Instant::now(),
            opened: Mutex::default(),
            most_running: AtomicUsize::new(0),
        };
        let sampling = SamplingParams { max_tokens: self.max_tokens, ..SamplingParams::default() };
        let messages = vec![Message::new(Role::User, "?")];
        let request = ChatRequest { messages, sampling, tells_tokens: true, ..ChatRequest::default() };
        let (events, mut received) = mpsc::channel(8);
        let writing = async {
            let ledger = answer(&host, request, &events).await;
            drop(events);
            ledger
        };
        let reading = async {
            let (mut read, mut told_at, mut times) = (Vec::new(), Instant::now(), Vec::new());
            let mut ledger = Ledger::default();
            while let Some(event) = received.recv().await {
                sleep(Duration::from_millis(self.reader_ms)).await;
                ledger.take(&event, told_at.elapsed());
                if matches!(event, HandoffEvent::Chat(_)) {
                    told_at = Instant::now();
                }
                read.push(event);
                times.push(host.began.elapsed());
                if self.reads.is_some_and(|most| read.len() >= most) {
                    ledger.stop();
                    return (read, times, ledger, true);
                }
            }
            (read, times, ledger, false)
        };
        // Whoever stops reading drops the answer, as the app does.
        let both = async {
            let (mut writing, mut reading) = (Box::pin(writing), Box::pin(reading));
            let mut kept = None;
            loop {
                tokio::select! {
                    biased;
                    ledger = &mut writing, if kept.is_none() => kept = Some(ledger),
                    read = &mut reading => return (kept, read),
                }
            }
        };
        let (kept, (events, times, read, stopped)) = timeout(TOO_LONG, both).await.expect("the scenario hangs");
        let left = host.running.load(Ordering::Relaxed);
        let (opened, most_running) =
            (host.opened.into_inner().expect("no panic"), host.most_running.load(Ordering::Relaxed));
        Outcome { scenario: self, events, times, kept, read, stopped, opened, left, most_running }
    }
}

fn snapshot(random: &mut Random) -> Snapshot {
    let unknown = |random: &mut Random| random.once_in(12);
    let memory = Memory {
        total: Bytes::gib(16),
        available: Bytes::gib(random.pick(&[0, 6, 12, 12, 12, 12, 12, 12])),
        ..Memory::default()
    };
    let swap = Swap {
        used: Bytes::gib(random.pick(&[0, 0, 0, 0, 0, 5])),
        in_per_sec: Some(Bytes::mib(random.pick(&[0, 0, 0, 0, 0, 90]))),
        ..Swap::default()
    };
    Snapshot {
        memory: (!unknown(random)).then_some(memory),
        swap: (!unknown(random)).then_some(swap),
        pressure: (!unknown(random)).then(|| {
            random.pick(&[
                MemoryPressure::Normal,
                MemoryPressure::Normal,
                MemoryPressure::Normal,
                MemoryPressure::Normal,
                MemoryPressure::Warning,
                MemoryPressure::Critical,
            ])
        }),
        thermal: (!unknown(random)).then(|| {
            random.pick(&[
                ThermalState::Nominal,
                ThermalState::Nominal,
                ThermalState::Fair,
                ThermalState::Fair,
                ThermalState::Serious,
                ThermalState::Critical,
            ])
        }),
        ..Snapshot::default()
    }
}

fn said(random: &mut Random) -> Said {
    let signal = match random.below(6) {
        0 => Signal::MoveTo(Place::Here),
        1 => Signal::MoveTo(Place::Node(random.pick(&NODES).to_owned())),
        2 => Signal::Disturbed,
        3 => Signal::Advice(Advice::Relieve(Measure::TrimCaches, concern(random))),
        _ => Signal::Advice(Advice::HandOff(concern(random))),
    };
    Said { after: Duration::from_millis(random.below(6_000)), signal }
}

fn concern(random: &mut Random) -> Concern {
    Concern {
        reason: random.pick(&[Reason::Swap, Reason::Pressure, Reason::Thermal, Reason::TooSlow]),
        sentence: "is in trouble".to_owned(),
        readings: Vec::new(),
        is_urgent: random.once_in(3),
        tokens_per_sec: None,
    }
}

/// The host of one scenario.
pub(crate) struct World {
    scenario: Scenario,
    running: Arc<AtomicUsize>,
    began: Instant,
    opened: Mutex<Vec<Place>>,
    most_running: AtomicUsize,
}

pub(crate) struct Watching {
    said: Vec<Said>,
    began: Instant,
}

impl World {
    fn spec(&self, place: &Place) -> Option<&Spec> {
        match place {
            Place::Here => self.scenario.here.as_ref(),
            Place::Node(id) => self.scenario.nodes.iter().find(|node| node.name == id),
        }
    }

    fn demand(&self, running: Option<&Running>, wanted: Option<&Place>) -> Demand {
        let model = LocalModel {
            weights: Bytes::gib(4),
            kv_per_token: Bytes(131_072),
            scratch: Bytes::mib(512),
            trained_context: 32_768,
            already_loaded: running.map(|_| Bytes::gib(5)),
            ..LocalModel::default()
        };
        Demand {
            model: self.scenario.here.as_ref().map(|_| model),
            prompt_tokens: Some(3),
            wanted_context: 4_096,
            stays_local: self.scenario.stays_local,
            place: wanted.cloned().or_else(|| self.scenario.wanted.clone()),
            running: running.cloned(),
            ..Demand::default()
        }
    }

    fn options(&self) -> Vec<NodeOption> {
        let option = |node: &Spec| NodeOption {
            id: node.name.to_owned(),
            name: node.name.to_owned(),
            reachable: Some(true),
            has_model: true,
            continuation: Some(node.level),
            ..NodeOption::default()
        };
        self.scenario.nodes.iter().map(option).collect()
    }
}

impl Host for World {
    type Failure = Broken;
    type Watch = Watching;

    async fn decide(&self, running: Option<&Running>, wanted: Option<&Place>) -> Result<Decision, Broken> {
        let outlook = Outlook::of(&self.scenario.snapshot);
        Ok(decide(&self.scenario.policy, &self.demand(running, wanted), &outlook, &self.options()))
    }

    async fn takeover(&self, place: &Place) -> Takeover {
        sleep(Duration::from_millis(self.scenario.probe_ms)).await;
        let spec = self.spec(place).expect("only places that there are");
        let tells = spec.level == Continuation::Tokens;
        Takeover { level: spec.level, tokenizer: tells.then(|| spec.tokenizer.to_owned()) }
    }

    fn open(&self, decision: &Decision, request: ChatRequest) -> Result<Opened<Broken>, Broken> {
        let place = match &decision.target {
            Target::Here { .. } => Place::Here,
            Target::Node { id } => Place::Node(id.clone()),
            Target::Refuse => panic!("nobody opens a refusal"),
        };
        if let Place::Node(id) = &place {
            let options = self.options();
            let node = options.iter().find(|node| node.id == *id).expect("only nodes that there are");
            let demand = Demand { place: None, ..self.demand(None, None) };
            let pass = may_leave(&self.scenario.policy, &demand, node).expect("nothing leaves that may not");
            assert_eq!(pass.node_id(), id);
        }
        self.opened.lock().expect("no panic").push(place.clone());
        let spec = self.spec(&place).expect("only places that there are");
        let stream = place::open(spec, &request, &self.running)?;
        self.most_running.fetch_max(self.running.load(Ordering::Relaxed), Ordering::Relaxed);
        let tells = spec.level == Continuation::Tokens;
        Ok(Opened { stream, model: "m".to_owned(), tokenizer: tells.then(|| spec.tokenizer.to_owned()) })
    }

    async fn is_alive(&self, place: &Place) -> bool {
        sleep(Duration::from_millis(self.scenario.probe_ms)).await;
        let fault = self.spec(place).map(|spec| spec.fault);
        !matches!(fault, Some(Fault::Stalls { alive: false, .. } | Fault::Pauses { alive: false, .. }))
    }

    fn watch(&self, _: &Place) -> Watching {
        Watching { said: self.scenario.said.clone(), began: self.began }
    }

    async fn relieve(&self, _: Measure) {
        sleep(Duration::from_millis(20)).await;
    }

    fn has_left(&self, _: &Place, _: Option<Reason>) {}

    fn has_failed(&self, _: &Place, _: &Broken) {}

    fn refusal(&self, _: &Decision) -> Broken {
        Broken::new("refused")
    }

    fn cut_off(&self, _: &Place) -> Broken {
        Broken::new("cut off")
    }
}

impl Watch for Watching {
    fn token(&mut self, _: Duration) {}

    fn next(&mut self) -> impl Future<Output = Signal> + Send {
        let now = self.began.elapsed();
        self.said.retain(|said| said.after > now);
        let next = self.said.iter().min_by_key(|said| said.after).cloned();
        async move {
            match next {
                Some(said) => {
                    sleep(said.after.saturating_sub(now)).await;
                    said.signal
                }
                None => std::future::pending().await,
            }
        }
    }
}
