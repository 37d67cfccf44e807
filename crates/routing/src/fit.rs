//! What may be used here, and what a model needs.
//!
//! The budget is the smallest of what is known of
//! - the GPU's working set − 1 GiB, because beyond it Metal slows down and the window server needs some of it;
//! - the machine's memory (or a control group's limit) − the reserve, which holds however idle the machine is;
//! - what is available now, plus what our idle models give back, − the reserve; never below what this very model holds
//!   already, because running it on takes nothing more.
//!
//! Where the memory is unknown the budget is unknown too: then a model can be too big for the GPU, but nothing fits.

use chat::Bytes;
use vitals::Snapshot;

use crate::demand::CACHE_STEP;
use crate::readings::{is_short_of_memory, readings};
use crate::{Fit, LocalModel, Outlook, Policy, Verdict, words};

/// Kept free of the GPU's working set.
const GPU_RESERVE: Bytes = Bytes::gib(1);

/// Whether `model` fits here now with a context of `context_len` tokens, and with how many it would.
pub fn fit(model: &LocalModel, policy: &Policy, snapshot: &Snapshot, context_len: usize) -> Fit {
    let context_len = context_len.min(longest_context(model));
    let needed = model.needed(context_len);
    let limits = Limits::of(model, policy, snapshot);
    let budget = limits.budget();
    let is_too_big_for_gpu = limits.gpu.is_some_and(|gpu| needed > gpu);
    let verdict = match budget {
        Some(budget) if needed > budget => Verdict::TooBig,
        None if is_too_big_for_gpu => Verdict::TooBig,
        None => Verdict::Unknown,
        Some(budget) => {
            let has_room = needed.saturating_add(Bytes(needed.0 / 8)) <= budget;
            let is_short = is_short_of_memory(&readings(policy, &Outlook::of(snapshot)));
            if has_room && !is_short { Verdict::RunsWell } else { Verdict::Tight }
        }
    };
    let usable = match (budget.or(limits.gpu.filter(|_| is_too_big_for_gpu)), budget) {
        (Some(bytes), Some(_)) => format!("{bytes} can be used"),
        (Some(bytes), None) => format!("the GPU can use {bytes}"),
        (None, _) => "how much memory is free is unknown".to_owned(),
    };
    Fit {
        verdict,
        context_len,
        needed,
        budget,
        max_context: budget.map(|budget| max_context(model, budget)),
        sentence: format!("With {} context {needed}, {usable}", words::context(context_len)),
    }
}

/// The bounds that the budget is the smallest of. `None` is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// What the GPU can hold.
    pub(crate) gpu: Option<Bytes>,
    /// What the machine could give if nothing else ran.
    pub(crate) machine: Option<Bytes>,
    /// What is free to be used now.
    pub(crate) now: Option<Bytes>,
}

impl Limits {
    pub(crate) fn of(model: &LocalModel, policy: &Policy, snapshot: &Snapshot) -> Self {
        let gpu = snapshot.gpu.as_ref().and_then(|gpu| gpu.working_set_limit);
        let ram = snapshot.memory.map(|memory| memory.limit.map_or(memory.total, |limit| limit.min(memory.total)));
        let held = model.already_loaded.unwrap_or(Bytes::ZERO);
        Self {
            gpu: gpu.map(|limit| limit.saturating_sub(GPU_RESERVE)),
            machine: ram.map(|ram| ram.saturating_sub(policy.reserve)),
            now: snapshot.memory.map(|memory| {
                memory.available.saturating_add(model.other_loaded).saturating_sub(policy.reserve).saturating_add(held)
            }),
        }
    }

    /// What may be used; `None` where the memory is unknown.
    pub(crate) fn budget(self) -> Option<Bytes> {
        let memory = self.machine.zip(self.now).map(|(machine, now)| machine.min(now))?;
        Some(self.gpu.map_or(memory, |gpu| gpu.min(memory)))
    }

    /// What would be the budget if nothing else ran.
    fn ceiling(self) -> Option<Bytes> {
        self.machine.map(|machine| self.gpu.map_or(machine, |gpu| gpu.min(machine)))
    }

    /// How much memory would have to be available for `needed` to fit; `None` where no amount is enough or the memory
    /// is unknown.
    pub(crate) fn free_needed(self, needed: Bytes, model: &LocalModel, policy: &Policy) -> Option<Bytes> {
        self.ceiling().filter(|&ceiling| needed <= ceiling)?;
        let more = needed.saturating_sub(model.already_loaded.unwrap_or(Bytes::ZERO));
        Some(more.saturating_add(policy.reserve).saturating_sub(model.other_loaded))
    }
}

/// The most tokens that the model can be asked to read.
pub(crate) fn longest_context(model: &LocalModel) -> usize {
    if model.trained_context == 0 { usize::MAX } else { model.trained_context }
}

pub(crate) fn max_context(model: &LocalModel, budget: Bytes) -> usize {
    let fixed = model.needed(0);
    if fixed > budget {
        return 0;
    }
    let tokens = (budget.0 - fixed.0).checked_div(model.kv_per_token.0).unwrap_or(u64::MAX);
    let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
    (tokens / CACHE_STEP * CACHE_STEP).min(longest_context(model))
}

#[cfg(test)]
mod tests {
    use vitals::{Gpu, Memory, MemoryPressure};

