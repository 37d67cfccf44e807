//! What watches an answer while it is written here: whether to go on, to make room first, or to move it.

use std::time::Duration;

use chat::Bytes;
use vitals::{MemoryPressure, ThermalState};

use crate::fit::{Limits, max_context};
use crate::hysteresis::State;
use crate::outlook::{Signal, heat};
use crate::pulse::{Beat, Pulse};
use crate::rank::{ASSUMED_DECODE, LEAST_ANSWER, known_speed};
use crate::readings::{Reading, readings};
use crate::{LocalModel, Outlook, Policy, ReadingCheck, Reason, words};

/// Moving an answer takes so long: a node reads the conversation while it goes on here.
const TIME_TO_MOVE: Duration = Duration::from_secs(20);
/// A measure is given so long to show in the readings, which are steadied over three seconds.
const TIME_TO_HELP: Duration = Duration::from_secs(5);

/// What is known of an answer when it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Setup {
    /// Tokens that it is expected to have.
    pub answer_tokens: Option<usize>,
    /// How fast this model usually decodes here; `None` where it never ran.
    pub usual_tokens_per_sec: Option<f64>,
}

/// What is so while it is written, beside the readings.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The model, with what it and the idle ones hold now.
    pub model: &'a LocalModel,
    /// Tokens in the answer's cache.
    pub n_past: usize,
    /// Tokens that its cache can grow to: the context, or the prompt and the most it may write where that is less.
    pub context_len: usize,
    /// What the caches of other conversations would give back; a part of what the model holds.
    pub trimmable: Bytes,
    /// Whether there is a node that may and can go on with it, as last heard.
    pub can_move: bool,
}

/// What to do about a running answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Advice {
    /// Nothing.
    GoOn,
    /// Make it easier for this machine first.
    Relieve(Measure, Concern),
    /// Move it: [`crate::decide()`] says where to, with the concern in [`crate::Running::concern`].
    HandOff(Concern),
}

/// What can be done here before an answer has to move. Each is advised once for an answer; [`Measure::Pace`] again
/// after the machine had cooled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// Give back the memory of models that nobody uses now.
    UnloadIdleModels,
    /// Give back the caches of other conversations, as far as they can be read again.
    TrimCaches,
    /// Let the cache grow to so many tokens only; the answer ends there as one that is too long does.
    CapContext(usize),
    /// Write no faster than so many tokens per second, until [`Guard::may_return`] says that the machine has cooled.
    Pace(f64),
}

/// Why an answer should be relieved or moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Concern {
    /// For programs.
    pub reason: Reason,
    /// For people, for after "here" or "this machine": "swaps in 40.0 MB/s".
    pub sentence: String,
    /// Every reading that was looked at.
    pub readings: Vec<ReadingCheck>,
    /// How fast it is written now, in tokens per second; `None` where that isn't known yet.
    pub tokens_per_sec: Option<f64>,
    /// It can't wait for a measure to help.
    pub is_urgent: bool,
}

/// Watches one answer while it is written here.
///
/// Advice is given once and then not again until it had time to help: a hand-off is advised at most once in
/// [`Policy::dwell`], unless it becomes urgent.
#[derive(Clone, Debug)]
pub struct Guard {
    setup: Setup,
    pulse: Pulse,
    tokens: usize,
    taken: Vec<Measure>,
    last: Option<Last>,
}

/// The last advice that wasn't to go on.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Duration,
    /// What it was given for.
    cause: Cause,
    was_urgent: bool,
    /// How long it needs to show.
    wait: Duration,
    /// The answer left, or was slowed down on purpose.
    has_yielded: bool,
}

/// What is wrong, as far as the remedy depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The system swaps or is short.
    Memory(Signal),
    /// The answer outgrows what is free.
    Growth,
    Heat,
    /// It is written more slowly than it was at first, while the machine was this warm.
    Slow(Option<ThermalState>),
}

impl Guard {
    /// For an answer that starts now.
    pub fn new(setup: Setup) -> Self {
        Self { setup, pulse: Pulse::default(), tokens: 0, taken: Vec::new(), last: None }
    }

    /// A token came, `at` this long after the answer's start.
    pub fn token(&mut self, at: Duration) {
        self.tokens = self.tokens.saturating_add(1);
        self.pulse.token(at);
    }

