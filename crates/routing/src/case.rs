//! A situation in a line of words, such as `free=4GiB swap_in=40MiB/s node=studio/up/speed:40`: how the table of cases
//! is written, and how people ask what would be decided.

mod values;

use std::error::Error;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use chat::Bytes;
use vitals::{Gpu, Memory, MemoryPressure, Snapshot, Swap, ThermalState};

use self::values::{
    Expected, bytes, concern, earlier, known, mode, node, number, place, pressure, rate, thermal, thermal_pressure,
    tokens, trust,
};
use crate::{
    Calibration, Concern, Decision, Demand, LocalModel, NodeOption, OffloadMode, Outlook, Place, Policy, Running,
    decide,
};

/// The words that a case is made of, for people.
pub const WORDS: &str = "\
machine   ram=16GiB free=12GiB (memory=? where unknown) limit=8GiB gpu=12GiB swap_used=1GiB swap_in=4MiB/s
          pressure=normal|warning|critical thermal=nominal|fair|serious|critical
          thermal_pressure=nominal|moderate|heavy|trapping|sleeping
before    falling=50MiB/s: so much memory was lost each second of the last minute
          until=8s/swap_in:40MiB/s (or pressure:…, thermal:…): what was read up to 8 s ago
model     weights=4GiB held=5GiB (loaded) idle=3GiB (other models) cached=900 (tokens of this chat) speed=40 prefill=400
          reads=2GiB (for a token) bandwidth=100GiB/s eta=0.6; model=none
chat      prompt=500 want=8k (context) answer=300 stays model_stays trust=rented|team|own
          place=here|NAME running=here/200|NAME/200 (tokens written) failed=here|NAME
          guard=REASON:what_it_saw, such as guard=thermal:writes_9_tok/s, and now=9 (tok/s)
offload   mode=local|auto|remote
nodes     node=NAME/PART/…: up, down, new (never asked), other (doesn't list the model), own, team, rented, warm, cold,
          queue:2, speed:40, prefill:900, holds:5000 (tokens of this chat), context:8k, on:tokens|text|prefix|none (how
          it goes on with a half-written answer)
`?` is unknown. What isn't named is 16 GiB of memory with 12 free and nothing strained, a model of 4 GiB that was
never loaded, a prompt of 500 tokens and a wanted context of 8k, no node, mode auto.";

/// Everything that a decision is made from.
#[derive(Clone, Debug)]
pub struct Case {
    /// The user's rules.
    pub policy: Policy,
    /// What is asked.
    pub demand: Demand,
    /// The machine.
    pub outlook: Outlook,
    /// The nodes.
    pub nodes: Vec<NodeOption>,
}

/// A word that isn't understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseError {
    /// The word.
    pub word: String,
    /// What it should be, for after "expected".
    pub expected: String,
}

