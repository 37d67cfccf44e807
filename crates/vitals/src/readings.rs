use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use chat::Bytes;

use crate::snapshot::{
    Cpu, Gpu, Memory, MemoryPressure, OwnUse, Power, PowerSource, Snapshot, Swap, ThermalPressure, ThermalState,
};

/// Why a reading is missing, as a clause a user can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unavailable(pub(crate) String);

impl From<&str> for Unavailable {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

pub(crate) type Reading<T> = Result<T, Unavailable>;

/// Everything one recording says. Counters are as the system keeps them; rates are made of two of these.
#[derive(Clone, Debug)]
pub(crate) struct Readings {
    pub(crate) elapsed: Duration,
    pub(crate) memory: Reading<MemoryUse>,
    pub(crate) wired: Reading<Bytes>,
    pub(crate) compressed: Reading<Bytes>,
    pub(crate) swap: Reading<SwapUse>,
    /// Since the machine started.
    pub(crate) swapped_in: Reading<Bytes>,
    /// Since the machine started.
    pub(crate) swapped_out: Reading<Bytes>,
    pub(crate) pressure: Reading<MemoryPressure>,
    pub(crate) thermal: Reading<ThermalState>,
    pub(crate) thermal_pressure: Reading<ThermalPressure>,
    pub(crate) temperature_celsius: Reading<f32>,
    pub(crate) cpu: Reading<CpuTicks>,
    pub(crate) gpu_name: Reading<String>,
    pub(crate) gpu_busy_ratio: Reading<f32>,
    pub(crate) gpu_working_set_limit: Reading<Bytes>,
    pub(crate) gpu_allocated: Reading<Bytes>,
    pub(crate) power_source: Reading<PowerSource>,
    pub(crate) low_power_mode: Reading<bool>,
    pub(crate) footprint: Reading<Bytes>,
    /// Processor time used by each own process so far, by process id.
    pub(crate) own_cpu: Reading<BTreeMap<u32, Duration>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryUse {
    pub(crate) total: Bytes,
    pub(crate) used: Bytes,
    pub(crate) available: Bytes,
    pub(crate) limit: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SwapUse {
    pub(crate) total: Bytes,
    pub(crate) used: Bytes,
}

/// Processor time of all cores together, in the system's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuTicks {
    pub(crate) busy: u64,
    pub(crate) total: u64,
    pub(crate) cores: usize,
}

impl Readings {
    /// Nothing is known, all for the same reason.
    pub(crate) fn unknown(elapsed: Duration, why: &str) -> Self {
        fn no<T>(why: &str) -> Reading<T> {
            Err(why.into())
        }
        Self {
            elapsed,
            memory: no(why),
            wired: no(why),
            compressed: no(why),
            swap: no(why),
            swapped_in: no(why),
            swapped_out: no(why),
            pressure: no(why),
            thermal: no(why),
            thermal_pressure: no(why),
            temperature_celsius: no(why),
            cpu: no(why),
            gpu_name: no(why),
            gpu_busy_ratio: no(why),
            gpu_working_set_limit: no(why),
            gpu_allocated: no(why),
            power_source: no(why),
            low_power_mode: no(why),
            footprint: no(why),
            own_cpu: no(why),
        }
    }

