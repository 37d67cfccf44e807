//! What holds for every policy, demand, snapshot and list of nodes, garbage included.

use chat::Bytes;
use proptest::prelude::*;
use routing::case::Case;
use routing::{
    Calibration, Concern, Continuation, Decision, Demand, LocalModel, NodeOption, OffloadMode, Outlook, Place, Policy,
    Reason, Running, Target, Trust, Verdict, decide, fit, may_leave,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use vitals::{Gpu, Memory, MemoryPressure, OwnUse, Snapshot, Swap, ThermalPressure, ThermalState};

/// Mostly amounts that a machine has; sometimes anything.
fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        8 => (0_u64..64 << 10).prop_map(Bytes::mib),
        1 => Just(Bytes::ZERO),
        1 => Just(Bytes(u64::MAX)),
        1 => any::<u64>().prop_map(Bytes),
    ]
}

fn count() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0_usize..200_000, 1 => Just(usize::MAX), 1 => any::<usize>()]
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![4 => 0.0..100.0, 1 => proptest::num::f64::ANY]
}

/// Unknown one time in eight.
fn maybe<T: std::fmt::Debug + Clone>(value: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(0.875, value)
}

fn thermal() -> impl Strategy<Value = ThermalState> + Clone {
    proptest::sample::select(
        &[ThermalState::Nominal, ThermalState::Fair, ThermalState::Serious, ThermalState::Critical][..],
    )
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![6 => (0_u64..120_000).prop_map(Duration::from_millis), 1 => Just(Duration::MAX), 1 => Just(Duration::ZERO)]
}

prop_compose! {
    fn policies()(
        mode in proptest::sample::select(&[OffloadMode::LocalOnly, OffloadMode::Auto, OffloadMode::Remote][..]),
        reserve in prop_oneof![3 => (0_u64..8192).prop_map(Bytes::mib), 1 => bytes()],
        max_swap_used_ratio in prop_oneof![3 => 0.0..1.0, 1 => number()],
        max_swap_in_per_sec in bytes(),
        max_thermal in thermal(),
        min_decode_tokens_per_sec in number(),
        max_slowdown_ratio in number(),
        thrash_swap_in_per_sec in bytes(),
        times in (duration(), duration(), duration()),
    ) -> Policy {
        let (forecast_within, dwell, heat_dwell) = times;
        Policy {
            mode, reserve, max_swap_used_ratio, max_swap_in_per_sec, max_thermal, min_decode_tokens_per_sec,
            max_slowdown_ratio, thrash_swap_in_per_sec, forecast_within, dwell, heat_dwell,
        }
    }
}

prop_compose! {
    fn calibrations()(bandwidth in number(), eta in number(), flops in maybe(number().boxed())) -> Calibration {
        Calibration { bandwidth_bytes_per_sec: bandwidth * 1e9, eta, prefill_flops_per_sec: flops }
    }
}

prop_compose! {
    fn models()(
        weights in bytes(),
        kv_per_token in prop_oneof![4 => (0_u64..1 << 20).prop_map(Bytes), 1 => bytes()],
        scratch in prop_oneof![4 => (0_u64..2048).prop_map(Bytes::mib), 1 => bytes()],
        trained_context in count(),
        already_loaded in proptest::option::of(bytes()),
        other_loaded in prop_oneof![2 => Just(Bytes::ZERO), 1 => bytes()],
        prefix_tokens in proptest::option::of(count()),
        speeds in (maybe(number().boxed()), maybe(number().boxed()), maybe(number().boxed())),
        bytes_per_token in maybe(bytes().boxed()),
        calibration in maybe(calibrations().boxed()),
    ) -> LocalModel {
        let (decode_tokens_per_sec, prefill_tokens_per_sec, flops_per_token) = speeds;
        LocalModel {
            weights, kv_per_token, scratch, trained_context, already_loaded, other_loaded, prefix_tokens,
            decode_tokens_per_sec, prefill_tokens_per_sec, flops_per_token, bytes_per_token, calibration,
        }
    }
}

fn places() -> impl Strategy<Value = Place> + Clone {
    prop_oneof![Just(Place::Here), (0..4).prop_map(|n| Place::Node(format!("node-{n}")))]
}

prop_compose! {
    fn running()(
        place in places(),
        tokens in count(),
        failed in proptest::collection::vec(places(), 0..3),
        concern in proptest::option::of((
            proptest::sample::select(&[Reason::Memory, Reason::Swap, Reason::Thermal, Reason::TooSlow][..]),
            maybe(number().boxed()),
            any::<bool>(),
        )),
    ) -> Running {
        let concern = concern.map(|(reason, tokens_per_sec, is_urgent)| Concern {
            reason, sentence: "suffers".to_owned(), readings: Vec::new(), tokens_per_sec, is_urgent,
        });
        Running { place, tokens, failed, concern }
    }
}

