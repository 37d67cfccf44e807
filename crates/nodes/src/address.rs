use chat::Redacted;
use reqwest::Url;

use crate::NodeError;

/// Where a node answers, and the key that it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The base of every URL, without `/v1` and without a slash at the end: `http://studio.local:8080`.
    pub url: String,
    /// Sent as a bearer token, and to this address only.
    pub key: Option<Redacted<String>>,
}

/// What people paste behind the base, longest first.
const KNOWN_PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1"];

impl NodeAddress {
    /// Reads an address as people write it: `studio.local:8080`, `https://host/v1/`. `http://` is added where there is no
    /// scheme; a path that belongs to the dialect is taken off.
    ///
    /// # Errors
    /// `BadAddress` for anything that is no http address, for a name or password in it, for a query, and for a key that
    /// can't be sent.
    pub fn parse(text: &str, key: Option<Redacted<String>>) -> Result<Self, NodeError> {
        let bad = |why: String| NodeError::BadAddress { why };
        let text = text.trim();
        if text.is_empty() {
            return Err(bad("the address is empty".to_owned()));
        }
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&with_scheme).map_err(|error| bad(format!("the address can't be read: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad(format!("a node is reached by http or https, not by {}", url.scheme())));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("the address has a name or a password in it: a key goes into its own field".to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("an address ends with its path, without “?” or “#”".to_owned()));
        }
        if url.port() == Some(0) {
            return Err(bad("port 0 can't be reached".to_owned()));
        }
        let mut base = url.as_str().trim_end_matches('/');
        while let Some(rest) = KNOWN_PATHS.iter().find_map(|path| base.strip_suffix(path)) {
            base = rest.trim_end_matches('/');
        }
        let key = key.map(|key| Redacted(key.0.trim().to_owned())).filter(|key| !key.0.is_empty());
        if key.as_ref().is_some_and(|key| key.expose().chars().any(|c| c.is_control() || !c.is_ascii())) {
            return Err(bad("the key has a character that no key can have".to_owned()));
        }
        Ok(Self { url: base.to_owned(), key })
    }

    /// Host and port, for sentences.
    pub(crate) fn authority(&self) -> &str {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest)
    }

    /// The node runs on this machine, so that no proxy can know it.
    pub(crate) fn is_loopback(&self) -> bool {
        let Ok(url) = Url::parse(&self.url) else { return false };
        let host = url.host_str().unwrap_or_default();
        if host == "localhost" || host.ends_with(".localhost") {
            return true;
        }
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        ip.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(text: &str) -> String {
        NodeAddress::parse(text, None).unwrap().url
    }

    #[test]
    fn addresses_as_people_write_them() {
        for text in [
            "studio.local:8080",
            " http://studio.local:8080/ ",
            "studio.local:8080/v1",
            "STUDIO.local:8080/v1//",
            "http://studio.local:8080/v1/chat/completions",
            "studio.local:8080/v1/models",
        ] {
            assert_eq!(url(text), "http://studio.local:8080", "{text}");
        }
        assert_eq!(url("localhost:11434"), "http://localhost:11434");
        assert_eq!(url("[::1]:80/"), "http://[::1]");
        assert_eq!(url("https://host.example/llm/v1/"), "https://host.example/llm");
        assert_eq!(url("192.168.1.5"), "http://192.168.1.5");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long = "ftp://host, file:///etc/passwd, ws://host, http://me:secret@host, me@host, http://, host:0, host:99999, \
                    javascript:alert(1), http://host/v1?key=secret, host#top, a b, unix://x";
        for text in long.split(", ").chain(["", "  "]) {
            let error = NodeAddress::parse(text, None).unwrap_err();
            assert!(matches!(error, NodeError::BadAddress { .. }), "{text}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let key = Some(Redacted("a\nb".to_owned()));
        assert!(!format!("{:?}", NodeAddress::parse("host", key).unwrap_err()).contains("a\nb"));
    }

    #[test]
    fn a_key_is_never_shown() {
        let address = NodeAddress::parse("host", Some(Redacted(" sk-secret\n".to_owned()))).unwrap();
        assert_eq!(address.key.as_ref().unwrap().expose(), "sk-secret");
        assert!(!format!("{address:?}").contains("secret"));
        assert_eq!(NodeAddress::parse("host", Some(Redacted("  ".to_owned()))).unwrap().key, None);
    }

    #[test]
    fn this_machine_is_known_by_all_its_names() {
        for text in ["localhost:1", "127.0.0.1", "127.8.9.1:80", "[::1]:1", "app.localhost", "0.0.0.0:1"] {
            assert!(NodeAddress::parse(text, None).unwrap().is_loopback(), "{text}");
        }
        for text in ["studio.local", "10.0.0.1", "localhost.example.org", "[fe80::1]"] {
            assert!(!NodeAddress::parse(text, None).unwrap().is_loopback(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn reading_an_address_again_changes_nothing(text in "\\PC{0,40}") {
            if let Ok(address) = NodeAddress::parse(&text, None) {
                prop_assert!(!address.url.ends_with('/') && !address.url.ends_with("/v1"));
                prop_assert_eq!(NodeAddress::parse(&address.url, None).unwrap(), address);
            }
        }
    }
}
