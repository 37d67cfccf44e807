//! What holds for every policy, demand, snapshot and list of nodes, garbage included.

use chat::Bytes;
use proptest::prelude::*;
use routing::{
    Decision, Demand, LocalModel, NodeOption, OffloadMode, Outlook, PlaceChoice, Policy, Target, Verdict, decide, fit,
};
use vitals::{Gpu, Memory, MemoryPressure, Snapshot, Swap, ThermalPressure, ThermalState};

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

prop_compose! {
    fn policies()(
        mode in proptest::sample::select(&[OffloadMode::LocalOnly, OffloadMode::Auto, OffloadMode::Remote][..]),
        reserve in prop_oneof![3 => (0_u64..8192).prop_map(Bytes::mib), 1 => bytes()],
        max_swap_used_ratio in prop_oneof![3 => 0.0..1.0, 1 => number()],
        max_swap_in_per_sec in bytes(),
        max_thermal in thermal(),
        min_decode_tokens_per_sec in number(),
    ) -> Policy {
        Policy { mode, reserve, max_swap_used_ratio, max_swap_in_per_sec, max_thermal, min_decode_tokens_per_sec, ..Policy::default() }
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
        decode_tokens_per_sec in maybe(number().boxed()),
    ) -> LocalModel {
        LocalModel { weights, kv_per_token, scratch, trained_context, already_loaded, other_loaded, decode_tokens_per_sec, ..LocalModel::default() }
    }
}

prop_compose! {
    fn demands()(
        model in maybe(models().boxed()),
        prompt_tokens in maybe(count().boxed()),
        wanted_context in count(),
        stays_local in proptest::bool::weighted(0.2),
        place in proptest::option::weighted(0.3, prop_oneof![
            Just(PlaceChoice::Here),
            (0..4).prop_map(|n| PlaceChoice::Node(format!("node-{n}"))),
        ]),
    ) -> Demand {
        Demand { model, prompt_tokens, wanted_context, stays_local, place, ..Demand::default() }
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

fn node_lists() -> impl Strategy<Value = Vec<NodeOption>> {
    let node = (maybe(any::<bool>()), any::<bool>(), maybe(count().boxed()), maybe(number().boxed()));
    proptest::collection::vec(node, 0..4).prop_map(|nodes| {
        let named = nodes.into_iter().enumerate();
        named
            .map(|(n, (reachable, has_model, queue, decode_tokens_per_sec))| NodeOption {
                id: format!("node-{n}"),
                name: format!("Node {n}"),
                reachable,
                has_model,
                queue,
                decode_tokens_per_sec,
                ..NodeOption::default()
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
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_always_decides_and_always_says_why(
        policy in policies(), demand in demands(), snapshot in snapshots(), nodes in node_lists()
    ) {
        let decision = decide(&policy, &demand, &Outlook::of(&snapshot), &nodes);
        prop_assert!(!decision.sentence.is_empty() && !decision.sentence.ends_with('.'), "{}", decision.sentence);
        prop_assert!(!decision.sentence.contains("NaN"), "{}", decision.sentence);
        prop_assert!(decision.readings.len() >= 5);
        for reading in &decision.readings {
            prop_assert!(reading.exceeded != Some(true) || reading.value != "unknown", "{reading:?}");
        }
        prop_assert!(decision.alternatives.len() >= nodes.len().saturating_sub(1));
        if let Target::Node { id } = &decision.target {
            let node = nodes.iter().find(|node| node.id == *id);
            prop_assert!(node.is_some_and(|node| node.reachable != Some(false)));
        }
    }

    #[test]
    fn nothing_runs_here_over_the_budget(
        policy in policies(), demand in demands(), snapshot in snapshots(), nodes in node_lists()
    ) {
        let decision = decide(&policy, &demand, &Outlook::of(&snapshot), &nodes);
        if let Target::Here { context_len } = decision.target {
            let model = demand.model.as_ref().expect("nothing runs without a model");
            match budget(model, &policy, &snapshot) {
                Some(budget) => prop_assert!(model.needed(context_len).0 <= budget),
                None => prop_assert!(decision.sentence.contains("memory unknown"), "{}", decision.sentence),
            }
            prop_assert!(demand.prompt_tokens.is_none_or(|prompt| context_len > prompt));
            prop_assert!(model.trained_context == 0 || context_len <= model.trained_context);
        }
    }

    #[test]
    fn what_must_stay_never_leaves(
        policy in policies(), demand in demands(), snapshot in snapshots(), nodes in node_lists()
    ) {
        let staying = Demand { stays_local: true, ..demand.clone() };
        prop_assert!(!goes_to_a_node(&decide(&policy, &staying, &Outlook::of(&snapshot), &nodes)));
        let local_only = Policy { mode: OffloadMode::LocalOnly, ..policy };
        prop_assert!(!goes_to_a_node(&decide(&local_only, &demand, &Outlook::of(&snapshot), &nodes)));
    }

    #[test]
    fn less_free_memory_never_brings_an_answer_here(
        policy in policies(), demand in demands(), snapshot in snapshots(), nodes in node_lists(), part in 0.0..1.0
    ) {
        let mut scarcer = snapshot.clone();
        if let Some(memory) = &mut scarcer.memory {
            memory.available = memory.available.min(memory.available.scaled(part));
        }
        let decision = decide(&policy, &demand, &Outlook::of(&snapshot), &nodes);
        if !matches!(decision.target, Target::Here { .. }) {
            let later = decide(&policy, &demand, &Outlook::of(&scarcer), &nodes);
            prop_assert!(!matches!(later.target, Target::Here { .. }), "{} then {}", decision.line(), later.line());
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
