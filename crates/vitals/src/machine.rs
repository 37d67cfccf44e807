use chat::Bytes;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, Product, RefreshKind, System};

use crate::sys::SystemProbe;

/// What doesn't change while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The maker's name of the machine, "Mac15,3".
    pub model: Option<String>,
    /// The processor, "Apple M3".
    pub chip: String,
    /// The operating system and its version, "macOS 26.1".
    pub os: String,
    /// Memory of the machine.
    pub ram: Option<Bytes>,
    /// Logical cores that this process may use.
    pub cores: usize,
    /// Cores of the fastest kind. Known on Apple silicon only.
    pub performance_cores: Option<usize>,
    /// Whether the system makes more swap when it needs it, so that its total says nothing about how much there can be.
    pub swap_grows: bool,
}

/// Asks the system what machine this is. Costs a few milliseconds, so ask once.
pub fn machine() -> Machine {
    let told = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let wanted =
        RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(wanted).ok();
    let brand = system.as_ref().and_then(|system| system.cpus().first()).map(|cpu| cpu.brand().to_owned());
    Machine {
        model: Product::name().ok().and_then(told),
        chip: brand.and_then(told).unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        os: System::long_os_version().ok().and_then(told).unwrap_or_else(|| std::env::consts::OS.to_owned()),
        ram: system.map(|system| Bytes(system.total_memory())).filter(|ram| *ram > Bytes::ZERO),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        performance_cores: SystemProbe::performance_cores(),
        swap_grows: SystemProbe::SWAP_GROWS,
    }
}
