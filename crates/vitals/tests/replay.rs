//! Recordings in, snapshots out: the same parsers that run on a live machine, on every machine.

use chat::Bytes;
use proptest::prelude::*;
use vitals::{
    Cpu, Gpu, Memory, MemoryPressure, Power, PowerSource, RecordingError, Replayed, Sampler, Snapshot, Swap,
    ThermalPressure, ThermalState, machine, replay,
};

const LINUX: &str = include_str!("fixtures/linux-laptop.txt");
const MACOS: &str = include_str!("fixtures/macos-m3-16gb.txt");

/// The names of the fields that a snapshot lacks, in order.
fn missing(snapshot: &Snapshot) -> Vec<&'static str> {
    let Snapshot {
        at: _,
        memory,
        swap,
        pressure,
        thermal,
        thermal_pressure,
        temperature_celsius,
        cpu,
        gpu,
        power,
        own,
    } = snapshot;
    let mut fields = vec![
        ("memory", memory.is_some()),
        ("swap", swap.is_some()),
        ("pressure", pressure.is_some()),
        ("thermal", thermal.is_some()),
        ("thermal_pressure", thermal_pressure.is_some()),
        ("temperature_celsius", temperature_celsius.is_some()),
        ("cpu", cpu.is_some()),
        ("gpu", gpu.is_some()),
        ("power", power.is_some()),
        ("own", own.is_some()),
    ];
    if let Some(memory) = memory {
        fields.extend([("memory.wired", memory.wired.is_some()), ("memory.compressed", memory.compressed.is_some())]);
    }
    if let Some(swap) = swap {
        fields.push(("swap.in_per_sec", swap.in_per_sec.is_some()));
        fields.push(("swap.out_per_sec", swap.out_per_sec.is_some()));
    }
    if let Some(gpu) = gpu {
        fields.push(("gpu.name", gpu.name.is_some()));
        fields.push(("gpu.busy_ratio", gpu.busy_ratio.is_some()));
        fields.push(("gpu.working_set_limit", gpu.working_set_limit.is_some()));
        fields.push(("gpu.allocated", gpu.allocated.is_some()));
    }
    if let Some(power) = power {
        fields.push(("power.source", power.source.is_some()));
        fields.push(("power.low_power_mode", power.low_power_mode.is_some()));
    }
    if let Some(own) = own {
        fields.push(("own.cpu_ratio", own.cpu_ratio.is_some()));
    }
    let mut names: Vec<&str> = fields.into_iter().filter(|(_, known)| !known).map(|(name, _)| name).collect();
    names.sort_unstable();
    names
}

