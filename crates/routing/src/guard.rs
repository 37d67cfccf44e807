//! What watches an answer while it is written here: whether to go on, to make room first, or to move it.

use std::time::Duration;

use chat::Bytes;
use vitals::{MemoryPressure, ThermalState};

use crate::growth::Growth;
use crate::hysteresis::State;
use crate::outlook::{Signal, heat};
use crate::pulse::{Beat, Pulse};
use crate::rank::LEAST_ANSWER;
use crate::readings::{Reading, readings};
use crate::{LocalModel, Outlook, Policy, ReadingCheck, Reason, words};

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
        let speed = beat.map(|beat| beat.now).or(self.setup.usual_tokens_per_sec);
        let growth = Growth::of(policy, outlook, facts, speed);
        if outlook.state(Signal::Heat, policy) == State::Calm && self.is_paced() {
            self.taken.retain(|measure| !matches!(measure, Measure::Pace(_)));
            self.pulse.resume();
        }
        let readings = readings(policy, outlook);
        let seen = Seen { policy, outlook, facts, readings: &readings, growth, beat, is_paced: self.is_paced() };
        match seen.worst() {
            Some(finding) if !self.is_waiting(at, &finding) => self.advise(at, &seen, finding),
            _ => Advice::GoOn,
        }
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

    /// The last advice hasn't had its time yet, and this is nothing worse.
    fn is_waiting(&self, at: Duration, finding: &Finding) -> bool {
        self.last.is_some_and(|last| at.saturating_sub(last.at) < last.wait && (!finding.is_urgent || last.was_urgent))
    }

    fn is_paced(&self) -> bool {
        self.taken.iter().any(|measure| matches!(measure, Measure::Pace(_)))
    }

    fn advise(&mut self, at: Duration, seen: &Seen<'_>, finding: Finding) -> Advice {
        let Finding { cause, is_urgent, .. } = finding;
        let measure = match cause {
            Cause::Memory(_) | Cause::Growth if !(is_urgent && seen.facts.can_move) => self.next_measure(seen),
            Cause::Heat if !seen.facts.can_move => seen.pace(),
            _ => None,
        };
        let (wait, has_yielded) = match measure {
            Some(Measure::Pace(_)) => (seen.policy.heat_dwell, true),
            Some(_) => (TIME_TO_HELP, false),
            None if !seen.facts.can_move => return Advice::GoOn,
            None => (seen.policy.dwell, true),
        };
        self.last = Some(Last { at, cause, was_urgent: is_urgent, wait, has_yielded });
        let concern = seen.concern(finding);
        match measure {
            Some(measure) => {
                self.taken.push(measure);
                Advice::Relieve(measure, concern)
            }
            None => Advice::HandOff(concern),
        }
    }

    /// The cheapest measure that gives memory and wasn't advised yet.
    fn next_measure(&self, seen: &Seen<'_>) -> Option<Measure> {
        let facts = seen.facts;
        let is_new = |measure: &Measure| {
            !self.taken.iter().any(|taken| std::mem::discriminant(taken) == std::mem::discriminant(measure))
        };
        let unload = (facts.model.other_loaded.0 > 0).then_some(Measure::UnloadIdleModels);
        let trim = (facts.trimmable.0 > 0).then_some(Measure::TrimCaches);
        let left = self.setup.answer_tokens.map(|tokens| tokens.saturating_sub(self.tokens).max(LEAST_ANSWER));
        let cap = seen.growth.as_ref().filter(|growth| growth.is_short).and_then(|growth| {
            // A cap is no help where the answer may not fit below it, unless there is nowhere else to go.
            let has_room = left.is_some_and(|left| growth.most_context >= facts.n_past.saturating_add(left));
            let has_room = has_room || !facts.can_move;
            (has_room && growth.most_context < facts.context_len)
                .then(|| Measure::CapContext(growth.most_context.max(facts.n_past)))
        });
        [unload, trim, cap].into_iter().flatten().find(is_new)
    }
}

/// What is wrong.
struct Finding {
    cause: Cause,
    reason: Reason,
    sentence: String,
    is_urgent: bool,
}

/// All that one look has to go by.
struct Seen<'a> {
    policy: &'a Policy,
    outlook: &'a Outlook,
    facts: &'a Facts<'a>,
    readings: &'a [Reading; 4],
    growth: Option<Growth>,
    beat: Option<Beat>,
    /// The answer is slowed down on purpose.
    is_paced: bool,
}

