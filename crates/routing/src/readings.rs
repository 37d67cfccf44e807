//! Every reading that says how strained this machine is, against the policy's limit.

use std::time::Duration;

use vitals::{MemoryPressure, ThermalState};

use crate::hysteresis::State;
use crate::outlook::Signal;
use crate::{Outlook, Policy, ReadingCheck, Reason, words};

/// A reading with what it would mean to be over its limit.
pub(crate) struct Reading {
    pub(crate) check: ReadingCheck,
    pub(crate) reason: Reason,
    /// "swaps in 40.0 MB/s", for after "here"; or what it did until a moment ago.
    pub(crate) strain: String,
    /// "with swap in up to 4.0 MB/s", for after "would stay here".
    pub(crate) remedy: String,
    /// It counts, but only because it hasn't been below its limit for long enough.
    pub(crate) is_lingering: bool,
}

impl Reading {
    pub(crate) fn is_exceeded(&self) -> bool {
        self.check.exceeded == Some(true)
    }
}

/// The readings, the one that hurts first in front.
pub(crate) fn readings(policy: &Policy, outlook: &Outlook) -> [Reading; 4] {
    [swap_in(policy, outlook), swap_used(policy, outlook), pressure(policy, outlook), heat(policy, outlook)]
}

/// Whether one of the readings says that memory runs short, apart from how much is free.
pub(crate) fn is_short_of_memory(readings: &[Reading]) -> bool {
    readings.iter().any(|reading| reading.is_exceeded() && reading.reason != Reason::Thermal)
}

pub(crate) fn unknown() -> String {
    "unknown".to_owned()
}

/// What is said of one signal.
struct Words {
    name: &'static str,
    reason: Reason,
    /// The newest value; `None` where it is unknown.
    value: Option<String>,
    limit: Option<String>,
    /// "swaps in 40.0 MB/s".
    is: String,
    /// "swapped in more than 4.0 MB/s", for before "6 s ago".
    was: String,
    remedy: String,
}

impl Words {
    fn reading(self, state: State, dwell: Duration) -> Reading {
        let is_known = self.value.is_some();
        let ago = match state {
            State::Strained { over_ago } if over_ago >= Duration::from_secs(1) || !is_known => {
                Some(words::ago(over_ago))
            }
            _ => None,
        };
        let value = self.value.unwrap_or_else(unknown);
        let exceeded = match state {
            State::Strained { .. } => Some(true),
            State::Calm if is_known && self.limit.is_some() => Some(false),
            State::Calm | State::Unknown => None,
        };
        let Some(ago) = ago else {
            let check = ReadingCheck { name: self.name, value, limit: self.limit, exceeded };
            return Reading { check, reason: self.reason, strain: self.is, remedy: self.remedy, is_lingering: false };
        };
        // It is below the limit again, but not yet for long enough.
        let check = ReadingCheck {
            name: self.name,
            value: format!("{value}, over the limit {ago}"),
            limit: self.limit,
            exceeded,
        };
        let remedy = format!("{} for {}", self.remedy, words::about(dwell.as_secs_f64()).trim_start_matches("about "));
        Reading { check, reason: self.reason, strain: format!("{} {ago}", self.was), remedy, is_lingering: true }
    }
}

fn swap_in(policy: &Policy, outlook: &Outlook) -> Reading {
    let limit = policy.max_swap_in_per_sec;
    let state = outlook.state(Signal::SwapIn, policy);
    let rate = outlook.value(Signal::SwapIn, state).map(|rate| format!("{}/s", chat::Bytes(rate as u64)));
    let words = Words {
        name: "Swap in",
        reason: Reason::Swap,
        is: format!("swaps in {}", rate.clone().unwrap_or_else(unknown)),
        was: format!("swapped in more than {limit}/s"),
        value: rate,
        limit: Some(format!("{limit}/s")),
        remedy: format!("with swap in up to {limit}/s"),
    };
    words.reading(state, policy.dwell)
}

fn swap_used(policy: &Policy, outlook: &Outlook) -> Reading {
    let snapshot = outlook.snapshot();
    let used = snapshot.swap.map(|swap| swap.used);
    let ram = snapshot.memory.map(|memory| memory.usable()).filter(|total| total.0 > 0);
    let ratio = Some(policy.max_swap_used_ratio).filter(|ratio| (ratio * 100.0).is_finite());
    let limit = ratio.map(|ratio| match ram {
        Some(ram) => format!("{} ({:.0} % of memory)", ram.scaled(ratio), ratio * 100.0),
        None => format!("{:.0} % of memory", ratio * 100.0),
    });
    let most = limit.clone().unwrap_or_else(|| "an unknown amount".to_owned());
    let value = used.map(|used| used.to_string());
    let words = Words {
        name: "Swap used",
        reason: Reason::Swap,
        is: format!("has {} in swap", value.clone().unwrap_or_else(unknown)),
        was: format!("had more than {most} in swap"),
        value,
        limit,
        remedy: format!("with up to {most} in swap"),
    };
    words.reading(outlook.state(Signal::SwapUsed, policy), policy.dwell)
}

fn pressure(policy: &Policy, outlook: &Outlook) -> Reading {
    let state = outlook.state(Signal::Pressure, policy);
    let level = outlook.value(Signal::Pressure, state).map(|level| match level {
        ..0.5 => MemoryPressure::Normal.as_str(),
        ..1.5 => MemoryPressure::Warning.as_str(),
        _ => MemoryPressure::Critical.as_str(),
    });
    let words = Words {
        name: "Pressure",
        reason: Reason::Pressure,
        is: format!("has {} memory pressure", level.unwrap_or("unknown")),
        was: "had memory pressure".to_owned(),
        value: level.map(str::to_owned),
        limit: Some("below warning".to_owned()),
        remedy: "with normal memory pressure".to_owned(),
    };
    words.reading(state, policy.dwell)
}

fn heat(policy: &Policy, outlook: &Outlook) -> Reading {
    let state = outlook.state(Signal::Heat, policy);
    let level = outlook.value(Signal::Heat, state).map(|level| match level {
        ..0.5 => ThermalState::Nominal.as_str(),
        ..1.5 => ThermalState::Fair.as_str(),
        ..2.5 => ThermalState::Serious.as_str(),
        _ => ThermalState::Critical.as_str(),
    });
    let limit = policy.max_thermal.as_str();
    let words = Words {
        name: "Heat",
        reason: Reason::Thermal,
        is: format!("is too hot ({})", level.unwrap_or("unknown")),
        was: "was too hot".to_owned(),
        value: level.map(str::to_owned),
        limit: Some(format!("below {limit}")),
        remedy: format!("with heat below {limit}"),
    };
    words.reading(state, policy.heat_dwell)
}
