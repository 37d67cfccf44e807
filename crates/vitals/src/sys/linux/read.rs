use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sysinfo::{Components, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use super::{cgroup, devices, membership};
use crate::recording::{Content, Recording};
use crate::sys::pace::Paced;
use crate::sys::sensors;

/// The files and `memory.stat` lines that a level's section holds, of both versions.
const FILES: [&str; 5] =
    ["memory.max", "memory.high", "memory.current", "memory.limit_in_bytes", "memory.usage_in_bytes"];
const STAT_LINES: [&str; 4] = ["inactive_file", "active_file", "total_inactive_file", "total_active_file"];

/// Copies what the kernel says into a recording.
#[derive(Debug)]
pub(crate) struct SystemProbe {
    /// The folder that holds `proc` and `sys`: another one in tests.
    root: PathBuf,
    /// Reads hwmon; only where `root` is the machine's own.
    components: Option<Components>,
    sensors: Paced<String>,
    /// Firmware may take milliseconds to tell a temperature or a battery's state.
    devices: Paced<Vec<(String, String)>>,
    /// Lists processes to find descendants; only where `root` is the machine's own.
    system: Option<System>,
    descendants: Paced<Vec<u32>>,
    /// By the process' folder under /proc: walking all pages of a mapped model takes many milliseconds.
    smaps: BTreeMap<String, Paced<io::Result<String>>>,
}

impl SystemProbe {
    /// Swap is what was set up.
    pub(crate) const SWAP_GROWS: bool = false;

    pub(crate) fn new() -> Self {
        Self { components: Components::new().ok(), system: System::new().ok(), ..Self::with_root(Path::new("/")) }
    }

    fn with_root(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            components: None,
            sensors: Paced::default(),
            devices: Paced::default(),
            system: None,
            descendants: Paced::default(),
            smaps: BTreeMap::new(),
        }
    }

    /// Linux tells no kinds of cores that hold for every processor.
    pub(crate) fn performance_cores() -> Option<usize> {
        None
    }

    pub(crate) fn read_raw(&mut self, elapsed: Duration) -> Recording {
        let mut recording = Recording::new(super::NAME, elapsed);
        recording.add("sysconf", Content::Text(sysconf()));
        for file in ["/proc/meminfo", "/proc/pressure/memory", devices::PROFILE] {
            recording.add_text(file, self.read(file));
        }
        // Other lines of these two are of no use here, and there are hundreds.
        recording.add_text("/proc/vmstat", self.read("/proc/vmstat").map(|text| keep_lines(&text, &["pswp"])));
        recording.add_text("/proc/stat", self.read("/proc/stat").map(|text| keep_lines(&text, &["cpu"])));
        self.read_cgroups(&mut recording);
        self.read_own(&mut recording);
        let mut devices = std::mem::take(&mut self.devices);
        for (name, text) in devices.get(Duration::ZERO, || self.read_devices()) {
            recording.add(name, Content::Text(text.clone()));
        }
        self.devices = devices;
        if let Some(components) = &mut self.components {
            let text = self.sensors.get(Duration::ZERO, || sensors::read(components));
            recording.add(sensors::SECTION, Content::Text(text.clone()));
        }
        recording
    }

    fn read(&self, file: &str) -> io::Result<String> {
        read(&self.under_root(Path::new(file)))
    }

    fn under_root(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn read_cgroups(&self, recording: &mut Recording) {
        let own = self.read("/proc/self/cgroup");
        // Other lines name the user's own folders, and so do control groups mounted for a container's root: they never
        // enter a recording.
        let mounts = self.read("/proc/self/mountinfo").map(|text| {
            let is_ours = |line: &&str| line.contains(" - cgroup") && line.contains(" /sys/fs/cgroup");
            text.lines().filter(is_ours).fold(String::new(), |lines, line| lines + line + "\n")
        });
        let folders = match (&own, &mounts) {
            (Ok(own), Ok(mounts)) => membership::folders(own, mounts),
            _ => Vec::new(),
        };
        recording.add_text("/proc/self/cgroup", own);
        recording.add_text("/proc/self/mountinfo", mounts);
        let pressure = folders.iter().find_map(|folder| read(&self.under_root(folder).join("memory.pressure")).ok());
        if let Some(pressure) = pressure {
            recording.add("cgroup memory.pressure", Content::Text(pressure));
        }
        for folder in folders {
            let real = self.under_root(&folder);
            let mut level = attributes(&real, FILES);
            if level.is_empty() {
                continue; // the mount itself, and levels that don't control memory
            }
            for line in read(&real.join("memory.stat")).unwrap_or_default().lines() {
                if let Some((name, value)) = line.split_once(' ')
                    && STAT_LINES.contains(&name)
                {
                    level += &format!("{name}={value}\n");
                }
            }
            recording.add(&format!("{}{}", cgroup::LEVEL, folder.display()), Content::Text(level));
        }
    }

    fn read_own(&mut self, recording: &mut Recording) {
        let mut processes = vec!["self".to_owned()];
        if let Some(system) = &mut self.system {
            let found = self.descendants.get(Duration::from_secs(10), || descendants(system));
            processes.extend(found.iter().map(u32::to_string));
        }
        self.smaps.retain(|process, _| processes.contains(process));
        for process in processes {
            for file in ["statm", "stat"] {
                let name = format!("/proc/{process}/{file}");
                recording.add_text(&name, self.read(&name).map(|text| without_addresses(&text)));
            }
            let name = format!("/proc/{process}/smaps_rollup");
            let path = self.under_root(Path::new(&name));
            let text = self.smaps.entry(process).or_default().get(Duration::ZERO, || {
                // The first line holds addresses, which nobody needs to know.
                read(&path).map(|text| keep_lines(&text, &["Rss:", "Pss:"]))
            });
            recording.add_text(&name, text.as_deref().map(str::to_owned));
        }
    }

    fn read_devices(&self) -> Vec<(String, String)> {
        let mut sections = Vec::new();
        for zone in self.folders(devices::THERMAL, "thermal_zone") {
            let folder = self.under_root(Path::new(&zone));
            let mut text = attributes(&folder, ["type", "temp"]);
            for trip in 0..32 {
                let point = attributes(&folder, ["type", "temp"].map(|what| format!("trip_point_{trip}_{what}")));
                if point.is_empty() {
                    break;
                }
                text += &point;
            }
            sections.push((zone, text));
        }
        for supply in self.folders(devices::POWER, "") {
            let text = attributes(&self.under_root(Path::new(&supply)), ["type", "scope", "online", "status"]);
            sections.push((supply, text));
        }
        // `card0-DP-1` is a connector of `card0`.
        for card in self.folders(devices::GPU, "card").into_iter().filter(|card| !card.contains('-')) {
            let device = self.under_root(Path::new(&card)).join("device");
            let names = ["product_name", "gpu_busy_percent", "mem_info_vram_total", "mem_info_vram_used"];
            let uevent = read(&device.join("uevent")).unwrap_or_default();
            let text = attributes(&device, names) + &keep_lines(&uevent, &["DRIVER=", "PCI_ID="]);
            sections.push((card, text));
        }
        sections
    }

    /// The folders of a class whose names start with `start`, in order.
    fn folders(&self, class: &str, start: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.under_root(Path::new(class))) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| name.starts_with(start));
        names.sort();
        names.into_iter().map(|name| format!("{class}{name}")).collect()
    }
}

