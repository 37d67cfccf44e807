//! One team of threads for all products: as many as rayon's pool has, the caller among them. Handing work to a pool costs
//! several times what a small product does, so members spin for a while after their work and sleep only then.

#![expect(unsafe_code, reason = "members of the team borrow the caller's closure, which outlives its work")]

use std::any::Any;
use std::cell::Cell;
use std::hint::spin_loop;
use std::iter;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};

/// How often a member looks for more work before it sleeps: some tens of microseconds, about what lies between two
/// products of one token.
const LOOKS: u32 = 4_000;
/// How often whoever waits looks before it lets other threads run.
const LOOKS_BEFORE_YIELD: u32 = 1_000;

/// Runs `task` once for each index below `count`, on all threads of the team as far as they are free. Each takes indices that
/// follow one another, so that it reads memory in order, and helps others when it is done with its own. Waits while another
/// thread's work is being done; within a task, and on a machine with one core, all of it runs on the calling thread.
///
/// # Panics
/// When a task does, after all of them ended.
pub(crate) fn for_each(count: usize, task: impl Fn(usize) + Sync) {
    if count <= 1 || IS_WORKING.get() {
        return (0..count).for_each(task);
    }
    match team() {
        Some(team) => team.run(count, &task),
        None => (0..count).for_each(task),
    }
}

thread_local! {
    /// Whether this thread is at work for a team, and must not wait for it.
    static IS_WORKING: Cell<bool> = const { Cell::new(false) };
}

struct Team {
    /// Held by the caller whose work is being done.
    caller: Mutex<()>,
    work: &'static Work,
    members: Vec<Thread>,
}

/// What the members look at.
struct Work {
    /// The number of the job (upper half), whether it takes more members ([`OPEN`]), and how many are at it.
    state: AtomicU64,
    /// Of an open job.
    job: AtomicPtr<Job<'static>>,
    /// The indices of the open job that each of the team has not begun; the first are the caller's.
    shares: Vec<Share>,
    /// Whether each member is asleep, or about to be.
    asleep: Vec<AtomicBool>,
}

const OPEN: u64 = 1 << 31;
const NEXT_JOB: u64 = 1 << 32;

struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    shares: &'a [Share],
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

fn team() -> Option<&'static Team> {
    static TEAM: OnceLock<Option<Team>> = OnceLock::new();
    TEAM.get_or_init(|| Team::start(rayon::current_num_threads())).as_ref()
}

impl Team {
    /// `None` where there is nobody but the caller.
    fn start(size: usize) -> Option<Self> {
        let work = Box::leak(Box::new(Work {
            state: AtomicU64::new(0),
            job: AtomicPtr::new(ptr::null_mut()),
            shares: (0..size).map(|_| Share::default()).collect(),
            asleep: (1..size).map(|_| AtomicBool::new(false)).collect(),
        }));
        let work: &'static Work = work;
        let start = |member: usize| {
            let thread = thread::Builder::new().name(format!("team-{member}"));
            thread.spawn(move || work.follow(member)).ok()
        };
        // Where the system gives fewer threads, fewer do the work.
        let members: Vec<Thread> = (0..size.saturating_sub(1)).map_while(start).map(|h| h.thread().clone()).collect();
        (!members.is_empty()).then_some(Self { caller: Mutex::new(()), work, members })
    }

    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        // Nothing is left half done by a caller that panicked.
        let turn = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let shares = &self.work.shares[..=self.members.len()];
        assert!(count < 1 << 32, "the ends of a share are 32 bits each");
        for (i, share) in shares.iter().enumerate() {
            share.set(count * i / shares.len()..count * (i + 1) / shares.len());
        }
        let job = Job { task, shares, panic: Mutex::new(None) };
        self.work.job.store(ptr::from_ref(&job).cast_mut().cast(), Ordering::Relaxed);
        let number = (self.work.state.load(Ordering::Relaxed) & !(NEXT_JOB - 1)).wrapping_add(NEXT_JOB);
        // A member that falls asleep says so before it looks for a job once more, both in the one order of all such
        // accesses: so either it sees this job, or it is seen here.
        self.work.state.store(number | OPEN, Ordering::SeqCst);
        for (member, asleep) in self.members.iter().zip(&self.work.asleep) {
            if asleep.load(Ordering::SeqCst) {
                member.unpark();
            }
        }
        // Tasks that panic are caught, so this always comes to the end, where nobody has the job any more.
        job.run(0);
        self.work.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while self.work.state.load(Ordering::Acquire) != number {
            pause(&mut looks);
        }
        drop(turn);
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}