    /// The snapshot these readings make, with rates since `before`, and why each missing field is missing.
    pub(crate) fn snapshot(self, at: SystemTime, before: Option<&Self>) -> (Snapshot, Vec<(&'static str, String)>) {
        let mut why = Missing::default();
        let passed = self.passed_since(before);
        let cpu = why.note("cpu", self.cpu_use(before));
        let memory = why.note("memory", self.memory).map(|memory| Memory {
            total: memory.total,
            used: memory.used,
            wired: why.note("memory.wired", self.wired),
            compressed: why.note("memory.compressed", self.compressed),
            available: memory.available,
            limit: memory.limit,
        });
        let rate = |now: &Reading<Bytes>, pick: fn(&Self) -> &Reading<Bytes>| -> Reading<Bytes> {
            let (passed, now) = (passed.clone()?, now.clone()?);
            let before = before.map_or_else(|| Err(Unavailable::from(NEEDS_TWO)), |before| pick(before).clone())?;
            let moved = now.0.checked_sub(before.0).ok_or(Unavailable::from("its counter went backwards"))?;
            Ok(Bytes((moved as f64 / passed.as_secs_f64()) as u64))
        };
        let in_per_sec = rate(&self.swapped_in, |readings| &readings.swapped_in);
        let out_per_sec = rate(&self.swapped_out, |readings| &readings.swapped_out);
        let swap = why.note("swap", self.swap).map(|swap| Swap {
            total: swap.total,
            used: swap.used,
            in_per_sec: why.note("swap.in_per_sec", in_per_sec),
            out_per_sec: why.note("swap.out_per_sec", out_per_sec),
        });
        let cores = self.cpu.as_ref().map(|cpu| cpu.cores).map_err(Clone::clone);
        let own_cpu = cores.and_then(|cores| {
            let before = before.map_or_else(|| Err(Unavailable::from(NEEDS_TWO)), |before| before.own_cpu.clone())?;
            let used = cpu_time_since(&self.own_cpu?, &before)?;
            let offered = passed?.as_secs_f64() * cores.max(1) as f64;
            Ok((used.as_secs_f64() / offered).clamp(0.0, 1.0) as f32)
        });
        let own = why
            .note("own", self.footprint)
            .map(|footprint| OwnUse { footprint, cpu_ratio: why.note("own.cpu_ratio", own_cpu) });
        let snapshot = Snapshot {
            at,
            memory,
            swap,
            pressure: why.note("pressure", self.pressure),
            thermal: why.note("thermal", self.thermal),
            thermal_pressure: why.note("thermal_pressure", self.thermal_pressure),
            temperature_celsius: why.note("temperature_celsius", self.temperature_celsius),
            cpu,
            gpu: why.gpu(self.gpu_name, self.gpu_busy_ratio, self.gpu_working_set_limit, self.gpu_allocated),
            power: why.power(self.power_source, self.low_power_mode),
            own,
        };
        (snapshot, why.0)
    }

    fn passed_since(&self, before: Option<&Self>) -> Reading<Duration> {
        let before = before.ok_or(Unavailable::from(NEEDS_TWO))?;
        match self.elapsed.checked_sub(before.elapsed) {
            None => Err("the clock went backwards".into()),
            Some(Duration::ZERO) => Err("no time has passed since the sample before".into()),
            Some(passed) => Ok(passed),
        }
    }

    fn cpu_use(&self, before: Option<&Self>) -> Reading<Cpu> {
        let now = self.cpu.clone()?;
        self.passed_since(before)?;
        let before = before.map_or_else(|| Err(Unavailable::from(NEEDS_TWO)), |before| before.cpu.clone())?;
        let backwards = || Unavailable::from("its counter went backwards");
        let total = now.total.checked_sub(before.total).ok_or_else(backwards)?;
        let busy = now.busy.checked_sub(before.busy).ok_or_else(backwards)?;
        if total == 0 {
            return Err("the system has counted no time since the sample before".into());
        }
        Ok(Cpu { busy_ratio: (busy as f64 / total as f64).clamp(0.0, 1.0) as f32, cores: now.cores })
    }
}

const NEEDS_TWO: &str = "it needs two samples";

/// Sums the processes that are in both; one that started or ended in between would be a jump.
fn cpu_time_since(now: &BTreeMap<u32, Duration>, before: &BTreeMap<u32, Duration>) -> Reading<Duration> {
    let mut shared = now.iter().filter_map(|(pid, now)| before.get(pid).map(|before| (now, before))).peekable();
    shared.peek().ok_or(Unavailable::from("no own process was there at both samples"))?;
    shared.try_fold(Duration::ZERO, |sum, (now, before)| {
        now.checked_sub(*before).map(|used| sum + used).ok_or("its counter went backwards".into())
    })
}

#[derive(Default)]
struct Missing(Vec<(&'static str, String)>);

impl Missing {
    fn note<T>(&mut self, name: &'static str, reading: Reading<T>) -> Option<T> {
        reading.map_err(|Unavailable(why)| self.0.push((name, why))).ok()
    }

    /// A GPU of which nothing at all is known is no GPU: the reason is then the one of its memory.
    fn gpu(
        &mut self,
        name: Reading<String>,
        busy_ratio: Reading<f32>,
        working_set_limit: Reading<Bytes>,
        allocated: Reading<Bytes>,
    ) -> Option<Gpu> {
        if name.is_err() && busy_ratio.is_err() && working_set_limit.is_err() && allocated.is_err() {
            self.note("gpu", working_set_limit);
            return None;
        }
        Some(Gpu {
            name: self.note("gpu.name", name),
            busy_ratio: self.note("gpu.busy_ratio", busy_ratio),
            working_set_limit: self.note("gpu.working_set_limit", working_set_limit),
            allocated: self.note("gpu.allocated", allocated),
        })
    }

    fn power(&mut self, source: Reading<PowerSource>, low_power_mode: Reading<bool>) -> Option<Power> {
        if source.is_err() && low_power_mode.is_err() {
            self.note("power", source);
            return None;
        }
        Some(Power {
            source: self.note("power.source", source),
            low_power_mode: self.note("power.low_power_mode", low_power_mode),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Readings {
        let mut readings = Readings::unknown(Duration::from_secs(seconds), "not told");
        readings.swap = Ok(SwapUse { total: Bytes::gib(2), used: Bytes::gib(1) });
        readings.swapped_in = Ok(Bytes::mib(100));
        readings.swapped_out = Ok(Bytes::mib(200));
        readings.cpu = Ok(CpuTicks { busy: 1000, total: 4000, cores: 4 });
        readings.footprint = Ok(Bytes::mib(80));
        readings.own_cpu = Ok(BTreeMap::from([(0, Duration::from_secs(5)), (7, Duration::from_secs(1))]));
        readings
    }

    fn take(now: Readings, before: Option<&Readings>) -> (Snapshot, BTreeMap<&'static str, String>) {
        let (snapshot, why) = now.snapshot(SystemTime::UNIX_EPOCH, before);
        (snapshot, why.into_iter().collect())
    }

    #[test]
    fn rates_are_per_second_between_two_samples() {
        let mut now = at(14);
        now.swapped_in = Ok(Bytes::mib(180));
        now.cpu = Ok(CpuTicks { busy: 1400, total: 5600, cores: 4 });
        now.own_cpu = Ok(BTreeMap::from([(0, Duration::from_secs(13)), (9, Duration::from_secs(100))]));
        let (snapshot, _) = take(now, Some(&at(10)));
        let swap = snapshot.swap.expect("swap was told");
        assert_eq!((swap.in_per_sec, swap.out_per_sec), (Some(Bytes::mib(20)), Some(Bytes::ZERO)));
        assert_eq!(snapshot.cpu, Some(Cpu { busy_ratio: 0.25, cores: 4 }));
        // Process 9 is new and process 7 is gone: only process 0 counts, 8 of the 16 seconds that 4 cores had.
        assert_eq!(snapshot.own, Some(OwnUse { footprint: Bytes::mib(80), cpu_ratio: Some(0.5) }));
    }

    #[test]
    fn a_first_sample_has_no_rates_and_says_why() {
        let (snapshot, why) = take(at(10), None);
        assert_eq!(snapshot.swap.map(|swap| (swap.in_per_sec, swap.out_per_sec)), Some((None, None)));
        assert_eq!((snapshot.cpu, snapshot.own.and_then(|own| own.cpu_ratio)), (None, None));
        for name in ["swap.in_per_sec", "swap.out_per_sec", "cpu", "own.cpu_ratio"] {
            assert_eq!(why[name], NEEDS_TWO, "{name}");
        }
    }

    #[test]
    fn a_clock_that_stands_or_goes_backwards_gives_no_rates() {
        for (seconds, reason) in [(10, "no time has passed since the sample before"), (9, "the clock went backwards")] {
            let (snapshot, why) = take(at(seconds), Some(&at(10)));
            assert_eq!(snapshot.swap.and_then(|swap| swap.in_per_sec), None);
            for name in ["swap.in_per_sec", "swap.out_per_sec", "cpu", "own.cpu_ratio"] {
                assert_eq!(why[name], reason, "{name}");
            }
        }
    }

    #[test]
    fn wrapped_counters_give_no_rate_once() {
        let mut now = at(14);
        now.swapped_in = Ok(Bytes(5));
        now.cpu = Ok(CpuTicks { busy: 3, total: 40, cores: 4 });
        now.own_cpu = Ok(BTreeMap::from([(0, Duration::ZERO)]));
        let (snapshot, why) = take(now.clone(), Some(&at(10)));
        assert_eq!(snapshot.swap.map(|swap| (swap.in_per_sec, swap.out_per_sec)), Some((None, Some(Bytes::ZERO))));
        for name in ["swap.in_per_sec", "cpu", "own.cpu_ratio"] {
            assert_eq!(why[name], "its counter went backwards", "{name}");
        }
        let mut after = now.clone();
        after.elapsed = Duration::from_secs(15);
        after.swapped_in = Ok(Bytes(15));
        assert_eq!(take(after, Some(&now)).0.swap.and_then(|swap| swap.in_per_sec), Some(Bytes(10)));
    }

    #[test]
    fn an_absent_counter_keeps_its_own_reason() {
        let mut before = at(10);
        before.swapped_in = Err("not counted".into());
        let (_, why) = take(at(11), Some(&before));
        assert_eq!(why["swap.in_per_sec"], "not counted");
        assert!(!why.contains_key("swap.out_per_sec"));
    }
}
