use crate::readings::{Reading, Unavailable};
use crate::recording::Recording;

pub(crate) const SECTION: &str = "sysinfo components";

/// One line for each sensor: its label, its temperature and the one that is critical, in °C; tabs in between.
#[cfg(all(any(target_os = "macos", target_os = "linux"), not(feature = "force-fallback")))]
pub(crate) fn read(components: &mut sysinfo::Components) -> String {
    components.refresh(true);
    let show = |celsius: Option<f32>| celsius.map_or_else(|| "-".to_owned(), |celsius| celsius.to_string());
    let line = |component: &sysinfo::Component| {
        let label = component.label().replace(['\t', '\n'], " ");
        format!("{label}\t{}\t{}\n", show(component.temperature()), show(component.critical()))
    };
    components.iter().map(line).collect()
}

#[derive(Debug, PartialEq)]
pub(crate) struct Sensor<'a> {
    pub(crate) label: &'a str,
    pub(crate) celsius: f32,
    pub(crate) critical: Option<f32>,
}

/// Sensors with a believable temperature: absent ones often say 0, -127 or 255.
pub(crate) fn sensors(recording: &Recording) -> Reading<Vec<Sensor<'_>>> {
    let believable = |text: &str| text.parse().ok().filter(|celsius: &f32| *celsius > 0.0 && *celsius < 130.0);
    Ok(recording
        .text(SECTION)?
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let label = fields.next()?;
            let celsius = believable(fields.next()?)?;
            Some(Sensor { label, celsius, critical: fields.next().and_then(believable) })
        })
        .collect())
}

/// Words in the labels of processor sensors: Intel's, AMD's and Arm's drivers on Linux, Apple's HID services.
const PROCESSOR: [&str; 11] =
    ["coretemp", "k10temp", "k8temp", "zenpower", "cpu", "soc", "x86_pkg_temp", "tdie", "acc mtr", "pmu tp", "tctl"];

pub(crate) fn is_of_processor(label: &str) -> bool {
    let label = label.to_lowercase();
    PROCESSOR.iter().any(|word| label.contains(word))
}

/// The hottest sensor of the processor.
pub(crate) fn processor_celsius(recording: &Recording) -> Reading<f32> {
    let sensors = sensors(recording)?;
    sensors
        .iter()
        .filter(|sensor| is_of_processor(sensor.label))
        .map(|sensor| sensor.celsius)
        .reduce(f32::max)
        .ok_or_else(|| Unavailable(format!("none of {} temperature sensors is the processor's", sensors.len())))
}
