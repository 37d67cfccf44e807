//! Whether this server can be sent requests now: what load balancers and supervisors ask.

use std::sync::Arc;

use app::{Condition, Occupancy};
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::Gateway;
use crate::failure::{SECONDS_TO_RESTART, SECONDS_TO_WAIT};

/// What a broken server is asked again after: a model that couldn't be loaded is tried again about then.
const SECONDS_TO_REPAIR: u64 = 30;

/// How the server is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It was told to stop, and ends what it has begun.
    Draining,
    /// The engine died, or its model could not be loaded.
    Broken(&'static str),
    /// A model is being brought into memory.
    Loading,
    /// All slots are taken; requests wait, or are refused where the queue is full, too.
    Busy,
    Ok,
}

impl Health {
    pub(crate) const NAMES: [&str; 5] = ["ok", "busy", "loading", "broken", "draining"];

    pub(crate) fn of(gateway: &Gateway) -> Self {
        let app = &gateway.app;
        Self::from_parts(gateway.traffic.is_draining(), app.condition(), app.occupancy())
    }

    fn from_parts(is_draining: bool, condition: Condition, occupancy: Occupancy) -> Self {
        match condition {
            _ if is_draining => Self::Draining,
            Condition::Died => Self::Broken("the engine ended by a bug: start the server anew"),
            Condition::LoadFailed => Self::Broken("a model could not be loaded: the log says why"),
            Condition::Loading => Self::Loading,
            Condition::Ready if occupancy.slots_busy >= occupancy.slots => Self::Busy,
            Condition::Ready => Self::Ok,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Busy => "busy",
            Self::Loading => "loading",
            Self::Broken(_) => "broken",
            Self::Draining => "draining",
        }
    }

    /// What whoever wants an answer should wait; `None` where it may ask now.
    const fn retry_after(self) -> Option<u64> {
        match self {
            Self::Ok | Self::Busy => None,
            Self::Loading => Some(SECONDS_TO_WAIT),
            Self::Broken(_) => Some(SECONDS_TO_REPAIR),
            Self::Draining => Some(SECONDS_TO_RESTART),
        }
    }
}

/// Anybody may read this: numbers, and no names.
pub(crate) async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    let health = Health::of(&gateway);
    let occupancy = gateway.app.occupancy();
    let models = gateway.app.models();
    let own = gateway.app.watch_vitals().borrow().snapshot.own;
    let body = json!({
        "status": health.as_str(),
        "reason": if let Health::Broken(why) = health { Some(why) } else { None },
        "engine": "tidegate",
        "version": env!("CARGO_PKG_VERSION"),
        "device": app::device_name(),
        "models": models.iter().filter(|model| model.header.is_ok()).count(),
        "nodes": gateway.app.nodes().len(),
        "slots": occupancy.slots,
        "slots_busy": occupancy.slots_busy,
        "queue_length": occupancy.waiting,
        "queue_limit": occupancy.most_waiting,
        "requests_running": gateway.traffic.running(),
        "memory_resident_bytes": own.map(|own| own.footprint.0),
    });
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let retry_after = health.retry_after();
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    let status = if retry_after.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(is_draining: bool, condition: Condition, slots_busy: usize, expected: &str) {
        let occupancy = Occupancy { slots: 2, slots_busy, most_waiting: 3, waiting: 0 };
        let health = Health::from_parts(is_draining, condition, occupancy);
        assert_eq!(health.as_str(), expected);
        assert!(Health::NAMES.contains(&expected));
        assert_eq!(health.retry_after().is_none(), matches!(expected, "ok" | "busy"));
    }

    #[test]
    fn the_worst_is_told() {
        check(false, Condition::Ready, 0, "ok");
        check(false, Condition::Ready, 2, "busy");
        check(false, Condition::Loading, 1, "loading");
        check(false, Condition::LoadFailed, 0, "broken");
        check(false, Condition::Died, 2, "broken");
        check(true, Condition::Died, 2, "draining");
    }
}