impl Work {
    fn follow(&self, member: usize) {
        let (mut done, mut looks) = (0, 0);
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN != 0 && state & !(NEXT_JOB - 1) != done {
                if self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    // SAFETY: the job was open when this member was counted, so its caller waits until it is no longer
                    // counted; until then the job lives, and no other takes its place.
                    unsafe { &*self.job.load(Ordering::Acquire) }.run(1 + member);
                    self.state.fetch_sub(1, Ordering::Release);
                    (done, looks) = (state & !(NEXT_JOB - 1), 0);
                }
                continue;
            }
            looks += 1;
            if looks < LOOKS {
                spin_loop();
                continue;
            }
            self.asleep[member].store(true, Ordering::SeqCst);
            let state = self.state.load(Ordering::SeqCst);
            if state & OPEN == 0 || state & !(NEXT_JOB - 1) == done {
                thread::park();
            }
            self.asleep[member].store(false, Ordering::Relaxed);
            looks = 0;
        }
    }
}

impl Job<'_> {
    /// One of the team's part: its own share, then what is left of others'.
    fn run(&self, own: usize) {
        let outer = IS_WORKING.replace(true);
        let others = (1..self.shares.len()).map(|i| &self.shares[(own + i) % self.shares.len()]);
        let own = iter::from_fn(|| self.shares[own].first());
        for index in own.chain(others.flat_map(|other| iter::from_fn(|| other.last()))) {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.task)(index))) {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
        IS_WORKING.set(outer);
    }
}

/// Indices that nobody has begun: the first of them (upper half), and the one after the last. On a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    const FIRST: u64 = 1 << 32;

    /// Before others look at it.
    fn set(&self, indices: Range<usize>) {
        self.0.store(indices.start as u64 * Self::FIRST + indices.end as u64, Ordering::Relaxed);
    }

    fn first(&self) -> Option<usize> {
        let before = self.take(|indices| indices + Self::FIRST)?;
        Some((before / Self::FIRST) as usize)
    }

    fn last(&self) -> Option<usize> {
        let before = self.take(|indices| indices - 1)?;
        Some((before % Self::FIRST) as usize - 1)
    }

    /// What it was before.
    fn take(&self, rest: impl Fn(u64) -> u64) -> Option<u64> {
        let is_empty = |indices: u64| indices / Self::FIRST >= indices % Self::FIRST;
        let take = |indices| (!is_empty(indices)).then(|| rest(indices));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()
    }
}

fn pause(looks: &mut u32) {
    *looks += 1;
    if *looks < LOOKS_BEFORE_YIELD { spin_loop() } else { thread::yield_now() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    fn check(count: usize) {
        let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        for_each(count, |index| {
            // What is nested runs on the same thread.
            let (thread, nested) = (thread::current().id(), AtomicUsize::new(0));
            for_each(3, |i| {
                assert_eq!(thread::current().id(), thread);
                nested.fetch_add(i, Ordering::Relaxed);
            });
            done[index].fetch_add(nested.into_inner(), Ordering::Relaxed);
        });
        assert!(done.into_iter().all(|times| times.into_inner() == 3));
    }

    #[test]
    fn every_index_is_run_once_whoever_calls() {
        thread::scope(|scope| {
            for caller in 0..4 {
                scope.spawn(move || (0..500).for_each(|round| check(2 + (caller + round) % 60)));
            }
        });
    }

    #[test]
    fn who_fell_asleep_is_woken() {
        for _ in 0..20 {
            check(50);
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let panic = catch_unwind(|| for_each(100, |index| assert!(index != 57, "the fifty-seventh")));
        assert!(panic.unwrap_err().downcast_ref::<&str>().is_some_and(|text| text.contains("the fifty-seventh")));
        check(100);
    }
}
