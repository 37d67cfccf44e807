//! What was counted since the start, and how things are now, as Prometheus reads it: its text format 0.0.4, which is little
//! enough to be written here (the usual library writes another format, OpenMetrics).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use chat::Finish;

use crate::Gateway;
use crate::health::Health;

/// Upper bounds of the buckets of the time to the first token, in seconds: from a cached prompt to a model that is loaded.
const TTFT_SECONDS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0];
/// The same of the speed of an answer, in tokens per second.
const DECODE_SPEED: [f64; 11] = [1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 40.0, 60.0, 100.0, 200.0, 400.0];

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Finished = 0,
    Failed = 1,
    /// Nobody read it any more.
    Cancelled = 2,
}

const OUTCOMES: [&str; 3] = ["finished", "failed", "cancelled"];

/// What is counted.
pub(crate) struct Metrics {
    started: SystemTime,
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    answers: [AtomicU64; 3],
    tokens_generated: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    ttft: Mutex<Histogram<12>>,
    decode_speed: Mutex<Histogram<11>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            requests: Mutex::default(),
            answers: Default::default(),
            tokens_generated: AtomicU64::default(),
            prompt_tokens: AtomicU64::default(),
            cached_tokens: AtomicU64::default(),
            ttft: Mutex::new(Histogram::new(TTFT_SECONDS)),
            decode_speed: Mutex::new(Histogram::new(DECODE_SPEED)),
        }
    }
}

impl Metrics {
    pub(crate) fn note_request(&self, dialect: &'static str, status: u16) {
        *lock(&self.requests).entry((dialect, status)).or_default() += 1;
    }

    pub(crate) fn note_first_token(&self, seconds: f64) {
        lock(&self.ttft).note(seconds);
    }

    pub(crate) fn note_answer(&self, outcome: Outcome) {
        self.answers[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_finish(&self, finish: &Finish) {
        if let Some(usage) = finish.usage {
            let add = |counter: &AtomicU64, tokens: usize| counter.fetch_add(tokens as u64, Ordering::Relaxed);
            add(&self.tokens_generated, usage.completion_tokens);
            add(&self.prompt_tokens, usage.prompt_tokens);
            add(&self.cached_tokens, usage.cached_tokens);
        }
        if let Some(speed) = finish.timings.decode_tokens_per_sec {
            lock(&self.decode_speed).note(speed);
        }
    }

    fn write(&self, page: &mut Page) {
        page.family(
            "tidegate_requests_total",
            "counter",
            "HTTP requests by dialect and status; 499 had nobody left to read.",
        );
        for ((dialect, status), count) in &*lock(&self.requests) {
            let status = status.to_string();
            page.sample("tidegate_requests_total", &[("dialect", dialect), ("status", &status)], *count as f64);
        }
        page.family("tidegate_answers_total", "counter", "Answers that ended, by how they did.");
        for (outcome, count) in OUTCOMES.iter().zip(&self.answers) {
            page.sample("tidegate_answers_total", &[("outcome", outcome)], count.load(Ordering::Relaxed) as f64);
        }
        for (name, help, counter) in [
            ("tidegate_tokens_generated_total", "Tokens of finished answers.", &self.tokens_generated),
            ("tidegate_prompt_tokens_total", "Tokens of the prompts of finished answers.", &self.prompt_tokens),
            ("tidegate_prompt_tokens_cached_total", "Those of them that were in a cache.", &self.cached_tokens),
        ] {
            page.single(name, "counter", help, counter.load(Ordering::Relaxed) as f64);
        }
        let help = "Request accepted to first visible token.";
        lock(&self.ttft).write(page, "tidegate_time_to_first_token_seconds", help);
        let help = "Speed of each finished answer after its first token.";
        lock(&self.decode_speed).write(page, "tidegate_decode_tokens_per_second", help);
        let started = self.started.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        page.single("process_start_time_seconds", "gauge", "When the server started, in Unix time.", started);
    }
}

/// Values by the bucket that they fall into; `N` upper bounds, ascending.
struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [u64; N],
    count: u64,
    sum: f64,
}

impl<const N: usize> Histogram<N> {
    const fn new(bounds: [f64; N]) -> Self {
        Self { bounds, counts: [0; N], count: 0, sum: 0.0 }
    }

    fn note(&mut self, value: f64) {
        if let Some(index) = self.bounds.iter().position(|bound| value <= *bound) {
            self.counts[index] += 1;
        }
        self.count += 1;
        self.sum += value;
    }

    fn write(&self, page: &mut Page, name: &str, help: &str) {
        page.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count;
            page.sample(&bucket, &[("le", &bound.to_string())], below as f64);
        }
        page.sample(&bucket, &[("le", "+Inf")], self.count as f64);
        page.sample(&format!("{name}_sum"), &[], self.sum);
        page.sample(&format!("{name}_count"), &[], self.count as f64);
    }
}

/// The page as it is written.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string can't fail; nor can it below.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let mut page = Page::default();
    page.family("tidegate_build_info", "gauge", "Always 1.");
    let device = app::device_name();
    page.sample("tidegate_build_info", &[("version", env!("CARGO_PKG_VERSION")), ("device", &device)], 1.0);
    page.family("tidegate_health", "gauge", "1 for the state that /health tells.");
    let health = Health::of(&gateway).as_str();
    for name in Health::NAMES {
        page.sample("tidegate_health", &[("state", name)], f64::from(u8::from(name == health)));
    }
    gateway.metrics.write(&mut page);
    let occupancy = gateway.app.occupancy();
    for (name, help, count) in [
        ("tidegate_slots", "Answers that may be written here at the same time.", occupancy.slots),
        ("tidegate_slots_busy", "Slots that are taken.", occupancy.slots_busy),
        ("tidegate_queue_length", "Requests that wait for a slot.", occupancy.waiting),
        ("tidegate_queue_limit", "Requests that may wait for a slot.", occupancy.most_waiting),
        ("tidegate_requests_running", "Requests that are being served, here or by nodes.", gateway.traffic.running()),
    ] {
        page.single(name, "gauge", help, count as f64);
    }
    // A reading that can't be taken is absent.
    let own = gateway.app.watch_vitals().borrow().snapshot.own;
    if let Some(own) = own {
        let help = "Memory that would come back if the server ended.";
        page.single("tidegate_memory_resident_bytes", "gauge", help, own.footprint.0 as f64);
    }
    if let Some((_, loaded)) = gateway.app.model_in_memory() {
        let help = "What the model in memory takes with its context full.";
        page.single("tidegate_model_bytes", "gauge", help, loaded.footprint.total().0 as f64);
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.0).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_is_at_most_their_bound() {
        let mut histogram = Histogram::new([1.0, 2.5]);
        [0.5, 1.0, 2.0, 9.0].into_iter().for_each(|value| histogram.note(value));
        let mut page = Page::default();
        histogram.write(&mut page, "t_seconds", "Time.");
        assert_eq!(
            page.0,
            "# HELP t_seconds Time.\n# TYPE t_seconds histogram\nt_seconds_bucket{le=\"1\"} 2\n\
             t_seconds_bucket{le=\"2.5\"} 3\nt_seconds_bucket{le=\"+Inf\"} 4\nt_seconds_sum 12.5\nt_seconds_count 4\n"
        );
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.sample("t", &[("a", "x\"y\\z\n"), ("b", "c")], 1.0);
        assert_eq!(page.0, "t{a=\"x\\\"y\\\\z\\n\",b=\"c\"} 1\n");
    }
}
