//! How fast an answer is written, against how fast it was written at first.

use std::collections::VecDeque;
use std::time::Duration;

use crate::hysteresis::{Limits, Reading, State, median};
use crate::rank::known_speed;
use crate::speed::bytes_touched;
use crate::{LocalModel, Policy, ReadingCheck, words};

/// The time of a token is taken over so many: some engines hand them on in pairs.
const TOGETHER: usize = 4;
/// The first so many times are the baseline.
const BASELINE_TIMES: usize = 16;
/// The speed now is the median of this much time,
const NOW_TIME: Duration = Duration::from_secs(2);
/// and of so many times at least; more than these few are a hiccup that the median leaves out.
const NOW_TIMES: usize = 8;
/// A slowdown is steadied over this long: another app that starts takes the processor for a second or two.
const STEADY_TIME: Duration = Duration::from_secs(3);
/// Looks that are remembered: over a minute at four a second.
const MOST_LOOKS: usize = 256;
/// Times that are remembered: [`NOW_TIME`] of the fastest models.
const MOST_TIMES: usize = 1024;

/// The times between the tokens of one answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pulse {
    /// When each of the last tokens came, [`TOGETHER`] and one at most.
    tokens: VecDeque<Duration>,
    /// Seconds for a token, and when it came.
    times: VecDeque<(Duration, f64)>,
    first_times: Vec<f64>,
    baseline: Option<Baseline>,
    looks: VecDeque<Reading>,
}

#[derive(Clone, Copy, Debug)]
struct Baseline {
    seconds: f64,
    /// Bytes that a token touched then; decode slows down by itself as the cache grows.
    bytes: f64,
}

/// The speed against the baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Beat {
    /// Tokens per second now.
    pub(crate) now: f64,
    /// Tokens per second that are to be expected at this length of the conversation.
    pub(crate) expected: f64,
    /// Slower than the policy allows, for some seconds.
    pub(crate) is_slow: bool,
}

impl Pulse {
    pub(crate) fn token(&mut self, at: Duration) {
        self.tokens.push_back(at);
        if self.tokens.len() <= TOGETHER {
            return;
        }
        let Some(before) = self.tokens.pop_front() else { return };
        let seconds = at.saturating_sub(before).as_secs_f64() / TOGETHER as f64;
        if self.first_times.len() < BASELINE_TIMES {
            self.first_times.push(seconds);
        }
        if self.times.len() == MOST_TIMES {
            self.times.pop_front();
        }
        self.times.push_back((at, seconds));
    }

    /// Writing stopped for a reason that has nothing to do with speed, and goes on.
    pub(crate) fn resume(&mut self) {
        self.tokens.clear();
        self.times.clear();
        self.looks.clear();
    }

    /// The speed at `at`. `None` before there is anything to compare.
    pub(crate) fn look(
        &mut self,
        at: Duration,
        policy: &Policy,
        model: &LocalModel,
        n_past: usize,
        usual: Option<f64>,
    ) -> Option<Beat> {
        let bytes = bytes_touched(model, model.bytes_per_token.unwrap_or(model.weights), n_past);
        if self.baseline.is_none() && self.first_times.len() == BASELINE_TIMES {
            let seconds = median(&mut self.first_times).filter(|seconds| *seconds > 0.0)?;
            self.baseline = Some(Baseline { seconds, bytes });
        }
        let now = self.seconds_now(at)?;
        let expected = match self.baseline {
            // The answer's own beginning is the better measure: same prompt, same machine, same other load.
            Some(baseline) if baseline.bytes > 0.0 => baseline.seconds * (bytes / baseline.bytes).max(1.0),
            Some(baseline) => baseline.seconds,
            None => 1.0 / known_speed(usual)?,
        };
        let slowdown = 1.0 - expected / now;
        let is_slow = self.is_slow(at, slowdown, policy);
        Some(Beat { now: 1.0 / now, expected: 1.0 / expected, is_slow })
    }

    /// Seconds for a token now: the median of the last ones, or longer where the next one is overdue.
    fn seconds_now(&self, at: Duration) -> Option<f64> {
        let recent = self.times.iter().rev().enumerate();
        let mut recent: Vec<f64> = recent
            .take_while(|(n, (when, _))| *n < NOW_TIMES || at.saturating_sub(*when) <= NOW_TIME)
            .map(|(_, (_, seconds))| *seconds)
            .collect();
        let waited = at.saturating_sub(self.times.back()?.0).as_secs_f64();
        median(&mut recent).map(|seconds| seconds.max(waited / TOGETHER as f64)).filter(|seconds| *seconds > 0.0)
    }

    fn is_slow(&mut self, at: Duration, slowdown: f64, policy: &Policy) -> bool {
        let mut steady: Vec<f64> = self
            .looks
            .iter()
            .rev()
            .take_while(|look| at.saturating_sub(look.at) <= STEADY_TIME)
            .map(|look| look.raw)
            .chain([slowdown])
            .collect();
        let is_watched = self.looks.front().is_some_and(|first| at.saturating_sub(first.at) >= STEADY_TIME);
        let steady = median(&mut steady).unwrap_or(slowdown);
        if self.looks.len() == MOST_LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back(Reading { at, raw: slowdown, steady: if is_watched { steady } else { 0.0 } });
        let over = policy.max_slowdown_ratio;
        // Half the slowdown is within what answers waver by.
        let limits = Limits { over, release: over / 2.0, dwell: policy.dwell, urgent: f64::INFINITY };
        matches!(limits.state(self.looks.iter().copied(), at), State::Strained { .. })
    }
}

