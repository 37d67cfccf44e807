//! Keeps weights in RAM while answers are written: what the system takes away between two tokens has to be read from the
//! disk before the next. Only as far as the caller says that there is room, piece by piece on a thread of its own, and
//! never at the cost of an answer: what cannot be wired is used as it is.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use chat::Bytes;

/// The caller's part in keeping weights in RAM.
#[derive(Clone)]
pub struct Wiring {
    /// How many bytes may be wired in all at this moment, when the given number are already. Asked twice a second while
    /// answers are written; what is wired beyond that is released.
    pub budget: Arc<dyn Fn(Bytes) -> Bytes + Send + Sync>,
    /// Everything is released when nothing was written for so long.
    pub release_after: Duration,
}

impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring").field("release_after", &self.release_after).finish_non_exhaustive()
    }
}

/// How often the budget is asked for, and the GPU's memory asked to stay. macOS takes the latter back after about a second
/// without use.
const EVERY: Duration = Duration::from_millis(500);

/// The weights of one model in pieces, each of which can be held in RAM.
pub(crate) trait Pieces: Send {
    /// Bytes of each piece.
    fn sizes(&self) -> Vec<u64>;

    /// Holds one more piece.
    fn hold(&mut self, piece: usize) -> io::Result<()>;

    /// Lets one go that is held.
    fn release(&mut self, piece: usize);

    /// Says again that what is held is wanted, for those who forget.
    fn renew(&mut self) {}
}

#[cfg(feature = "metal")]
impl Pieces for kernels::metal::ResidentBuffers {
    fn sizes(&self) -> Vec<u64> {
        self.buffers().iter().map(|buffer| buffer.bytes() as u64).collect()
    }

    fn hold(&mut self, piece: usize) -> io::Result<()> {
        kernels::step(|| self.add(piece));
        Ok(())
    }

    fn release(&mut self, piece: usize) {
        kernels::step(|| self.remove(piece));
    }

    fn renew(&mut self) {
        kernels::step(|| Self::renew(self));
    }
}

/// The weights of the loaded model, as far as they are wired. Dropping it releases them.
pub(crate) struct WiredWeights {
    budget: Arc<dyn Fn(Bytes) -> Bytes + Send + Sync>,
    /// Bytes that may be wired from now on.
    orders: Option<Sender<u64>>,
    wired: Arc<AtomicU64>,
    asked: Option<Instant>,
    thread: Option<JoinHandle<()>>,
}

impl WiredWeights {
    /// Nothing is wired yet.
    pub(crate) fn new(wiring: &Wiring, pieces: Box<dyn Pieces>) -> Self {
        let wired = Arc::new(AtomicU64::new(0));
        let (orders, received) = channel();
        let told = wired.clone();
        let thread = thread::Builder::new().name("engine-wiring".to_owned());
        // Without a thread nothing is wired, and answers are written all the same.
        let thread = thread.spawn(move || follow(&received, pieces, &told)).ok();
        Self { budget: wiring.budget.clone(), orders: Some(orders), wired, asked: None, thread }
    }

    /// An answer is being written. Takes no time: wiring goes on beside it.
    pub(crate) fn keep(&mut self) {
        if self.asked.is_none_or(|asked| asked.elapsed() >= EVERY) {
            self.asked = Some(Instant::now());
            self.order((self.budget)(Bytes(self.wired.load(Ordering::Relaxed))));
        }
    }

    /// Nobody needs them for now.
    pub(crate) fn release(&mut self) {
        self.asked = None;
        self.order(Bytes::ZERO);
    }

    /// Whether there is something to release.
    pub(crate) const fn is_kept(&self) -> bool {
        self.asked.is_some()
    }

    fn order(&self, bytes: Bytes) {
        if let Some(orders) = &self.orders {
            // The thread may not have started, which is documented above.
            let _ = orders.send(bytes.0);
        }
    }
}

impl Drop for WiredWeights {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell.
            let _ = thread.join();
        }
    }
}

