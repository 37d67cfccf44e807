use std::collections::BTreeSet;
use std::net::IpAddr;

use sysinfo::Networks;

/// The addresses that this machine has now; none where the system doesn't tell.
pub fn network_addresses() -> BTreeSet<IpAddr> {
    let Ok(networks) = Networks::new_with_refreshed_list() else { return BTreeSet::new() };
    networks.values().flat_map(|network| network.ip_networks()).map(|network| network.addr).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_machine_has_its_own_address() {
        assert!(network_addresses().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
