//! The picture of `tidegate bench --depth` and `--sustained`, to be shown to others: a card with the machine, the model and
//! bars. A decode's bar lies in an outline that ends where memory would be all that it waits for.

use app::vitals::ThermalState;
use app::{DepthSpeed, Spread, SustainedSpeed};

use super::chart::{element, linear_ticks, number};

/// What the picture says beside its figures.
pub(super) struct Card {
    /// The model's name and how it is packed.
    pub(super) title: String,
    /// The machine and what computes.
    pub(super) machine: String,
    pub(super) prefill_tokens: usize,
    pub(super) decode_tokens: usize,
    /// How it was measured, by what.
    pub(super) footer: String,
}

const WIDTH: f64 = 880.0;
const MARGIN: f64 = 44.0;
/// Where bars begin and the longest ends.
const BARS: (f64, f64) = (190.0, 640.0);
const ROW: f64 = 44.0;
const BAR: f64 = 24.0;
const CURVE: f64 = 120.0;

const PAPER: &str = "#0d1b24";
const STRONG: &str = "#f2f7f9";
const QUIET: &str = "#8fa6b2";
const DECODE: &str = "#2dd4a7";
const PREFILL: &str = "#5aa9ff";
const OUTLINE: &str = "#3a5260";

/// The whole picture; what wasn't measured is left out.
pub(super) fn svg(card: &Card, speeds: &[DepthSpeed], sustained: &[SustainedSpeed]) -> String {
    let mut body = String::new();
    fitted(&mut body, 58.0, 26.0, STRONG, &card.title);
    fitted(&mut body, 86.0, 15.0, QUIET, &card.machine);
    let mut y = 134.0;
    let decodes: Vec<Bar> = speeds.iter().filter_map(Bar::decode).collect();
    if !decodes.is_empty() {
        heading(&mut body, y, "Decode", &format!("tokens per second, {} tokens written", card.decode_tokens), true);
        y = bars(&mut body, &decodes, DECODE, y + 20.0);
    }
    let prefills: Vec<Bar> = speeds.iter().filter_map(Bar::prefill).collect();
    if !prefills.is_empty() {
        let unit = format!("tokens per second, {} tokens read", card.prefill_tokens);
        heading(&mut body, y, "Prefill", &unit, false);
        y = bars(&mut body, &prefills, PREFILL, y + 20.0);
    }
    if !sustained.is_empty() {
        heading(&mut body, y, "Decode without a pause", "tokens per second, answer after answer", false);
        y = curve(&mut body, sustained, y + 20.0);
    }
    text(&mut body, (MARGIN, y + 6.0), "start", 13.0, QUIET, &card.footer);
    let height = y + 34.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"18\" fill=\"{PAPER}\"/>\n{body}</svg>\n"
    )
}

/// One row.
struct Bar {
    label: String,
    speed: Spread,
    /// Speed with memory as all that is waited for, and the part of it that was reached.
    limit: Option<(f64, f64)>,
}

impl Bar {
    fn decode(speed: &DepthSpeed) -> Option<Self> {
        let decode = speed.decode?;
        let limit = speed.bandwidth_ratio.filter(|ratio| *ratio > 0.0).map(|ratio| (decode.median / ratio, ratio));
        Some(Self { label: depth(speed.depth), speed: decode, limit })
    }

    fn prefill(speed: &DepthSpeed) -> Option<Self> {
        Some(Self { label: depth(speed.depth), speed: speed.prefill?, limit: None })
    }
}

fn depth(tokens: usize) -> String {
    if tokens == 0 { "empty context".to_owned() } else { format!("{} deep", grouped(tokens)) }
}

