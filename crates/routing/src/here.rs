//! What would happen if the answer were made on this machine.

use chat::Bytes;
use vitals::Snapshot;

use crate::fit::{Limits, fit, longest_context};
use crate::rank::{Pace, Work, known_speed};
use crate::readings::{Reading, readings, unknown};
use crate::{
    Concern, Demand, LocalModel, Outlook, Place, Policy, ReadingCheck, Reason, Speed, SpeedForecast, Verdict, words,
};

/// Room for an answer after the prompt, in tokens: a context that leaves less is no use.
const ANSWER_ROOM: usize = 1024;

/// A smaller context than this is no help that could be offered, in tokens.
const LEAST_OFFERED_CONTEXT: usize = 1024;

pub(crate) struct Here {
    pub(crate) outcome: Outcome,
    pub(crate) readings: Vec<ReadingCheck>,
    /// The readings over their limits, the worst first.
    pub(crate) strains: Vec<Strain>,
    /// Readings of strain that are unknown, by name.
    pub(crate) unknown: Vec<&'static str>,
    /// How fast the model decodes here, measured or forecast.
    pub(crate) speed: Option<Speed>,
    /// Seconds until the answer would be done here; assumed where the speed is unknown.
    pub(crate) finish: f64,
    /// Tokens of this request that needn't be read again here.
    pub(crate) cached: usize,
}

pub(crate) enum Outcome {
    Runs {
        context_len: usize,
        /// It is less than what the settings and the prompt ask for.
        is_smaller: bool,
        /// What of the budget stays free; `None` where the memory is unknown.
        spare: Option<Bytes>,
        /// The most context that fits, where that is less than the model could read.
        max_context: Option<usize>,
    },
    Cannot {
        reason: Reason,
        /// "needs 9.1 GB with 8k context and 5.0 GB can be used", for after "here".
        why: String,
        /// "with context up to 4k", for after "fits".
        remedy: Option<String>,
    },
}

pub(crate) struct Strain {
    pub(crate) reason: Reason,
    pub(crate) strain: String,
    pub(crate) remedy: String,
}

impl Here {
    pub(crate) fn look(policy: &Policy, demand: &Demand, outlook: &Outlook) -> Self {
        let snapshot = outlook.snapshot();
        let strain_readings = readings(policy, outlook);
        let unknown = strain_readings.iter().filter(|r| r.check.exceeded.is_none()).map(|r| r.check.name).collect();
        let strains = strain_readings
            .iter()
            .filter(|reading| reading.is_exceeded())
            .map(|Reading { reason, strain, remedy, .. }| Strain {
                reason: *reason,
                strain: strain.clone(),
                remedy: remedy.clone(),
            })
            .collect();
        let outcome = outcome(policy, demand, snapshot);
        let (speeds, cached, finish) = pace(demand);
        let mut here = Self {
            readings: memory_checks(policy, demand, snapshot, &outcome),
            outcome,
            strains,
            unknown,
            speed: speeds.decode,
            finish,
            cached,
        };
        here.readings.extend(strain_readings.into_iter().map(|reading| reading.check));
        here.check_trend(policy, demand, outlook);
        here.check_speed(policy, demand);
        if let Some(concern) = demand.running.as_ref().and_then(|running| running.concern.as_ref()) {
            here.add_concern(concern);
        }
        here
    }

    /// What the guard saw counts for more than what can be seen from the readings alone.
    fn add_concern(&mut self, concern: &Concern) {
        self.strains.retain(|strain| strain.reason != concern.reason);
        let strain =
            Strain { reason: concern.reason, strain: concern.sentence.clone(), remedy: "once that is over".to_owned() };
        self.strains.insert(0, strain);
        for reading in &concern.readings {
            if self.readings.iter().all(|known| known.name != reading.name) {
                self.readings.push(reading.clone());
            }
        }
    }

