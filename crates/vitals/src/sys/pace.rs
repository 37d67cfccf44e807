use std::time::{Duration, Instant};

/// Repeats an expensive reading only as often as keeps it below 0.5 % of the time, and gives its latest value in
/// between. What is cheap is read anew each time.
#[derive(Debug)]
pub(crate) struct Paced<T> {
    latest: Option<(Instant, Duration, T)>,
}

impl<T> Default for Paced<T> {
    fn default() -> Self {
        Self { latest: None }
    }
}

impl<T> Paced<T> {
    /// The latest value, read anew where `least` and 200 times its own cost have passed since.
    pub(crate) fn get(&mut self, least: Duration, read: impl FnOnce() -> T) -> &T {
        let due = self.latest.as_ref().is_none_or(|(at, cost, _)| at.elapsed() >= least.max(*cost * 200));
        let latest = if due { None } else { self.latest.take() };
        let (_, _, value) = self.latest.insert(latest.unwrap_or_else(|| {
            let start = Instant::now();
            let value = read();
            (Instant::now(), start.elapsed(), value)
        }));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_not_read_again_before_its_time() {
        let mut reads = 0;
        let mut paced = Paced::default();
        for _ in 0..3 {
            paced.get(Duration::from_secs(3600), || reads += 1);
        }
        assert_eq!(reads, 1);
    }

    #[test]
    fn an_expensive_reading_waits_for_200_times_its_cost() {
        let an_hour_ago = Instant::now().checked_sub(Duration::from_secs(3600));
        let reads = |cost| {
            let mut count = 0;
            let mut paced = Paced { latest: an_hour_ago.map(|at| (at, Duration::from_secs(cost), ())) };
            paced.get(Duration::ZERO, || count += 1);
            count
        };
        assert_eq!((reads(17), reads(19)), (1, if an_hour_ago.is_some() { 0 } else { 1 }));
    }
}
