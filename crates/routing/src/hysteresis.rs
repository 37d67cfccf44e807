//! When a strain begins and when it is over: two limits and a time between them.

use std::time::Duration;

/// The limits of one reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    /// A steady value above this is a strain,
    pub(crate) over: f64,
    /// which is over only when the value was no higher than this
    pub(crate) release: f64,
    /// for this long. So a strain lasts so long at least, and a value that wavers around `over` begins one only.
    pub(crate) dwell: Duration,
    /// A single value above this is a strain at once.
    pub(crate) urgent: f64,
}

/// A value at a time: as it was read, and steadied by the readings just before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reading {
    pub(crate) at: Duration,
    pub(crate) raw: f64,
    pub(crate) steady: f64,
}

/// What the limits say of the newest reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing was read for as long as a strain lasts at least.
    Unknown,
    /// No strain.
    Calm,
    /// A strain, and how long ago the value was over its limit.
    Strained {
        /// Zero while it is.
        over_ago: Duration,
    },
}

impl Limits {
    /// The state at `now` after `readings`, in order of time.
    pub(crate) fn state(self, readings: impl Iterator<Item = Reading>, now: Duration) -> State {
        let mut newest = None;
        // When the value was last over the limit, and when it was last too high to be calm; while strained.
        let mut strained: Option<(Duration, Duration)> = None;
        for reading in readings {
            newest = Some(reading.at);
            if reading.steady > self.over || reading.raw > self.urgent {
                strained = Some((reading.at, reading.at));
            } else if let Some((_, high)) = &mut strained {
                if reading.steady > self.release {
                    *high = reading.at;
                } else if reading.at.saturating_sub(*high) >= self.dwell {
                    strained = None;
                }
            }
        }
        match (newest, strained) {
            (Some(newest), _) if now.saturating_sub(newest) > self.dwell => State::Unknown,
            (None, _) => State::Unknown,
            (_, Some((over, _))) => State::Strained { over_ago: now.saturating_sub(over) },
            (_, None) => State::Calm,
        }
    }
}

/// The median, the lower one of two: over a limit only where more than half of the values are.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { over: 4.0, release: 2.0, dwell: Duration::from_secs(10), urgent: 50.0 };

    /// The state after each of these values, one a second.
    fn states(values: &[f64]) -> Vec<bool> {
        let readings: Vec<Reading> = values
            .iter()
            .enumerate()
            .map(|(second, &value)| Reading { at: Duration::from_secs(second as u64), raw: value, steady: value })
            .collect();
        (0..readings.len())
            .map(|n| LIMITS.state(readings[..=n].iter().copied(), readings[n].at) != State::Calm)
            .collect()
    }

    #[test]
    fn a_strain_ends_only_below_the_lower_limit_and_only_after_a_while() {
        let mut values = vec![1.0, 5.0];
        values.extend([3.0; 20]);
        values.extend([1.0; 12]);
        let found = states(&values);
        assert!(!found[0] && found[1..=30].iter().all(|&strained| strained), "{found:?}");
        assert!(found[31..].iter().all(|&strained| !strained), "{found:?}");
    }

    #[test]
    fn a_value_between_the_limits_begins_nothing() {
        assert!(states(&[3.9; 30]).iter().all(|&strained| !strained));
    }

    #[test]
    fn one_look_too_high_starts_the_wait_again() {
        let mut values = vec![5.0];
        values.extend([1.0; 9]);
        values.push(3.0);
        values.extend([1.0; 9]);
        assert!(states(&values).iter().all(|&strained| strained));
    }

    #[test]
    fn nothing_read_is_unknown_and_a_strain_outlasts_a_short_silence() {
        let reading = Reading { at: Duration::from_secs(5), raw: 9.0, steady: 9.0 };
        let state = |now| LIMITS.state([reading].into_iter(), Duration::from_secs(now));
        assert_eq!(state(9), State::Strained { over_ago: Duration::from_secs(4) });
        assert_eq!(state(16), State::Unknown);
        assert_eq!(LIMITS.state([].into_iter(), Duration::ZERO), State::Unknown);
        let urgent = Reading { raw: 51.0, steady: 0.0, ..reading };
        assert_eq!(LIMITS.state([urgent].into_iter(), reading.at), State::Strained { over_ago: Duration::ZERO });
    }
}
