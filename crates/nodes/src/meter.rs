use std::time::{Duration, Instant};

use chat::{Timings, Usage};

/// Below this, what is measured is how the network bundles packets, not how fast a model writes.
const SHORTEST_MEASURED: Duration = Duration::from_millis(20);

/// Measures one answer from outside.
#[derive(Debug)]
pub(crate) struct Meter {
    asked: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    deltas: usize,
}

impl Meter {
    pub(crate) fn start(now: Instant) -> Self {
        Self { asked: now, first: None, last: None, deltas: 0 }
    }

    /// Visible text came.
    pub(crate) fn note(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.deltas += 1;
    }

    /// What was measured. Tokens are counted by the node where it counts them, else each delta is taken for one. The
    /// node's own word stands in for what can't be measured from outside.
    pub(crate) fn timings(&self, usage: Option<Usage>, told: Option<Timings>) -> Timings {
        let told = told.unwrap_or_default();
        let tokens = usage.map_or(self.deltas, |usage| usage.completion_tokens);
        let elapsed = self.first.zip(self.last).map(|(first, last)| last.duration_since(first));
        let measured = elapsed
            .filter(|elapsed| *elapsed >= SHORTEST_MEASURED && self.deltas > 1 && tokens > 1)
            .map(|elapsed| (tokens - 1) as f64 / elapsed.as_secs_f64());
        Timings {
            ttft: self.first.map(|first| first.duration_since(self.asked)),
            prefill_tokens_per_sec: told.prefill_tokens_per_sec,
            decode_tokens_per_sec: measured.or(told.decode_tokens_per_sec),
            guessed_tokens: told.guessed_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(at_ms: &[u64]) -> Meter {
        let start = Instant::now();
        let mut meter = Meter::start(start);
        for ms in at_ms {
            meter.note(start + Duration::from_millis(*ms));
        }
        meter
    }

    #[test]
    fn speed_is_counted_after_the_first_token() {
        let timings = meter(&[500, 600, 700]).timings(None, None);
        assert_eq!(timings.ttft, Some(Duration::from_millis(500)));
        assert_eq!(timings.decode_tokens_per_sec, Some(10.0));
        let usage = Usage { completion_tokens: 5, ..Usage::default() };
        assert_eq!(meter(&[500, 600, 700]).timings(Some(usage), None).decode_tokens_per_sec, Some(20.0));
    }

    #[test]
    fn what_cannot_be_measured_is_unknown_or_told() {
        let told =
            Timings { decode_tokens_per_sec: Some(33.0), prefill_tokens_per_sec: Some(99.0), ..Timings::default() };
        assert_eq!(meter(&[]).timings(None, None), Timings::default());
        assert_eq!(meter(&[500]).timings(None, None).decode_tokens_per_sec, None);
        assert_eq!(meter(&[500, 501]).timings(None, None).decode_tokens_per_sec, None, "one packet");
        assert_eq!(meter(&[500]).timings(None, Some(told)).decode_tokens_per_sec, Some(33.0));
        assert_eq!(meter(&[500, 600]).timings(None, Some(told)).decode_tokens_per_sec, Some(10.0));
        assert_eq!(meter(&[500]).timings(None, Some(told)).prefill_tokens_per_sec, Some(99.0));
    }
}
