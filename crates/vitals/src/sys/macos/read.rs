#![expect(unsafe_code, reason = "the system's C interfaces have no safe doors")]

use std::ffi::CStr;
use std::mem::offset_of;
use std::ptr;
use std::time::Duration;

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSProcessInfo;
use objc2_io_kit::{IOPSCopyPowerSourcesInfo, IOPSGetProvidingPowerSourceType};
use objc2_metal::{MTLCreateSystemDefaultDevice, MTLDevice};
use sysinfo::{Components, Gpus};

use super::{layout, section};
use crate::recording::{Content, Recording};
use crate::sys::pace::Paced;
use crate::sys::sensors;

/// Copies what macOS says into a recording.
#[derive(Debug)]
pub(crate) struct SystemProbe {
    /// Each call of `mach_host_self` makes a new right to the port, so one is kept.
    host: libc::mach_port_t,
    thermal_pressure: Result<Notification, String>,
    metal: Option<Retained<ProtocolObject<dyn MTLDevice>>>,
    components: Option<Components>,
    sensors: Paced<String>,
    gpus: Option<Gpus>,
    gpu_use: Paced<String>,
}

impl SystemProbe {
    /// Swap files are made and removed as memory needs them.
    pub(crate) const SWAP_GROWS: bool = true;

    pub(crate) fn new() -> Self {
        Self {
            // SAFETY: it takes nothing, and the host port is open to every process.
            host: unsafe { mach2::mach_init::mach_host_self() },
            thermal_pressure: Notification::register(c"com.apple.system.thermalpressurelevel"),
            metal: MTLCreateSystemDefaultDevice(),
            components: Components::new().ok(),
            sensors: Paced::default(),
            gpus: Gpus::new().ok(),
            gpu_use: Paced::default(),
        }
    }

    /// Cores of the fastest kind; Intel Macs have no kinds.
    pub(crate) fn performance_cores() -> Option<usize> {
        let bytes = sysctl(c"hw.perflevel0.logicalcpu").ok()?;
        usize::try_from(u32::from_le_bytes(*bytes.first_chunk()?)).ok()
    }

    pub(crate) fn read_raw(&mut self, elapsed: Duration) -> Recording {
        // Sampling runs on a thread without a run loop, where nothing else would empty the pool.
        autoreleasepool(|_| {
            let mut recording = Recording::new(super::NAME, elapsed);
            self.read_kernel(&mut recording);
            self.read_frameworks(&mut recording);
            recording
        })
    }

    fn read_kernel(&self, recording: &mut Recording) {
        let mut add = |name, bytes: Result<Vec<u8>, String>| {
            recording.add(name, bytes.map_or_else(Content::Failed, Content::Bytes));
        };
        add(section::VM, vm_statistics(self.host));
        add(section::CPU, cpu_load(self.host));
        add(section::TASK, task_vm_info());
        add(section::RAM, sysctl(c"hw.memsize"));
        add(section::PAGE, sysctl(c"hw.pagesize"));
        add(section::CORES, sysctl(c"hw.logicalcpu"));
        add(section::PRESSURE, sysctl(c"kern.memorystatus_vm_pressure_level"));
        add(section::SWAP, sysctl(c"vm.swapusage"));
        recording.add_text(section::OWN_TIME, own_time());
    }

    fn read_frameworks(&mut self, recording: &mut Recording) {
        let process = NSProcessInfo::processInfo();
        recording.add(section::THERMAL, Content::Text(process.thermalState().0.to_string()));
        let low_power = u8::from(process.isLowPowerModeEnabled());
        recording.add(section::LOW_POWER, Content::Text(low_power.to_string()));
        let level = self.thermal_pressure.as_ref().map_err(Clone::clone).and_then(Notification::state);
        recording.add_text(section::THERMAL_PRESSURE, level.map(|level| level.to_string()));
        recording.add_text(section::POWER, power_source());
        let metal = self.metal.as_ref().ok_or("this Mac has no Metal device").map(|device| {
            let name = device.name().to_string().replace('\n', " ");
            format!("{name}\n{}\n{}", device.recommendedMaxWorkingSetSize(), device.currentAllocatedSize())
        });
        recording.add_text(section::METAL, metal);
        if let Some(gpus) = &mut self.gpus {
            let text = self.gpu_use.get(Duration::ZERO, || gpu_use(gpus));
            recording.add(section::GPUS, Content::Text(text.clone()));
        }
        if let Some(components) = &mut self.components {
            let text = self.sensors.get(Duration::ZERO, || sensors::read(components));
            recording.add(sensors::SECTION, Content::Text(text.clone()));
        }
    }
}

impl Drop for SystemProbe {
    fn drop(&mut self) {
        // SAFETY: the right was made by `new` and is given up once. A failure leaks one port name, no more.
        unsafe { mach2::mach_port::mach_port_deallocate(mach2::traps::mach_task_self(), self.host) };
    }
}

/// `IOAccelerator`'s "Device Utilization %" of each GPU, one line each.
fn gpu_use(gpus: &mut Gpus) -> String {
    gpus.refresh(true);
    let line = |gpu: &sysinfo::Gpu| {
        let name = gpu.model().unwrap_or_default().replace(['\t', '\n'], " ");
        format!("{name}\t{}\n", gpu.usage().map_or_else(|| "-".to_owned(), |percent| percent.to_string()))
    };
    gpus.iter().map(line).collect()
}

fn power_source() -> Result<String, &'static str> {
    let snapshot = IOPSCopyPowerSourcesInfo().ok_or("IOKit gave no power sources")?;
    // SAFETY: the argument is what IOPSCopyPowerSourcesInfo gave, as the function asks.
    let source = unsafe { IOPSGetProvidingPowerSourceType(Some(&snapshot)) };
    source.map(|source| source.to_string()).ok_or("IOKit named no providing power source")
}

