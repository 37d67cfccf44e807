//! The last minute of readings: where they are going, and which of them are a strain.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chat::Bytes;
use vitals::{Snapshot, ThermalPressure, ThermalState};

use crate::hysteresis::{Limits, Reading, State, median};
use crate::{Policy, trend};

/// Readings older than this are forgotten: what a machine did a minute ago says little about the next one.
const WINDOW: Duration = Duration::from_secs(60);
/// Readings closer than this to the one before the last replace the last, which bounds them to a few hundred.
const LEAST_APART: Duration = Duration::from_millis(200);
/// A value is steadied by the median of this long: switching to another app swaps in for a second or two, and that
/// isn't the machine running short.
const STEADY_TIME: Duration = Duration::from_secs(3);
/// But by so many readings at least, where they come seldom,
const STEADY_READINGS: usize = 3;
/// none of them older than this: three of the slowest heartbeat, one every 5 s.
const STEADY_OLDEST: Duration = Duration::from_secs(15);

/// What happened on this machine lately: a fold over its snapshots, in order of time.
///
/// The time is that of the snapshots. One that is older than the newest by less than a minute counts as taken at the
/// same time; older still, or a minute newer, starts the minute anew: the clock was set, or the machine slept. Right
/// after a start a reading is taken at face value, because there is nothing else to go by.
#[derive(Clone, Debug, Default)]
pub struct Outlook {
    snapshot: Snapshot,
    samples: VecDeque<Sample>,
}

/// What is kept of one snapshot.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Since the Unix epoch.
    at: Duration,
    available: Option<f64>,
    /// Available, with what this program holds added: what it takes or gives back itself is no trend.
    left_by_others: Option<f64>,
    swap_used: Option<f64>,
    /// As read, by [`Signal`].
    raw: [Option<f64>; SIGNALS],
    /// Steadied by the samples just before; `None` where this one has no reading.
    steady: [Option<f64>; SIGNALS],
}

/// A reading that can be a strain, each on a scale of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Bytes per second.
    SwapIn,
    /// Part of the machine's memory.
    SwapUsed,
    /// 0, 1 and 2 in the order of the levels.
    Pressure,
    /// 0 to 3 in the order of [`ThermalState`].
    Heat,
}

const SIGNALS: usize = 4;

/// What runs out first, and when, if the last minute goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// From the newest reading on; zero where the limit is passed already.
    pub after: Duration,
    /// Which limit is passed.
    pub what: TroubleKind,
}

/// A limit that a trend can pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TroubleKind {
    /// Free memory falls below [`Policy::reserve`].
    Memory,
    /// Swap in use rises above [`Policy::max_swap_used_ratio`].
    SwapUsed,
}

