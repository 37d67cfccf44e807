//! Whose machine a node is: as the user says, and until they do, as its address lets suppose.

use std::net::{IpAddr, Ipv6Addr};

use routing::Trust;

use crate::App;
use crate::error::{AppError, ErrorCode};

impl App {
    /// Says whose machine a node is.
    ///
    /// # Errors
    /// `NotFound` where it isn't on the list.
    pub async fn set_node_trust(&self, id: &str, trust: Trust) -> Result<(), AppError> {
        let unknown = || AppError::new(ErrorCode::NotFound, format!("There is no node “{id}” on the list."));
        self.inner.nodes.update(id, |view| view.trust = trust).ok_or_else(unknown)?;
        let id = id.to_owned();
        match self.with_store(move |store| store.set_node_trust(&id, trust.as_str())).await? {
            // A node of this run only isn't in the store.
            Ok(()) | Err(store::StoreError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a stored word means; `None` for one that this version doesn't know.
pub(crate) fn parse(word: &str) -> Option<Trust> {
    [Trust::Own, Trust::Team, Trust::Rented].into_iter().find(|trust| trust.as_str() == word)
}

/// What a node's address lets suppose: the user's where it can be reached from this machine or its network only, else a
/// stranger's.
pub(crate) fn of_address(url: &str) -> Trust {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => authority.split(':').next().unwrap_or(authority),
    };
    let is_near = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || is_private(ip),
        Err(_) => {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            host == "localhost" || host.ends_with(".localhost") || host.ends_with(".local")
        }
    };
    if is_near { Trust::Own } else { Trust::Rented }
}

fn is_private(ip: Ipv6Addr) -> bool {
    ip.is_unique_local()
        || ip.is_unicast_link_local()
        || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback() || ip.is_private())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_the_own_network_is_the_users_until_they_say_otherwise() {
        let own = [
            "http://localhost:8080",
            "http://127.0.0.1:11434/api",
            "http://[::1]:8080",
            "http://studio.local:11500",
            "https://Studio.LOCAL",
            "http://192.168.1.20:8000",
            "http://10.0.0.4",
            "http://172.31.0.1:80",
            "http://[fd00::7]:8080/x",
        ];
        let rented = [
            "https://gpu.example.org",
            "http://8.8.8.8",
            "http://172.32.0.1",
            "http://127.0.0.1.example.org",
            "http://notlocal",
            "http://studio.local.example.org",
            "http://[2001:db8::1]",
            "",
        ];
        for url in own {
            assert_eq!(of_address(url), Trust::Own, "{url}");
        }
        for url in rented {
            assert_eq!(of_address(url), Trust::Rented, "{url}");
        }
    }

    #[tokio::test]
    async fn what_the_user_says_of_a_node_survives_a_restart() {
        let data = tempfile::tempdir().unwrap();
        let config = crate::AppConfig { data_dir: data.path().to_owned(), ..crate::AppConfig::default() };
        let app = App::start(config.clone()).await.unwrap();
        // Nothing answers there, and it is kept all the same.
        let node = app.add_node("http://127.0.0.1:1", None).await.unwrap();
        assert_eq!(node.trust, Trust::Own);

        app.set_node_trust(&node.id, Trust::Team).await.unwrap();

        assert_eq!(app.nodes()[0].trust, Trust::Team);
        assert!(app.set_node_trust("cellar", Trust::Own).await.is_err());
        app.shutdown().await;
        let again = App::start(config).await.unwrap();
        assert_eq!(again.nodes()[0].trust, Trust::Team);
        again.shutdown().await;
    }

    #[test]
    fn stored_words_are_read_again() {
        assert_eq!(parse(Trust::Team.as_str()), Some(Trust::Team));
        assert_eq!(parse("sworn"), None);
    }
}