impl fmt::Display for CaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` isn't understood: expected {}", self.word, self.expected)
    }
}

impl Error for CaseError {}

impl Case {
    /// Reads the words, in any order; [`WORDS`] lists them.
    ///
    /// # Errors
    /// The first word that isn't understood.
    pub fn parse(text: &str) -> Result<Self, CaseError> {
        let mut draft = Draft::default();
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            draft.take(key, value).map_err(|expected| CaseError { word: word.to_owned(), expected })?;
        }
        Ok(draft.finish())
    }

    /// What is decided.
    pub fn decide(&self) -> Decision {
        decide(&self.policy, &self.demand, &self.outlook, &self.nodes)
    }
}

struct Draft {
    mode: OffloadMode,
    now: Snapshot,
    memory: Option<Memory>,
    swap: Swap,
    falling: Bytes,
    earlier: Vec<Earlier>,
    model: Option<LocalModel>,
    calibration: Calibration,
    demand: Demand,
    failed: Vec<Place>,
    concern: Option<Concern>,
    speed_now: Option<f64>,
    nodes: Vec<NodeOption>,
}

/// What was read until so many seconds ago.
struct Earlier {
    until: u64,
    swap_in: Option<Bytes>,
    pressure: Option<MemoryPressure>,
    thermal: Option<ThermalState>,
}

impl Default for Draft {
    fn default() -> Self {
        let now = Snapshot {
            pressure: Some(MemoryPressure::Normal),
            thermal: Some(ThermalState::Nominal),
            ..Snapshot::default()
        };
        let model = LocalModel {
            weights: Bytes::gib(4),
            kv_per_token: Bytes(128 << 10),
            scratch: Bytes::mib(512),
            trained_context: 32_768,
            ..LocalModel::default()
        };
        Self {
            mode: OffloadMode::Auto,
            now,
            memory: Some(Memory { total: Bytes::gib(16), available: Bytes::gib(12), ..Memory::default() }),
            swap: Swap { total: Bytes::gib(8), in_per_sec: Some(Bytes::ZERO), ..Swap::default() },
            falling: Bytes::ZERO,
            earlier: Vec::new(),
            model: Some(model),
            calibration: Calibration::default(),
            demand: Demand { prompt_tokens: Some(500), wanted_context: 8192, ..Demand::default() },
            failed: Vec::new(),
            concern: None,
            speed_now: None,
            nodes: Vec::new(),
        }
    }
}

impl Draft {
    fn take(&mut self, key: &str, value: &str) -> Result<(), Expected> {
        match key {
            "mode" => self.mode = mode(value)?,
            "memory" if value == "?" => self.memory = None,
            "memory" => return Err("`memory=?`, or `ram=` and `free=`".to_owned()),
            "ram" => self.set_memory(|memory, bytes| memory.total = bytes, value)?,
            "free" => self.set_memory(|memory, bytes| memory.available = bytes, value)?,
            "limit" => self.set_memory(|memory, bytes| memory.limit = Some(bytes), value)?,
            "gpu" => self.now.gpu = Some(Gpu { working_set_limit: Some(bytes(value)?), ..Gpu::default() }),
            "swap_used" => self.swap.used = bytes(value)?,
            "swap_in" => self.swap.in_per_sec = known(value).map(rate).transpose()?,
            "pressure" => self.now.pressure = known(value).map(pressure).transpose()?,
            "thermal" => self.now.thermal = known(value).map(thermal).transpose()?,
            "thermal_pressure" => self.now.thermal_pressure = known(value).map(thermal_pressure).transpose()?,
            "falling" => self.falling = rate(value)?,
            "until" => self.earlier.push(earlier(value)?),
            "node" => self.nodes.push(node(value)?),
            _ => return self.take_of_model_or_chat(key, value),
        }
        Ok(())
    }

    fn take_of_model_or_chat(&mut self, key: &str, value: &str) -> Result<(), Expected> {
        match key {
            "model" if value == "none" => self.model = None,
            "model" => return Err("`model=none`; the model's numbers are `weights=`, `held=`, …".to_owned()),
            "weights" => self.set_model(|model, bytes| model.weights = bytes, bytes(value)?),
            "held" => self.set_model(|model, bytes| model.already_loaded = Some(bytes), bytes(value)?),
            "idle" => self.set_model(|model, bytes| model.other_loaded = bytes, bytes(value)?),
            "reads" => self.set_model(|model, bytes| model.bytes_per_token = Some(bytes), bytes(value)?),
            "cached" => self.set_model(|model, count| model.prefix_tokens = Some(count), tokens(value)?),
            "speed" => self.set_model(|model, speed| model.decode_tokens_per_sec = Some(speed), number(value)?),
            "prefill" => self.set_model(|model, speed| model.prefill_tokens_per_sec = Some(speed), number(value)?),
            "bandwidth" => self.calibration.bandwidth_bytes_per_sec = rate(value)?.0 as f64,
            "eta" => self.calibration.eta = number(value)?,
            "prompt" => self.demand.prompt_tokens = known(value).map(tokens).transpose()?,
            "want" => self.demand.wanted_context = tokens(value)?,
            "answer" => self.demand.answer_tokens = known(value).map(tokens).transpose()?,
            "stays" => self.demand.stays_local = true,
            "model_stays" => self.demand.model_stays_local = true,
            "trust" => self.demand.least_trust = trust(value).ok_or("`trust=rented`, `trust=team` or `trust=own`")?,
            "place" => self.demand.place = Some(place(value)?),
            "running" => {
                let (at, written) = value.split_once('/').ok_or("such as `running=here/200`")?;
                self.demand.running = Some(Running::at(place(at)?, tokens(written)?));
            }
            "failed" => self.failed.push(place(value)?),
            "now" => self.speed_now = Some(number(value)?),
            "guard" => self.concern = Some(concern(value)?),
            _ => return Err(format!("one of these words\n{WORDS}")),
        }
        Ok(())
    }

    fn set_memory(&mut self, set: impl Fn(&mut Memory, Bytes), value: &str) -> Result<(), Expected> {
        let bytes = bytes(value)?;
        if let Some(memory) = &mut self.memory {
            set(memory, bytes);
        }
        Ok(())
    }

    fn set_model<T>(&mut self, set: impl Fn(&mut LocalModel, T), value: T) {
        if let Some(model) = &mut self.model {
            set(model, value);
        }
    }

    fn finish(mut self) -> Case {
        let ram = self.memory.map(|memory| memory.total);
        if let (Some(model), true) = (&mut self.model, self.calibration != Calibration::default()) {
            model.calibration = Some(self.calibration);
        }
        self.demand.model = self.model.take();
        if let Some(running) = &mut self.demand.running {
            running.failed = std::mem::take(&mut self.failed);
            running.concern = self.concern.take().map(|concern| Concern { tokens_per_sec: self.speed_now, ..concern });
        }
        Case {
            // Where the memory is unknown the reserve is that of any machine.
            policy: Policy { mode: self.mode, ..Policy::for_machine(ram) },
            outlook: self.outlook(),
            demand: self.demand,
            nodes: self.nodes,
        }
    }

    /// One reading, or a minute of them where something is said of the time before.
    fn outlook(&self) -> Outlook {
        const MINUTE: u64 = 60;
        let has_history = self.falling > Bytes::ZERO || !self.earlier.is_empty();
        let mut outlook = Outlook::default();
        for ago in (0..=if has_history { MINUTE } else { 0 }).rev() {
            let mut snapshot = Snapshot { at: UNIX_EPOCH + Duration::from_secs(MINUTE - ago), ..self.now.clone() };
            let mut swap = self.swap;
            snapshot.memory = self.memory.map(|memory| {
                let more = Bytes(self.falling.0.saturating_mul(ago));
                Memory {
                    available: memory.available.saturating_add(more).min(memory.total.max(memory.available)),
                    ..memory
                }
            });
            for earlier in self.earlier.iter().filter(|earlier| ago >= earlier.until) {
                swap.in_per_sec = earlier.swap_in.or(swap.in_per_sec);
                snapshot.pressure = earlier.pressure.or(snapshot.pressure);
                snapshot.thermal = earlier.thermal.or(snapshot.thermal);
            }
            snapshot.swap = Some(swap);
            outlook.add(&snapshot);
        }
        outlook
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_word_is_named_with_what_it_should_be() {
        for (text, expected) in [
            ("swap_in=fast", "`swap_in=fast` isn't understood: expected an amount a second such as 40MiB/s"),
            (
                "free=12GiB thermal=hot",
                "`thermal=hot` isn't understood: expected one of nominal, fair, serious, critical",
            ),
            ("prompt=many", "`prompt=many` isn't understood: expected a count of tokens such as 500 or 8k"),
            (
                "free=99999999999999GiB",
                "`free=99999999999999GiB` isn't understood: expected an amount such as 4GiB or 512MiB",
            ),
            (
                "node=studio/load:3",
                "`node=studio/load:3` isn't understood: expected a part that a node has; it has no `load:`",
            ),
        ] {
            assert_eq!(Case::parse(text).unwrap_err().to_string(), expected);
        }
        assert!(Case::parse("colour=red").unwrap_err().to_string().contains("mode=local|auto|remote"));
    }

    #[test]
    fn what_was_before_is_a_minute_of_readings() {
        let case = Case::parse("free=9GiB falling=50MiB/s until=8s/swap_in:40MiB/s/thermal:fair").unwrap();
        assert_eq!(case.outlook.memory_per_sec(), Some(-50.0 * 1048576.0));
        assert_eq!(case.outlook.snapshot().thermal, Some(ThermalState::Nominal));
        assert_eq!(Case::parse("").unwrap().outlook.memory_per_sec(), None);
    }

    proptest::proptest! {
        #[test]
        fn no_words_are_too_odd(text in "([a-z_]{1,16}=?[0-9a-zA-Z?:/.é-]{0,24} ){0,6}", key in 0_usize..40, value in ".{0,20}") {
            let known: Vec<&str> = WORDS.split_whitespace().filter(|word| word.contains('=')).collect();
            let word = known[key % known.len()].split('=').next().unwrap_or("");
            for text in [text, format!("{word}={value}")] {
                if let Ok(case) = Case::parse(&text) {
                    case.decide();
                }
            }
        }
    }
}
