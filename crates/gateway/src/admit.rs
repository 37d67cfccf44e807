//! Who may come in: the right key, and no web page that was tricked into asking.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chat::Redacted;

use crate::failure::Failure;
use crate::{Gateway, HEALTH, METRICS};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The rules for one listener.
pub(crate) struct Admission {
    key: Option<Redacted<String>>,
    is_loopback: bool,
}

impl Admission {
    pub(crate) fn new(key: Option<Redacted<String>>, address: SocketAddr) -> Self {
        Self { key, is_loopback: address.ip().is_loopback() }
    }

    fn check(&self, headers: &HeaderMap, is_health: bool) -> Result<(), Failure> {
        // A page of any site can make a browser send requests here, and with DNS rebinding read the answers: then the
        // Host is the site's name. Programs send no Origin, and address this machine by number or as localhost.
        if self.is_loopback {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            if !is_local_name(host) {
                return Err(Failure::forbidden(
                    "This server answers to localhost only; the Host header names another.",
                ));
            }
        }
        if let Some(origin) = headers.get(ORIGIN) {
            let site = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map_or("", |(_, site)| site);
            if !is_local_name(site) {
                return Err(Failure::forbidden("Web pages of other sites may not use this server."));
            }
        }
        match &self.key {
            Some(key) if !is_health && !sends_key(headers, key) => Err(Failure::unauthorized()),
            _ => Ok(()),
        }
    }
}

fn sends_key(headers: &HeaderMap, key: &Redacted<String>) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    // Anthropic's clients have a header of their own.
    let given = text(AUTHORIZATION).and_then(|given| given.strip_prefix("Bearer ")).or_else(|| text(API_KEY));
    let given = given.unwrap_or_default().as_bytes();
    let key = key.expose().as_bytes();
    // Takes as long for a wrong key as for the right one of that length.
    given.len() == key.len() && given.iter().zip(key).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

fn is_local_name(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(crate) async fn admit(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    match gateway.admission.check(request.headers(), path == HEALTH) {
        // What is asked about the server itself is told to its end.
        Ok(()) if gateway.traffic.is_draining() && path != HEALTH && path != METRICS => {
            Failure::draining().into_response()
        }
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: Option<&str>, headers: &[(&str, &str)], expected: u16) {
        let admission =
            Admission::new(key.map(|key| Redacted(key.to_owned())), SocketAddr::from(([127, 0, 0, 1], 11500)));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let status =
            admission.check(&map, false).map_or_else(|failure| failure.into_response().status().as_u16(), |()| 200);
        assert_eq!(status, expected, "{headers:?}");
    }

    #[test]
    fn pages_and_rebound_names_stay_out() {
        check(None, &[("host", "127.0.0.1:11500")], 200);
        check(None, &[("host", "localhost:11500")], 200);
        check(None, &[("host", "[::1]:11500")], 200);
        check(None, &[("host", "evil.example:11500")], 403);
        check(None, &[("host", "127.0.0.1.evil.example")], 403);
        check(None, &[], 403);
        check(None, &[("host", "localhost"), ("origin", "https://evil.example")], 403);
        check(None, &[("host", "localhost"), ("origin", "null")], 403);
        check(None, &[("host", "localhost"), ("origin", "http://localhost:3000")], 200);
    }

    #[test]
    fn a_key_is_asked_for_where_there_is_one() {
        check(Some("abc"), &[("host", "localhost")], 401);
        check(Some("abc"), &[("host", "localhost"), ("authorization", "Bearer abd")], 401);
        check(Some("abc"), &[("host", "localhost"), ("authorization", "abc")], 401);
        check(Some("abc"), &[("host", "localhost"), ("authorization", "Bearer abc")], 200);
        check(Some("abc"), &[("host", "localhost"), ("x-api-key", "abc")], 200);
        check(Some("abc"), &[("host", "localhost"), ("x-api-key", "abd")], 401);
    }
}