prop_compose! {
    fn demands()(
        model in maybe(models().boxed()),
        prompt_tokens in maybe(count().boxed()),
        wanted_context in count(),
        answer_tokens in proptest::option::of(count()),
        stays_local in proptest::bool::weighted(0.1),
        model_stays_local in proptest::bool::weighted(0.1),
        least_trust in proptest::sample::select(&[Trust::Rented, Trust::Rented, Trust::Team, Trust::Own][..]),
        place in proptest::option::weighted(0.3, places()),
        running in proptest::option::weighted(0.4, running()),
    ) -> Demand {
        Demand {
            model, prompt_tokens, wanted_context, answer_tokens, stays_local, model_stays_local, least_trust, place,
            running,
        }
    }
}

prop_compose! {
    fn snapshots()(
        memory in maybe((bytes(), bytes(), proptest::option::weighted(0.2, bytes())).boxed()),
        swap in maybe((bytes(), bytes(), proptest::option::of(bytes())).boxed()),
        pressure in maybe(proptest::sample::select(
            &[MemoryPressure::Normal, MemoryPressure::Normal, MemoryPressure::Warning, MemoryPressure::Critical][..],
        )),
        thermal in maybe(thermal()),
        thermal_pressure in proptest::option::of(proptest::sample::select(
            &[ThermalPressure::Nominal, ThermalPressure::Moderate, ThermalPressure::Heavy, ThermalPressure::Sleeping][..],
        )),
        gpu in proptest::option::of(proptest::option::of(bytes())),
    ) -> Snapshot {
        Snapshot {
            memory: memory.map(|(total, available, limit)| Memory { total, available, limit, ..Memory::default() }),
            swap: swap.map(|(total, used, in_per_sec)| Swap { total, used, in_per_sec, out_per_sec: None }),
            pressure,
            thermal,
            thermal_pressure,
            gpu: gpu.map(|working_set_limit| Gpu { working_set_limit, ..Gpu::default() }),
            ..Snapshot::default()
        }
    }
}

/// Some snapshots one after the other; the newest is the last. Times go forward most of the time.
fn histories() -> impl Strategy<Value = Vec<Snapshot>> {
    let step = prop_oneof![8 => 250_i64..5000, 1 => -100_000_i64..100_000, 1 => any::<i64>()];
    let one = (snapshots(), step, proptest::option::of(bytes()));
    proptest::collection::vec(one, 1..24).prop_map(|steps| {
        let mut at = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let add = |at: SystemTime, ms: i64| {
            let step = Duration::from_millis(ms.unsigned_abs());
            if ms < 0 { at.checked_sub(step) } else { at.checked_add(step) }.unwrap_or(UNIX_EPOCH)
        };
        steps
            .into_iter()
            .map(|(snapshot, ms, own)| {
                at = add(at, ms);
                let own = own.map(|footprint| OwnUse { footprint, cpu_ratio: None });
                Snapshot { at, own, ..snapshot }
            })
            .collect()
    })
}

/// A minute in which other programs take memory, evenly but for some noise, and nothing of ours changes.
fn falling_minutes() -> impl Strategy<Value = Vec<Snapshot>> {
    let noise = proptest::collection::vec(0_u64..200, 60);
    (snapshots(), (2_u64..20).prop_map(Bytes::gib), 0_u64..400, noise).prop_map(|(newest, end, mib, noise)| {
        let minute = noise.into_iter().enumerate();
        minute
            .map(|(second, noise)| {
                let more = Bytes::mib(mib * (59 - second as u64) + noise);
                let memory = newest.memory.map(|memory| Memory { available: end.saturating_add(more), ..memory });
                Snapshot { at: UNIX_EPOCH + Duration::from_secs(second as u64), memory, ..newest.clone() }
            })
            .collect()
    })
}

fn outlook_of(history: &[Snapshot]) -> Outlook {
    let mut outlook = Outlook::default();
    history.iter().for_each(|snapshot| outlook.add(snapshot));
    outlook
}