/// Wires as many pieces, from the first on, as the last order allows, and looks for a newer one after each. Ends with
/// nothing wired.
fn follow(orders: &Receiver<u64>, mut pieces: Box<dyn Pieces>, wired: &AtomicU64) {
    let sizes = pieces.sizes();
    let (mut held, mut bytes) = (0, 0);
    // What the last order allows, and what the system was found to allow.
    let (mut allowed, mut possible) = (0, u64::MAX);
    loop {
        let next = sizes.get(held).copied().filter(|size| bytes + size <= allowed.min(possible));
        let order = match next {
            Some(_) => orders.try_recv(),
            None => orders.recv().map_err(|_| TryRecvError::Disconnected),
        };
        match (order, next) {
            (Ok(order), _) => {
                allowed = order;
                if allowed == 0 {
                    possible = u64::MAX;
                }
                while bytes > allowed {
                    held -= 1;
                    bytes -= sizes[held];
                    pieces.release(held);
                }
                if held > 0 {
                    pieces.renew();
                }
            }
            (Err(TryRecvError::Disconnected), _) => {
                (0..held).rev().for_each(|piece| pieces.release(piece));
                wired.store(0, Ordering::Relaxed);
                return;
            }
            (Err(TryRecvError::Empty), Some(size)) => match pieces.hold(held) {
                Ok(()) => {
                    held += 1;
                    bytes += size;
                }
                Err(error) => {
                    tell_once(Bytes(bytes), &error);
                    possible = bytes;
                }
            },
            (Err(TryRecvError::Empty), None) => unreachable!("then the order is waited for"),
        }
        wired.store(bytes, Ordering::Relaxed);
    }
}

/// The system wires no more than so many bytes.
fn tell_once(wired: Bytes, error: &io::Error) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        tracing::warn!(
            %error,
            "the system keeps {wired} of the weights in RAM and no more; answers go on without. `ulimit -l` says how much \
             a process may lock: raise it there, by `LimitMEMLOCK=` of a service, or by `sudo sysctl \
             vm.user_wire_limit=BYTES` on a Mac"
        );
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Pieces of ten bytes, of which the system holds so many.
    struct Fake {
        held: Arc<Mutex<Vec<usize>>>,
        most: usize,
    }

    impl Pieces for Fake {
        fn sizes(&self) -> Vec<u64> {
            vec![10; 4]
        }

        fn hold(&mut self, piece: usize) -> io::Result<()> {
            let mut held = self.held.lock().unwrap();
            if held.len() == self.most {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            held.push(piece);
            Ok(())
        }

        fn release(&mut self, piece: usize) {
            assert_eq!(self.held.lock().unwrap().pop(), Some(piece));
        }
    }

    /// What is held after each of `orders` was followed to its end.
    #[track_caller]
    fn check(most: usize, orders: &[u64], expected: &[usize]) {
        let held = Arc::new(Mutex::new(Vec::new()));
        let wired = Arc::new(AtomicU64::new(0));
        let (sender, received) = channel();
        let thread = {
            let (pieces, wired) = (Box::new(Fake { held: held.clone(), most }), wired.clone());
            thread::spawn(move || follow(&received, pieces, &wired))
        };
        for (order, expected) in orders.iter().zip(expected) {
            sender.send(*order).unwrap();
            while wired.load(Ordering::Relaxed) != 10 * *expected as u64 {
                thread::yield_now();
            }
            assert_eq!(*held.lock().unwrap(), (0..*expected).collect::<Vec<_>>());
        }
        drop(sender);
        thread.join().unwrap();
        assert!(held.lock().unwrap().is_empty() && wired.load(Ordering::Relaxed) == 0);
    }

    #[test]
    fn no_more_is_wired_than_the_last_order_allows() {
        check(9, &[25, 9, 40, 100, 30, 0, 10], &[2, 0, 4, 4, 3, 0, 1]);
    }

    #[test]
    fn what_the_system_refuses_is_left_as_it_is() {
        check(2, &[40, 100, 10, 40, 0, 40], &[2, 2, 1, 2, 0, 2]);
    }
}
