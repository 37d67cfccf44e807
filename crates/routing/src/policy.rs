use std::time::Duration;

use chat::Bytes;
use vitals::ThermalState;

/// The user's switch: whether answers may be made on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OffloadMode {
    /// Nothing leaves this machine, whatever the readings say and whatever place is asked for.
    LocalOnly,
    /// Here as long as this machine does it well, else on a node.
    Auto,
    /// On a node, even where it would fit here.
    Remote,
}

/// The user's rules: where the line is for every reading.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Whether answers may leave.
    pub mode: OffloadMode,
    /// Memory that a model never takes, so that everything else that runs has room to grow without swapping.
    /// [`Policy::for_machine`] explains the default.
    pub reserve: Bytes,
    /// Swap in use above this part (0–1) of the machine's memory hands off.
    pub max_swap_used_ratio: f64,
    /// Swapping in faster than this hands off.
    pub max_swap_in_per_sec: Bytes,
    /// This thermal state or a worse one hands off.
    pub max_thermal: ThermalState,
    /// A model that is known to decode slower than this here is handed off where a node isn't known to be slower still.
    pub min_decode_tokens_per_sec: f64,
    /// A running answer whose decode is slower by more than this part (0–1) of its own speed at the start hands off.
    pub max_slowdown_ratio: f64,
    /// Swapping in faster than this while an answer runs is thrashing: it hands off at once, without trying to make
    /// room first.
    pub thrash_swap_in_per_sec: Bytes,
    /// Memory that would run short within this time, if the last minute goes on, hands off.
    pub forecast_within: Duration,
    /// How long a reading must be well below its limit before an answer may come back.
    pub dwell: Duration,
    /// The same for heat.
    pub heat_dwell: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: OffloadMode::Auto,
            reserve: default_reserve(None),
            max_swap_used_ratio: 0.20,
            max_swap_in_per_sec: Bytes::mib(4),
            max_thermal: ThermalState::Serious,
            // People read about five words a second; an answer slower than reading is waited for.
            min_decode_tokens_per_sec: 5.0,
            // Measured speeds of one answer waver by some percent; this much is felt.
            max_slowdown_ratio: 0.15,
            // A token of a small model reads a gigabyte: where tens of megabytes a second of all that the machine needs
            // come from swap, whole seconds of every answer are spent waiting for it.
            thrash_swap_in_per_sec: Bytes::mib(32),
            // A trend is believed for as long as it was watched.
            forecast_within: Duration::from_secs(60),
            // A browser tab that is opened takes a few seconds; longer than that it is quiet.
            dwell: Duration::from_secs(10),
            // A laptop's heat sink takes half a minute to give its heat away; before, the next answer heats it at once.
            heat_dwell: Duration::from_secs(30),
        }
    }
}

impl Policy {
    /// The default for a machine with `ram` bytes of memory (or with a memory limit of so many).
    ///
    /// The reserve is a tenth of the memory: what a browser and an editor gain and lose within minutes grows with the
    /// machine. At least 1 GiB, because a desktop's own swings don't shrink with the machine; at most 8 GiB, because
    /// they don't grow without end either; but never more than a quarter of the memory, so that a container with 2 GiB
    /// can run a small model at all. Unknown memory gets 1 GiB.
    pub fn for_machine(ram: Option<Bytes>) -> Self {
        Self { reserve: default_reserve(ram), ..Self::default() }
    }
}

fn default_reserve(ram: Option<Bytes>) -> Bytes {
    match ram {
        None => Bytes::gib(1),
        Some(ram) => Bytes((ram.0 / 10).clamp(Bytes::gib(1).0, Bytes::gib(8).0).min(ram.0 / 4)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_grows_with_the_machine_between_bounds() {
        let reserve = |ram| Policy::for_machine(Some(ram)).reserve;
        assert_eq!(reserve(Bytes::gib(2)), Bytes::mib(512));
        assert_eq!(reserve(Bytes::gib(8)), Bytes::gib(1));
        assert_eq!(reserve(Bytes::gib(40)), Bytes::gib(4));
        assert_eq!(reserve(Bytes::gib(192)), Bytes::gib(8));
        assert_eq!(reserve(Bytes::ZERO), Bytes::ZERO);
        assert_eq!(Policy::for_machine(None), Policy::default());
    }
}
