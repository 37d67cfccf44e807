//! How fast answers come: right now, and usually for each model at each place.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The speed shown while an answer is written is that of this much time.
const LIVE_WINDOW: Duration = Duration::from_secs(2);
/// Weight of the newest answer in the usual speed.
const NEWEST_WEIGHT: f64 = 0.3;
/// Answers shorter than this say little about speed.
const MIN_TOKENS: usize = 16;

#[derive(Default)]
pub(crate) struct Speeds {
    live: Mutex<Live>,
    usual: Mutex<HashMap<String, f64>>,
}

#[derive(Default)]
struct Live {
    /// When each of the latest pieces came; a piece is a token, now and then two.
    pieces: VecDeque<Instant>,
    baseline: Option<f64>,
}

impl Speeds {
    /// The usual speeds that were saved, as JSON.
    pub(crate) fn from_json(json: Option<&str>) -> Self {
        let usual = json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
        Self { live: Mutex::default(), usual: Mutex::new(usual) }
    }

    pub(crate) fn to_json(&self) -> String {
        let usual = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_string(&*usual).unwrap_or_default()
    }

    /// Tokens per second that `model` usually reaches at `place`: `here`, or a node's id.
    pub(crate) fn usual(&self, place: &str, model: &str) -> Option<f64> {
        self.usual.lock().unwrap_or_else(PoisonError::into_inner).get(&key(place, model)).copied()
    }

    /// A finished answer was this fast.
    pub(crate) fn record(&self, place: &str, model: &str, tokens: usize, tokens_per_sec: f64) {
        if tokens < MIN_TOKENS || !tokens_per_sec.is_finite() || tokens_per_sec <= 0.0 {
            return;
        }
        let mut usual = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        usual
            .entry(key(place, model))
            .and_modify(|speed| *speed += NEWEST_WEIGHT * (tokens_per_sec - *speed))
            .or_insert(tokens_per_sec);
    }

    /// An answer by `model` at `place` begins.
    pub(crate) fn begin(&self, place: &str, model: &str) {
        let baseline = self.usual(place, model);
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = Live { pieces: VecDeque::new(), baseline };
    }

    /// The answer has ended: nothing is written now.
    pub(crate) fn end(&self) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).pieces.clear();
    }

    /// A piece of text came at `now`.
    pub(crate) fn piece(&self, now: Instant) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.pieces.push_back(now);
        live.forget_before(now);
    }

    /// Pieces per second just before `now`, and the usual speed beside it. `None` while nothing is written.
    pub(crate) fn live(&self, now: Instant) -> (Option<f64>, Option<f64>) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.forget_before(now);
        let speed = match (live.pieces.front(), live.pieces.len()) {
            (Some(first), count) if count >= 2 => {
                let took = now.saturating_duration_since(*first).as_secs_f64();
                (took > 0.0).then(|| (count - 1) as f64 / took)
            }
            _ => None,
        };
        (speed, live.baseline)
    }
}

impl Live {
    fn forget_before(&mut self, now: Instant) {
        while self.pieces.front().is_some_and(|at| now.saturating_duration_since(*at) > LIVE_WINDOW) {
            self.pieces.pop_front();
        }
    }
}

fn key(place: &str, model: &str) -> String {
    format!("{place}/{model}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_speed_counts_the_last_two_seconds_only() {
        let speeds = Speeds::default();
        let start = Instant::now();
        for piece in 0..50 {
            speeds.piece(start + Duration::from_millis(20 * piece));
        }
        let (speed, _) = speeds.live(start + Duration::from_millis(980));
        assert_eq!(speed.map(f64::round), Some(50.0));
        assert_eq!(speeds.live(start + Duration::from_secs(60)).0, None);
        speeds.piece(start);
        speeds.piece(start + Duration::from_millis(20));
        speeds.end();
        assert_eq!(speeds.live(start + Duration::from_millis(30)).0, None, "an answer that ended has no speed");
    }

    #[test]
    fn the_usual_speed_moves_with_long_answers_only_and_survives_a_restart() {
        let speeds = Speeds::default();
        speeds.record("here", "m", 100, 40.0);
        speeds.record("here", "m", 3, 900.0);
        speeds.record("here", "m", 100, 50.0);
        assert_eq!(speeds.usual("here", "m"), Some(43.0));
        assert_eq!(Speeds::from_json(Some(&speeds.to_json())).usual("here", "m"), Some(43.0));
        assert_eq!(Speeds::from_json(Some("garbage")).usual("here", "m"), None);
    }
}
