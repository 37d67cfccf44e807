//! Samples the machine on a thread of its own: each second while somebody looks, four times a second while an answer
//! is written, every five seconds otherwise.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chat::Bytes;
use routing::Outlook;
use tokio::sync::watch;
use vitals::{Sampler, Snapshot};

/// An hour of one reading a second.
const HISTORY_LEN: usize = 3_600;

/// One reading of the machine together with what Tidegate itself does on it.
#[derive(Clone, Debug, Default)]
pub struct Vitals {
    /// The machine.
    pub snapshot: Snapshot,
    /// Weights that the engine holds.
    pub weights: Bytes,
    /// Cache that the engine holds.
    pub kv_cache: Bytes,
    /// What the last unload gave back, as measured; `None` before the first, or where it couldn't be.
    pub given_back: Option<Bytes>,
    /// Speed of the answer that is being written, here or on a node; `None` while none is.
    pub decode_tokens_per_sec: Option<f64>,
    /// What this model usually reaches at that place.
    pub baseline_tokens_per_sec: Option<f64>,
    /// Readings that can't be taken, and why.
    pub unavailable: Vec<(&'static str, String)>,
}

/// What the sampling thread can't know by itself.
pub(crate) type OwnState = dyn Fn(&mut Vitals) + Send;

pub(crate) struct VitalsWatch {
    latest: watch::Receiver<Arc<Vitals>>,
    outlook: Arc<Mutex<Outlook>>,
    history: Arc<Mutex<VecDeque<Arc<Vitals>>>>,
    visible: Arc<AtomicBool>,
    generating: Arc<AtomicUsize>,
    wake: Mutex<Option<Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl VitalsWatch {
    /// Starts the thread; the first reading is there when this returns.
    pub(crate) fn start(own_state: Box<OwnState>) -> Self {
        let history = Arc::new(Mutex::new(VecDeque::new()));
        let outlook = Arc::new(Mutex::new(Outlook::default()));
        let visible = Arc::new(AtomicBool::new(true));
        let generating = Arc::new(AtomicUsize::new(0));
        let (wake, woken) = channel();
        let (first, started) = channel();
        let (latest_tx, latest) = watch::channel(Arc::new(Vitals::default()));
        let thread = {
            let (history, outlook) = (history.clone(), outlook.clone());
            let (visible, generating) = (visible.clone(), generating.clone());
            std::thread::Builder::new()
                .name("vitals".to_owned())
                .spawn(move || {
                    sample_until_stopped(
                        &woken,
                        &latest_tx,
                        &history,
                        &outlook,
                        &visible,
                        &generating,
                        &*own_state,
                        &first,
                    );
                })
                .ok()
        };
        // An error means that the thread couldn't start: readings stay unknown, which every reader allows for.
        let _ = started.recv_timeout(Duration::from_secs(2));
        Self { latest, outlook, history, visible, generating, wake: Mutex::new(Some(wake)), thread: Mutex::new(thread) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Vitals>> {
        self.latest.clone()
    }

    pub(crate) fn latest(&self) -> Arc<Vitals> {
        self.latest.borrow().clone()
    }

    /// The last minute as decisions are made from it.
    pub(crate) fn outlook(&self) -> Outlook {
        self.outlook.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last hour, oldest first.
    pub(crate) fn history(&self) -> Vec<Arc<Vitals>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(crate) fn set_visible(&self, visible: bool) {
        self.visible.store(visible, Ordering::Relaxed);
        self.poke();
    }

    /// Samples faster until the guard is dropped.
    pub(crate) fn generating(self: &Arc<Self>) -> Generating {
        self.generating.fetch_add(1, Ordering::Relaxed);
        self.poke();
        Generating(self.clone())
    }

    /// Answers that are written now.
    pub(crate) fn answers(&self) -> usize {
        self.generating.load(Ordering::Relaxed)
    }

    fn poke(&self) {
        if let Some(wake) = &*self.wake.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = wake.send(());
        }
    }

    /// Stops the thread and waits for it: it sleeps in a receive, so this takes as long as one sample.
    pub(crate) fn stop(&self) {
        self.wake.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

/// Held while an answer is written.
pub(crate) struct Generating(Arc<VitalsWatch>);

impl Drop for Generating {
    fn drop(&mut self) {
        self.0.generating.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The reading as decisions are made from it: a GPU that models don't run on sets no limit.
fn judged(snapshot: &Snapshot) -> Snapshot {
    let gpu = snapshot.gpu.clone().filter(|_| engine::computes_on_gpu());
    Snapshot { gpu, ..snapshot.clone() }
}

#[expect(clippy::too_many_arguments, reason = "what one thread shares with its owner")]
fn sample_until_stopped(
    woken: &Receiver<()>,
    latest: &watch::Sender<Arc<Vitals>>,
    history: &Mutex<VecDeque<Arc<Vitals>>>,
    outlook: &Mutex<Outlook>,
    visible: &AtomicBool,
    generating: &AtomicUsize,
    own_state: &OwnState,
    first: &Sender<()>,
) {
    let mut sampler = Sampler::new();
    let mut kept_at: Option<Instant> = None;
    loop {
        let mut vitals = Vitals { snapshot: sampler.sample(), unavailable: sampler.unavailable(), ..Vitals::default() };
        own_state(&mut vitals);
        outlook.lock().unwrap_or_else(PoisonError::into_inner).add(&judged(&vitals.snapshot));
        let vitals = Arc::new(vitals);
        // The history has one reading a second, however often the machine is looked at.
        if kept_at.is_none_or(|at| at.elapsed() >= Duration::from_millis(900)) {
            kept_at = Some(Instant::now());
            let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
            if history.len() == HISTORY_LEN {
                history.pop_front();
            }
            history.push_back(vitals.clone());
        }
        latest.send_replace(vitals);
        let _ = first.send(());
        let pause = interval(visible.load(Ordering::Relaxed), generating.load(Ordering::Relaxed) > 0);
        match woken.recv_timeout(pause) {
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
            // Several wakes at once are one sample.
            Ok(()) => while woken.try_recv().is_ok() {},
        }
    }
}

fn interval(visible: bool, generating: bool) -> Duration {
    match (generating, visible) {
        (true, _) => Duration::from_millis(250),
        (false, true) => Duration::from_secs(1),
        (false, false) => Duration::from_secs(5),
    }
}
