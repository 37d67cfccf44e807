use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

/// The wall clock runs so much further than ours only where the machine slept.
const SLEPT: Duration = Duration::from_secs(5);

/// Notices what leaves connections dead without a word: the machine slept, or an address of its is gone.
pub(crate) struct Disturbance {
    wall: SystemTime,
    own: Instant,
    addresses: BTreeSet<IpAddr>,
}

impl Disturbance {
    pub(crate) fn watch() -> Self {
        Self { wall: SystemTime::now(), own: Instant::now(), addresses: vitals::network_addresses() }
    }

    /// Whether there was one since this was last asked.
    pub(crate) fn happened(&mut self) -> bool {
        let before = std::mem::replace(self, Self::watch());
        // Where the wall clock was set back, it says nothing.
        let wall = self.wall.duration_since(before.wall).unwrap_or_default();
        slept(wall, self.own - before.own) || is_one_gone(&before.addresses, &self.addresses)
    }
}

/// Our clock stands still while the machine sleeps, and the wall's doesn't.
fn slept(wall: Duration, own: Duration) -> bool {
    wall.saturating_sub(own) > SLEPT
}

/// A new one breaks no connection.
fn is_one_gone(before: &BTreeSet<IpAddr>, now: &BTreeSet<IpAddr>) -> bool {
    !before.is_subset(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_where_the_wall_clock_ran_further() {
        let seconds = Duration::from_secs;
        assert!(slept(seconds(3_600), seconds(1)));
        // The machine was busy, or its clock was set right.
        assert!(!slept(seconds(3_600), seconds(3_599)));
        assert!(!slept(seconds(2), seconds(0)));
        assert!(!slept(Duration::ZERO, seconds(1)));
    }

    #[test]
    fn an_address_that_goes_breaks_connections_and_one_that_comes_doesnt() {
        let set = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        let home = set(&["127.0.0.1", "192.168.1.7", "fe80::1"]);
        assert!(is_one_gone(&home, &set(&["127.0.0.1", "fe80::1", "10.0.0.9"])));
        assert!(!is_one_gone(&home, &set(&["127.0.0.1", "192.168.1.7", "fe80::1", "2001:db8::1"])));
        assert!(!is_one_gone(&home, &home));
    }
}