fn node_lists() -> impl Strategy<Value = Vec<NodeOption>> {
    use Continuation::{Prefix, Text, Tokens};
    let known = (maybe(any::<bool>()), any::<bool>(), maybe(count().boxed()), maybe(any::<bool>()));
    let speeds = (maybe(number().boxed()), maybe(number().boxed()));
    let holds = (proptest::option::of(count()), proptest::option::of(count()));
    let trust = proptest::sample::select(&[None, Some(Trust::Rented), Some(Trust::Team), Some(Trust::Own)][..]);
    let on = [None, Some(Tokens), Some(Text), Some(Prefix), Some(Continuation::None)];
    let node = (known, speeds, holds, trust, proptest::sample::select(on.to_vec()));
    proptest::collection::vec(node, 0..4).prop_map(|nodes| {
        let named = nodes.into_iter().enumerate();
        named
            .map(|(n, (known, speeds, holds, trust, continuation))| NodeOption {
                id: format!("node-{n}"),
                name: format!("Node {n}"),
                reachable: known.0,
                has_model: known.1,
                trust,
                queue: known.2,
                decode_tokens_per_sec: speeds.0,
                prefill_tokens_per_sec: speeds.1,
                warm: known.3,
                prefix_tokens: holds.0,
                context_len: holds.1,
                continuation,
            })
            .collect()
    })
}

/// The budget in the words of the design, written down a second time.
fn budget(model: &LocalModel, policy: &Policy, snapshot: &Snapshot) -> Option<u64> {
    let memory = snapshot.memory?;
    let ram = memory.limit.unwrap_or(memory.total).0.min(memory.total.0);
    let free = memory.available.0.saturating_add(model.other_loaded.0).saturating_sub(policy.reserve.0);
    let held = model.already_loaded.map_or(0, |held| held.0);
    let gpu = snapshot.gpu.as_ref().and_then(|gpu| gpu.working_set_limit).map(|limit| limit.0.saturating_sub(1 << 30));
    Some(ram.saturating_sub(policy.reserve.0).min(free.saturating_add(held)).min(gpu.unwrap_or(u64::MAX)))
}