/// 12,345.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// Rows of bars on one scale. Returns where the next thing begins.
fn bars(body: &mut String, bars: &[Bar], colour: &str, top: f64) -> f64 {
    let ends = bars.iter().map(|bar| bar.limit.map_or(0.0, |(limit, _)| limit).max(bar.speed.most));
    let most = ends.fold(f64::MIN_POSITIVE, f64::max);
    let width = |speed: f64| (speed / most).clamp(0.0, 1.0) * (BARS.1 - BARS.0);
    for (index, bar) in bars.iter().enumerate() {
        let y = top + index as f64 * ROW;
        let middle = y + BAR / 2.0;
        text(body, (MARGIN, middle + 5.0), "start", 15.0, STRONG, &bar.label);
        if let Some((limit, _)) = bar.limit {
            rect(body, (BARS.0, y), width(limit), &format!("fill=\"none\" stroke=\"{OUTLINE}\" stroke-width=\"1.5\""));
        }
        let Spread { median, least, most } = bar.speed;
        rect(body, (BARS.0, y), width(median), &format!("fill=\"{colour}\""));
        if most > least {
            let (from, to) = (BARS.0 + width(least), BARS.0 + width(most));
            let style = format!("stroke=\"{STRONG}\" stroke-width=\"1.5\"");
            line(body, (from, middle), (to, middle), &style);
            for x in [from, to] {
                line(body, (x, middle - 4.0), (x, middle + 4.0), &style);
            }
        }
        let figure = if median < 100.0 { format!("{median:.1}") } else { grouped(median.round() as usize) };
        let right = WIDTH - MARGIN;
        match bar.limit {
            Some((_, ratio)) => {
                text(body, (BARS.1 + 84.0, middle + 6.0), "end", 18.0, STRONG, &figure);
                text(body, (right, middle + 5.0), "end", 13.0, QUIET, &format!("{:.0} % of limit", ratio * 1e2));
            }
            None => text(body, (BARS.1 + 84.0, middle + 6.0), "end", 18.0, STRONG, &figure),
        }
    }
    top + bars.len() as f64 * ROW + 30.0
}

/// Speed over time. Returns where the next thing begins.
fn curve(body: &mut String, sustained: &[SustainedSpeed], top: f64) -> f64 {
    let most = sustained.iter().map(|speed| speed.decode_tokens_per_sec).fold(0.0, f64::max);
    let ticks = linear_ticks(most, 3.0);
    let end = sustained.last().map_or(1.0, |speed| speed.at.as_secs_f64()).max(f64::MIN_POSITIVE);
    let (left, right) = (MARGIN + 36.0, WIDTH - MARGIN);
    let scale = ticks.last().copied().unwrap_or(1.0);
    let x = |speed: &SustainedSpeed| left + speed.at.as_secs_f64() / end * (right - left);
    let y = |value: f64| top + CURVE * (1.0 - value / scale);
    for tick in &ticks {
        line(body, (left, y(*tick)), (right, y(*tick)), &format!("stroke=\"{OUTLINE}\""));
        text(body, (left - 8.0, y(*tick) + 4.0), "end", 13.0, QUIET, &number(*tick));
    }
    let points: Vec<String> =
        sustained.iter().map(|speed| format!("{:.1},{:.1}", x(speed), y(speed.decode_tokens_per_sec))).collect();
    element(
        body,
        format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{DECODE}\" stroke-width=\"2.5\"/>", points.join(" ")),
    );
    for speed in sustained {
        let (x, y) = (x(speed), y(speed.decode_tokens_per_sec));
        element(body, format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{DECODE}\"/>"));
    }
    let of = |speed: Option<&SustainedSpeed>| speed.map_or(0.0, |speed| speed.decode_tokens_per_sec);
    let heat = sustained.last().and_then(|speed| speed.thermal).map(ThermalState::as_str);
    let told = format!(
        "{:.1} at first, {:.1} after {end:.0} s{}",
        of(sustained.first()),
        of(sustained.last()),
        heat.map_or_else(String::new, |heat| format!(", heat {heat}"))
    );
    text(body, (right, top + CURVE + 22.0), "end", 13.0, QUIET, &told);
    top + CURVE + 58.0
}

