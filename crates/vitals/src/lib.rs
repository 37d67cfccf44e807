//! Reads the machine's vitals: memory, swap, heat, power, processor, GPU and what this program itself uses.
//!
//! It reports facts with their units and never judges them: routing does. What can't be read is `None`, never zero,
//! and comes with a reason. No reading needs root. Only `sys/` knows operating systems: each has a thin part that
//! reads and a pure part that parses, so a recording ([`Sampler::raw`]) from any machine is replayed on any other.
//! Start at [`Sampler`] and [`Snapshot`].

#![warn(missing_docs)]

mod machine;
mod network;
mod readings;
mod recording;
mod sampler;
mod snapshot;
mod sys;

pub use machine::{Machine, machine};
pub use network::network_addresses;
pub use recording::RecordingError;
pub use sampler::{Replayed, Sampler, replay};
pub use snapshot::{
    Cpu, Gpu, Memory, MemoryPressure, OwnUse, Power, PowerSource, Snapshot, Swap, ThermalPressure, ThermalState,
};
