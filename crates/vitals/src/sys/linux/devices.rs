use chat::Bytes;

use super::{attribute, number};
use crate::readings::{Reading, Unavailable};
use crate::recording::Recording;
use crate::snapshot::{PowerSource, ThermalState};
use crate::sys::sensors;

pub(super) const THERMAL: &str = "/sys/class/thermal/";
pub(super) const POWER: &str = "/sys/class/power_supply/";
pub(super) const GPU: &str = "/sys/class/drm/";
pub(super) const PROFILE: &str = "/sys/firmware/acpi/platform_profile";

/// How far below a trip point a zone counts as warm, in degrees Celsius.
const NEAR: f32 = 5.0;

/// The worst of all thermal zones, by their trip points: within 5 °C below one is fair, from `passive` on (the kernel
/// slows down) serious, from `hot` or within 5 °C below `critical` (the kernel shuts down) critical. `active` points
/// only start fans. Without zones, the critical points of the processor's own sensors stand in, near which it slows
/// itself: within 5 °C below is serious, within 15 °C fair.
pub(super) fn thermal(recording: &Recording) -> Reading<ThermalState> {
    let zones = recording.texts_under(THERMAL).filter_map(|(_, zone)| zone_state(zone)).max();
    if let Some(state) = zones {
        return Ok(state);
    }
    let sensors = sensors::sensors(recording).unwrap_or_default();
    sensors
        .iter()
        .filter(|sensor| sensors::is_of_processor(sensor.label))
        .filter_map(|sensor| {
            let left = sensor.critical? - sensor.celsius;
            Some(if left <= NEAR {
                ThermalState::Serious
            } else if left <= 3.0 * NEAR {
                ThermalState::Fair
            } else {
                ThermalState::Nominal
            })
        })
        .max()
        .ok_or("no thermal zone with a trip point, and no processor sensor with a critical temperature".into())
}

fn zone_state(zone: &str) -> Option<ThermalState> {
    let celsius = zone_celsius(zone)?;
    (0..32)
        .filter_map(|index| {
            let kind = attribute(zone, &format!("trip_point_{index}_type"))?;
            let at = millidegrees(zone, &format!("trip_point_{index}_temp"))?;
            let state = match kind {
                "passive" if celsius >= at => ThermalState::Serious,
                "hot" if celsius >= at => ThermalState::Critical,
                "critical" if celsius >= at - NEAR => ThermalState::Critical,
                "passive" | "hot" if celsius >= at - NEAR => ThermalState::Fair,
                "passive" | "hot" | "critical" => ThermalState::Nominal,
                _ => return None,
            };
            Some(state)
        })
        .max()
}

/// In degrees Celsius. Unset trip points and dead sensors say 0, or something far from any chip.
fn millidegrees(zone: &str, name: &str) -> Option<f32> {
    let celsius = attribute(zone, name)?.trim().parse::<i64>().ok()? as f32 / 1000.0;
    (celsius > 0.0 && celsius < 130.0).then_some(celsius)
}

fn zone_celsius(zone: &str) -> Option<f32> {
    millidegrees(zone, "temp")
}

/// The hottest processor sensor, else the hottest thermal zone of the processor.
pub(super) fn temperature(recording: &Recording) -> Reading<f32> {
    sensors::processor_celsius(recording).or_else(|why| {
        recording
            .texts_under(THERMAL)
            .filter(|(_, zone)| attribute(zone, "type").is_some_and(sensors::is_of_processor))
            .filter_map(|(_, zone)| zone_celsius(zone))
            .reduce(f32::max)
            .ok_or(why)
    })
}

pub(super) fn power_source(recording: &Recording) -> Reading<PowerSource> {
    let supplies: Vec<&str> = recording
        .texts_under(POWER)
        .map(|(_, supply)| supply)
        // Batteries of mice and keyboards.
        .filter(|supply| attribute(supply, "scope") != Some("Device"))
        .collect();
    let batteries = || supplies.iter().filter(|supply| attribute(supply, "type") == Some("Battery"));
    let mut feeds = supplies.iter().filter(|supply| attribute(supply, "type") != Some("Battery"));
    if feeds.any(|supply| attribute(supply, "online").is_some_and(|online| online != "0")) {
        return Ok(PowerSource::Mains);
    }
    let status =
        |wanted: &[&str]| batteries().any(|battery| attribute(battery, "status").is_some_and(|s| wanted.contains(&s)));
    if status(&["Discharging"]) {
        Ok(PowerSource::Battery)
    } else if status(&["Charging", "Full", "Not charging"]) {
        Ok(PowerSource::Mains)
    } else if supplies.is_empty() {
        Err("the kernel lists no power supply".into())
    } else {
        Err("no power supply tells whether it is in use".into())
    }
}

pub(super) fn low_power_mode(recording: &Recording) -> Reading<bool> {
    // "low-power" is the kernel's word; drivers add "quiet" and "cool", which a user picks for other reasons.
    recording.text(PROFILE).map(|profile| profile.trim() == "low-power")
}

/// The GPU with the most memory of its own, or the first.
pub(super) struct Gpu<'a>(&'a str);

pub(super) fn gpu(recording: &Recording) -> Reading<Gpu<'_>> {
    let cards = recording.texts_under(GPU).map(|(_, card)| card);
    cards
        .reduce(|best, card| {
            let vram = |card| number(card, "mem_info_vram_total").unwrap_or(0);
            if vram(card) > vram(best) { card } else { best }
        })
        .map(Gpu)
        .ok_or("the kernel lists no GPU".into())
}