fn heading(body: &mut String, y: f64, name: &str, unit: &str, explains_limit: bool) {
    let spans = format!(
        "<text x=\"{MARGIN}\" y=\"{y}\" font-size=\"17\" font-weight=\"600\" fill=\"{STRONG}\">{name}\
         <tspan dx=\"10\" font-size=\"13\" font-weight=\"400\" fill=\"{QUIET}\">{unit}</tspan></text>"
    );
    element(body, spans);
    if explains_limit {
        text(body, (WIDTH - MARGIN, y), "end", 13.0, QUIET, "outline: as fast as memory is read");
    }
}

/// A line that is as wide as the card at most.
fn fitted(body: &mut String, y: f64, size: f64, colour: &str, content: &str) {
    /// Of a letter, as a part of its height; no font has wider ones on the average.
    const LETTER: f64 = 0.62;
    let width = content.chars().count() as f64 * LETTER * size;
    text(body, (MARGIN, y), "start", size * ((WIDTH - 2.0 * MARGIN) / width).min(1.0), colour, content);
}

fn text(body: &mut String, (x, y): (f64, f64), anchor: &str, size: f64, colour: &str, content: &str) {
    let weight = if colour == STRONG && size > 16.0 { 600 } else { 400 };
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    element(
        body,
        format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size:.1}\" font-weight=\"{weight}\" \
             fill=\"{colour}\">{content}</text>"
        ),
    );
}

fn rect(body: &mut String, (x, y): (f64, f64), width: f64, style: &str) {
    element(
        body,
        format!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"5\" {style}/>", width.max(2.0)),
    );
}

fn line(body: &mut String, from: (f64, f64), to: (f64, f64), style: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    element(body, format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>"));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn card() -> Card {
        Card {
            title: "a <b> & c".to_owned(),
            machine: "a machine".to_owned(),
            prefill_tokens: 512,
            decode_tokens: 128,
            footer: "Tidegate".to_owned(),
        }
    }

    #[test]
    fn what_was_measured_is_drawn_and_names_are_escaped() {
        let spread = |median: f64| Some(Spread { median, least: median - 1.0, most: median + 1.0 });
        let speed = |depth, prefill| DepthSpeed { depth, prefill, decode: spread(40.0), bandwidth_ratio: Some(0.5) };
        let sustained = SustainedSpeed { at: Duration::from_secs(2), decode_tokens_per_sec: 40.0, thermal: None };
        for (speeds, sustained, bars, curves) in [
            (vec![], vec![], 0, 0),
            (vec![speed(0, None)], vec![], 1, 0),
            (vec![speed(0, spread(300.0)), speed(2048, None)], vec![sustained], 3, 1),
        ] {
            let picture = svg(&card(), &speeds, &sustained);
            assert!(picture.contains("a &lt;b> &amp; c") && picture.ends_with("</svg>\n"));
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
            let filled =
                [DECODE, PREFILL].map(|colour| picture.matches(&format!("rx=\"5\" fill=\"{colour}\"")).count());
            assert_eq!(filled.iter().sum::<usize>(), bars, "{picture}");
            assert_eq!(picture.matches("<polyline").count(), curves);
        }
    }

    #[test]
    fn a_decode_tells_its_share_of_the_limit() {
        let decode = Some(Spread { median: 40.0, least: 40.0, most: 40.0 });
        let speed = DepthSpeed { depth: 2048, prefill: None, decode, bandwidth_ratio: Some(0.8) };
        let picture = svg(&card(), &[speed], &[]);
        assert!(picture.contains("80 % of limit") && picture.contains("2,048 deep"));
        // The outline takes the whole width, the bar 80 % of it.
        assert!(picture.contains("width=\"450.0\"") && picture.contains("width=\"360.0\""), "{picture}");
    }

    #[test]
    fn long_names_are_made_smaller() {
        let title = "a".repeat(200);
        let picture = svg(&Card { title: title.clone(), ..card() }, &[], &[]);
        let size = picture.split(&title).next().and_then(|before| before.rsplit("font-size=\"").next()).unwrap();
        assert!(size.split('"').next().unwrap().parse::<f64>().unwrap() < 8.0);
    }
}
