//! How answers fare while something else takes the machine's memory step by step.

mod ballast;
mod thresholds;

use std::time::{Duration, Instant};

use ballast::Ballast;
pub use ballast::hold_memory;
use chat::{Bytes, ChatEvent, ChatRequest, Message, Role, SamplingParams};
use engine::LoadSpec;
use futures::StreamExt;
use futures::stream::BoxStream;
pub use thresholds::{NoThresholds, PressurePlan, PressureStep, PressureThresholds};
use tokio::process::Command;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use vitals::MemoryPressure;

use crate::calibration::LONG_ANSWER;
use crate::error::{AppError, ErrorCode};
use crate::settings::Settings;
use crate::start::AbortOnDrop;
use crate::{App, AskedBy, CompletionEvent};

/// Answers are so long, so that decode doesn't slow down by the length of the context.
const ANSWER_TOKENS: usize = 256;
/// A step that began with new memory being taken is measured after this.
const SETTLE: Duration = Duration::from_secs(1);
/// A step in which no token came goes on for so many times its time.
const PATIENCE: u32 = 3;
/// Memory that isn't there after this long isn't taken any more.
const TAKING_LIMIT: Duration = Duration::from_secs(60);
/// Slower than this part of the undisturbed speed, there is nothing more to learn.
const COLLAPSED: f64 = 0.1;
/// What was before may be felt for so long: the system's word on pressure is an average of many seconds.
const CALM_LIMIT: Duration = Duration::from_secs(60);
/// How often the limits are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct PressureCurve {
    /// The steps that were finished, in order.
    pub steps: Vec<PressureStep>,
    /// Why there are no more.
    pub end: PressureEnd,
}

/// Why taking memory ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PressureEnd {
    /// All that was planned was taken.
    AllTaken,
    /// The system said that memory is critically short.
    Critical,
    /// Swap had grown as far as the plan allows.
    SwapLimit,
    /// Hardly a token came any more.
    Collapsed,
    /// The system gave no more memory in time.
    NoMoreMemory,
}

impl PressureEnd {
    /// As a clause: "taking memory ended because …".
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllTaken => "all that was planned was taken",
            Self::Critical => "the system said that memory is critically short",
            Self::SwapLimit => "swap had grown as far as the plan allows",
            Self::Collapsed => "hardly a token came any more",
            Self::NoMoreMemory => "the system gave no more memory in time",
        }
    }
}

/// What becomes of the answers.
enum Written {
    /// One begins, at this place in words.
    Begun {
        place: String,
    },
    /// A piece came: a token, now and then two; so long after the one before in the same answer.
    Piece(Option<Duration>),
    Failed(String),
}

impl App {
    /// Takes memory in steps beside answers that are written one after the other, where the policy says or, not guarded, by
    /// the engine whatever happens, and
    /// tells how fast each step was. `command` starts the process that takes the memory, and has to come to
    /// [`hold_memory`]; the memory is free again when this returns or is dropped. Takes minutes.
    ///
    /// # Errors
    /// Where no first answer can be written, or the process can't be started.
    pub async fn measure_pressure(
        &self,
        plan: &PressurePlan,
        is_guarded: bool,
        command: Command,
        mut on_step: impl FnMut(&PressureStep),
    ) -> Result<PressureCurve, AppError> {
        self.wait_for_calm().await;
        let (pieces, mut written) = unbounded_channel();
        let writing = self.clone();
        let _writer = AbortOnDrop(tokio::spawn(async move { writing.write_answers(is_guarded, &pieces).await }));
        // Loads the weights; the model's own memory isn't what is measured.
        let mut place = wait_for_piece(&mut written).await?;
        let mut ballast =
            Ballast::start(command).map_err(|error| AppError::internal("starting what takes memory", &error))?;
        let limits = Limits { app: self, plan, swap_before: self.swap_used() };
        let mut curve = PressureCurve { steps: Vec::new(), end: PressureEnd::AllTaken };
        for taken in plan.holds() {
            if let Err(end) = limits.take(&mut ballast, taken).await {
                curve.end = end;
                break;
            }
            let Some(step) = limits.measure(taken, &mut written, &mut place).await else {
                curve.end = PressureEnd::SwapLimit;
                break;
            };
            on_step(&step);
            let is_critical = taken > Bytes::ZERO && step.pressure == Some(MemoryPressure::Critical);
            let undisturbed = curve.steps.first().map_or(0.0, |first| first.tokens_per_sec);
            let has_collapsed = taken > Bytes::ZERO && step.tokens_per_sec < COLLAPSED * undisturbed;
            curve.steps.push(step);
            let end = is_critical
                .then_some(PressureEnd::Critical)
                .or_else(|| limits.is_swap_exceeded().then_some(PressureEnd::SwapLimit))
                .or_else(|| has_collapsed.then_some(PressureEnd::Collapsed));
            if let Some(end) = end {
                curve.end = end;
                break;
            }
        }
        Ok(curve)
    }