    use super::*;

    fn model() -> LocalModel {
        LocalModel {
            weights: Bytes::gib(4),
            kv_per_token: Bytes(128 << 10),
            scratch: Bytes::mib(512),
            trained_context: 32_768,
            ..LocalModel::default()
        }
    }

    fn free_memory(gib: u64) -> Snapshot {
        let memory = Memory { total: Bytes::gib(16), available: Bytes::gib(gib), ..Memory::default() };
        Snapshot { memory: Some(memory), ..Snapshot::default() }
    }

    fn fit_of(model: &LocalModel, snapshot: &Snapshot) -> Fit {
        fit(model, &Policy { reserve: Bytes::gib(1), ..Policy::default() }, snapshot, 8192)
    }

    #[test]
    fn the_verdict_says_how_much_room_is_left() {
        // 4 GiB weights + 1 GiB cache + 0.5 GiB scratch.
        let verdict = |gib| fit_of(&model(), &free_memory(gib)).verdict;
        assert_eq!((verdict(8), verdict(7), verdict(6)), (Verdict::RunsWell, Verdict::Tight, Verdict::TooBig));
        let fit = fit_of(&model(), &free_memory(6));
        assert_eq!((fit.needed, fit.budget), (Bytes::mib(5632), Some(Bytes::gib(5))));
        assert_eq!(fit.max_context, Some(4096));
        assert_eq!(fit.sentence, "With 8k context 5.5 GB, 5.0 GB can be used");
        assert_eq!(fit_of(&model(), &free_memory(2)).max_context, Some(0));

        let short = Snapshot { pressure: Some(MemoryPressure::Warning), ..free_memory(12) };
        assert_eq!(fit_of(&model(), &short).verdict, Verdict::Tight);
    }

    #[test]
    fn the_smallest_bound_counts() {
        let gpu = |gib| Some(Gpu { working_set_limit: Some(Bytes::gib(gib)), ..Gpu::default() });
        let mut snapshot = Snapshot { gpu: gpu(6), ..free_memory(12) };
        assert_eq!(fit_of(&model(), &snapshot).budget, Some(Bytes::gib(5)));
        snapshot.gpu = gpu(0);
        assert_eq!(fit_of(&model(), &snapshot).budget, Some(Bytes::ZERO));
        snapshot = free_memory(12);
        snapshot.memory.as_mut().unwrap().limit = Some(Bytes::gib(4));
        assert_eq!(fit_of(&model(), &snapshot).budget, Some(Bytes::gib(3)));
    }

    #[test]
    fn what_we_hold_counts_as_ours() {
        let idle = LocalModel { other_loaded: Bytes::gib(3), ..model() };
        assert_eq!(fit_of(&idle, &free_memory(4)).budget, Some(Bytes::gib(6)));
        // A loaded model runs on, though something else took the memory that was left.
        let loaded = LocalModel { already_loaded: Some(Bytes::mib(5632)), ..model() };
        assert_eq!(fit_of(&loaded, &free_memory(0)).verdict, Verdict::Tight);
        assert_eq!(fit(&loaded, &Policy::default(), &free_memory(0), 8193).verdict, Verdict::TooBig);
    }

    #[test]
    fn unknown_memory_fits_nothing() {
        let mut snapshot = Snapshot::default();
        let fit = fit_of(&model(), &snapshot);
        assert_eq!((fit.verdict, fit.budget, fit.max_context), (Verdict::Unknown, None, None));
        assert_eq!(fit.sentence, "With 8k context 5.5 GB, how much memory is free is unknown");
        snapshot.gpu = Some(Gpu { working_set_limit: Some(Bytes::gib(5)), ..Gpu::default() });
        let fit = fit_of(&model(), &snapshot);
        assert_eq!((fit.verdict, fit.budget), (Verdict::TooBig, None));
        assert_eq!(fit.sentence, "With 8k context 5.5 GB, the GPU can use 4.0 GB");
    }

    proptest::proptest! {
        /// "Fits if 6.2 GB were free" is true, and with a byte less it isn't.
        #[test]
        fn what_would_have_to_be_free_is_enough_and_no_more_than_needed(
            reserve in 0_u64..8192, held in 0_u64..8192, idle in 0_u64..8192, tokens in 0_usize..32_768, free in 0_u64..16,
        ) {
            let policy = Policy { reserve: Bytes::mib(reserve), ..Policy::default() };
            let model =
                LocalModel { already_loaded: Some(Bytes::mib(held)), other_loaded: Bytes::mib(idle), ..model() };
            let fits_with = |available: Bytes| {
                let mut snapshot = free_memory(free);
                snapshot.memory.as_mut().unwrap().available = available;
                fit(&model, &policy, &snapshot, tokens).verdict != Verdict::TooBig
            };
            let limits = Limits::of(&model, &policy, &free_memory(free));
            match limits.free_needed(model.needed(tokens), &model, &policy) {
                Some(enough) => {
                    proptest::prop_assert!(fits_with(enough));
                    let is_held = model.needed(tokens) <= Bytes::mib(held);
                    proptest::prop_assert!(enough == Bytes::ZERO || is_held || !fits_with(Bytes(enough.0 - 1)));
                }
                None => proptest::prop_assert!(!fits_with(Bytes(u64::MAX))),
            }
        }
    }
}
