//! macOS: Mach host and task statistics, sysctl, Foundation, Metal, IOKit and Darwin notifications.

mod parse;
#[cfg(all(target_os = "macos", not(feature = "force-fallback")))]
mod read;

pub(crate) use parse::parse;
#[cfg(all(target_os = "macos", not(feature = "force-fallback")))]
pub(crate) use read::SystemProbe;

pub(crate) const NAME: &str = "macos";

/// Names of the sections, used by both halves.
mod section {
    pub(super) const VM: &str = "host_statistics64 HOST_VM_INFO64";
    pub(super) const CPU: &str = "host_statistics HOST_CPU_LOAD_INFO";
    pub(super) const CORES: &str = "sysctl hw.logicalcpu";
    pub(super) const RAM: &str = "sysctl hw.memsize";
    pub(super) const PAGE: &str = "sysctl hw.pagesize";
    pub(super) const PRESSURE: &str = "sysctl kern.memorystatus_vm_pressure_level";
    pub(super) const SWAP: &str = "sysctl vm.swapusage";
    pub(super) const TASK: &str = "task_info TASK_VM_INFO";
    pub(super) const OWN_TIME: &str = "getrusage RUSAGE_SELF microseconds";
    pub(super) const THERMAL: &str = "NSProcessInfo thermalState";
    pub(super) const LOW_POWER: &str = "NSProcessInfo isLowPowerModeEnabled";
    pub(super) const THERMAL_PRESSURE: &str = "notify com.apple.system.thermalpressurelevel";
    pub(super) const POWER: &str = "IOPSGetProvidingPowerSourceType";
    pub(super) const METAL: &str = "MTLCreateSystemDefaultDevice";
    pub(super) const GPUS: &str = "sysinfo gpus";
}

/// Byte offsets in the structs of the macOS SDK that the kernel fills. `read.rs` has the compiler compare them with
/// the declarations of the `libc` and `mach2` crates.
mod layout {
    /// `struct vm_statistics64`, mach/vm_statistics.h: counts of pages.
    pub(super) mod vm {
        pub(crate) const ACTIVE: usize = 4;
        pub(crate) const INACTIVE: usize = 8;
        pub(crate) const WIRE: usize = 12;
        pub(crate) const PURGEABLE: usize = 88;
        pub(crate) const SPECULATIVE: usize = 92;
        pub(crate) const SWAPINS: usize = 112;
        pub(crate) const SWAPOUTS: usize = 120;
        pub(crate) const COMPRESSOR: usize = 128;
        pub(crate) const EXTERNAL: usize = 136;
    }
    /// `struct xsw_usage`, sys/sysctl.h.
    pub(super) mod swap {
        pub(crate) const TOTAL: usize = 0;
        pub(crate) const USED: usize = 16;
    }
    /// `struct task_vm_info`, mach/task_info.h.
    pub(super) mod task {
        pub(crate) const PHYS_FOOTPRINT: usize = 144;
    }
}
