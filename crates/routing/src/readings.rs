//! Every reading that says how strained this machine is, against the policy's limit.

use vitals::{MemoryPressure, Snapshot, ThermalPressure, ThermalState};

use crate::{Outlook, Policy, ReadingCheck, Reason};

/// A reading with what it would mean to be over its limit.
pub(crate) struct Reading {
    pub(crate) check: ReadingCheck,
    pub(crate) reason: Reason,
    /// "swaps in 40.0 MB/s", for after "here".
    pub(crate) strain: String,
    /// "with swap in up to 4.0 MB/s", for after "would stay here".
    pub(crate) remedy: String,
}

impl Reading {
    pub(crate) fn is_exceeded(&self) -> bool {
        self.check.exceeded == Some(true)
    }
}

/// The readings, the one that hurts first in front.
pub(crate) fn readings(policy: &Policy, outlook: &Outlook) -> [Reading; 4] {
    let snapshot = outlook.snapshot();
    [swap_in(policy, snapshot), swap_used(policy, snapshot), pressure(snapshot), heat(policy, snapshot)]
}

/// Whether one of the readings says that memory runs short, apart from how much is free.
pub(crate) fn is_short_of_memory(readings: &[Reading]) -> bool {
    readings.iter().any(|reading| reading.is_exceeded() && reading.reason != Reason::Thermal)
}

pub(crate) fn unknown() -> String {
    "unknown".to_owned()
}

fn swap_in(policy: &Policy, snapshot: &Snapshot) -> Reading {
    let rate = snapshot.swap.and_then(|swap| swap.in_per_sec);
    let limit = policy.max_swap_in_per_sec;
    let value = rate.map_or_else(unknown, |rate| format!("{rate}/s"));
    Reading {
        strain: format!("swaps in {value}"),
        remedy: format!("with swap in up to {limit}/s"),
        reason: Reason::Swap,
        check: ReadingCheck {
            name: "Swap in",
            value,
            limit: Some(format!("{limit}/s")),
            exceeded: rate.map(|rate| rate > limit),
        },
    }
}

fn swap_used(policy: &Policy, snapshot: &Snapshot) -> Reading {
    let used = snapshot.swap.map(|swap| swap.used);
    let ram = snapshot.memory.map(|memory| memory.total).filter(|total| total.0 > 0);
    let ratio = Some(policy.max_swap_used_ratio).filter(|ratio| ratio.is_finite());
    let limit = ratio.map(|ratio| match ram {
        Some(ram) => format!("{} ({:.0} % of memory)", ram.scaled(ratio), ratio * 100.0),
        None => format!("{:.0} % of memory", ratio * 100.0),
    });
    let exceeded = used.zip(ram).zip(ratio).map(|((used, ram), ratio)| used.0 as f64 / ram.0 as f64 > ratio);
    let value = used.map_or_else(unknown, |used| used.to_string());
    Reading {
        strain: format!("has {value} in swap"),
        remedy: format!("with up to {} in swap", limit.as_deref().unwrap_or("an unknown amount")),
        reason: Reason::Swap,
        check: ReadingCheck { name: "Swap used", value, limit, exceeded },
    }
}

fn pressure(snapshot: &Snapshot) -> Reading {
    let value = snapshot.pressure.map_or_else(unknown, |pressure| pressure.as_str().to_owned());
    Reading {
        strain: format!("has {value} memory pressure"),
        remedy: "with normal memory pressure".to_owned(),
        reason: Reason::Pressure,
        check: ReadingCheck {
            name: "Pressure",
            value,
            limit: Some("below warning".to_owned()),
            exceeded: snapshot.pressure.map(|pressure| pressure >= MemoryPressure::Warning),
        },
    }
}

fn heat(policy: &Policy, snapshot: &Snapshot) -> Reading {
    // The finer level shows throttling before the coarse one does, so the worse of the two counts.
    let state = snapshot.thermal.max(snapshot.thermal_pressure.map(as_state));
    let limit = policy.max_thermal.as_str();
    let value = state.map_or_else(unknown, |state| state.as_str().to_owned());
    Reading {
        strain: format!("is too hot ({value})"),
        remedy: format!("with heat below {limit}"),
        reason: Reason::Thermal,
        check: ReadingCheck {
            name: "Heat",
            value,
            limit: Some(format!("below {limit}")),
            exceeded: state.map(|state| state >= policy.max_thermal),
        },
    }
}

fn as_state(pressure: ThermalPressure) -> ThermalState {
    match pressure {
        ThermalPressure::Nominal => ThermalState::Nominal,
        ThermalPressure::Moderate => ThermalState::Fair,
        ThermalPressure::Heavy => ThermalState::Serious,
        ThermalPressure::Trapping | ThermalPressure::Sleeping => ThermalState::Critical,
    }
}