fn goes_to_a_node(decision: &Decision) -> bool {
    matches!(decision.target, Target::Node { .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_always_decides_and_always_says_why(
        policy in policies(), demand in demands(), history in histories(), nodes in node_lists()
    ) {
        let outlook = outlook_of(&history);
        let decision = decide(&policy, &demand, &outlook, &nodes);
        prop_assert!(!decision.sentence.is_empty() && !decision.sentence.ends_with('.'), "{}", decision.sentence);
        let texts = format!("{decision:?}");
        prop_assert!(!texts.contains("NaN") && !texts.contains("inf"), "{texts}");
        prop_assert!(decision.readings.len() >= 5);
        for reading in &decision.readings {
            prop_assert!(reading.exceeded != Some(true) || reading.value != "unknown", "{reading:?}");
        }
        prop_assert!(decision.alternatives.len() >= nodes.len().saturating_sub(1));
        if let Target::Node { id } = &decision.target {
            let node = nodes.iter().find(|node| node.id == *id);
            prop_assert!(node.is_some_and(|node| node.reachable != Some(false)));
        }
        outlook.time_until_trouble(&policy);
    }

    #[test]
    fn nothing_runs_here_over_the_budget(
        policy in policies(), demand in demands(), history in histories(), nodes in node_lists()
    ) {
        let outlook = outlook_of(&history);
        let decision = decide(&policy, &demand, &outlook, &nodes);
        if let Target::Here { context_len } = decision.target {
            let model = demand.model.as_ref().expect("nothing runs without a model");
            match budget(model, &policy, outlook.snapshot()) {
                Some(budget) => prop_assert!(model.needed(context_len).0 <= budget),
                None => prop_assert!(decision.sentence.contains("memory unknown"), "{}", decision.sentence),
            }
            let written = demand.running.as_ref().map_or(0, |running| running.tokens);
            prop_assert!(demand.prompt_tokens.is_none_or(|prompt| context_len > prompt.saturating_add(written)));
            prop_assert!(model.trained_context == 0 || context_len <= model.trained_context);
        }
    }

    /// Said a second time and apart from `may_leave`: who is asked, and who isn't.
    #[test]
    fn what_must_stay_never_leaves(
        policy in policies(), demand in demands(), history in histories(), nodes in node_lists()
    ) {
        let outlook = outlook_of(&history);
        let staying = Demand { stays_local: true, ..demand.clone() };
        prop_assert!(!goes_to_a_node(&decide(&policy, &staying, &outlook, &nodes)));
        let model_stays = Demand { model_stays_local: true, ..demand.clone() };
        prop_assert!(!goes_to_a_node(&decide(&policy, &model_stays, &outlook, &nodes)));
        let local_only = Policy { mode: OffloadMode::LocalOnly, ..policy.clone() };
        prop_assert!(!goes_to_a_node(&decide(&local_only, &demand, &outlook, &nodes)));
        let here = Demand { place: Some(Place::Here), ..demand.clone() };
        prop_assert!(!goes_to_a_node(&decide(&policy, &here, &outlook, &nodes)));
        for node in &nodes {
            prop_assert!(may_leave(&policy, &staying, node).is_err() && may_leave(&local_only, &demand, node).is_err());
        }
        if let Target::Node { id } = decide(&policy, &demand, &outlook, &nodes).target {
            let node = nodes.iter().find(|node| node.id == id).expect("a node of the list");
            prop_assert!(node.trust.unwrap_or(Trust::Rented) >= demand.least_trust);
            prop_assert!(demand.place.is_none() || demand.place == Some(Place::Node(id)));
            let pass = may_leave(&policy, &demand, node).expect("leave");
            prop_assert_eq!(pass.node_id(), &node.id);
        }
    }

    #[test]
    fn a_running_answer_goes_only_where_it_can_go_on_and_never_where_it_failed(
        policy in policies(), demand in demands(), running in running(), history in histories(), nodes in node_lists()
    ) {
        let demand = Demand { running: Some(running.clone()), ..demand };
        match decide(&policy, &demand, &outlook_of(&history), &nodes).target {
            Target::Here { .. } => prop_assert!(!running.failed.contains(&Place::Here)),
            Target::Node { id } => {
                let node = nodes.iter().find(|node| node.id == id).expect("a node of the list");
                let can_go_on = node.continuation.is_some_and(|how| how != Continuation::None);
                let place = Place::Node(id);
                prop_assert!(can_go_on || running.place == place);
                prop_assert!(!running.failed.contains(&place));
            }
            Target::Refuse => {}
        }
    }

    #[test]
    fn less_free_memory_never_brings_an_answer_here(
        policy in policies(), demand in demands(), history in histories(), nodes in node_lists(), part in 0.0..1.0
    ) {
        let decision = decide(&policy, &demand, &outlook_of(&history), &nodes);
        let mut scarcer = history;
        if let Some(memory) = scarcer.last_mut().and_then(|newest| newest.memory.as_mut()) {
            memory.available = memory.available.min(memory.available.scaled(part));
        }
        if !matches!(decision.target, Target::Here { .. }) {
            let later = decide(&policy, &demand, &outlook_of(&scarcer), &nodes);
            prop_assert!(!matches!(later.target, Target::Here { .. }), "{} then {}", decision.line(), later.line());
        }
    }

    /// The same with a trend: all of the minute with so much less free.
    #[test]
    fn less_free_memory_all_along_never_brings_an_answer_here(
        policy in policies(), demand in demands(), minute in falling_minutes(), nodes in node_lists(), less in 0_u64..2048
    ) {
        let decision = decide(&policy, &demand, &outlook_of(&minute), &nodes);
        let mut scarcer = minute;
        for memory in scarcer.iter_mut().filter_map(|snapshot| snapshot.memory.as_mut()) {
            memory.available = memory.available.saturating_sub(Bytes::mib(less));
        }
        if !matches!(decision.target, Target::Here { .. }) {
            let later = decide(&policy, &demand, &outlook_of(&scarcer), &nodes);
            prop_assert!(!matches!(later.target, Target::Here { .. }), "{} then {}", decision.line(), later.line());
        }
    }

    /// The same near the point where the context has to shrink, which random machines seldom come to.
    #[test]
    fn a_smaller_context_never_brings_an_answer_back(
        free in 5600_u64..9000, less in 0_u64..600, falling in 1_u64..30, prompt in 1_usize..6000
    ) {
        let words = |free| format!("free={free}MiB falling={falling}MiB/s prompt={prompt} node=up");
        let decision = |free| Case::parse(&words(free)).expect("a case").decide();
        let (before, later) = (decision(free), decision(free.saturating_sub(less)));
        if goes_to_a_node(&before) {
            prop_assert!(goes_to_a_node(&later), "{} then {}", before.line(), later.line());
        }
    }

    #[test]
    fn the_most_context_is_the_most(
        policy in policies(), model in models(), snapshot in snapshots(), context_len in count()
    ) {
        let fits = |tokens| matches!(fit(&model, &policy, &snapshot, tokens).verdict, Verdict::RunsWell | Verdict::Tight);
        let found = fit(&model, &policy, &snapshot, context_len);
        prop_assert_eq!(found.budget.map(|budget| budget.0), budget(&model, &policy, &snapshot));
        if let Some(most) = found.max_context.filter(|&most| most > 0) {
            prop_assert!(fits(most));
            let has_more = model.trained_context == 0 || most < model.trained_context;
            // Sums end at the largest number of bytes there is, where more looks the same.
            let is_at_the_end = model.needed(most.saturating_add(1)) == Bytes(u64::MAX);
            prop_assert!(is_at_the_end || !has_more || most == usize::MAX || model.kv_per_token.0 == 0 || !fits(most + 1));
        }
    }
}

proptest! {
    // Each case is a minute or two of looks.
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the readings waver, a strain lasts its dwell time at least, and one that only wavers around its limit
    /// doesn't come and go.
    #[test]
    fn decisions_do_not_flap(
        noise in proptest::collection::vec((0.0..1.0_f64, 0_usize..3), 240..480), around in 0.2..1.8_f64, swing in 0.0..2.0_f64
    ) {
        let policy = Policy::for_machine(Some(Bytes::gib(16)));
        let model = LocalModel { weights: Bytes::gib(4), trained_context: 32_768, ..LocalModel::default() };
        let demand = Demand { model: Some(model), prompt_tokens: Some(500), wanted_context: 8192, ..Demand::default() };
        let node = NodeOption { id: "studio".into(), reachable: Some(true), has_model: true, ..NodeOption::default() };
        let nodes = [node];
        let mut outlook = Outlook::default();
        let mut last: Option<(bool, Reason)> = None;
        let (mut left_at, mut here_at, mut changes) = (None::<f64>, None::<f64>, 0);
        for (step, (value, level)) in noise.into_iter().enumerate() {
            let seconds = step as f64 * 0.25;
            let limit = policy.max_swap_in_per_sec.0 as f64;
            let rate = (limit * (around + swing * (value - 0.5))).max(0.0);
            let thermal = [ThermalState::Nominal, ThermalState::Fair, ThermalState::Serious][level];
            outlook.add(&Snapshot {
                at: UNIX_EPOCH + Duration::from_secs_f64(seconds),
                memory: Some(Memory { total: Bytes::gib(16), available: Bytes::gib(12), ..Memory::default() }),
                swap: Some(Swap { in_per_sec: Some(Bytes(rate as u64)), ..Swap::default() }),
                pressure: Some(MemoryPressure::Normal),
                thermal: Some(thermal),
                ..Snapshot::default()
            });
            let decision = decide(&policy, &demand, &outlook, &nodes);
            let is_away = goes_to_a_node(&decision);
            if last.is_some_and(|(was_away, _)| was_away != is_away) {
                changes += 1;
                if is_away {
                    left_at = Some(seconds);
                } else {
                    // It comes back only after the dwell time of what drove it away.
                    let dwell = policy.dwell.as_secs_f64();
                    prop_assert!(left_at.is_none_or(|left| seconds - left >= dwell), "left {left_at:?}, back {seconds}");
                    prop_assert!(here_at.is_none_or(|before| seconds - before >= dwell));
                    here_at = Some(seconds);
                }
            }
            last = Some((is_away, decision.reason));
        }
        // At most one way there and one way back in each dwell time.
        prop_assert!(changes <= 2 + 2 * 120 / 10);
    }

    #[test]
    fn a_signal_that_wavers_around_its_limit_changes_the_decision_once(
        noise in proptest::collection::vec(0.0..1.0_f64, 200)
    ) {
        let policy = Policy::for_machine(Some(Bytes::gib(16)));
        let model = LocalModel { weights: Bytes::gib(4), trained_context: 32_768, ..LocalModel::default() };
        let demand = Demand { model: Some(model), prompt_tokens: Some(500), wanted_context: 8192, ..Demand::default() };
        let nodes =
            [NodeOption { id: "studio".into(), reachable: Some(true), has_model: true, ..NodeOption::default() }];
        let mut outlook = Outlook::default();
        let mut away = Vec::new();
        for (step, value) in noise.into_iter().enumerate() {
            // From three fifths of the limit, above where it lets go, to seven fifths.
            let rate = policy.max_swap_in_per_sec.0 as f64 * (0.6 + 0.8 * value);
            outlook.add(&Snapshot {
                at: UNIX_EPOCH + Duration::from_millis(250 * step as u64),
                memory: Some(Memory { total: Bytes::gib(16), available: Bytes::gib(12), ..Memory::default() }),
                swap: Some(Swap { in_per_sec: Some(Bytes(rate as u64)), ..Swap::default() }),
                ..Snapshot::default()
            });
            away.push(goes_to_a_node(&decide(&policy, &demand, &outlook, &nodes)));
        }
        let changes = away.windows(2).filter(|pair| pair[0] != pair[1]).count();
        prop_assert!(changes <= 1, "{changes}");
    }
}