    /// The answer is written here again, after it was elsewhere or waited.
    pub fn resume(&mut self) {
        self.pulse.resume();
    }

    /// Looks at the answer, `at` this long after its start; to be called for every snapshot while it is written here.
    pub fn look(&mut self, at: Duration, policy: &Policy, outlook: &Outlook, facts: &Facts<'_>) -> Advice {
        let beat = self.pulse.look(at, policy, facts.model, facts.n_past, self.setup.usual_tokens_per_sec);
        let all_readings = readings(policy, outlook);
        let growth = Growth::of(policy, outlook, facts, beat.map(|beat| beat.now).or(self.setup.usual_tokens_per_sec));
        if outlook.state(Signal::Heat, policy) == State::Calm {
            self.taken.retain(|measure| !matches!(measure, Measure::Pace(_)));
        }
        let Some((cause, reason, sentence, is_urgent)) = worst(policy, outlook, &all_readings, growth.as_ref(), beat)
        else {
            return Advice::GoOn;
        };
        if let Some(last) = self.last {
            let is_waiting = at.saturating_sub(last.at) < last.wait;
            if is_waiting && (!is_urgent || last.was_urgent) {
                return Advice::GoOn;
            }
        }
        let mut checks: Vec<_> = all_readings.into_iter().map(|reading| reading.check).collect();
        checks.extend(beat.map(|beat| beat.check(policy)));
        checks.extend(growth.as_ref().map(|growth| growth.check(facts)));
        let tokens_per_sec = beat.map(|beat| beat.now);
        let concern = Concern { reason, sentence, readings: checks, tokens_per_sec, is_urgent };
        self.advise(at, policy, facts, cause, concern, growth.as_ref(), beat)
    }

    /// Whether an answer that was handed off, or is paced, may come back: what was wrong is over, has been for the
    /// policy's dwell time, and nothing else is wrong. Never after it was moved for being slow without a known cause:
    /// whether that is over shows only while it is written here.
    pub fn may_return(&self, at: Duration, policy: &Policy, outlook: &Outlook) -> bool {
        let Some(last) = self.last.filter(|last| last.has_yielded) else { return false };
        let signals = [Signal::SwapIn, Signal::SwapUsed, Signal::Pressure, Signal::Heat];
        if signals.iter().any(|&signal| matches!(outlook.state(signal, policy), State::Strained { .. })) {
            return false;
        }
        let is_calm = |signal| outlook.state(signal, policy) == State::Calm;
        let (is_over, dwell) = match last.cause {
            Cause::Memory(signal) => (is_calm(signal), policy.dwell),
            Cause::Growth => {
                let trouble = outlook.time_until_trouble(policy);
                let is_known = outlook.snapshot().memory.is_some();
                (is_known && trouble.is_none_or(|trouble| trouble.after > policy.forecast_within), policy.dwell)
            }
            Cause::Heat => (is_calm(Signal::Heat), policy.heat_dwell),
            Cause::Slow(None) => return false,
            // It was slow below the limit already, so only less heat than then helps.
            Cause::Slow(Some(then)) => (heat(outlook.snapshot()).is_some_and(|now| now < then), policy.heat_dwell),
        };
        is_over && at.saturating_sub(last.at) >= dwell
    }

    #[expect(clippy::too_many_arguments, reason = "what one look found")]
    fn advise(
        &mut self,
        at: Duration,
        policy: &Policy,
        facts: &Facts<'_>,
        cause: Cause,
        concern: Concern,
        growth: Option<&Growth>,
        beat: Option<Beat>,
    ) -> Advice {
        let may_wait = !(concern.is_urgent && facts.can_move);
        let measure = match cause {
            Cause::Memory(_) | Cause::Growth if may_wait => self.next_measure(facts, growth),
            Cause::Heat if !facts.can_move => self.pace(policy, beat),
            _ => None,
        };
        let (wait, has_yielded) = match measure {
            Some(Measure::Pace(_)) => (policy.heat_dwell, true),
            Some(_) => (TIME_TO_HELP, false),
            None => (policy.dwell, true),
        };
        if measure.is_none() && !facts.can_move {
            return Advice::GoOn;
        }
        self.last = Some(Last { at, cause, was_urgent: concern.is_urgent, wait, has_yielded });
        match measure {
            Some(measure) => {
                self.taken.push(measure);
                Advice::Relieve(measure, concern)
            }
            None => Advice::HandOff(concern),
        }
    }