/// Each missing field has exactly one reason, and no field that is there has one.
#[track_caller]
fn check_reasons(snapshot: &Snapshot, unavailable: &[(&'static str, String)]) {
    let mut names: Vec<&str> = unavailable.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    assert_eq!(names, missing(snapshot));
    assert!(unavailable.iter().all(|(_, why)| !why.is_empty()), "{unavailable:?}");
}

fn replayed(text: &str) -> [Replayed; 2] {
    let samples = replay(text).expect("the fixture is a recording");
    for (snapshot, unavailable) in &samples {
        check_reasons(snapshot, unavailable);
    }
    samples.try_into().expect("the fixture holds two samples")
}

#[test]
fn a_mac_that_begins_to_swap() {
    let [(first, why_first), (second, why_second)] = replayed(MACOS);
    let page = |pages: u64| Bytes(pages * 16384);
    // active + inactive + speculative + wired + compressor - purgeable - external
    let used = page(400_000 + 380_000 + 15_000 + 180_000 + 40_000 - 12_000 - 250_000);
    assert_eq!(
        first.memory,
        Some(Memory {
            total: Bytes::gib(16),
            used,
            wired: Some(page(180_000)),
            compressed: Some(page(40_000)),
            available: Bytes::gib(16).saturating_sub(used),
            limit: None,
        })
    );
    assert_eq!((first.pressure, second.pressure), (Some(MemoryPressure::Normal), Some(MemoryPressure::Warning)));
    assert_eq!((first.thermal, second.thermal), (Some(ThermalState::Nominal), Some(ThermalState::Fair)));
    assert_eq!(second.thermal_pressure, Some(ThermalPressure::Heavy));
    assert_eq!(second.temperature_celsius, Some(74.5));
    let swap = Swap {
        total: Bytes::gib(3),
        used: Bytes::mib(1536),
        in_per_sec: Some(Bytes::mib(40)),
        out_per_sec: Some(Bytes::mib(40)),
    };
    assert_eq!(second.swap, Some(swap));
    assert_eq!(second.cpu, Some(Cpu { busy_ratio: 0.5, cores: 8 }));
    let gpu = Gpu {
        name: Some("Apple M3".into()),
        busy_ratio: Some(0.97),
        working_set_limit: Some(Bytes(11_453_251_584)),
        allocated: Some(Bytes::gib(5)),
    };
    assert_eq!(second.gpu, Some(gpu));
    let power = |source, low_power_mode| Some(Power { source: Some(source), low_power_mode: Some(low_power_mode) });
    assert_eq!(first.power, power(PowerSource::Mains, false));
    assert_eq!(second.power, power(PowerSource::Battery, true));
    let own = second.own.expect("the footprint is told");
    assert_eq!((own.footprint, own.cpu_ratio), (Bytes::mib(312), Some(0.5)));
    let names: Vec<&str> = why_first.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["cpu", "swap.in_per_sec", "swap.out_per_sec", "own.cpu_ratio"]);
    assert_eq!(why_second, []);
}

#[test]
fn a_linux_laptop_on_battery() {
    let [(first, _), (second, why)] = replayed(LINUX);
    let kib = |kib: u64| Bytes(kib << 10);
    let memory = Memory {
        total: kib(16_000_000),
        used: kib(10_000_000),
        wired: Some(kib(400_000)),
        compressed: Some(kib(250_000)),
        // The slice above the own scope has 8 GiB, holds 5, and 1 of them is page cache.
        available: Bytes::gib(4),
        limit: Some(Bytes::gib(8)),
    };
    assert_eq!(first.memory, Some(memory));
    assert_eq!(first.pressure, Some(MemoryPressure::Warning));
    assert_eq!(first.thermal, Some(ThermalState::Fair));
    assert_eq!(first.temperature_celsius, Some(82.5));
    assert_eq!(first.power, Some(Power { source: Some(PowerSource::Battery), low_power_mode: Some(true) }));
    let gpu = first.gpu.expect("a card is listed");
    assert_eq!(gpu.name.as_deref(), Some("amdgpu 1002:15BF"));
    assert_eq!(
        (gpu.busy_ratio, gpu.working_set_limit, gpu.allocated),
        (Some(0.4), Some(Bytes::mib(512)), Some(Bytes::mib(256)))
    );
    // Pss of both processes, the own one grown by 10000 kB since Pss was read: 60000 pages of 4 kB are 240000 kB.
    assert_eq!(first.own.map(|own| own.footprint), Some(kib(180_000 + 10_000 + 30_000)));

    let swap = second.swap.expect("swap is told");
    assert_eq!(
        (swap.used, swap.in_per_sec, swap.out_per_sec),
        (kib(2_000_000), Some(Bytes::mib(4)), Some(Bytes::ZERO))
    );
    assert_eq!(second.cpu, Some(Cpu { busy_ratio: 0.75, cores: 2 }));
    assert_eq!(second.own.and_then(|own| own.cpu_ratio), Some(0.25));
    assert_eq!(second.memory.map(|memory| memory.available), Some(Bytes::gib(3)));
    let why = |name: &str| why.iter().find(|(found, _)| *found == name).map(|(_, why)| why.as_str());
    assert_eq!(why("pressure"), Some("/proc/pressure/memory: Operation not supported (os error 95)"));
    assert_eq!(why("gpu.busy_ratio"), Some("the GPU's driver (i915) has no gpu_busy_percent"));
    assert_eq!(why("thermal_pressure"), Some("only macOS tells it"));
    assert_eq!(why("temperature_celsius"), Some("sysinfo components was not read"));
}

#[test]
fn samples_in_the_wrong_order_have_no_rates() {
    let (first, second) = LINUX.rsplit_once("tidegate vitals recording 1").expect("two recordings");
    let (head, first) = first.split_once("tidegate vitals recording 1").expect("two recordings");
    let line = "tidegate vitals recording 1";
    let [_, (snapshot, unavailable)] = replayed(&format!("{head}{line}{second}{line}{first}"));
    assert_eq!(snapshot.swap.and_then(|swap| swap.in_per_sec), None);
    assert!(unavailable.contains(&("cpu", "the clock went backwards".to_owned())));
}

#[test]
fn an_unknown_system_is_refused() {
    let error = replay("tidegate vitals recording 1\nos plan9\nelapsed_us 0\n");
    assert_eq!(error, Err(RecordingError::UnknownSystem("plan9".into())));
}

#[test]
fn live_samples_have_a_reason_for_each_missing_field() {
    let mut sampler = Sampler::new();
    for _ in 0..2 {
        let snapshot = sampler.sample();
        check_reasons(&snapshot, &sampler.unavailable());
    }
    let raw = sampler.raw();
    let replayed = replay(&raw).expect("what was recorded can be replayed");
    check_reasons(&replayed[0].0, &replayed[0].1);
}

#[test]
fn a_sampler_moves_between_threads() {
    fn is_send<T: Send + 'static>(_: &T) {}
    is_send(&Sampler::new());
}

#[test]
fn this_machine_has_a_name_and_cores() {
    let machine = machine();
    assert!(machine.cores > 0 && !machine.chip.is_empty() && !machine.os.is_empty(), "{machine:?}");
}

#[cfg(all(any(target_os = "linux", target_os = "macos"), not(feature = "force-fallback")))]
#[test]
fn the_live_probe_reads_what_every_machine_has() {
    let mut sampler = Sampler::new();
    let snapshot = sampler.sample();
    let memory = snapshot.memory.expect("memory is always told");
    assert!(memory.used < memory.total && memory.available <= memory.total, "{memory:?}");
    assert_eq!(machine().ram, Some(memory.total));
    assert!(snapshot.own.is_some_and(|own| own.footprint > Bytes::mib(1)), "{snapshot:?}");
    // A megabyte that is touched shows in the footprint.
    let before = snapshot.own.map_or(Bytes::ZERO, |own| own.footprint);
    let block = vec![1u8; 64 << 20];
    let after = sampler.sample().own.map_or(Bytes::ZERO, |own| own.footprint);
    assert!(after >= before.saturating_add(Bytes::mib(32)), "{before} then {after}");
    assert_eq!(std::hint::black_box(&block)[1 << 20], 1);
}

#[cfg(any(feature = "force-fallback", not(any(target_os = "macos", target_os = "linux"))))]
#[test]
fn the_fallback_knows_nothing_and_says_so() {
    let mut sampler = Sampler::new();
    let snapshot = sampler.sample();
    assert_eq!(Snapshot { at: std::time::SystemTime::UNIX_EPOCH, ..snapshot }, Snapshot::default());
    assert!(sampler.unavailable().iter().all(|(_, why)| why == "Tidegate has no probe for this operating system"));
}

/// A fixture in which one section's content is replaced, or one byte of the whole is.
fn damaged() -> impl Strategy<Value = String> {
    let fixture = prop_oneof![Just(LINUX), Just(MACOS)];
    (fixture, any::<prop::sample::Index>(), hostile(), any::<bool>()).prop_map(|(text, index, hostile, whole)| {
        let lines: Vec<&str> = text.lines().collect();
        let at = index.index(lines.len());
        let damage = |line: &str| -> String {
            if !line.starts_with('|') {
                return line.to_owned();
            }
            if whole {
                return format!("|{}", hostile.replace('\n', "\n|"));
            }
            // Another value behind the same name.
            let end = line.find([':', '=', ' ']).map_or(1, |end| end + 1);
            format!("{}{}", &line[..end], hostile.replace('\n', " "))
        };
        let lines = lines.iter().enumerate().map(|(i, line)| if i == at { damage(line) } else { (*line).to_owned() });
        lines.collect::<Vec<_>>().join("\n")
    })
}

fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        Just(u64::MAX.to_string()),
        Just(format!("{0} {0} {0} {0} {0} {0} {0} {0} {0} {0} {0} {0} {0} {0}", u64::MAX)),
        Just("-1".to_owned()),
        Just("NaN".to_owned()),
        Just("inf".to_owned()),
        Just("1e999".to_owned()),
        Just(String::new()),
        Just("ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff".to_owned()),
        Just("(((())))))".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn hostile_readings_never_panic(text in damaged()) {
        if let Ok(samples) = replay(&text) {
            for (snapshot, unavailable) in samples {
                check_reasons(&snapshot, &unavailable);
                if let Some(memory) = snapshot.memory {
                    prop_assert!(memory.available <= memory.total && memory.used <= memory.total);
                }
                for ratio in [
                    snapshot.cpu.map(|cpu| cpu.busy_ratio),
                    snapshot.gpu.and_then(|gpu| gpu.busy_ratio),
                    snapshot.own.and_then(|own| own.cpu_ratio),
                ].into_iter().flatten() {
                    prop_assert!((0.0..=1.0).contains(&ratio), "{}", ratio);
                }
            }
        }
    }
}
