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
    /// For a machine in this state: up to what is available and a quarter of the memory beyond, for which swap must have
    /// room twice. `None` where memory or swap is unknown, or there is no swap to speak of.
    pub fn new(machine: &Machine, snapshot: &Snapshot) -> Option<Self> {
        let (memory, swap) = (snapshot.memory?, snapshot.swap?);
        let ram = memory.limit.map_or(memory.total, |limit| limit.min(memory.total));
        let room = if machine.swap_grows { ram } else { swap.total.saturating_sub(swap.used) };
        let beyond = Bytes((ram.0 / 4).min(room.0 / 2));
        if beyond < LEAST_STEP {
            return None;
        }
        let most = memory.available.saturating_add(beyond);
        let step = Bytes((most.0 / STEPS).next_multiple_of(LEAST_STEP.0));
        Some(Self { undisturbed: UNDISTURBED_STEPS, step, most, most_swap: beyond, step_time: STEP_TIME })
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

/// Where answers slow down on this machine: below 85 % of the undisturbed speed. A reading that was no worse than
/// undisturbed says nothing, and is `None`.
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
    /// Between the last step that was fast enough and the first of those that weren't, in proportion. A single slow step
    /// with a fast one after it is taken for a disturbance. `None` where answers never slowed down for good.
    pub fn find(steps: &[PressureStep]) -> Option<Self> {
        let undisturbed: Vec<&PressureStep> = steps.iter().take_while(|step| step.taken == Bytes::ZERO).collect();
        let mut speeds: Vec<f64> = undisturbed.iter().map(|step| step.tokens_per_sec).collect();
        speeds.sort_by(f64::total_cmp);
        let usual = speeds.get(speeds.len() / 2).copied().filter(|speed| *speed > 0.0)?;
        let least = KEPT_SPEED * usual;
        let is_slow = |step: &PressureStep| step.tokens_per_sec < least;
        let first =
            (undisturbed.len()..steps.len()).find(|&i| is_slow(&steps[i]) && steps.get(i + 1).is_none_or(is_slow))?;
        let (before, after) = (steps.get(first.checked_sub(1)?)?, &steps[first]);
        let fall = before.tokens_per_sec - after.tokens_per_sec;
        let part = if fall > 0.0 { ((before.tokens_per_sec - least) / fall).clamp(0.0, 1.0) } else { 0.0 };
        let between = |read: fn(&PressureStep) -> Option<Bytes>| {
            let (before, after) = (read(before)?.0 as f64, read(after)?.0 as f64);
            Some(Bytes((before + part * (after - before)) as u64))
        };
        let at_rest = |read: fn(&PressureStep) -> Option<Bytes>| undisturbed.iter().filter_map(move |step| read(step));
        let swap_used = |step: &PressureStep| step.swap_used;
        let swap_in = |step: &PressureStep| step.swap_in_per_sec;
        let available = |step: &PressureStep| step.available;
        Some(Self {
            undisturbed_tokens_per_sec: usual,
            taken: between(|step| Some(step.taken))?,
            swap_used: between(swap_used).filter(|used| at_rest(swap_used).all(|rest| *used > rest)),
            swap_in_per_sec: between(swap_in).filter(|rate| at_rest(swap_in).all(|rest| *rate > rest)),
            available: between(available).filter(|left| at_rest(available).all(|rest| *left < rest)),
        })
    }
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
            step(0, 20.0, 10, 0, 900),
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
        }
        let found = PressureThresholds::find(&steps).unwrap();
        assert_eq!((found.swap_used, found.swap_in_per_sec), (None, None));
    }

    #[test]
    fn no_collapse_is_no_limit() {
        assert_eq!(PressureThresholds::find(&collapse()[..5]), None);
        assert_eq!(PressureThresholds::find(&collapse()[3..]), None, "nothing says what is undisturbed");
        assert_eq!(PressureThresholds::find(&[]), None);
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
        assert_eq!((steps.step, steps.most, steps.most_swap), (Bytes::mib(64), Bytes::mib(1412), Bytes::mib(512)));
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
