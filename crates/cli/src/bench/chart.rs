//! The picture of a pressure benchmark: speed, time between tokens, swap and swap-in over the memory that was taken.

use app::chat::Bytes;
use app::vitals::MemoryPressure;
use app::{PressureStep, PressureThresholds};

use super::pressure::Phase;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 64.0;
const PANEL: f64 = 128.0;
const BETWEEN: f64 = 44.0;
const BOTTOM: f64 = 50.0;
/// Legible on white and on black.
const TEXT: &str = "#808080";
const UNGUARDED: &str = "#d9534f";
const GUARDED: &str = "#1f9e89";

/// One figure over the memory that was taken.
struct Panel {
    title: &'static str,
    scale: Scale,
    lines: &'static [Line],
}

struct Line {
    value: fn(&PressureStep) -> Option<f64>,
    is_dashed: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    /// From zero.
    Linear,
    /// By powers of ten.
    Log,
}

const PANELS: [Panel; 4] = [
    Panel {
        title: "Decode, tokens/s",
        scale: Scale::Linear,
        lines: &[Line { value: |step| Some(step.tokens_per_sec), is_dashed: false }],
    },
    Panel {
        title: "Time between tokens, ms: 99th percentile, and median (dashed)",
        scale: Scale::Log,
        lines: &[
            Line { value: |step| step.itl_p99.map(|time| time.as_secs_f64() * 1e3), is_dashed: false },
            Line { value: |step| step.itl_p50.map(|time| time.as_secs_f64() * 1e3), is_dashed: true },
        ],
    },
    Panel {
        title: "Swap in use, MiB",
        scale: Scale::Linear,
        lines: &[Line { value: |step| step.swap_used.map(mib), is_dashed: false }],
    },
    Panel {
        title: "Swap-in, MiB/s",
        scale: Scale::Linear,
        lines: &[Line { value: |step| step.swap_in_per_sec.map(mib), is_dashed: false }],
    },
];

fn mib(bytes: Bytes) -> f64 {
    bytes.0 as f64 / f64::from(1 << 20)
}

/// The whole picture. Its background is what it is put on.
pub(super) fn svg(phases: &[Phase], thresholds: Option<&PressureThresholds>) -> String {
    let height = TOP + PANELS.len() as f64 * (PANEL + BETWEEN) - BETWEEN + BOTTOM;
    let mut svg = open(height);
    let steps = || phases.iter().flat_map(|phase| &phase.curve.steps);
    let most_taken = steps().map(|step| mib(step.taken)).fold(1.0, f64::max);
    let x_ticks = linear_ticks(most_taken, 8.0);
    let most_x = x_ticks.last().copied().unwrap_or(1.0);
    let x = |taken: f64| LEFT + taken / most_x * (WIDTH - LEFT - RIGHT);
    legend(&mut svg, phases);
    for (index, panel) in PANELS.iter().enumerate() {
        let top = TOP + index as f64 * (PANEL + BETWEEN);
        let values: Vec<f64> = panel
            .lines
            .iter()
            .flat_map(|line| steps().filter_map(line.value))
            .filter(|value| value.is_finite())
            .collect();
        let axis = Axis::new(panel.scale, &values, top);
        text(&mut svg, LEFT, top - 10.0, "start", panel.title);
        for tick in &axis.ticks {
            let y = axis.y(*tick);
            line(&mut svg, (LEFT, y), (WIDTH - RIGHT, y), TEXT, "stroke-opacity=\"0.25\"");
            text(&mut svg, LEFT - 8.0, y + 4.0, "end", &number(*tick));
        }
        for tick in &x_ticks {
            line(&mut svg, (x(*tick), top + PANEL), (x(*tick), top + PANEL + 4.0), TEXT, "");
        }
        if let Some(found) = thresholds {
            let x = x(mib(found.taken));
            line(&mut svg, (x, top), (x, top + PANEL), TEXT, "stroke-dasharray=\"2 3\"");
            if index == 0 {
                let (x, anchor) = if x > WIDTH / 2.0 { (x - 6.0, "end") } else { (x + 6.0, "start") };
                text(&mut svg, x, top + PANEL - 6.0, anchor, "85 % of undisturbed");
            }
        }
        for phase in phases {
            for line in panel.lines {
                let points: Vec<(f64, f64, Option<MemoryPressure>)> = phase
                    .curve
                    .steps
                    .iter()
                    .filter_map(|step| Some((x(mib(step.taken)), axis.y((line.value)(step)?), step.pressure)))
                    .collect();
                curve(&mut svg, &points, colour(phase), line.is_dashed);
            }
        }
    }
    let bottom = height - BOTTOM;
    for tick in &x_ticks {
        text(&mut svg, x(*tick), bottom + 18.0, "middle", &number(*tick));
    }
    text(&mut svg, f64::midpoint(LEFT, WIDTH - RIGHT), bottom + 38.0, "middle", "Memory taken by something else, MiB");
    svg + "</svg>\n"
}

/// The beginning of a picture. It has no background.
fn open(height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{TEXT}\">\n"
    )
}

fn colour(phase: &Phase) -> &'static str {
    if phase.guarded { GUARDED } else { UNGUARDED }
}