    /// The cheapest measure that gives memory and wasn't advised yet.
    fn next_measure(&self, facts: &Facts<'_>, growth: Option<&Growth>) -> Option<Measure> {
        let is_new = |measure: &Measure| {
            !self.taken.iter().any(|taken| std::mem::discriminant(taken) == std::mem::discriminant(measure))
        };
        let unload = (facts.model.other_loaded.0 > 0).then_some(Measure::UnloadIdleModels);
        let trim = (facts.trimmable.0 > 0).then_some(Measure::TrimCaches);
        let left = self.setup.answer_tokens.map(|tokens| tokens.saturating_sub(self.tokens).max(LEAST_ANSWER));
        let cap = growth.filter(|growth| growth.is_short).and_then(|growth| {
            // A cap is no help where the answer may not fit below it, unless there is nowhere else to go.
            let has_room = left.is_some_and(|left| growth.most_context >= facts.n_past.saturating_add(left));
            let has_room = has_room || !facts.can_move;
            (has_room && growth.most_context < facts.context_len)
                .then(|| Measure::CapContext(growth.most_context.max(facts.n_past)))
        });
        [unload, trim, cap].into_iter().flatten().find(is_new)
    }

    /// Half as fast gives half the heat, as far as that can still be used.
    fn pace(&self, policy: &Policy, beat: Option<Beat>) -> Option<Measure> {
        let is_paced = self.taken.iter().any(|measure| matches!(measure, Measure::Pace(_)));
        let now = beat?.now;
        let pace = (now / 2.0).max(policy.min_decode_tokens_per_sec);
        (!is_paced && pace.is_finite() && pace < now).then_some(Measure::Pace(pace))
    }
}

/// What is wrong most, as cause, reason, sentence, and whether it is urgent.
fn worst(
    policy: &Policy,
    outlook: &Outlook,
    readings: &[Reading; 4],
    growth: Option<&Growth>,
    beat: Option<Beat>,
) -> Option<(Cause, Reason, String, bool)> {
    let [swap_in, swap_used, pressure, heat_reading] = readings;
    let snapshot = outlook.snapshot();
    let swap_rate = outlook.value(Signal::SwapIn, outlook.state(Signal::SwapIn, policy));
    let is_thrashing = swap_rate.is_some_and(|rate| rate > policy.thrash_swap_in_per_sec.0 as f64);
    let is_critical = snapshot.pressure == Some(MemoryPressure::Critical);
    let is_burning = heat(snapshot) == Some(ThermalState::Critical);
    let strained = |reading: &Reading, cause, is_urgent| {
        // What is below its limit again needs no remedy; it only mustn't come back yet.
        (reading.is_exceeded() && !reading.is_lingering)
            .then(|| (cause, reason_of(cause, reading.reason), reading.strain.clone(), is_urgent))
    };
    let growing = || {
        let growth = growth.filter(|growth| growth.is_short)?;
        Some((Cause::Growth, growth.reason(), growth.sentence(), false))
    };
    let slow = || beat.filter(|beat| beat.is_slow).map(|beat| slow(beat, policy, outlook));
    let by_weight = [
        strained(pressure, Cause::Memory(Signal::Pressure), is_critical),
        strained(swap_in, Cause::Memory(Signal::SwapIn), is_thrashing),
        strained(heat_reading, Cause::Heat, is_burning),
    ];
    let urgent = by_weight.iter().flatten().find(|(.., is_urgent)| *is_urgent).cloned();
    let [pressure, swap_in, hot] = by_weight;
    urgent
        .or(swap_in)
        .or_else(|| strained(swap_used, Cause::Memory(Signal::SwapUsed), false))
        .or(pressure)
        .or_else(growing)
        .or(hot)
        .or_else(slow)
}

fn reason_of(cause: Cause, of_reading: Reason) -> Reason {
    if cause == Cause::Heat { Reason::Thermal } else { of_reading }
}