/// One `name=value` line for each file that can be read, with the first line of its content.
fn attributes<S: AsRef<str>>(folder: &Path, names: impl IntoIterator<Item = S>) -> String {
    let mut text = String::new();
    for name in names {
        let name = name.as_ref();
        if let Ok(value) = read(&folder.join(name)) {
            text += &format!("{name}={}\n", value.lines().next().unwrap_or_default().trim());
        }
    }
    text
}

/// Names of processes need not be UTF-8.
fn read(path: &Path) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The later fields of `stat` are addresses, which nobody needs to know; `statm` has fewer fields.
fn without_addresses(text: &str) -> String {
    let (name, fields) = text.rsplit_once(')').map_or(("", text), |(name, fields)| (name, fields));
    let kept: Vec<&str> = fields.split_whitespace().take(20).collect();
    if name.is_empty() { kept.join(" ") } else { format!("{name}) {}", kept.join(" ")) }
}

fn keep_lines(text: &str, starts: &[&str]) -> String {
    let lines = text.lines().filter(|line| starts.iter().any(|start| line.starts_with(start)));
    lines.fold(String::new(), |lines, line| lines + line + "\n")
}

/// Every process below this one. Not every kernel lists children, so all processes are asked for their parent.
fn descendants(system: &mut System) -> Vec<u32> {
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, ProcessRefreshKind::nothing().without_tasks());
    // In a PID namespace, /proc may be that of the machine, where this process has another number.
    let own = fs::read_link("/proc/self").ok().and_then(|link| link.to_str()?.parse().ok());
    let mut found = vec![Pid::from_u32(own.unwrap_or_else(std::process::id))];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = system.processes().iter().filter(|(_, process)| process.parent() == Some(parent));
        let new: Vec<Pid> = children.map(|(pid, _)| *pid).filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        next += 1;
    }
    found.into_iter().skip(1).map(Pid::as_u32).collect()
}

