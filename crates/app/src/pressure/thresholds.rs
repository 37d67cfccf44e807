//! From what a machine was measured to stand, the limits that its own policy should have. Pure.

use std::time::Duration;

use chat::Bytes;
use vitals::{Machine, MemoryPressure, Snapshot};

/// Below this part of the undisturbed speed, an answer is slowed down.
const KEPT_SPEED: f64 = 0.85;
/// Steps in which memory is taken.
const STEPS: u64 = 24;
/// Steps before, which say what is undisturbed.
const UNDISTURBED_STEPS: usize = 3;
const STEP_TIME: Duration = Duration::from_secs(4);
const LEAST_STEP: Bytes = Bytes::mib(16);
/// Swap in use, or swapped in within a second, that is less than this above what it is at rest is no sign of anything.
const LEAST_SIGN: Bytes = Bytes::mib(1);

/// How memory is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PressurePlan {
    /// Steps in which nothing is taken yet.
    pub undisturbed: usize,
    /// Taken in each step after these.
    pub step: Bytes,
    /// Never more than this.
    pub most: Bytes,
    /// It stops where swap in use has grown by this much.
    pub most_swap: Bytes,
    /// How long a step is measured.
    pub step_time: Duration,
}

impl PressurePlan {
    /// For a machine in this state: up to what is available and a quarter of the memory beyond, as long as swap grows by no
    /// more than twice that, and is half full at most. `None` where memory or swap is unknown, or there is no swap to speak
    /// of.
    pub fn new(machine: &Machine, snapshot: &Snapshot) -> Option<Self> {
        let (memory, swap) = (snapshot.memory?, snapshot.swap?);
        let ram = memory.usable();
        let room = if machine.swap_grows { ram } else { swap.total.saturating_sub(swap.used) };
        let beyond = Bytes((ram.0 / 4).min(room.0 / 4));
        if beyond < LEAST_STEP {
            return None;
        }
        let most = memory.available.saturating_add(beyond);
        let step = Bytes((most.0 / STEPS).next_multiple_of(LEAST_STEP.0));
        Some(Self { undisturbed: UNDISTURBED_STEPS, step, most, most_swap: Bytes(2 * beyond.0), step_time: STEP_TIME })
    }

    /// What is held in each step.
    pub fn holds(&self) -> impl Iterator<Item = Bytes> {
        let taken = (1..).map(|step| Bytes(self.step.0.saturating_mul(step)));
        let (most, step) = (self.most, self.step);
        let taken = taken.take_while(move |taken| *taken <= most && step > Bytes::ZERO);
        std::iter::repeat_n(Bytes::ZERO, self.undisturbed).chain(taken)
    }
}

/// What one step was like. What couldn't be read is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PressureStep {
    /// Memory that was held beside the answers.
    pub taken: Bytes,
    /// The least that was available.
    pub available: Option<Bytes>,
    /// The most swap that was in use, of whatever.
    pub swap_used: Option<Bytes>,
    /// Read back from swap, on average.
    pub swap_in_per_sec: Option<Bytes>,
    /// The worst that the system said.
    pub pressure: Option<MemoryPressure>,
    /// Tokens that came, and how many that is in a second of the whole step.
    pub tokens: usize,
    /// Tokens in a second of the whole step.
    pub tokens_per_sec: f64,
    /// Time between two tokens of an answer: half of them came faster.
    pub itl_p50: Option<Duration>,
    /// 99 of 100 came faster.
    pub itl_p99: Option<Duration>,
    /// Where the last answer of the step was begun, in words.
    pub place: String,
    /// Why the last answer that failed did.
    pub failure: Option<String>,
}

/// Where answers slow down on this machine for want of memory: below 85 % of the undisturbed speed. A reading that was no
/// worse than undisturbed says nothing, and is `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PressureThresholds {
    /// Median of the steps in which nothing was taken.
    pub undisturbed_tokens_per_sec: f64,
    /// What was taken then.
    pub taken: Bytes,
    /// Swap in use.
    pub swap_used: Option<Bytes>,
    /// Swap-in.
    pub swap_in_per_sec: Option<Bytes>,
    /// Memory that was available still.
    pub available: Option<Bytes>,
}