/// An answer that is written more slowly than it was, with what is likely to blame.
fn slow(beat: Beat, policy: &Policy, outlook: &Outlook) -> (Cause, Reason, String, bool) {
    let speed = format!("writes {} instead of {}", words::speed(beat.now), words::speed(beat.expected));
    let snapshot = outlook.snapshot();
    let warmth = heat(snapshot).filter(|heat| *heat > ThermalState::Nominal);
    let swaps =
        snapshot.swap.and_then(|swap| swap.in_per_sec).is_some_and(|rate| rate.0 > policy.max_swap_in_per_sec.0 / 2);
    if let Some(warmth) = warmth {
        let sentence = format!("{speed}, likely because of heat ({})", warmth.as_str());
        (Cause::Slow(Some(warmth)), Reason::Thermal, sentence, false)
    } else if swaps {
        let sentence = format!("{speed}, likely because of swapping");
        (Cause::Memory(Signal::SwapIn), Reason::Swap, sentence, false)
    } else if snapshot.pressure.is_some_and(|pressure| pressure > MemoryPressure::Normal) {
        let sentence = format!("{speed}, likely because memory is short");
        (Cause::Memory(Signal::Pressure), Reason::Pressure, sentence, false)
    } else {
        (Cause::Slow(None), Reason::TooSlow, speed, false)
    }
}

/// The cache of the answer as it grows, against what is free for it as that shrinks.
struct Growth {
    /// Seconds until it takes more than may be used.
    until: f64,
    /// The most tokens that fit now.
    most_context: usize,
    /// That comes before the answer's end, and too soon to put off moving it.
    is_short: bool,
    /// Other programs take more of it than the answer does.
    is_taken_by_others: bool,
}

impl Growth {
    /// `None` where the memory is unknown.
    fn of(policy: &Policy, outlook: &Outlook, facts: &Facts<'_>, speed: Option<f64>) -> Option<Self> {
        // Idle models and other caches stand in the way as long as nobody was told to give them back.
        let model = LocalModel { other_loaded: Bytes::ZERO, ..facts.model.clone() };
        let budget = Limits::of(&model, policy, outlook.snapshot()).budget()?.saturating_sub(facts.trimmable);
        let tokens_per_sec = known_speed(speed).unwrap_or(ASSUMED_DECODE);
        let held = model.needed(0).0 as f64 + model.kv_per_token.0 as f64 * facts.n_past as f64;
        let by_answer = model.kv_per_token.0 as f64 * tokens_per_sec;
        let by_others = outlook.memory_per_sec().map_or(0.0, |rate| (-rate).max(0.0));
        let rate = by_answer + by_others;
        let until_gone = if rate > 0.0 { (budget.0 as f64 - held).max(0.0) / rate } else { f64::INFINITY };
        // The cache grows in steps, so the last step that fits ends before the last byte does.
        let most_context = max_context(&model, budget);
        let until = until_gone.min(most_context.saturating_sub(facts.n_past) as f64 / tokens_per_sec);
        let until_end = facts.context_len.saturating_sub(facts.n_past) as f64 / tokens_per_sec;
        Some(Self {
            until,
            most_context,
            is_short: until < until_end && until < TIME_TO_MOVE.as_secs_f64(),
            is_taken_by_others: by_others > by_answer,
        })
    }

    fn reason(&self) -> Reason {
        if self.is_taken_by_others { Reason::MemorySoon } else { Reason::Memory }
    }

    fn sentence(&self) -> String {
        format!("would run out of memory for this chat in {}", words::about(self.until))
    }

    fn check(&self, facts: &Facts<'_>) -> ReadingCheck {
        ReadingCheck {
            name: "Room for this chat",
            value: words::tokens(self.most_context.saturating_sub(facts.n_past)),
            limit: Some(format!("up to {} wanted", words::tokens(facts.context_len.saturating_sub(facts.n_past)))),
            exceeded: Some(self.is_short),
        }
    }
}

impl Beat {
    fn check(self, policy: &Policy) -> ReadingCheck {
        let least = self.expected * (1.0 - policy.max_slowdown_ratio);
        ReadingCheck {
            name: "Speed now",
            value: words::speed(self.now),
            limit: least.is_finite().then(|| format!("at least {}", words::speed(least.max(0.0)))),
            exceeded: Some(self.is_slow),
        }
    }
}