fn legend(svg: &mut String, phases: &[Phase]) {
    let mut x = LEFT;
    for phase in phases {
        line(svg, (x, 18.0), (x + 22.0, 18.0), colour(phase), "stroke-width=\"2\"");
        text(svg, x + 28.0, 22.0, "start", if phase.guarded { "with the guard" } else { "without the guard" });
        x += 160.0;
    }
    for (pressure, name) in [(MemoryPressure::Warning, "pressure: warning"), (MemoryPressure::Critical, "critical")] {
        mark(svg, (x + 6.0, 18.0), Some(pressure), TEXT);
        text(svg, x + 16.0, 22.0, "start", name);
        x += 140.0;
    }
}

struct Axis {
    scale: Scale,
    ticks: Vec<f64>,
    top: f64,
}

impl Axis {
    fn new(scale: Scale, values: &[f64], top: f64) -> Self {
        let most = values.iter().copied().fold(0.0, f64::max);
        let ticks = match scale {
            Scale::Linear => linear_ticks(most, 4.0),
            Scale::Log => {
                let least = values.iter().copied().filter(|value| *value > 0.0).fold(f64::MAX, f64::min).min(most);
                let exponent = |value: f64| value.max(1e-3).log10();
                let (first, last) = (exponent(least).floor() as i32, exponent(most).ceil() as i32);
                (first..=last.max(first + 1)).map(|exponent| 10_f64.powi(exponent)).collect()
            }
        };
        Self { scale, ticks, top }
    }

    /// Values beyond the ends are drawn at the ends.
    fn y(&self, value: f64) -> f64 {
        let (first, last) = (self.ticks[0], self.ticks[self.ticks.len() - 1]);
        let part = match self.scale {
            Scale::Linear => (value - first) / (last - first),
            Scale::Log => (value.max(first).log10() - first.log10()) / (last.log10() - first.log10()),
        };
        self.top + PANEL * (1.0 - part.clamp(0.0, 1.0))
    }
}

/// Round numbers from zero to `most` or a little beyond, about `count` of them.
pub(super) fn linear_ticks(most: f64, count: f64) -> Vec<f64> {
    let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
    let rough = most / count;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|part| part * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    (0..=(most / step).ceil() as u32).map(|i| f64::from(i) * step).collect()
}

pub(super) fn number(value: f64) -> String {
    let rounded = format!("{value:.3}");
    rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn curve(svg: &mut String, points: &[(f64, f64, Option<MemoryPressure>)], colour: &str, is_dashed: bool) {
    let path: Vec<String> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
    let dashes = if is_dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    element(
        svg,
        format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>",
            path.join(" ")
        ),
    );
    for (x, y, pressure) in points.iter().filter(|_| !is_dashed) {
        mark(svg, (*x, *y), *pressure, colour);
    }
}

/// A dot; a ring under warning, a square under critical pressure.
fn mark(svg: &mut String, (x, y): (f64, f64), pressure: Option<MemoryPressure>, colour: &str) {
    element(
        svg,
        match pressure {
            Some(MemoryPressure::Critical) => {
                format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\" fill=\"{colour}\"/>", x - 4.5, y - 4.5)
            }
            Some(MemoryPressure::Warning) => format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
            ),
            _ => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>"),
        },
    );
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, more: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    element(
        svg,
        format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" {more}/>"),
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    element(svg, format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>"));
}

pub(super) fn element(svg: &mut String, element: String) {
    svg.push_str(&(element + "\n"));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use app::{PressureCurve, PressureEnd};

    use super::*;

    fn phase(guarded: bool) -> Phase {
        let step = |taken: u64, speed: f64, swap: Option<u64>| PressureStep {
            taken: Bytes::mib(taken),
            tokens_per_sec: speed,
            swap_used: swap.map(Bytes::mib),
            itl_p50: Some(Duration::from_millis(30)),
            itl_p99: (speed > 0.0).then(|| Duration::from_secs_f64(1.0 / speed)),
            pressure: Some(if speed < 5.0 { MemoryPressure::Critical } else { MemoryPressure::Normal }),
            ..PressureStep::default()
        };
        let steps = vec![step(0, 30.0, Some(0)), step(500, 29.0, None), step(1000, 0.0, Some(700))];
        Phase { guarded, curve: PressureCurve { steps, end: PressureEnd::Critical } }
    }

    #[test]
    fn every_element_is_whole_and_every_figure_is_one() {
        for phases in [vec![], vec![phase(false)], vec![phase(false), phase(true)]] {
            let picture = svg(&phases, None);
            assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
            for line in picture.lines().skip(1).filter(|line| *line != "</svg>") {
                assert!(line.starts_with('<') && (line.ends_with("/>") || line.ends_with("</text>")), "{line}");
            }
            let curves = PANELS.iter().map(|panel| panel.lines.len()).sum::<usize>();
            assert_eq!(picture.matches("<polyline").count(), curves * phases.len());
        }
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(linear_ticks(31.0, 4.0), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(linear_ticks(0.0, 4.0), [0.0, 0.5, 1.0]);
        assert_eq!(linear_ticks(f64::NAN, 4.0), linear_ticks(0.0, 4.0));
        assert_eq!(Axis::new(Scale::Log, &[12.0, 900.0], 0.0).ticks, [10.0, 100.0, 1000.0]);
        assert_eq!((number(2.5), number(1000.0), number(0.0)), ("2.5".to_owned(), "1000".to_owned(), "0".to_owned()));
    }
}