impl Seen<'_> {
    /// What is wrong most.
    fn worst(&self) -> Option<Finding> {
        let [swap_in, swap_used, pressure, hot] = self.readings;
        let snapshot = self.outlook.snapshot();
        let rate = self.outlook.value(Signal::SwapIn, self.outlook.state(Signal::SwapIn, self.policy));
        let is_thrashing = rate.is_some_and(|rate| rate > self.policy.thrash_swap_in_per_sec.0 as f64);
        let is_critical = snapshot.pressure == Some(MemoryPressure::Critical);
        let is_burning = heat(snapshot) == Some(ThermalState::Critical);
        let found = [
            strained(swap_in, Cause::Memory(Signal::SwapIn), is_thrashing),
            strained(swap_used, Cause::Memory(Signal::SwapUsed), false),
            strained(pressure, Cause::Memory(Signal::Pressure), is_critical),
            self.growing(),
            strained(hot, Cause::Heat, is_burning),
            self.slow(),
        ];
        // The first of the urgent ones, else the first.
        found.into_iter().flatten().reduce(|first, next| if next.is_urgent && !first.is_urgent { next } else { first })
    }

    fn growing(&self) -> Option<Finding> {
        let growth = self.growth.as_ref().filter(|growth| growth.is_short)?;
        let (reason, sentence) = (growth.reason(), growth.sentence());
        Some(Finding { cause: Cause::Growth, reason, sentence, is_urgent: false })
    }

    /// An answer that is written more slowly than it was, with what is likely to blame.
    fn slow(&self) -> Option<Finding> {
        let beat = self.beat.filter(|beat| beat.is_slow && !self.is_paced)?;
        let snapshot = self.outlook.snapshot();
        let warmth = heat(snapshot).filter(|heat| *heat > ThermalState::Nominal);
        let swap_in = snapshot.swap.and_then(|swap| swap.in_per_sec);
        let swaps = swap_in.is_some_and(|rate| rate.0 > self.policy.max_swap_in_per_sec.0 / 2);
        let is_short = snapshot.pressure.is_some_and(|pressure| pressure > MemoryPressure::Normal);
        let (cause, reason, blame) = if let Some(warmth) = warmth {
            let blame = format!(", likely because of heat ({})", warmth.as_str());
            (Cause::Slow(Some(warmth)), Reason::Thermal, blame)
        } else if swaps {
            (Cause::Memory(Signal::SwapIn), Reason::Swap, ", likely because of swapping".to_owned())
        } else if is_short {
            (Cause::Memory(Signal::Pressure), Reason::Pressure, ", likely because memory is short".to_owned())
        } else {
            (Cause::Slow(None), Reason::TooSlow, String::new())
        };
        let sentence = format!("writes {} instead of {}{blame}", words::speed(beat.now), words::speed(beat.expected));
        Some(Finding { cause, reason, sentence, is_urgent: false })
    }

    fn concern(&self, finding: Finding) -> Concern {
        let mut readings: Vec<_> = self.readings.iter().map(|reading| reading.check.clone()).collect();
        readings.extend(self.beat.map(|beat| beat.check(self.policy)));
        readings.extend(self.growth.as_ref().map(|growth| growth.check(self.facts)));
        Concern {
            reason: finding.reason,
            sentence: finding.sentence,
            readings,
            tokens_per_sec: self.beat.map(|beat| beat.now),
            is_urgent: finding.is_urgent,
        }
    }

    /// Half as fast gives about half the heat, as far as that can still be used.
    fn pace(&self) -> Option<Measure> {
        let now = self.beat?.now;
        let pace = (now / 2.0).max(self.policy.min_decode_tokens_per_sec);
        (!self.is_paced && pace.is_finite() && pace < now).then_some(Measure::Pace(pace))
    }
}

/// A reading over its limit. What is below it again needs no remedy; it only mustn't come back yet.
fn strained(reading: &Reading, cause: Cause, is_urgent: bool) -> Option<Finding> {
    (reading.is_exceeded() && !reading.is_lingering).then(|| Finding {
        cause,
        reason: reading.reason,
        sentence: reading.strain.clone(),
        is_urgent,
    })
}