    /// Memory that fits now and won't in a moment.
    fn check_trend(&mut self, policy: &Policy, demand: &Demand, outlook: &Outlook) {
        let Some(model) = &demand.model else { return };
        let trend = outlook.memory_per_sec();
        let falling = trend.filter(|rate| *rate < 0.0).map(|rate| -rate);
        let until = match self.outcome {
            // Until not even the least context fits: the rest of it could still be given up.
            Outcome::Runs { .. } => falling.and_then(|falling| {
                let free = Limits::of(model, policy, outlook.snapshot()).now?;
                let needed = model.needed(least_context(demand, longest_context(model)));
                Some(free.saturating_sub(needed).0 as f64 / falling)
            }),
            Outcome::Cannot { .. } => None,
        };
        // An answer that is done before doesn't mind, and beyond the time a trend is believed for nothing is known.
        let within = policy.forecast_within.as_secs_f64().min(self.speed.map_or(f64::INFINITY, |_| self.finish));
        let exceeded = until.map(|until| until < within);
        self.readings.push(ReadingCheck {
            name: "Memory trend",
            value: trend.map_or_else(
                || "no trend".to_owned(),
                |rate| format!("{} {}/s", if rate < 0.0 { "falling" } else { "rising" }, Bytes(rate.abs() as u64)),
            ),
            limit: until.map(|until| format!("short in {}, {} needed", words::about(until), words::about(within))),
            exceeded,
        });
        if let (Some(true), Some(until), Some(falling)) = (exceeded, until, falling) {
            self.strains.push(Strain {
                reason: Reason::MemorySoon,
                strain: format!("would run short of memory in {}", words::about(until)),
                remedy: format!("if free memory stopped falling by {}/s", Bytes(falling as u64)),
            });
        }
    }

    fn check_speed(&mut self, policy: &Policy, demand: &Demand) {
        if demand.model.is_none() {
            return;
        }
        let least = policy.min_decode_tokens_per_sec;
        let exceeded = self.speed.filter(|_| least.is_finite()).map(|speed| speed.tokens_per_sec < least);
        let value = self.speed.map_or_else(unknown, |speed| {
            let forecast = if speed.is_forecast { " (forecast)" } else { "" };
            format!("{}{forecast}", words::speed(speed.tokens_per_sec))
        });
        self.readings.push(ReadingCheck {
            name: "Speed",
            value,
            limit: least.is_finite().then(|| format!("at least {}", words::speed(least))),
            exceeded,
        });
        if let (Some(true), Some(speed)) = (exceeded, self.speed) {
            let tokens_per_sec = words::speed(speed.tokens_per_sec);
            self.strains.push(Strain {
                reason: Reason::TooSlow,
                strain: if speed.is_forecast {
                    format!("would write about {tokens_per_sec}")
                } else {
                    format!("writes {tokens_per_sec} only")
                },
                remedy: format!("with {} or more", words::speed(least)),
            });
        }
    }

    /// How it would run, for after "Here": "fits with 3.1 GB to spare"; or why it can't.
    pub(crate) fn describe(&self) -> String {
        match &self.outcome {
            Outcome::Runs { spare: None, .. } => "memory unknown, so it may not fit".to_owned(),
            Outcome::Runs { context_len, is_smaller: true, spare: Some(spare), .. } => {
                format!("fits with context {} and {spare} to spare", words::context(*context_len))
            }
            Outcome::Runs { spare: Some(spare), .. } => format!("fits with {spare} to spare"),
            Outcome::Cannot { why, .. } => why.clone(),
        }
    }

    /// What is bad about running here although it fits: "swaps in 40.0 MB/s and is too hot (serious)".
    pub(crate) fn describe_strain(&self) -> Option<String> {
        let parts: Vec<&str> = self.strains.iter().map(|strain| strain.strain.as_str()).collect();
        (!parts.is_empty()).then(|| parts.join(" and "))
    }
}

/// How fast it would go here, how much of it is read already, and in how many seconds it would be done.
fn pace(demand: &Demand) -> (SpeedForecast, usize, f64) {
    let Some(model) = &demand.model else { return (SpeedForecast::default(), 0, f64::INFINITY) };
    let work = Work::of(demand);
    let mut speeds = SpeedForecast::of(model, work.to_read);
    let concern = demand.running.as_ref().and_then(|running| running.concern.as_ref());
    // What it usually reaches is no longer so.
    if let Some(tokens_per_sec) = known_speed(concern.and_then(|concern| concern.tokens_per_sec)) {
        speeds.decode = Some(Speed { tokens_per_sec, is_forecast: false });
    }
    let is_running_here = demand.running.as_ref().is_some_and(|running| running.place == Place::Here);
    let cached = if is_running_here { work.to_read } else { model.prefix_tokens.unwrap_or(0).min(work.to_read) };
    let pace = Pace {
        queue: 0.0,
        is_cold: model.already_loaded.is_none(),
        cached,
        prefill: speeds.prefill.map(|speed| speed.tokens_per_sec),
        decode: speeds.decode.map(|speed| speed.tokens_per_sec),
    };
    (speeds, cached, work.seconds(pace))
}