impl Beat {
    /// The same as a reading.
    pub(crate) fn check(self, policy: &Policy) -> ReadingCheck {
        let least = self.expected * (1.0 - policy.max_slowdown_ratio);
        ReadingCheck {
            name: "Speed now",
            value: words::speed(self.now),
            limit: least.is_finite().then(|| format!("at least {}", words::speed(least.max(0.0)))),
            exceeded: Some(self.is_slow),
        }
    }
}

#[cfg(test)]
mod tests {
    use chat::Bytes;

    use super::*;

    fn model() -> LocalModel {
        LocalModel { weights: Bytes::gib(4), kv_per_token: Bytes(128 << 10), ..LocalModel::default() }
    }

    /// Writes at these speeds for these many seconds each, and looks four times a second.
    fn written(stretches: &[(f64, f64)], growth: usize) -> Vec<Beat> {
        let (mut pulse, mut beats) = (Pulse::default(), Vec::new());
        let (mut at, mut looked, mut count) = (0.0, 0.0, 0);
        for (tokens_per_sec, seconds) in stretches {
            let end = at + seconds;
            while at < end {
                at += 1.0 / tokens_per_sec;
                count += growth;
                pulse.token(Duration::from_secs_f64(at));
                while looked < at {
                    looked += 0.25;
                    let when = Duration::from_secs_f64(at);
                    beats.extend(pulse.look(when, &Policy::default(), &model(), 500 + count, None));
                }
            }
        }
        beats
    }

    #[test]
    fn a_seventh_slower_is_slow_after_some_seconds_and_a_tenth_is_not() {
        let beats = written(&[(40.0, 10.0), (30.0, 20.0)], 1);
        let first = beats.iter().position(|beat| beat.is_slow).unwrap();
        let last = beats.last().unwrap();
        assert!((44..60).contains(&first), "{first}");
        assert!(last.is_slow && (last.now - 30.0).abs() < 0.5, "{last:?}");
        assert!(written(&[(40.0, 10.0), (36.5, 20.0)], 1).iter().all(|beat| !beat.is_slow));
    }

    #[test]
    fn a_hiccup_is_no_slowdown_and_a_stall_is() {
        assert!(written(&[(40.0, 10.0), (0.8, 1.0), (40.0, 10.0)], 1).iter().all(|beat| !beat.is_slow));
        let mut pulse = Pulse::default();
        for token in 0..200_u64 {
            pulse.token(Duration::from_millis(25 * token));
        }
        let mut look = |seconds| {
            pulse.look(Duration::from_secs_f64(seconds), &Policy::default(), &model(), 700, None).unwrap().is_slow
        };
        assert!(!look(5.0));
        assert!((0..40).map(|step| look(5.25 + 0.25 * f64::from(step))).next_back().unwrap());
    }

    #[test]
    fn a_cache_that_grows_slows_decode_and_that_is_expected() {
        // From 4 GiB to 8 GiB a token in the end: half as fast, and not slow.
        let growing = [(40.0, 5.0), (36.0, 5.0), (32.0, 5.0), (28.0, 5.0), (24.0, 5.0), (20.0, 5.0)];
        let beats = written(&growing, 36);
        assert!(beats.iter().all(|beat| !beat.is_slow), "{:?}", beats.iter().find(|beat| beat.is_slow));
    }

    #[test]
    fn before_its_own_beginning_the_usual_speed_counts() {
        let mut pulse = Pulse::default();
        for token in 0..12_u64 {
            pulse.token(Duration::from_millis(100 * token));
        }
        let beat = pulse.look(Duration::from_millis(1100), &Policy::default(), &model(), 9, Some(20.0)).unwrap();
        assert!((beat.now - 10.0).abs() < 1e-6 && (beat.expected - 20.0).abs() < 1e-6, "{beat:?}");
        assert!(!beat.is_slow, "one look is too few");
        assert_eq!(pulse.look(Duration::from_millis(1100), &Policy::default(), &model(), 9, Some(f64::NAN)), None);
    }

    #[test]
    fn it_keeps_little_and_bears_any_times() {
        let mut pulse = Pulse::default();
        for step in 0..5000_u64 {
            pulse.token(Duration::from_secs(step.wrapping_mul(7919) % 13));
            pulse.look(Duration::MAX, &Policy::default(), &LocalModel::default(), usize::MAX, Some(0.0));
            pulse.look(Duration::ZERO, &Policy::default(), &LocalModel::default(), 0, None);
        }
        assert!(pulse.times.len() <= MOST_TIMES && pulse.looks.len() <= MOST_LOOKS && pulse.tokens.len() <= TOGETHER);
    }
}