impl PressureThresholds {
    /// Between the last step that was fast enough and the first of those that weren't, in proportion. A slow step while no
    /// reading tells of memory running short, or with a fast one after it, is taken for a disturbance.
    ///
    /// # Errors
    /// Where that can't be said of these steps.
    pub fn find(steps: &[PressureStep]) -> Result<Self, NoThresholds> {
        let undisturbed: Vec<&PressureStep> = steps.iter().take_while(|step| step.taken == Bytes::ZERO).collect();
        let mut speeds: Vec<f64> = undisturbed.iter().map(|step| step.tokens_per_sec).collect();
        speeds.sort_by(f64::total_cmp);
        let usual =
            speeds.get(speeds.len() / 2).copied().filter(|speed| *speed > 0.0).ok_or(NoThresholds::Disturbed)?;
        let least = KEPT_SPEED * usual;
        if speeds.iter().any(|speed| *speed < least) {
            return Err(NoThresholds::Disturbed);
        }
        let at_rest = |read: fn(&PressureStep) -> Option<Bytes>| undisturbed.iter().filter_map(move |step| read(step));
        let swap_used = |step: &PressureStep| step.swap_used;
        let swap_in = |step: &PressureStep| step.swap_in_per_sec;
        let available = |step: &PressureStep| step.available;
        let (swap_at_rest, swap_in_at_rest) = (at_rest(swap_used).max(), at_rest(swap_in).max());
        let is_above = |value: Option<Bytes>, rest: Option<Bytes>| {
            value.zip(rest).is_some_and(|(value, rest)| value.saturating_sub(rest) >= LEAST_SIGN)
        };
        let is_short = |step: &PressureStep| {
            step.pressure.is_some_and(|pressure| pressure != MemoryPressure::Normal)
                || is_above(step.swap_used, swap_at_rest)
                || is_above(step.swap_in_per_sec, swap_in_at_rest)
        };
        let is_slow = |step: &PressureStep| step.tokens_per_sec < least && is_short(step);
        let first = (undisturbed.len()..steps.len())
            .find(|&i| is_slow(&steps[i]) && steps.get(i + 1).is_none_or(is_slow))
            .ok_or(NoThresholds::NeverSlow)?;
        // There are undisturbed ones before it.
        let (before, after) = (&steps[first - 1], &steps[first]);
        let fall = before.tokens_per_sec - after.tokens_per_sec;
        let part = if fall > 0.0 { ((before.tokens_per_sec - least) / fall).clamp(0.0, 1.0) } else { 0.0 };
        let mix =
            |before: Bytes, after: Bytes| Bytes((before.0 as f64 + part * (after.0 as f64 - before.0 as f64)) as u64);
        let between = |read: fn(&PressureStep) -> Option<Bytes>| Some(mix(read(before)?, read(after)?));
        Ok(Self {
            undisturbed_tokens_per_sec: usual,
            taken: mix(before.taken, after.taken),
            swap_used: between(swap_used).filter(|used| is_above(Some(*used), swap_at_rest)),
            swap_in_per_sec: between(swap_in).filter(|rate| is_above(Some(*rate), swap_in_at_rest)),
            available: between(available).filter(|left| at_rest(available).all(|rest| *left < rest)),
        })
    }
}

/// Why there are no limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoThresholds {
    /// Speed swung before any memory was taken, so that nothing can be compared with it.
    #[error("something else slowed answers down before any memory was taken; close it and measure again")]
    Disturbed,
    /// Nothing to derive them from.
    #[error("answers never fell below 85 % of their undisturbed speed for want of memory")]
    NeverSlow,
}

#[cfg(test)]
mod tests {
    use vitals::{Memory, Swap};

    use super::*;

    fn step(taken: u64, speed: f64, swap_used: u64, swap_in: u64, available: u64) -> PressureStep {
        PressureStep {
            taken: Bytes::mib(taken),
            tokens_per_sec: speed,
            swap_used: Some(Bytes::mib(swap_used)),
            swap_in_per_sec: Some(Bytes::mib(swap_in)),
            available: Some(Bytes::mib(available)),
            ..PressureStep::default()
        }
    }

