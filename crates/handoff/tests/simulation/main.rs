//! Answers that move, many thousand times: in virtual time, with scripted places that fail in every way we know of, a
//! scripted machine, and the real rules of `routing`. Every scenario follows from its seed.
//!
//! `TIDEGATE_SIM_SEED=N cargo test -p handoff --test simulation` runs one scenario again and prints what happened in it;
//! `TIDEGATE_SIM_COUNT` runs more or fewer than 10,000.

mod check;
mod place;
mod random;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use random::Random;
use world::Scenario;

const USUAL_COUNT: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Runs one scenario to its end.
fn run(seed: u64) -> check::Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("the system has room for a runtime");
    let scenario = Scenario::new(&mut Random::new(seed));
    runtime.block_on(scenario.run())
}

#[test]
fn whatever_fails_nothing_is_lost_and_nothing_doubled() {
    if let Some(seed) = number("TIDEGATE_SIM_SEED") {
        let outcome = run(seed);
        println!("{outcome:#?}");
        return outcome.check();
    }
    let count = number("TIDEGATE_SIM_COUNT").unwrap_or(USUAL_COUNT);
    let mut seen = check::Seen::default();
    for seed in 0..count {
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let outcome = run(seed);
            outcome.check();
            outcome
        }));
        match checked {
            Ok(outcome) => seen.add(&outcome),
            Err(_) => panic!("scenario {seed} failed; to see it: TIDEGATE_SIM_SEED={seed}"),
        }
    }
    println!("{count} scenarios: {seen}");
    seen.assert_everything_happened();
}

#[test]
fn the_same_seed_is_the_same_scenario() {
    for seed in 0..20 {
        assert_eq!(format!("{:?}", run(seed)), format!("{:?}", run(seed)), "seed {seed}");
    }
}