fn outcome(policy: &Policy, demand: &Demand, snapshot: &Snapshot) -> Outcome {
    if demand.has_failed(&Place::Here) {
        return Outcome::Cannot { reason: Reason::Failed, why: "failed in this answer".to_owned(), remedy: None };
    }
    let Some(model) = &demand.model else {
        return Outcome::Cannot { reason: Reason::NoModel, why: "has no model file".to_owned(), remedy: None };
    };
    let longest = longest_context(model);
    if let Some(prompt) = demand.tokens_to_read().filter(|&prompt| prompt >= longest) {
        let why = format!(
            "the model reads at most {} and this chat has {}",
            words::tokens(longest - 1),
            words::tokens(prompt)
        );
        return Outcome::Cannot { reason: Reason::TooLong, why, remedy: None };
    }
    let least = least_context(demand, longest);
    let wanted = demand.wanted_context.max(least).min(longest);
    let at_wanted = fit(model, policy, snapshot, wanted);
    let max_context = at_wanted.max_context.filter(|&tokens| tokens < longest);
    let runs = |context_len, spare| Outcome::Runs { context_len, is_smaller: context_len < wanted, spare, max_context };
    match (at_wanted.verdict, at_wanted.budget, at_wanted.max_context) {
        (Verdict::Unknown, ..) => runs(wanted, None),
        (Verdict::RunsWell | Verdict::Tight, Some(budget), _) => {
            runs(wanted, Some(budget.saturating_sub(at_wanted.needed)))
        }
        (_, Some(budget), Some(tokens)) if tokens >= least => {
            runs(tokens, Some(budget.saturating_sub(model.needed(tokens))))
        }
        _ => too_big(policy, snapshot, model, least),
    }
}

/// The context without which there is no use in starting: prompt and answer, or all that is wanted where the prompt
/// wasn't counted.
fn least_context(demand: &Demand, longest: usize) -> usize {
    match demand.tokens_to_read() {
        Some(prompt) => {
            prompt.saturating_add(ANSWER_ROOM).checked_next_multiple_of(256).unwrap_or(usize::MAX).min(longest)
        }
        None => demand.wanted_context.min(longest),
    }
}

fn too_big(policy: &Policy, snapshot: &Snapshot, model: &LocalModel, least: usize) -> Outcome {
    let at_least = fit(model, policy, snapshot, least);
    let limits = Limits::of(model, policy, snapshot);
    let usable = match (at_least.budget, limits.gpu) {
        (Some(budget), _) => format!("{budget} can be used"),
        (None, Some(gpu)) => format!("the GPU can use {gpu}"),
        (None, None) => "memory unknown".to_owned(),
    };
    let context = at_least
        .max_context
        .filter(|&tokens| tokens >= LEAST_OFFERED_CONTEXT)
        .map(|tokens| format!("with context up to {}", words::context(tokens)));
    let free = limits
        .free_needed(at_least.needed, model, policy)
        .map(|free| format!("if {} were free", words::at_least(free)));
    let remedies: Vec<String> = [context, free].into_iter().flatten().collect();
    Outcome::Cannot {
        reason: Reason::Memory,
        why: format!("needs {} with context {}, {usable}", words::at_least(at_least.needed), words::context(least)),
        remedy: (!remedies.is_empty()).then(|| remedies.join(", or ")),
    }
}

fn memory_checks(policy: &Policy, demand: &Demand, snapshot: &Snapshot, outcome: &Outcome) -> Vec<ReadingCheck> {
    let free = snapshot.memory.map(|memory| memory.available);
    let value = free.map_or_else(unknown, |free| free.to_string());
    let Some(model) = &demand.model else {
        return vec![ReadingCheck { name: "Free memory", value, limit: None, exceeded: None }];
    };
    let context_len = match outcome {
        Outcome::Runs { context_len, .. } => *context_len,
        Outcome::Cannot { .. } => least_context(demand, longest_context(model)),
    };
    let needed = model.needed(context_len);
    let more = needed.saturating_sub(model.already_loaded.unwrap_or(Bytes::ZERO));
    let limits = Limits::of(model, policy, snapshot);
    let mut checks = vec![ReadingCheck {
        name: "Free memory",
        value,
        limit: Some(format!("{more} needed, {} kept free", policy.reserve)),
        exceeded: Limits { gpu: None, ..limits }.budget().map(|budget| needed > budget),
    }];
    if let Some(gpu) = limits.gpu {
        checks.push(ReadingCheck {
            name: "GPU memory",
            value: gpu.to_string(),
            limit: Some(format!("{needed} needed")),
            exceeded: Some(needed > gpu),
        });
    }
    checks
}