    fn collapse() -> Vec<PressureStep> {
        vec![
            step(0, 31.0, 10, 0, 900),
            step(0, 29.0, 10, 0, 900),
            step(0, 30.0, 10, 0, 900),
            step(300, 12.0, 10, 0, 600), // something else ran
            step(600, 29.5, 10, 0, 300),
            step(900, 21.5, 110, 8, 0),
            step(1200, 3.0, 400, 90, 0),
        ]
    }

    #[test]
    fn limits_lie_between_the_last_fast_step_and_the_first_slow_one() {
        // 85 % of 30 is 25.5: half of the way from 29.5 to 21.5.
        let found = PressureThresholds::find(&collapse()).unwrap();
        assert_eq!(found.undisturbed_tokens_per_sec, 30.0);
        assert_eq!((found.taken, found.swap_used), (Bytes::mib(750), Some(Bytes::mib(60))));
        assert_eq!((found.swap_in_per_sec, found.available), (Some(Bytes::mib(4)), Some(Bytes::mib(150))));
    }

    #[test]
    fn a_reading_that_says_nothing_sets_no_limit() {
        let mut steps = collapse();
        for step in &mut steps {
            (step.swap_used, step.swap_in_per_sec) = (Some(Bytes::mib(10)), None);
            step.pressure = (step.tokens_per_sec < 25.0).then_some(MemoryPressure::Warning);
        }
        steps[3].pressure = None;
        let found = PressureThresholds::find(&steps).unwrap();
        assert_eq!((found.swap_used, found.swap_in_per_sec), (None, None));
    }

    #[test]
    fn no_collapse_is_no_limit() {
        assert_eq!(PressureThresholds::find(&collapse()[..5]), Err(NoThresholds::NeverSlow));
        assert_eq!(PressureThresholds::find(&collapse()[3..]), Err(NoThresholds::Disturbed));
        assert_eq!(PressureThresholds::find(&[]), Err(NoThresholds::Disturbed));
    }

    #[test]
    fn what_is_slow_for_another_reason_is_no_limit() {
        let mut steps = collapse();
        for step in &mut steps {
            (step.swap_used, step.swap_in_per_sec) = (Some(Bytes::mib(10)), Some(Bytes(900)));
        }
        assert_eq!(PressureThresholds::find(&steps), Err(NoThresholds::NeverSlow));
        let mut busy = collapse();
        busy[1].tokens_per_sec = 20.0;
        assert_eq!(PressureThresholds::find(&busy), Err(NoThresholds::Disturbed));
    }

    #[test]
    fn steps_go_beyond_what_is_free_as_far_as_swap_has_room() {
        let memory = Memory {
            total: Bytes::gib(24),
            limit: Some(Bytes::gib(2)),
            available: Bytes::mib(900),
            ..Memory::default()
        };
        let swap = |total| Some(Swap { total: Bytes::mib(total), used: Bytes::mib(24), ..Swap::default() });
        let snapshot = |total| Snapshot { memory: Some(memory), swap: swap(total), ..Snapshot::default() };
        let mut machine = vitals::machine();
        machine.swap_grows = false;
        let plan = |snapshot: &Snapshot| PressurePlan::new(&machine, snapshot);
        let steps = plan(&snapshot(4096)).unwrap();
        assert_eq!((steps.step, steps.most, steps.most_swap), (Bytes::mib(64), Bytes::mib(1412), Bytes::gib(1)));
        let holds: Vec<Bytes> = steps.holds().collect();
        assert_eq!(holds[..4], [Bytes::ZERO, Bytes::ZERO, Bytes::ZERO, Bytes::mib(64)]);
        assert_eq!((holds.len(), holds.last()), (25, Some(&Bytes::mib(1408))));
        assert_eq!(plan(&snapshot(424)).unwrap().most_swap, Bytes::mib(200));
        assert_eq!(plan(&snapshot(24)), None);
        assert_eq!(plan(&Snapshot::default()), None);
        // A system that makes swap files as it needs them has room though it has none yet.
        machine.swap_grows = true;
        assert!(PressurePlan::new(&machine, &snapshot(24)).is_some());
    }
}
