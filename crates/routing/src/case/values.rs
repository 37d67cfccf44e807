//! What stands behind the `=` of a word. Errors say what was expected.

use chat::Bytes;
use vitals::{MemoryPressure, ThermalPressure, ThermalState};

use super::Earlier;
use crate::{Concern, Continuation, NodeOption, OffloadMode, Place, Reason, Trust};

/// What a word should have been.
pub(super) type Expected = String;

pub(super) fn known(value: &str) -> Option<&str> {
    (value != "?").then_some(value)
}

pub(super) fn mode(value: &str) -> Result<OffloadMode, Expected> {
    match value {
        "local" => Ok(OffloadMode::LocalOnly),
        "auto" => Ok(OffloadMode::Auto),
        "remote" => Ok(OffloadMode::Remote),
        _ => Err("`mode=local`, `mode=auto` or `mode=remote`".to_owned()),
    }
}

pub(super) fn place(value: &str) -> Result<Place, Expected> {
    match value {
        "" => Err("`here` or a node's name".to_owned()),
        "here" => Ok(Place::Here),
        name => Ok(Place::Node(name.to_owned())),
    }
}

pub(super) fn trust(value: &str) -> Option<Trust> {
    [Trust::Rented, Trust::Team, Trust::Own].into_iter().find(|trust| trust.as_str() == value)
}

pub(super) fn pressure(value: &str) -> Result<MemoryPressure, Expected> {
    use MemoryPressure::{Critical, Normal, Warning};
    level(value, &[Normal, Warning, Critical], MemoryPressure::as_str)
}

pub(super) fn thermal(value: &str) -> Result<ThermalState, Expected> {
    use ThermalState::{Critical, Fair, Nominal, Serious};
    level(value, &[Nominal, Fair, Serious, Critical], ThermalState::as_str)
}

pub(super) fn thermal_pressure(value: &str) -> Result<ThermalPressure, Expected> {
    use ThermalPressure::{Heavy, Moderate, Nominal, Sleeping, Trapping};
    level(value, &[Nominal, Moderate, Heavy, Trapping, Sleeping], ThermalPressure::as_str)
}

fn level<T: Copy>(value: &str, levels: &[T], name: fn(T) -> &'static str) -> Result<T, Expected> {
    levels.iter().copied().find(|&level| name(level) == value).ok_or_else(|| {
        let names: Vec<&str> = levels.iter().map(|&level| name(level)).collect();
        format!("one of {}", names.join(", "))
    })
}

pub(super) fn bytes(value: &str) -> Result<Bytes, Expected> {
    let expected = || "an amount such as 4GiB or 512MiB".to_owned();
    let (number, unit) = value.split_at(value.find(char::is_alphabetic).ok_or_else(expected)?);
    let shift = match unit {
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    number.checked_mul(1 << shift).map(Bytes).ok_or_else(expected)
}

pub(super) fn rate(value: &str) -> Result<Bytes, Expected> {
    let amount = value.strip_suffix("/s").and_then(|amount| bytes(amount).ok());
    amount.ok_or_else(|| "an amount a second such as 40MiB/s".to_owned())
}

pub(super) fn tokens(value: &str) -> Result<usize, Expected> {
    let (number, unit) = value.strip_suffix('k').map_or((value, 1), |number| (number, 1024));
    let count = number.parse::<usize>().ok().and_then(|count| count.checked_mul(unit));
    count.ok_or_else(|| "a count of tokens such as 500 or 8k".to_owned())
}

pub(super) fn number(value: &str) -> Result<f64, Expected> {
    value.parse().map_err(|_| "a number such as 2.5".to_owned())
}

pub(super) fn earlier(value: &str) -> Result<Earlier, Expected> {
    let expected = || "such as `until=8s/swap_in:40MiB/s`".to_owned();
    let mut parts = value.split('/').peekable();
    let until = parts.next().and_then(|seconds| seconds.strip_suffix('s')).and_then(|seconds| seconds.parse().ok());
    let mut earlier = Earlier { until: until.ok_or_else(expected)?, swap_in: None, pressure: None, thermal: None };
    while let Some(part) = parts.next() {
        match part.split_once(':') {
            // A rate has a slash of its own.
            Some(("swap_in", amount)) if parts.next_if_eq(&"s").is_some() => earlier.swap_in = Some(bytes(amount)?),
            Some(("pressure", value)) => earlier.pressure = Some(pressure(value)?),
            Some(("thermal", value)) => earlier.thermal = Some(thermal(value)?),
            _ => return Err(expected()),
        }
    }
    Ok(earlier)
}

pub(super) fn concern(value: &str) -> Result<Concern, Expected> {
    let (name, saw) = value.split_once(':').ok_or("such as `guard=thermal:writes_9_tok/s`")?;
    let reasons =
        [Reason::Memory, Reason::MemorySoon, Reason::Swap, Reason::Pressure, Reason::Thermal, Reason::TooSlow];
    let reason = level(name, &reasons, Reason::as_str)?;
    Ok(Concern {
        reason,
        sentence: saw.replace('_', " "),
        readings: Vec::new(),
        tokens_per_sec: None,
        is_urgent: false,
    })
}

pub(super) fn node(value: &str) -> Result<NodeOption, Expected> {
    let mut node = NodeOption { id: "studio".into(), has_model: true, ..NodeOption::default() };
    for part in value.split('/') {
        match part.split_once(':') {
            Some(("queue", ahead)) => node.queue = Some(tokens(ahead)?),
            Some(("speed", speed)) => node.decode_tokens_per_sec = Some(number(speed)?),
            Some(("prefill", speed)) => node.prefill_tokens_per_sec = Some(number(speed)?),
            Some(("holds", count)) => node.prefix_tokens = Some(tokens(count)?),
            Some(("context", len)) => node.context_len = Some(tokens(len)?),
            Some(("on", how)) => node.continuation = Some(continuation(how)?),
            Some((key, _)) => return Err(format!("a part that a node has; it has no `{key}:`")),
            None => match part {
                "up" => node.reachable = Some(true),
                "down" => node.reachable = Some(false),
                "new" => node.reachable = None,
                "other" => node.has_model = false,
                "warm" => node.warm = Some(true),
                "cold" => node.warm = Some(false),
                "" => return Err("a name or a part between the slashes".to_owned()),
                part => match trust(part) {
                    Some(trust) => node.trust = Some(trust),
                    None => node.id = part.to_owned(),
                },
            },
        }
    }
    node.name.clone_from(&node.id);
    Ok(node)
}

pub(super) fn continuation(value: &str) -> Result<Continuation, Expected> {
    match value {
        "tokens" => Ok(Continuation::Tokens),
        "text" => Ok(Continuation::Text),
        "prefix" => Ok(Continuation::Prefix),
        "none" => Ok(Continuation::None),
        _ => Err("`on:tokens`, `on:text`, `on:prefix` or `on:none`".to_owned()),
    }
}
