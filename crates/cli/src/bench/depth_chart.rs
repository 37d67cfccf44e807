//! The picture of `tidegate bench --depth` and `--sustained`: speed over the context's depth, and over time.

use app::{DepthSpeed, Spread, SustainedSpeed};

use super::chart::{
    Axis, BOTTOM, GUARDED, LEFT, PANEL, RIGHT, Scale, TEXT, TOP, WIDTH, element, line, linear_ticks, number, open, text,
};

/// Between panels, which have a scale below each.
const GAP: f64 = 62.0;

/// One figure over something.
struct Panel {
    title: &'static str,
    over: &'static str,
    points: Vec<(f64, Spread)>,
}

/// The whole picture; a panel of which nothing was measured is left out.
pub(super) fn svg(title: &str, speeds: &[DepthSpeed], sustained: &[SustainedSpeed]) -> String {
    let by_depth = |figure: fn(&DepthSpeed) -> Option<Spread>| {
        speeds.iter().filter_map(|speed| Some((speed.depth as f64, figure(speed)?))).collect()
    };
    let by_time = |speed: &SustainedSpeed| {
        let figure = speed.decode_tokens_per_sec;
        (speed.at.as_secs_f64(), Spread { median: figure, least: figure, most: figure })
    };
    let mut panels = vec![
        Panel { title: "Prefill, tokens/s", over: "tokens in the context", points: by_depth(|speed| speed.prefill) },
        Panel { title: "Decode, tokens/s", over: "tokens in the context", points: by_depth(|speed| speed.decode) },
        Panel {
            title: "Decode, tokens/s, answer after answer",
            over: "seconds",
            points: sustained.iter().map(by_time).collect(),
        },
    ];
    panels.retain(|panel| !panel.points.is_empty());
    let height = TOP + panels.len() as f64 * (PANEL + GAP) - GAP + BOTTOM;
    let mut svg = open(height.max(TOP));
    text(&mut svg, LEFT, 22.0, "start", title);
    for (index, panel) in panels.iter().enumerate() {
        draw(&mut svg, panel, TOP + index as f64 * (PANEL + GAP));
    }
    svg + "</svg>\n"
}

fn draw(svg: &mut String, panel: &Panel, top: f64) {
    let values: Vec<f64> = panel.points.iter().map(|(_, spread)| spread.most).collect();
    let axis = Axis::new(Scale::Linear, &values, top);
    text(svg, LEFT, top - 10.0, "start", &format!("{}, over {}", panel.title, panel.over));
    for tick in &axis.ticks {
        let y = axis.y(*tick);
        line(svg, (LEFT, y), (WIDTH - RIGHT, y), TEXT, "stroke-opacity=\"0.25\"");
        text(svg, LEFT - 8.0, y + 4.0, "end", &number(*tick));
    }
    let ticks = linear_ticks(panel.points.iter().map(|(x, _)| *x).fold(0.0, f64::max), 8.0);
    let most = ticks.last().copied().unwrap_or(1.0);
    let x = |value: f64| LEFT + value / most * (WIDTH - LEFT - RIGHT);
    for tick in &ticks {
        line(svg, (x(*tick), top + PANEL), (x(*tick), top + PANEL + 4.0), TEXT, "");
        text(svg, x(*tick), top + PANEL + 18.0, "middle", &number(*tick));
    }
    let path: Vec<String> =
        panel.points.iter().map(|(at, spread)| format!("{:.1},{:.1}", x(*at), axis.y(spread.median))).collect();
    element(
        svg,
        format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{GUARDED}\" stroke-width=\"2\"/>", path.join(" ")),
    );
    for (at, spread) in &panel.points {
        line(svg, (x(*at), axis.y(spread.least)), (x(*at), axis.y(spread.most)), GUARDED, "stroke-width=\"2\"");
        let y = axis.y(spread.median);
        element(svg, format!("<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{GUARDED}\"/>", x(*at)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_measured_is_drawn_and_names_are_escaped() {
        let spread = |median: f64| Some(Spread { median, least: median - 1.0, most: median + 1.0 });
        let speed = |depth, prefill| DepthSpeed { depth, prefill, decode: spread(40.0), bandwidth_ratio: None };
        let sustained = SustainedSpeed { at: Duration::from_secs(2), decode_tokens_per_sec: 40.0, thermal: None };
        for (speeds, sustained, panels) in [
            (vec![], vec![], 0),
            (vec![speed(0, None)], vec![], 1),
            (vec![speed(0, spread(300.0)), speed(2048, None)], vec![sustained], 3),
        ] {
            let picture = svg("a <b> & c", &speeds, &sustained);
            assert!(picture.contains("a &lt;b> &amp; c") && picture.ends_with("</svg>\n"));
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
            assert_eq!(picture.matches("<polyline").count(), panels);
        }
    }
}
