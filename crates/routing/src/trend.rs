//! Where a reading is going, in a way that single readings can't upset.

/// Readings that a trend is made from, at most: pairs of them are compared, and 32 of a minute show what 240 do.
const MOST_POINTS: usize = 32;
/// A trend needs so many readings,
const LEAST_POINTS: usize = 5;
/// and so many seconds between the first and the last: less is a single program that starts.
const LEAST_SECONDS: f64 = 10.0;

/// How `points` of (seconds, value), in order of time, move per second: the median slope of all pairs (Theil 1950,
/// Sen 1968), which stays right with more than a quarter of the points being anything at all.
///
/// `None` where there are too few, or where not even three quarters of the pairs go the way of the median: one step up
/// or down, such as a program that started, or noise around a level, is no trend.
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let points = thinned(points);
    let (first, last) = (points.first()?, points.last()?);
    if points.len() < LEAST_POINTS || last.0 - first.0 < LEAST_SECONDS {
        return None;
    }
    let mut slopes: Vec<f64> = points
        .iter()
        .enumerate()
        .flat_map(|(n, a)| points[n + 1..].iter().map(move |b| (b.1 - a.1) / (b.0 - a.0)))
        .filter(|slope| slope.is_finite())
        .collect();
    slopes.sort_unstable_by(f64::total_cmp);
    let quantile = |part: usize| slopes.get(slopes.len().saturating_sub(1) * part / 4).copied();
    let (low, median, high) = (quantile(1)?, quantile(2)?, quantile(3)?);
    (low > 0.0 || high < 0.0).then_some(median)
}

/// At most [`MOST_POINTS`] of the points, evenly spread; the newest always among them.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(MOST_POINTS).max(1);
    let mut kept: Vec<_> = points.iter().rev().step_by(step).copied().collect();
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_second(count: usize, value: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        (0..count).map(|second| (second as f64, value(second as f64))).collect()
    }

    #[test]
    fn a_line_is_found_under_noise_and_outliers() {
        let falling = each_second(60, |t| {
            let noise = (t * 7.3).sin() * 40.0;
            if t as u64 % 7 == 3 { 1e9 } else { 1000.0 - 10.0 * t + noise }
        });
        let found = slope(&falling).unwrap();
        assert!((-13.0..-7.0).contains(&found), "{found}");
        assert_eq!(slope(&each_second(60, |t| 5.0 * t)), Some(5.0));
        assert_eq!(slope(&each_second(240, |t| -2.0 * t)), Some(-2.0));
    }

    #[test]
    fn a_level_a_step_and_a_moment_are_no_trend() {
        assert_eq!(slope(&each_second(60, |_| 7.0)), None);
        assert_eq!(slope(&each_second(60, |t| (t * 7.3).sin())), None);
        assert_eq!(slope(&each_second(60, |t| if t < 30.0 { 9.0 } else { 4.0 })), None);
        assert_eq!(slope(&each_second(9, |t| -t)), None);
        assert_eq!(slope(&[]), None);
        assert_eq!(slope(&[(0.0, 1.0), (100.0, 0.0)]), None);
        assert_eq!(slope(&each_second(60, |_| f64::NAN)), None);
        assert_eq!(slope(&[(5.0, 1.0); 40]), None);
    }
}