impl Gpu<'_> {
    fn told(&self, name: &str) -> Reading<u64> {
        number(self.0, name).ok_or_else(|| {
            let driver = attribute(self.0, "DRIVER").unwrap_or("unknown");
            Unavailable(format!("the GPU's driver ({driver}) has no {name}"))
        })
    }

    pub(super) fn name(&self) -> Reading<String> {
        let attribute = |name| attribute(self.0, name).map(str::trim).filter(|value| !value.is_empty());
        match (attribute("product_name"), attribute("DRIVER"), attribute("PCI_ID")) {
            (Some(product), _, _) => Ok(product.to_owned()),
            (None, Some(driver), Some(id)) => Ok(format!("{driver} {id}")),
            (None, Some(driver), None) => Ok(driver.to_owned()),
            (None, None, _) => Err("the GPU has no driver".into()),
        }
    }

    pub(super) fn busy_ratio(&self) -> Reading<f32> {
        self.told("gpu_busy_percent").map(|percent| (percent as f32 / 100.0).min(1.0))
    }

    pub(super) fn working_set_limit(&self) -> Reading<Bytes> {
        self.told("mem_info_vram_total").map(Bytes)
    }

    pub(super) fn allocated(&self) -> Reading<Bytes> {
        self.told("mem_info_vram_used").map(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::recording::Content;

    fn recording(prefix: &str, sections: &[&str]) -> Recording {
        let mut recording = Recording::new("linux", Duration::ZERO);
        for (index, text) in sections.iter().enumerate() {
            recording.add(&format!("{prefix}{index}"), Content::Text((*text).into()));
        }
        recording
    }

    #[track_caller]
    fn check_zone(celsius: i32, expected: ThermalState) {
        let cool = "type=acpitz\ntemp=20000\ntrip_point_0_type=critical\ntrip_point_0_temp=119000";
        let zone = format!(
            "type=cpu-thermal\ntemp={}\ntrip_point_0_type=active\ntrip_point_0_temp=40000\ntrip_point_1_type=passive\n\
             trip_point_1_temp=85000\ntrip_point_2_type=hot\ntrip_point_2_temp=95000\ntrip_point_3_type=critical\n\
             trip_point_3_temp=110000\ntrip_point_4_type=passive\ntrip_point_4_temp=-274000",
            celsius * 1000
        );
        assert_eq!(thermal(&recording(THERMAL, &[cool, &zone])), Ok(expected), "{celsius} °C");
    }

    #[test]
    fn trip_points_give_the_state() {
        check_zone(60, ThermalState::Nominal);
        check_zone(80, ThermalState::Fair);
        check_zone(85, ThermalState::Serious);
        check_zone(95, ThermalState::Critical);
        check_zone(105, ThermalState::Critical);
    }

    #[test]
    fn without_zones_the_processor_sensor_stands_in() {
        let check = |line: &str, expected| {
            let mut recording = recording(THERMAL, &["type=acpitz\ntemp=27800"]);
            recording.add(sensors::SECTION, Content::Text(line.into()));
            assert_eq!(thermal(&recording).ok(), expected, "{line}");
        };
        check("coretemp Package id 0\t84\t100\nnvme Composite\t83\t84\n", Some(ThermalState::Nominal));
        check("coretemp Package id 0\t86\t100\n", Some(ThermalState::Fair));
        check("coretemp Package id 0\t97\t100\n", Some(ThermalState::Serious));
        check("k10temp Tctl\t97\t-\n", None);
        check("", None);
    }

    #[test]
    fn temperature_is_of_the_processor() {
        let mut readings = recording(THERMAL, &["type=x86_pkg_temp\ntemp=51000", "type=iwlwifi_1\ntemp=70000"]);
        assert_eq!(temperature(&readings), Ok(51.0));
        let text =
            "nvme Composite\t77\t84\ncoretemp Core 0\t61.5\t100\ncoretemp Core 1\t58\t100\ncoretemp Core 2\t255\t-\n";
        readings.add(sensors::SECTION, Content::Text(text.into()));
        assert_eq!(temperature(&readings), Ok(61.5));
    }

    #[track_caller]
    fn check_power(supplies: &[&str], expected: Option<PowerSource>) {
        assert_eq!(power_source(&recording(POWER, supplies)).ok(), expected);
    }

    #[test]
    fn power_comes_from_what_feeds_the_machine() {
        check_power(&["type=Mains\nonline=1", "type=Battery\nstatus=Charging"], Some(PowerSource::Mains));
        check_power(&["type=Mains\nonline=0", "type=Battery\nstatus=Discharging"], Some(PowerSource::Battery));
        check_power(&["type=Battery\nstatus=Full"], Some(PowerSource::Mains));
        check_power(&["type=Battery\nscope=Device\nstatus=Discharging"], None);
        check_power(&["type=Battery\nstatus=Unknown"], None);
        check_power(&[], None);
    }

    #[test]
    fn the_gpu_with_the_most_memory_is_the_one() {
        let readings = recording(
            GPU,
            &[
                "DRIVER=i915\nPCI_ID=8086:46A6",
                "DRIVER=amdgpu\nPCI_ID=1002:744C\ngpu_busy_percent=37\nmem_info_vram_total=25753026560\nmem_info_vram_used=1048576",
            ],
        );
        let gpu = gpu(&readings).expect("two are listed");
        assert_eq!(gpu.name().as_deref(), Ok("amdgpu 1002:744C"));
        assert_eq!(gpu.busy_ratio(), Ok(0.37));
        assert_eq!((gpu.working_set_limit(), gpu.allocated()), (Ok(Bytes(25_753_026_560)), Ok(Bytes::mib(1))));
        let intel = Gpu("DRIVER=i915");
        assert_eq!(intel.busy_ratio(), Err(Unavailable("the GPU's driver (i915) has no gpu_busy_percent".into())));
    }
}
