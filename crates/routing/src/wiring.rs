use chat::Bytes;
use vitals::{MemoryPressure, Snapshot};

/// The least memory that is left to everything else when weights are wired: the system can take none of the wired pages
/// back, so it needs more room than beside pages that it can.
const LEAST_LEFT: Bytes = Bytes::gib(2);

/// How many bytes of weights may be wired here, when `wired` of them are already: what is available beyond an eighth of
/// the machine's memory, and 2 GiB at least. None where the memory is unknown, or the system says that it is short.
pub fn may_wire(snapshot: &Snapshot, wired: Bytes) -> Bytes {
    let Some(memory) = snapshot.memory else { return Bytes::ZERO };
    if snapshot.pressure.is_some_and(|pressure| pressure != MemoryPressure::Normal) {
        return Bytes::ZERO;
    }
    let total = memory.usable();
    let left = LEAST_LEFT.max(Bytes(total.0 / 8));
    // What is wired is no longer among what is available.
    memory.available.saturating_add(wired).min(total).saturating_sub(left)
}

#[cfg(test)]
mod tests {
    use vitals::Memory;

    use super::*;

    fn machine(total: u64, available: u64) -> Snapshot {
        let memory = Memory { total: Bytes::gib(total), available: Bytes::gib(available), ..Memory::default() };
        Snapshot { memory: Some(memory), ..Snapshot::default() }
    }

    #[test]
    fn an_eighth_and_two_gib_at_least_are_left() {
        let may = |total, available, wired| may_wire(&machine(total, available), Bytes::gib(wired));
        assert_eq!(may(16, 9, 0), Bytes::gib(7));
        assert_eq!(may(16, 5, 4), Bytes::gib(7));
        assert_eq!(may(8, 3, 0), Bytes::gib(1));
        assert_eq!(may(64, 30, 0), Bytes::gib(22));
        assert_eq!(may(16, 2, 0), Bytes::ZERO);
        // Somebody else took memory: some of what is wired is released.
        assert_eq!(may(16, 1, 4), Bytes::gib(3));
        assert_eq!(may(16, 0, 1), Bytes::ZERO);
        // Readings of two moments may not add up.
        assert_eq!(may(16, 12, 9), Bytes::gib(14));
    }

    #[test]
    fn nothing_is_wired_where_memory_is_short_or_unknown() {
        assert_eq!(may_wire(&Snapshot::default(), Bytes::gib(4)), Bytes::ZERO);
        for pressure in [MemoryPressure::Warning, MemoryPressure::Critical] {
            let short = Snapshot { pressure: Some(pressure), ..machine(16, 12) };
            assert_eq!(may_wire(&short, Bytes::gib(4)), Bytes::ZERO);
        }
        let mut contained = machine(64, 7);
        contained.memory.as_mut().unwrap().limit = Some(Bytes::gib(8));
        assert_eq!(may_wire(&contained, Bytes::ZERO), Bytes::gib(5));
    }
}