#[expect(unsafe_code, reason = "these two constants have no safe door in std")]
fn sysconf() -> String {
    // SAFETY: sysconf takes any number, touches no memory of ours, and answers -1 to what it doesn't know.
    let (page_size, clock_ticks) = unsafe { (libc::sysconf(libc::_SC_PAGESIZE), libc::sysconf(libc::_SC_CLK_TCK)) };
    format!("page_size={page_size}\nclock_ticks={clock_ticks}\n")
}

#[cfg(test)]
mod tests {
    use chat::Bytes;

    use super::*;
    use crate::snapshot::{MemoryPressure, PowerSource, ThermalState};
    use crate::sys::linux::parse;

    /// A machine made of files.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Self {
            let fake = Self(tempfile::tempdir().expect("a temporary folder"));
            fake.write(
                "proc/meminfo",
                "MemTotal: 8388608 kB\nMemAvailable: 6291456 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n",
            );
            fake.write("proc/self/statm", "100 50 5 1 0 9 0\n");
            fake
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.path().join(file);
            fs::create_dir_all(path.parent().expect("it has a folder")).expect("the folder can be made");
            fs::write(path, text).expect("the file can be written");
        }

        fn read(&self) -> Recording {
            SystemProbe::with_root(self.0.path()).read_raw(Duration::ZERO)
        }
    }

    #[test]
    fn version_2_limits_are_found_up_the_path() {
        let fake = Fake::new();
        fake.write("proc/self/cgroup", "0::/a.slice/b.scope\n");
        fake.write("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n");
        let group = "sys/fs/cgroup/a.slice";
        fake.write(&format!("{group}/b.scope/memory.max"), "max\n");
        fake.write(&format!("{group}/b.scope/memory.current"), "1000\n");
        fake.write(&format!("{group}/b.scope/memory.pressure"), "some avg10=50.00 total=1\nfull avg10=30.00 total=1\n");
        fake.write(&format!("{group}/memory.max"), "2147483648\n");
        fake.write(&format!("{group}/memory.current"), "1610612736\n");
        fake.write(&format!("{group}/memory.stat"), "anon 1\nfile 9\ninactive_file 268435456\nactive_file 268435456\n");
        fake.write("proc/pressure/memory", "some avg10=0.00 total=1\nfull avg10=0.00 total=1\n");
        let readings = parse(&fake.read());
        let memory = readings.memory.expect("memory is told");
        assert_eq!((memory.limit, memory.available), (Some(Bytes::gib(2)), Bytes::gib(1)));
        assert_eq!(memory.used, Bytes::gib(2));
        assert_eq!(readings.pressure, Ok(MemoryPressure::Critical));
    }

    #[test]
    fn version_1_limits_are_found_beside_version_2() {
        let fake = Fake::new();
        fake.write("proc/self/cgroup", "4:memory:/job\n1:cpu:/\n0::/\n");
        fake.write(
            "proc/self/mountinfo",
            "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             50 1 8:1 / /home/somebody/secret rw - ext4 /dev/sda1 rw\n\
             51 1 0:38 / /home/somebody/secret/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        );
        for (folder, limit) in [("", "9223372036854771712"), ("/job", "1073741824")] {
            let folder = format!("sys/fs/cgroup/memory{folder}");
            fake.write(&format!("{folder}/memory.limit_in_bytes"), limit);
            fake.write(&format!("{folder}/memory.usage_in_bytes"), "536870912\n");
            fake.write(&format!("{folder}/memory.stat"), "inactive_file 5\ntotal_inactive_file 0\n");
        }
        let recording = fake.read();
        let memory = parse(&recording).memory.expect("memory is told");
        assert_eq!((memory.limit, memory.available), (Some(Bytes::gib(1)), Bytes::mib(512)));
        assert!(!recording.to_text().contains("secret"));
    }

    #[test]
    fn devices_are_read_from_their_classes() {
        let fake = Fake::new();
        let zone = "sys/class/thermal/thermal_zone0";
        for (file, text) in [
            ("type", "cpu-thermal\n"),
            ("temp", "91000\n"),
            ("trip_point_0_type", "active\n"),
            ("trip_point_0_temp", "50000\n"),
            ("trip_point_1_type", "passive\n"),
            ("trip_point_1_temp", "90000\n"),
        ] {
            fake.write(&format!("{zone}/{file}"), text);
        }
        fake.write("sys/class/thermal/cooling_device0/type", "Processor\n");
        fake.write("sys/class/power_supply/BAT0/type", "Battery\n");
        fake.write("sys/class/power_supply/BAT0/status", "Discharging\n");
        fake.write("sys/class/drm/card1/device/uevent", "DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:744C\n");
        fake.write("sys/class/drm/card1/device/gpu_busy_percent", "12\n");
        fake.write("sys/class/drm/card1/device/mem_info_vram_total", "8589934592\n");
        fake.write("sys/class/drm/card1-DP-1/status", "connected\n");
        fake.write("sys/firmware/acpi/platform_profile", "balanced\n");
        let readings = parse(&fake.read());
        assert_eq!(readings.thermal, Ok(ThermalState::Serious));
        assert_eq!(readings.temperature_celsius, Ok(91.0));
        assert_eq!((readings.power_source, readings.low_power_mode), (Ok(PowerSource::Battery), Ok(false)));
        assert_eq!(readings.gpu_name.as_deref(), Ok("amdgpu 1002:744C"));
        assert_eq!((readings.gpu_busy_ratio, readings.gpu_working_set_limit), (Ok(0.12), Ok(Bytes::gib(8))));
        assert!(readings.gpu_allocated.is_err());
    }

    #[test]
    fn an_empty_machine_is_unknown_with_the_systems_words() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let readings = parse(&SystemProbe::with_root(folder.path()).read_raw(Duration::ZERO));
        let why = readings.memory.expect_err("there is no such file").0;
        assert!(why.starts_with("/proc/meminfo: No such file"), "{why}");
        assert!(readings.cpu.is_err() && readings.footprint.is_err() && readings.gpu_name.is_err());
    }

    #[test]
    fn a_child_process_is_a_descendant() {
        let mut system = System::new().expect("processes can be listed");
        // It waits for its input to end, which dropping the child's handle does.
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("cat is on every Linux");
        let names: Vec<String> = descendants(&mut system)
            .iter()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect();
        drop(child.stdin.take());
        child.wait().expect("the child ends");
        assert!(names.iter().any(|name| name == "cat"), "{names:?} lacks the child");
    }
}
