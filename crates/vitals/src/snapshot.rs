use std::time::SystemTime;

use chat::Bytes;

/// Readings taken at one instant. A reading that could not be taken is `None`: unknown, never zero.
///
/// The default is a snapshot in which everything is unknown, taken at the Unix epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// When the readings were taken, by the wall clock.
    pub at: SystemTime,
    /// Use of the machine's memory.
    pub memory: Option<Memory>,
    /// Use of swap, and how fast it moves.
    pub swap: Option<Swap>,
    /// The system's own word on whether memory runs short.
    pub pressure: Option<MemoryPressure>,
    /// How far heat limits the machine, in Apple's four levels.
    pub thermal: Option<ThermalState>,
    /// Darwin's finer level, which shows throttling that [`ThermalState::Fair`] hides. macOS only.
    pub thermal_pressure: Option<ThermalPressure>,
    /// The hottest sensor of the processor, in degrees Celsius.
    pub temperature_celsius: Option<f32>,
    /// Use of the processor since the sample before; needs two samples.
    pub cpu: Option<Cpu>,
    /// The GPU that models would run on.
    pub gpu: Option<Gpu>,
    /// Where the power comes from.
    pub power: Option<Power>,
    /// What this program itself uses.
    pub own: Option<OwnUse>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            at: SystemTime::UNIX_EPOCH,
            memory: None,
            swap: None,
            pressure: None,
            thermal: None,
            thermal_pressure: None,
            temperature_celsius: None,
            cpu: None,
            gpu: None,
            power: None,
            own: None,
        }
    }
}

/// Use of the machine's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the machine has, whatever part of it this process may use.
    pub total: Bytes,
    /// In use by all programs and the system, without caches that are given back on demand.
    pub used: Bytes,
    /// Never paged out: the kernel's own and locked pages.
    pub wired: Option<Bytes>,
    /// Memory that holds compressed pages, after compression.
    pub compressed: Option<Bytes>,
    /// What this process can still take without swapping; honours `limit`.
    pub available: Bytes,
    /// The smallest limit that a control group sets for this process. `None` where no limit below `total` is set.
    pub limit: Option<Bytes>,
}

impl Memory {
    /// The most that this process could ever use: the machine's memory, or the limit of its control group.
    pub fn usable(&self) -> Bytes {
        self.limit.map_or(self.total, |limit| limit.min(self.total))
    }
}

/// Use of swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swap {
    /// Swap set up now. macOS grows and shrinks it, so `used / total` says little there.
    pub total: Bytes,
    /// Swap in use.
    pub used: Bytes,
    /// Read back from swap per second since the sample before; needs two samples.
    pub in_per_sec: Option<Bytes>,
    /// Written to swap per second since the sample before; needs two samples.
    pub out_per_sec: Option<Bytes>,
}

/// Memory pressure in Apple's levels.
///
/// On Linux it is read from pressure stall information of the machine and of the own control group, the worse of the
/// two: [`Critical`](Self::Critical) where every task waited for memory for 10 % of the last ten seconds,
/// [`Warning`](Self::Warning) where some task did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemoryPressure {
    /// Nothing is short.
    Normal,
    /// The system asks programs to give back what they can.
    Warning,
    /// Programs wait for memory, and may be ended.
    Critical,
}

/// How far heat limits the machine, in Apple's levels.
///
/// On Linux it is read from the trip points of thermal zones: see the crate's `sys/linux`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ThermalState {
    /// Within normal limits.
    Nominal,
    /// Slightly elevated.
    Fair,
    /// High: the system slows down.
    Serious,
    /// So high that the system must cool down.
    Critical,
}

/// Darwin's thermal pressure level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ThermalPressure {
    /// No throttling.
    Nominal,
    /// Some throttling.
    Moderate,
    /// Heavy throttling.
    Heavy,
    /// The machine is about to shut down or sleep.
    Trapping,
    /// The machine goes to sleep because of heat.
    Sleeping,
}

/// Use of the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// Share of all cores' time that was not idle, 0 to 1.
    pub busy_ratio: f32,
    /// Logical cores that are switched on.
    pub cores: usize,
}

/// The GPU that models would run on: on macOS the default Metal device, on Linux the one with the most memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gpu {
    /// The device's name as its driver tells it.
    pub name: Option<String>,
    /// Share of time the device was busy lately, 0 to 1, by its driver.
    pub busy_ratio: Option<f32>,
    /// Memory that may be used without slowing down: Metal's recommended working set, or the device's own memory.
    pub working_set_limit: Option<Bytes>,
    /// Memory in use on the device: of this process on macOS, of all processes on Linux.
    pub allocated: Option<Bytes>,
}

/// Where the power comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Power {
    /// What feeds the machine now.
    pub source: Option<PowerSource>,
    /// Whether the user asked the system to save power.
    pub low_power_mode: Option<bool>,
}

/// What feeds the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerSource {
    /// A battery, or an uninterruptible power supply that runs on its own.
    Battery,
    /// A wall socket, also while it charges a battery.
    Mains,
}

/// What this program itself uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OwnUse {
    /// Memory that would come back if the program ended. On macOS `phys_footprint` of this process, Metal buffers
    /// included; on Linux the proportional set size of this process and its descendants, or their resident size where
    /// the kernel doesn't tell the former.
    pub footprint: Bytes,
    /// Share of all cores' time since the sample before, 0 to 1; needs two samples.
    pub cpu_ratio: Option<f32>,
}

impl MemoryPressure {
    /// The level in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl ThermalState {
    /// The level in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nominal => "nominal",
            Self::Fair => "fair",
            Self::Serious => "serious",
            Self::Critical => "critical",
        }
    }
}

impl ThermalPressure {
    /// The level in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nominal => "nominal",
            Self::Moderate => "moderate",
            Self::Heavy => "heavy",
            Self::Trapping => "trapping",
            Self::Sleeping => "sleeping",
        }
    }
}

impl PowerSource {
    /// The source in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Battery => "battery",
            Self::Mains => "mains",
        }
    }
}