/// A Darwin notification whose state is polled.
#[derive(Debug)]
struct Notification {
    token: libc::c_int,
}

// <notify.h>, part of libSystem. No crate of the workspace declares it.
unsafe extern "C" {
    fn notify_register_check(name: *const libc::c_char, out_token: *mut libc::c_int) -> u32;
    fn notify_get_state(token: libc::c_int, state64: *mut u64) -> u32;
    fn notify_cancel(token: libc::c_int) -> u32;
}

impl Notification {
    fn register(name: &CStr) -> Result<Self, String> {
        let mut token = 0;
        // SAFETY: the name ends with a zero byte and the token is ours to be written.
        let status = unsafe { notify_register_check(name.as_ptr(), &mut token) };
        if status == 0 { Ok(Self { token }) } else { Err(format!("notify_register_check gave {status}")) }
    }

    fn state(&self) -> Result<u64, String> {
        let mut state = 0;
        // SAFETY: the token is registered until drop and the state is ours to be written.
        let status = unsafe { notify_get_state(self.token, &mut state) };
        if status == 0 { Ok(state) } else { Err(format!("notify_get_state gave {status}")) }
    }
}

impl Drop for Notification {
    fn drop(&mut self) {
        // SAFETY: the token was registered by `register` and is cancelled once.
        unsafe { notify_cancel(self.token) };
    }
}

fn sysctl(name: &CStr) -> Result<Vec<u8>, String> {
    let mut buffer = vec![0u8; 64]; // the largest of ours, xsw_usage, takes 32
    let mut len = buffer.len();
    // SAFETY: the name ends with a zero byte, the buffer has `len` bytes, and nothing is to be set.
    let status = unsafe { libc::sysctlbyname(name.as_ptr(), buffer.as_mut_ptr().cast(), &mut len, ptr::null_mut(), 0) };
    if status != 0 {
        return Err(std::io::Error::last_os_error().to_string());
    }
    buffer.truncate(len);
    Ok(buffer)
}

/// Room for what newer kernels add to these structs, in the 32-bit words that Mach counts in.
const WORDS: usize = 128;

/// Calls `fill` with aligned room and its size in words, and gives the bytes it says it filled.
fn mach_struct(call: &str, fill: impl FnOnce(*mut i32, &mut u32) -> i32) -> Result<Vec<u8>, String> {
    let mut room = [0u64; WORDS / 2];
    let mut words = WORDS as u32;
    let status = fill(room.as_mut_ptr().cast(), &mut words);
    if status != libc::KERN_SUCCESS {
        return Err(format!("{call} gave {status}"));
    }
    let bytes = room.iter().flat_map(|word| word.to_ne_bytes());
    Ok(bytes.take(words as usize * size_of::<u32>()).collect())
}

fn vm_statistics(host: libc::mach_port_t) -> Result<Vec<u8>, String> {
    // SAFETY: the kernel writes at most `words` words to `room`.
    mach_struct("host_statistics64", |room, words| unsafe {
        libc::host_statistics64(host, libc::HOST_VM_INFO64, room, words)
    })
}

fn cpu_load(host: libc::mach_port_t) -> Result<Vec<u8>, String> {
    // SAFETY: as above.
    mach_struct("host_statistics", |room, words| unsafe {
        libc::host_statistics(host, libc::HOST_CPU_LOAD_INFO, room, words)
    })
}

fn task_vm_info() -> Result<Vec<u8>, String> {
    // SAFETY: as above; the port of the own task needs no release.
    mach_struct("task_info", |room, words| unsafe {
        libc::task_info(mach2::traps::mach_task_self(), mach2::task_info::TASK_VM_INFO, room, words)
    })
}

/// User and system time of this process, in microseconds.
fn own_time() -> Result<String, std::io::Error> {
    // SAFETY: rusage is plain numbers, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is ours to be written.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + i64::from(time.tv_usec);
    Ok((micros(usage.ru_utime) + micros(usage.ru_stime)).to_string())
}

// The offsets that the parser uses, checked against the declarations of two crates when this is compiled.
const _: () = {
    use layout::{swap, task, vm};
    assert!(offset_of!(libc::vm_statistics64, active_count) == vm::ACTIVE);
    assert!(offset_of!(libc::vm_statistics64, inactive_count) == vm::INACTIVE);
    assert!(offset_of!(libc::vm_statistics64, wire_count) == vm::WIRE);
    assert!(offset_of!(libc::vm_statistics64, purgeable_count) == vm::PURGEABLE);
    assert!(offset_of!(libc::vm_statistics64, speculative_count) == vm::SPECULATIVE);
    assert!(offset_of!(libc::vm_statistics64, swapins) == vm::SWAPINS);
    assert!(offset_of!(libc::vm_statistics64, swapouts) == vm::SWAPOUTS);
    assert!(offset_of!(libc::vm_statistics64, compressor_page_count) == vm::COMPRESSOR);
    assert!(offset_of!(libc::vm_statistics64, external_page_count) == vm::EXTERNAL);
    assert!(offset_of!(libc::xsw_usage, xsu_total) == swap::TOTAL);
    assert!(offset_of!(libc::xsw_usage, xsu_used) == swap::USED);
    assert!(offset_of!(mach2::task_info::task_vm_info, phys_footprint) == task::PHYS_FOOTPRINT);
    assert!(size_of::<libc::vm_statistics64>() <= WORDS * size_of::<u32>());
    assert!(size_of::<mach2::task_info::task_vm_info>() <= WORDS * size_of::<u32>());
};