impl Outlook {
    /// One snapshot, taken at face value.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut outlook = Self::default();
        outlook.add(snapshot);
        outlook
    }

    /// Takes the next snapshot in.
    pub fn add(&mut self, snapshot: &Snapshot) {
        let mut at = since_epoch(snapshot.at);
        if let Some(newest) = self.samples.back().map(|sample| sample.at) {
            if newest.saturating_sub(at) > WINDOW {
                self.samples.clear();
            } else {
                at = at.max(newest);
            }
        }
        self.snapshot.clone_from(snapshot);
        let before_last = self.samples.len().checked_sub(2).and_then(|index| self.samples.get(index));
        if before_last.is_some_and(|sample| at.saturating_sub(sample.at) < LEAST_APART) {
            self.samples.pop_back();
        }
        let mut sample = Sample::of(snapshot, at);
        sample.steady = std::array::from_fn(|signal| self.steadied(&sample, signal));
        self.samples.push_back(sample);
        while self.samples.front().is_some_and(|sample| at.saturating_sub(sample.at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// The newest snapshot; everything is unknown before the first.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Bytes per second by which available memory grows, or shrinks where negative, because of everything else that
    /// runs: what this program takes itself is left out where it is known. `None` where there is no trend.
    pub fn memory_per_sec(&self) -> Option<f64> {
        if self.samples.back()?.left_by_others.is_some() {
            self.slope(|sample| sample.left_by_others)
        } else {
            self.slope(|sample| sample.available)
        }
    }

    /// Bytes per second by which swap in use grows, or shrinks where negative. `None` where there is no trend.
    pub fn swap_used_per_sec(&self) -> Option<f64> {
        self.slope(|sample| sample.swap_used)
    }

    /// When free memory falls below the reserve or swap in use rises above its limit, whichever comes first, if
    /// everything goes on as in the last minute. `None` where nothing goes that way, or it isn't known.
    pub fn time_until_trouble(&self, policy: &Policy) -> Option<Trouble> {
        let memory =
            self.memory_per_sec().filter(|rate| *rate < 0.0).zip(self.snapshot.memory).map(|(rate, memory)| {
                let spare = memory.available.saturating_sub(policy.reserve);
                Trouble { after: seconds(spare.0 as f64 / -rate), what: TroubleKind::Memory }
            });
        let swap = self.swap_used_per_sec().filter(|rate| *rate > 0.0).and_then(|rate| {
            let limit = self.snapshot.memory?.total.0 as f64 * policy.max_swap_used_ratio;
            let spare = limit - self.snapshot.swap?.used.0 as f64;
            spare.is_finite().then(|| Trouble { after: seconds(spare / rate), what: TroubleKind::SwapUsed })
        });
        [memory, swap].into_iter().flatten().min_by_key(|trouble| trouble.after)
    }

    /// Whether one of the readings is a strain by the policy's limits, with the time it takes for it to be over.
    pub(crate) fn state(&self, signal: Signal, policy: &Policy) -> State {
        let Some(newest) = self.samples.back() else { return State::Unknown };
        let index = signal as usize;
        let readings = self.samples.iter().filter_map(|sample| {
            let (raw, steady) = (sample.raw[index]?, sample.steady[index]?);
            Some(Reading { at: sample.at, raw, steady })
        });
        signal.limits(policy).state(readings, newest.at)
    }

    /// The newest value as it counts in `state`: what was read, unless that is a moment's leap which doesn't count.
    /// `None` where the newest snapshot has none.
    pub(crate) fn value(&self, signal: Signal, state: State) -> Option<f64> {
        let newest = self.samples.back()?;
        let (raw, steady) = (newest.raw[signal as usize]?, newest.steady[signal as usize]?);
        Some(match state {
            State::Strained { over_ago: Duration::ZERO } => raw.max(steady),
            State::Strained { .. } => raw,
            State::Calm | State::Unknown => steady,
        })
    }

    fn slope(&self, value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let start = self.samples.front()?.at;
        // What isn't known now isn't forecast from what once was.
        value(self.samples.back()?)?;
        let points: Vec<_> = self
            .samples
            .iter()
            .filter_map(|sample| Some((sample.at.saturating_sub(start).as_secs_f64(), value(sample)?)))
            .collect();
        trend::slope(&points)
    }

    fn steadied(&self, sample: &Sample, signal: usize) -> Option<f64> {
        let mut values = vec![sample.raw[signal]?];
        for earlier in self.samples.iter().rev() {
            let age = sample.at.saturating_sub(earlier.at);
            if age > STEADY_OLDEST || (age > STEADY_TIME && values.len() >= STEADY_READINGS) {
                break;
            }
            values.extend(earlier.raw[signal]);
        }
        median(&mut values)
    }
}

impl Sample {
    fn of(snapshot: &Snapshot, at: Duration) -> Self {
        let as_number = |bytes: Bytes| bytes.0 as f64;
        let available = snapshot.memory.map(|memory| as_number(memory.available));
        let swap = snapshot.swap;
        let ram = snapshot.memory.map(|memory| as_number(memory.usable())).filter(|total| *total > 0.0);
        let mut raw = [None; SIGNALS];
        raw[Signal::SwapIn as usize] = swap.and_then(|swap| swap.in_per_sec).map(as_number);
        raw[Signal::SwapUsed as usize] = swap.zip(ram).map(|(swap, ram)| as_number(swap.used) / ram);
        raw[Signal::Pressure as usize] = snapshot.pressure.map(|level| f64::from(level as u8));
        raw[Signal::Heat as usize] = heat(snapshot).map(|level| f64::from(level as u8));
        Self {
            at,
            available,
            left_by_others: available.zip(snapshot.own).map(|(available, own)| available + as_number(own.footprint)),
            swap_used: swap.map(|swap| as_number(swap.used)),
            raw,
            steady: [None; SIGNALS],
        }
    }
}

impl Signal {
    fn limits(self, policy: &Policy) -> Limits {
        let (over, release, dwell, urgent) = match self {
            // Half the rate: swapping that has really ended goes to nothing, so nothing nearer is needed.
            Self::SwapIn => {
                let over = policy.max_swap_in_per_sec.0 as f64;
                (over, over / 2.0, policy.dwell, f64::INFINITY)
            }
            // The system empties swap slowly, and a tenth less is a change that stays.
            Self::SwapUsed => {
                (policy.max_swap_used_ratio, policy.max_swap_used_ratio * 0.9, policy.dwell, f64::INFINITY)
            }
            // Levels are whole numbers: below the limit is the level before it.
            Self::Pressure => (0.5, 0.5, policy.dwell, 1.5),
            Self::Heat => {
                let over = f64::from(policy.max_thermal as u8) - 0.5;
                (over, over, policy.heat_dwell, f64::from(ThermalState::Critical as u8) - 0.5)
            }
        };
        Limits { over, release, dwell, urgent }
    }
}

/// How hot it is. The finer level shows throttling before the coarse one does, so the worse of the two counts.
pub(crate) fn heat(snapshot: &Snapshot) -> Option<ThermalState> {
    snapshot.thermal.max(snapshot.thermal_pressure.map(|pressure| match pressure {
        ThermalPressure::Nominal => ThermalState::Nominal,
        ThermalPressure::Moderate => ThermalState::Fair,
        ThermalPressure::Heavy => ThermalState::Serious,
        ThermalPressure::Trapping | ThermalPressure::Sleeping => ThermalState::Critical,
    }))
}

/// So many seconds; nothing for less than none or for no number, and very long for too many.
pub(crate) fn seconds(seconds: f64) -> Duration {
    if seconds.is_nan() {
        return Duration::ZERO;
    }
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use vitals::{Memory, MemoryPressure, OwnUse, Swap};

    use super::*;

    fn at(seconds: f64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs_f64(1e6 + seconds)
    }

    fn memory(available: Bytes) -> Option<Memory> {
        Some(Memory { total: Bytes::gib(16), available, ..Memory::default() })
    }

    fn swap_in(second: f64, mib: u64) -> Snapshot {
        let swap = Swap { in_per_sec: Some(Bytes::mib(mib)), ..Swap::default() };
        Snapshot { at: at(second), swap: Some(swap), ..Snapshot::default() }
    }

    fn is_strained(outlook: &Outlook, signal: Signal) -> bool {
        matches!(outlook.state(signal, &Policy::default()), State::Strained { .. })
    }

    #[test]
    fn trouble_is_forecast_from_the_trend() {
        let mut outlook = Outlook::default();
        let policy = Policy { reserve: Bytes::gib(1), ..Policy::default() };
        for second in 0..60 {
            assert!(second > 9 || outlook.time_until_trouble(&policy).is_none());
            let available = Bytes::mib(9 * 1024 - 100 * second);
            outlook.add(&Snapshot { at: at(second as f64), memory: memory(available), ..Snapshot::default() });
        }
        // 9 GiB less 5.9 GB less the reserve, at 100 MB a second.
        let trouble = outlook.time_until_trouble(&policy).unwrap();
        assert_eq!((trouble.after.as_secs(), trouble.what), (22, TroubleKind::Memory));
    }

    #[test]
    fn swap_that_fills_up_is_trouble_too() {
        let mut outlook = Outlook::default();
        for second in 0..30 {
            let swap = Swap { used: Bytes::mib(1024 + 64 * second), ..Swap::default() };
            let snapshot = Snapshot {
                at: at(second as f64),
                memory: memory(Bytes::gib(9)),
                swap: Some(swap),
                ..Snapshot::default()
            };
            outlook.add(&snapshot);
        }
        let trouble = outlook.time_until_trouble(&Policy::default()).unwrap();
        // A fifth of 16 GiB is 3,276.8 MiB; 2,880 are used.
        assert_eq!((trouble.after.as_secs(), trouble.what), (6, TroubleKind::SwapUsed));
    }

    #[test]
    fn what_we_take_ourselves_is_no_trend() {
        let mut outlook = Outlook::default();
        for second in 0..30 {
            let taken = Bytes::mib(200 * second);
            let own = Some(OwnUse { footprint: taken, cpu_ratio: None });
            let available = Bytes::gib(9).saturating_sub(taken);
            outlook.add(&Snapshot { at: at(second as f64), memory: memory(available), own, ..Snapshot::default() });
        }
        assert_eq!(outlook.time_until_trouble(&Policy::default()), None);
    }

    #[test]
    fn a_burst_of_swap_is_no_strain_and_steady_swap_is() {
        let mut outlook = Outlook::default();
        for second in 0..20 {
            outlook.add(&swap_in(f64::from(second), if second == 10 { 400 } else { 0 }));
            assert!(!is_strained(&outlook, Signal::SwapIn), "second {second}");
        }
        let strained: Vec<bool> = (20..26)
            .map(|second| {
                outlook.add(&swap_in(f64::from(second), 40));
                is_strained(&outlook, Signal::SwapIn)
            })
            .collect();
        assert_eq!(strained, [false, false, true, true, true, true]);
    }

    #[test]
    fn critical_pressure_counts_at_once() {
        let mut outlook = Outlook::default();
        let pressure =
            |second: u32, pressure| Snapshot { at: at(second.into()), pressure: Some(pressure), ..Snapshot::default() };
        for second in 0..10 {
            outlook.add(&pressure(second, MemoryPressure::Normal));
        }
        outlook.add(&pressure(10, MemoryPressure::Warning));
        assert!(!is_strained(&outlook, Signal::Pressure));
        outlook.add(&pressure(11, MemoryPressure::Critical));
        assert!(is_strained(&outlook, Signal::Pressure));
    }

    #[test]
    fn a_clock_that_is_set_starts_anew_and_one_that_wavers_does_not() {
        let mut outlook = Outlook::default();
        for second in 0..20 {
            outlook.add(&swap_in(f64::from(second), 40));
        }
        outlook.add(&swap_in(12.0, 0));
        assert!(is_strained(&outlook, Signal::SwapIn), "seven seconds back is a clock that was corrected");
        outlook.add(&swap_in(-3600.0, 0));
        assert!(!is_strained(&outlook, Signal::SwapIn) && outlook.samples.len() == 1);
        outlook.add(&Snapshot { at: UNIX_EPOCH - Duration::from_secs(9), ..Snapshot::default() });
        outlook.add(&swap_in(1e9, 0));
        assert_eq!(outlook.samples.len(), 1);
    }

    #[test]
    fn memory_is_bounded_however_often_it_is_looked_at() {
        let mut outlook = Outlook::default();
        for step in 0..100_000 {
            outlook.add(&swap_in(f64::from(step) * 0.003, 1));
        }
        assert!((300..=610).contains(&outlook.samples.len()), "{}", outlook.samples.len());
    }
}