    /// Makes the policy's limits those that this machine was measured to have. The memory that models leave free only
    /// grows by it.
    ///
    /// # Errors
    /// As [`App::save_settings`].
    pub async fn apply_thresholds(&self, found: &PressureThresholds) -> Result<Settings, AppError> {
        let mut settings = self.settings();
        let ram = self.inner.vitals.latest().snapshot.memory.map(|memory| memory.usable());
        if let Some((used, ram)) = found.swap_used.zip(ram).filter(|(_, ram)| *ram > Bytes::ZERO) {
            settings.max_swap_used_ratio = (used.0 as f64 / ram.0 as f64).min(1.0);
        }
        if let Some(rate) = found.swap_in_per_sec {
            settings.max_swap_in_per_sec = rate.0;
        }
        if let Some(left) = found.available.filter(|left| *left > self.policy().reserve) {
            settings.reserve_bytes = Some(left.0);
        }
        self.save_settings(settings).await
    }

    async fn write_answers(&self, is_guarded: bool, written: &UnboundedSender<Written>) {
        let request = ChatRequest {
            messages: vec![Message::new(Role::User, LONG_ANSWER)],
            sampling: SamplingParams {
                temperature: Some(0.0),
                max_tokens: Some(ANSWER_TOKENS),
                ..SamplingParams::default()
            },
            ..ChatRequest::default()
        };
        while !written.is_closed() {
            if let Err(error) = self.write_answer(request.clone(), is_guarded, written).await {
                let _ = written.send(Written::Failed(error.sentence));
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    async fn write_answer(
        &self,
        request: ChatRequest,
        is_guarded: bool,
        written: &UnboundedSender<Written>,
    ) -> Result<(), AppError> {
        let (place, mut events) = if is_guarded {
            let completion = self.complete(request, None, AskedBy::Terminal).await?;
            (completion.decision.place.clone(), completion.into_events().boxed())
        } else {
            self.unguarded_answer(request)?
        };
        // A closed channel is found by the loop around this.
        let _ = written.send(Written::Begun { place });
        let mut before = None::<Instant>;
        while let Some(event) = events.next().await {
            match event? {
                CompletionEvent::Chat(ChatEvent::Text(_) | ChatEvent::Thinking(_)) => {
                    let now = Instant::now();
                    let itl = before.replace(now).map(|before| now - before);
                    let _ = written.send(Written::Piece(itl));
                }
                CompletionEvent::Moved(decision) => {
                    let _ = written.send(Written::Begun { place: decision.place });
                }
                CompletionEvent::Chat(_) => {}
            }
        }
        Ok(())
    }

    /// An answer of the engine that nobody decides about or watches over: as without us.
    fn unguarded_answer(
        &self,
        request: ChatRequest,
    ) -> Result<(String, BoxStream<'static, Result<CompletionEvent, AppError>>), AppError> {
        let entry = self.model_for(None).ok_or_else(|| AppError::new(ErrorCode::NoModel, "There is no model."))?;
        let spec = LoadSpec {
            kv_type: self.settings().kv_type(),
            draft: self.draft_for(&entry),
            ..LoadSpec::new(entry.path.clone(), self.settings().context_len)
        };
        let events = self.inner.engine.chat(spec, request);
        let events = events.map(|event| event.map(CompletionEvent::Chat).map_err(crate::answer::generate_error));
        Ok(("Here".to_owned(), events.boxed()))
    }

    /// Waits until memory isn't short, a minute at most.
    async fn wait_for_calm(&self) {
        let is_short =
            || self.inner.vitals.latest().snapshot.pressure.is_some_and(|level| level > MemoryPressure::Normal);
        let started = Instant::now();
        while is_short() && started.elapsed() < CALM_LIMIT {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn swap_used(&self) -> Option<Bytes> {
        self.inner.vitals.latest().snapshot.swap.map(|swap| swap.used)
    }
}

/// Waits for the first token; tells where it is written.
async fn wait_for_piece(written: &mut UnboundedReceiver<Written>) -> Result<String, AppError> {
    let mut place = String::new();
    loop {
        match written.recv().await {
            Some(Written::Piece(_)) => return Ok(place),
            Some(Written::Begun { place: begun }) => place = begun,
            Some(Written::Failed(sentence)) => return Err(AppError::new(ErrorCode::EngineFailed, sentence)),
            None => return Err(AppError::new(ErrorCode::Internal, "The answers ended.")),
        }
    }
}

/// What must not be exceeded while memory is taken.
struct Limits<'a> {
    app: &'a App,
    plan: &'a PressurePlan,
    swap_before: Option<Bytes>,
}

impl Limits<'_> {
    /// Has `total` held, unless swap grows too far or it takes too long.
    async fn take(&self, ballast: &mut Ballast, total: Bytes) -> Result<(), PressureEnd> {
        let taking = tokio::time::timeout(TAKING_LIMIT, ballast.hold(total));
        tokio::select! {
            held = taking => match held {
                Ok(Ok(_)) => {}
                _ => return Err(PressureEnd::NoMoreMemory),
            },
            () = self.too_much_swap() => return Err(PressureEnd::SwapLimit),
        }
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }

    async fn too_much_swap(&self) {
        while !self.is_swap_exceeded() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn is_swap_exceeded(&self) -> bool {
        let grown = self.app.swap_used().zip(self.swap_before).map(|(now, before)| now.saturating_sub(before));
        grown.is_some_and(|grown| grown > self.plan.most_swap)
    }

    /// Measures one step; `None` where swap grew too far before half of its time had passed.
    async fn measure(
        &self,
        taken: Bytes,
        written: &mut UnboundedReceiver<Written>,
        place: &mut String,
    ) -> Option<PressureStep> {
        // What was written while memory was being taken isn't of this step, but for where it is written.
        while let Ok(event) = written.try_recv() {
            if let Written::Begun { place: begun } = event {
                *place = begun;
            }
        }
        let (started, mut readings) = (Instant::now(), Readings::default());
        let mut vitals = self.app.watch_vitals();
        let (mut itls, mut pieces, mut last) = (Vec::new(), 0, started);
        let mut failure = None;
        let mut swap_limit = std::pin::pin!(self.too_much_swap());
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                event = written.recv() => match event {
                    Some(Written::Begun { place: begun }) => *place = begun,
                    Some(Written::Piece(itl)) => {
                        pieces += 1;
                        last = Instant::now();
                        itls.extend(itl);
                    }
                    Some(Written::Failed(sentence)) => failure = Some(sentence),
                    None => break,
                },
                changed = vitals.changed() => if changed.is_ok() {
                    readings.add(&vitals.borrow_and_update().snapshot);
                },
                () = &mut swap_limit => break,
                _ = look.tick() => {}
            }
            let passed = started.elapsed();
            let is_waiting = pieces == 0 && passed < PATIENCE * self.plan.step_time;
            if passed >= self.plan.step_time && !is_waiting {
                break;
            }
        }
        let passed = started.elapsed();
        if passed < self.plan.step_time / 2 {
            return None;
        }
        // The token that everybody waits for still takes this long at least.
        if last.elapsed() > itls.iter().max().copied().unwrap_or_default() {
            itls.push(last.elapsed());
        }
        itls.sort_unstable();
        let percentile =
            |percent: usize| itls.get((itls.len() * percent / 100).min(itls.len().wrapping_sub(1))).copied();
        Some(PressureStep {
            taken,
            available: readings.available,
            swap_used: readings.swap_used,
            swap_in_per_sec: readings.mean_swap_in(),
            pressure: readings.pressure,
            tokens: pieces,
            tokens_per_sec: pieces as f64 / passed.as_secs_f64(),
            itl_p50: percentile(50),
            itl_p99: percentile(99),
            place: place.clone(),
            failure,
        })
    }
}

/// The readings of one step.
#[derive(Default)]
struct Readings {
    available: Option<Bytes>,
    swap_used: Option<Bytes>,
    swap_ins: Vec<u64>,
    pressure: Option<MemoryPressure>,
}

impl Readings {
    fn add(&mut self, snapshot: &vitals::Snapshot) {
        let available = snapshot.memory.map(|memory| memory.available);
        self.available = self.available.into_iter().chain(available).min();
        self.swap_used = self.swap_used.max(snapshot.swap.map(|swap| swap.used));
        self.swap_ins.extend(snapshot.swap.and_then(|swap| swap.in_per_sec).map(|rate| rate.0));
        self.pressure = self.pressure.max(snapshot.pressure);
    }

    fn mean_swap_in(&self) -> Option<Bytes> {
        let count = self.swap_ins.len() as u64;
        (count > 0).then(|| Bytes(self.swap_ins.iter().sum::<u64>() / count))
    }
}
