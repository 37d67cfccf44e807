//! The table of cases: each line of `cases.txt` is a decision.

#![expect(clippy::unwrap_used, reason = "a case that cannot be read is a failed test")]

use chat::Bytes;
use routing::{Decision, Demand, LocalModel, NodeOption, OffloadMode, Outlook, PlaceChoice, Policy, Target, decide};
use vitals::{Gpu, Memory, MemoryPressure, Snapshot, Swap, ThermalPressure, ThermalState};

#[test]
fn every_case_is_decided_as_the_table_says() {
    let mut cases = 0;
    let mut wrong = Vec::new();
    for (index, line) in include_str!("cases.txt").lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        cases += 1;
        let (input, expected) = line.split_once(" => ").unwrap_or_else(|| panic!("line {}: no =>", index + 1));
        if let Err(found) = check(input, expected) {
            wrong.push(format!("line {}: {input}\n  expected {expected}\n  found    {found}", index + 1));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases > 40, "{cases}");
}

/// Decides `input` and compares what `expected` names of the decision.
fn check(input: &str, expected: &str) -> Result<(), String> {
    let decision = decide_case(input);
    let target = match &decision.target {
        Target::Here { context_len } => format!("here {context_len}"),
        Target::Node { id } if id == "studio" => "node".to_owned(),
        Target::Node { id } => format!("node {id}"),
        Target::Refuse => "refuse".to_owned(),
    };
    let found = [
        format!("{target}: {}", decision.reason.as_str()),
        decision.sentence.clone(),
        decision.counterfactual.clone().unwrap_or_else(|| "-".to_owned()),
    ];
    let is_right = expected.split(" | ").zip(&found).all(|(expected, found)| expected == found);
    if is_right { Ok(()) } else { Err(found.join(" | ")) }
}

fn decide_case(input: &str) -> Decision {
    let mut memory = Memory { total: Bytes::gib(16), available: Bytes::gib(12), ..Memory::default() };
    let mut swap = Swap { total: Bytes::gib(8), in_per_sec: Some(Bytes::ZERO), ..Swap::default() };
    let mut snapshot = Snapshot {
        pressure: Some(MemoryPressure::Normal),
        thermal: Some(ThermalState::Nominal),
        ..Snapshot::default()
    };
    let mut model = LocalModel {
        weights: Bytes::gib(4),
        kv_per_token: Bytes(128 << 10),
        scratch: Bytes::mib(512),
        trained_context: 32_768,
        ..LocalModel::default()
    };
    let mut demand = Demand { prompt_tokens: Some(500), wanted_context: 8192, ..Demand::default() };
    let mut mode = OffloadMode::Auto;
    let (mut has_memory, mut has_model) = (true, true);
    let mut nodes = Vec::new();
    for word in input.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "mode" => {
                mode = match value {
                    "local" => OffloadMode::LocalOnly,
                    "auto" => OffloadMode::Auto,
                    "remote" => OffloadMode::Remote,
                    _ => panic!("{word}"),
                }
            }
            "memory" => has_memory = value != "?",
            "ram" => memory.total = bytes(value),
            "free" => memory.available = bytes(value),
            "limit" => memory.limit = Some(bytes(value)),
            "gpu" => snapshot.gpu = Some(Gpu { working_set_limit: Some(bytes(value)), ..Gpu::default() }),
            "swap_used" => swap.used = bytes(value),
            "swap_in" => swap.in_per_sec = known(value).map(|value| bytes(value.strip_suffix("/s").unwrap())),
            "pressure" => {
                use MemoryPressure::{Critical, Normal, Warning};
                snapshot.pressure =
                    known(value).map(|value| level(value, &[Normal, Warning, Critical], |l| l.as_str()));
            }
            "thermal" => {
                use ThermalState::{Critical, Fair, Nominal, Serious};
                let levels = [Nominal, Fair, Serious, Critical];
                snapshot.thermal = known(value).map(|value| level(value, &levels, |l| l.as_str()));
            }
            "thermal_pressure" => {
                use ThermalPressure::{Heavy, Moderate, Nominal, Sleeping, Trapping};
                let levels = [Nominal, Moderate, Heavy, Trapping, Sleeping];
                snapshot.thermal_pressure = Some(level(value, &levels, |l| l.as_str()));
            }
            "model" => has_model = value != "none",
            "weights" => model.weights = bytes(value),
            "held" => model.already_loaded = Some(bytes(value)),
            "idle" => model.other_loaded = bytes(value),
            "speed" => model.decode_tokens_per_sec = Some(value.parse().unwrap()),
            "prompt" => demand.prompt_tokens = known(value).map(tokens),
            "want" => demand.wanted_context = tokens(value),
            "stays" => demand.stays_local = true,
            "place" if value == "here" => demand.place = Some(PlaceChoice::Here),
            "place" => demand.place = Some(PlaceChoice::Node(value.to_owned())),
            "node" => nodes.push(node(value)),
            _ => panic!("unknown word {word}"),
        }
    }
    let policy = Policy { mode, ..Policy::for_machine(Some(memory.total)) };
    snapshot.memory = has_memory.then_some(memory);
    snapshot.swap = Some(swap);
    demand.model = has_model.then_some(model);
    decide(&policy, &demand, &Outlook::of(&snapshot), &nodes)
}

fn known(value: &str) -> Option<&str> {
    (value != "?").then_some(value)
}

fn level<T: Copy>(name: &str, levels: &[T], as_str: fn(T) -> &'static str) -> T {
    levels.iter().copied().find(|&level| as_str(level) == name).unwrap_or_else(|| panic!("no level {name}"))
}

fn bytes(value: &str) -> Bytes {
    let (number, unit) = value.split_at(value.find(char::is_alphabetic).unwrap());
    match unit {
        "MiB" => Bytes::mib(number.parse().unwrap()),
        "GiB" => Bytes::gib(number.parse().unwrap()),
        _ => panic!("{value}"),
    }
}

fn tokens(value: &str) -> usize {
    match value.strip_suffix('k') {
        Some(thousands) => thousands.parse::<usize>().unwrap() * 1024,
        None => value.parse().unwrap(),
    }
}

fn node(value: &str) -> NodeOption {
    let mut node = NodeOption { id: "studio".into(), has_model: true, ..NodeOption::default() };
    for part in value.split('/') {
        match part.split_once(':') {
            Some(("queue", ahead)) => node.queue = Some(ahead.parse().unwrap()),
            Some(("speed", speed)) => node.decode_tokens_per_sec = Some(speed.parse().unwrap()),
            Some(_) => panic!("{part}"),
            None => match part {
                "up" => node.reachable = Some(true),
                "down" => node.reachable = Some(false),
                "new" => node.reachable = None,
                "other" => node.has_model = false,
                name => node.id = name.to_owned(),
            },
        }
    }
    node.name.clone_from(&node.id);
    node
}
