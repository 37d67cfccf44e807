//! The guard over answers on a machine that is made up second by second.

#![expect(clippy::unwrap_used, reason = "what a story expects and doesn't find is a failed test")]

use std::time::{Duration, UNIX_EPOCH};

use chat::Bytes;
use proptest::prelude::*;
use routing::{Advice, Concern, Facts, Guard, LocalModel, Measure, Outlook, Policy, Reason, Setup};
use vitals::{Memory, MemoryPressure, Snapshot, Swap, ThermalPressure, ThermalState};

/// A machine with an answer on it: what is set stays so until it is set again.
struct Story {
    policy: Policy,
    model: LocalModel,
    now: Snapshot,
    outlook: Outlook,
    guard: Guard,
    seconds: f64,
    tokens_per_sec: f64,
    /// Of a token that hasn't come yet.
    token: f64,
    n_past: usize,
    context_len: usize,
    trimmable: Bytes,
    can_move: bool,
}

impl Story {
    /// 16 GiB, 8 of them free; a loaded model of 4 GiB that writes 40 tokens a second after a prompt of 500.
    fn new() -> Self {
        let memory = Memory { total: Bytes::gib(16), available: Bytes::gib(8), ..Memory::default() };
        let now = Snapshot {
            memory: Some(memory),
            swap: Some(Swap { total: Bytes::gib(4), in_per_sec: Some(Bytes::ZERO), ..Swap::default() }),
            pressure: Some(MemoryPressure::Normal),
            thermal: Some(ThermalState::Nominal),
            ..Snapshot::default()
        };
        let model = LocalModel {
            weights: Bytes::gib(4),
            kv_per_token: Bytes(128 << 10),
            scratch: Bytes::mib(512),
            trained_context: 32_768,
            already_loaded: Some(Bytes::mib(4096 + 512 + 128)),
            ..LocalModel::default()
        };
        Self {
            policy: Policy::for_machine(Some(Bytes::gib(16))),
            model,
            now,
            outlook: Outlook::default(),
            guard: Guard::new(Setup::default()),
            seconds: 0.0,
            tokens_per_sec: 40.0,
            token: 0.0,
            n_past: 500,
            context_len: 8192,
            trimmable: Bytes::ZERO,
            can_move: true,
        }
    }

    /// Goes on for so long, looking four times a second; what was advised, and when.
    fn run(&mut self, seconds: f64) -> Vec<(f64, Advice)> {
        let mut advice = Vec::new();
        for _ in 0..(seconds * 4.0) as usize {
            self.seconds += 0.25;
            self.token += self.tokens_per_sec * 0.25;
            let come = self.token.floor();
            for n in 0..come as usize {
                self.guard.token(Duration::from_secs_f64(self.seconds - 0.25 + 0.25 * (n + 1) as f64 / come));
                self.n_past += 1;
            }
            self.token -= come;
            let found = self.look();
            if found != Advice::GoOn {
                advice.push((self.seconds, found));
            }
        }
        advice
    }

    fn look(&mut self) -> Advice {
        self.outlook.add(&Snapshot { at: UNIX_EPOCH + Duration::from_secs_f64(self.seconds), ..self.now.clone() });
        let facts = Facts {
            model: &self.model,
            n_past: self.n_past,
            context_len: self.context_len,
            trimmable: self.trimmable,
            can_move: self.can_move,
        };
        self.guard.look(Duration::from_secs_f64(self.seconds), &self.policy, &self.outlook, &facts)
    }

    fn may_return(&self) -> bool {
        self.guard.may_return(Duration::from_secs_f64(self.seconds), &self.policy, &self.outlook)
    }

    fn swap_in(&mut self, mib: u64) {
        self.now.swap.as_mut().unwrap().in_per_sec = Some(Bytes::mib(mib));
    }

    fn free(&mut self, bytes: Bytes) {
        self.now.memory.as_mut().unwrap().available = bytes;
    }
}

fn hand_off(advice: &Advice) -> &Concern {
    match advice {
        Advice::HandOff(concern) => concern,
        other => panic!("not handed off: {other:?}"),
    }
}

fn measure(advice: &Advice) -> Measure {
    match advice {
        Advice::Relieve(measure, _) => *measure,
        other => panic!("not relieved: {other:?}"),
    }
}

#[test]
fn an_answer_on_a_calm_machine_goes_on() {
    let mut story = Story::new();
    assert_eq!(story.run(120.0), []);
    assert!(!story.may_return(), "it never left");
}

#[test]
fn swapping_is_met_with_what_is_idle_first_and_then_with_a_hand_off() {
    let mut story = Story::new();
    story.model.other_loaded = Bytes::gib(2);
    story.trimmable = Bytes::mib(256);
    story.run(20.0);
    story.swap_in(9);
    let advice = story.run(20.0);
    let [(first, unload), (second, trim), (third, move_it), ..] = advice.as_slice() else { panic!("{advice:?}") };
    assert_eq!((measure(unload), measure(trim)), (Measure::UnloadIdleModels, Measure::TrimCaches));
    let concern = hand_off(move_it);
    assert_eq!((concern.reason, concern.sentence.as_str()), (Reason::Swap, "swaps in 9.0 MB/s"));
    assert!(concern.readings.iter().any(|reading| reading.name == "Swap in" && reading.exceeded == Some(true)));
    assert!(concern.readings.iter().any(|reading| reading.name == "Speed now" && reading.exceeded == Some(false)));
    assert!((21.0..23.0).contains(first) && second - first >= 5.0 && third - second >= 5.0, "{advice:?}");
}

#[test]
fn a_measure_that_helped_is_the_end_of_it() {
    let mut story = Story::new();
    story.model.other_loaded = Bytes::gib(2);
    story.run(20.0);
    story.swap_in(9);
    assert_eq!(story.run(4.0).len(), 1);
    story.swap_in(0);
    story.model.other_loaded = Bytes::ZERO;
    assert_eq!(story.run(60.0), []);
}

#[test]
fn thrashing_and_critical_pressure_do_not_wait_for_measures() {
    let mut thrashing = Story::new();
    thrashing.model.other_loaded = Bytes::gib(2);
    thrashing.run(20.0);
    thrashing.swap_in(200);
    let advice = thrashing.run(5.0);
    assert!(hand_off(&advice[0].1).is_urgent && advice[0].0 < 23.0, "{advice:?}");

    let mut critical = Story::new();
    critical.model.other_loaded = Bytes::gib(2);
    critical.run(20.0);
    critical.now.pressure = Some(MemoryPressure::Critical);
    let advice = critical.run(0.25);
    assert_eq!(hand_off(&advice[0].1).reason, Reason::Pressure);
    assert!(hand_off(&advice[0].1).is_urgent);

    // With nowhere to go to, making room is all there is.
    let mut alone = Story::new();
    alone.model.other_loaded = Bytes::gib(2);
    alone.can_move = false;
    alone.run(20.0);
    alone.now.pressure = Some(MemoryPressure::Critical);
    let advice = alone.run(30.0);
    assert_eq!(advice.len(), 1, "{advice:?}");
    assert_eq!(measure(&advice[0].1), Measure::UnloadIdleModels);
}

#[test]
fn heat_moves_an_answer_and_it_comes_back_when_the_machine_has_cooled() {
    let mut story = Story::new();
    story.run(20.0);
    story.now.thermal = Some(ThermalState::Serious);
    let advice = story.run(5.0);
    assert_eq!(hand_off(&advice[0].1).sentence, "is too hot (serious)");
    assert!(!story.may_return());
    // Elsewhere now: nothing is written here.
    story.tokens_per_sec = 0.0;
    story.now.thermal = Some(ThermalState::Fair);
    let mut returned = None;
    for step in 0..240 {
        story.seconds += 0.25;
        story.outlook.add(&Snapshot { at: UNIX_EPOCH + Duration::from_secs_f64(story.seconds), ..story.now.clone() });
        if story.may_return() {
            returned = Some(f64::from(step) * 0.25);
            break;
        }
    }
    assert!((30.0..34.0).contains(&returned.unwrap()), "{returned:?}");
    story.guard.resume();
    story.tokens_per_sec = 40.0;
    assert_eq!(story.run(30.0), []);
}

#[test]
fn heat_without_a_node_slows_the_answer_down_until_it_has_cooled() {
    let mut story = Story::new();
    story.can_move = false;
    story.run(20.0);
    story.now.thermal = Some(ThermalState::Serious);
    let advice = story.run(20.0);
    assert_eq!(advice.len(), 1, "{advice:?}");
    let Measure::Pace(pace) = measure(&advice[0].1) else { panic!("{advice:?}") };
    assert!((pace - 20.0).abs() < 1.0, "{pace}");
    story.now.thermal = Some(ThermalState::Nominal);
    story.run(20.0);
    assert!(!story.may_return());
    story.run(15.0);
    assert!(story.may_return());
}

#[test]
fn a_slower_answer_says_what_is_likely_to_blame() {
    let slowed = |change: fn(&mut Story)| {
        let mut story = Story::new();
        story.run(20.0);
        change(&mut story);
        story.tokens_per_sec = 24.0;
        let advice = story.run(15.0);
        let (seconds, first) = advice.first().unwrap_or_else(|| panic!("nothing advised"));
        assert!((22.0..28.0).contains(seconds), "{seconds}");
        let concern = hand_off(first).clone();
        assert!((concern.tokens_per_sec.unwrap() - 24.0).abs() < 1.0);
        (concern.reason, concern.sentence, story)
    };
    let (reason, sentence, mut warm) = slowed(|story| story.now.thermal_pressure = Some(ThermalPressure::Moderate));
    assert_eq!(
        (reason, sentence.as_str()),
        (Reason::Thermal, "writes 24 tok/s instead of 39 tok/s, likely because of heat (fair)")
    );
    warm.run(40.0);
    assert!(!warm.may_return(), "it is as warm as it was when it became slow");

    let (reason, sentence, _) = slowed(|story| story.swap_in(3));
    assert_eq!(
        (reason, sentence.as_str()),
        (Reason::Swap, "writes 24 tok/s instead of 39 tok/s, likely because of swapping")
    );
    let (reason, sentence, alone) = slowed(|_| ());
    assert_eq!((reason, sentence.as_str()), (Reason::TooSlow, "writes 24 tok/s instead of 39 tok/s"));
    assert!(!alone.may_return());
}

#[test]
fn a_cache_that_outgrows_what_is_free_is_seen_before_it_does() {
    let mut story = Story::new();
    // 16,384 tokens take 2 GiB; a gibibyte is free beyond the reserve of 1,638.4 MiB.
    story.context_len = 16_384;
    story.model.already_loaded = Some(Bytes::mib(4096 + 512 + 128));
    story.free(Bytes::mib(1024 + 1639));
    let advice = story.run(400.0);
    let (seconds, first) = &advice[0];
    let concern = hand_off(first);
    assert_eq!(concern.reason, Reason::Memory);
    // 128 + 1,024 MiB are 9,216 tokens, of which 500 were there: 218 s at 40 a second, less the 20 that moving takes.
    assert!((190.0..200.0).contains(seconds), "{seconds}");
    assert!(concern.sentence.starts_with("would run out of memory for this chat in about "), "{}", concern.sentence);

    // With nowhere to go, the context ends where the memory does.
    let mut alone = Story::new();
    alone.context_len = 16_384;
    alone.can_move = false;
    alone.free(Bytes::mib(1024 + 1639));
    let advice = alone.run(300.0);
    assert_eq!(measure(&advice[0].1), Measure::CapContext(9216));
    assert_eq!(advice.len(), 1);

    // An answer that is expected to end before needs no more than that.
    let mut expected = Story::new();
    expected.guard = Guard::new(Setup { answer_tokens: Some(8000), usual_tokens_per_sec: None });
    expected.context_len = 16_384;
    expected.free(Bytes::mib(1024 + 1639));
    assert_eq!(measure(&expected.run(210.0)[0].1), Measure::CapContext(9216));

    // One that can't grow so far is left alone.
    let mut short = Story::new();
    short.context_len = 4096;
    short.free(Bytes::mib(1024 + 1639));
    assert_eq!(short.run(80.0), []);
}

#[test]
fn memory_that_others_take_is_seen_before_it_is_gone() {
    let mut story = Story::new();
    story.model.other_loaded = Bytes::gib(1);
    let mut advice = Vec::new();
    for second in 0..60 {
        story.free(Bytes::mib(8 * 1024 - 128 * second));
        advice.extend(story.run(1.0));
    }
    assert_eq!(measure(&advice[0].1), Measure::UnloadIdleModels);
    let concern = hand_off(&advice[1].1);
    assert_eq!(concern.reason, Reason::MemorySoon);
    // 6,554 MiB beyond the reserve, at 128 a second and five for the answer: gone after 49 s.
    assert!((28.0..36.0).contains(&advice[0].0), "{advice:?}");
}

#[test]
fn unknown_readings_advise_nothing() {
    let mut story = Story::new();
    story.now = Snapshot::default();
    assert_eq!(story.run(30.0), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Noise around every limit at once: no measure twice, and a dwell time between two hand-offs that aren't urgent.
    #[test]
    fn advice_does_not_flap(
        steps in proptest::collection::vec((0_u64..12, 0_usize..3, 20.0..44.0_f64, 0_u64..200), 60..240),
        can_move in any::<bool>(), idle in any::<bool>(),
    ) {
        let mut story = Story::new();
        story.can_move = can_move;
        story.model.other_loaded = if idle { Bytes::gib(1) } else { Bytes::ZERO };
        story.run(10.0);
        let (mut hand_offs, mut measures) = (Vec::new(), Vec::new());
        for (swap, level, tokens_per_sec, less) in steps {
            story.swap_in(swap);
            story.now.thermal = Some([ThermalState::Nominal, ThermalState::Fair, ThermalState::Serious][level]);
            story.tokens_per_sec = tokens_per_sec;
            story.free(Bytes::mib(1638 + 200 - less));
            for (seconds, advice) in story.run(0.5) {
                match advice {
                    Advice::HandOff(concern) => {
                        prop_assert!(can_move && !concern.is_urgent);
                        hand_offs.push(seconds);
                    }
                    Advice::Relieve(Measure::Pace(_), _) => prop_assert!(!can_move),
                    Advice::Relieve(measure, _) => measures.push(std::mem::discriminant(&measure)),
                    Advice::GoOn => {}
                }
            }
        }
        let dwell = story.policy.dwell.as_secs_f64();
        prop_assert!(hand_offs.windows(2).all(|pair| pair[1] - pair[0] >= dwell), "{hand_offs:?}");
        prop_assert!((1..measures.len()).all(|n| !measures[..n].contains(&measures[n])), "{measures:?}");
    }

    #[test]
    fn it_bears_any_readings_and_times(
        looks in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<usize>(), any::<u64>()), 1..60),
        slowdown in proptest::num::f64::ANY, usual in proptest::num::f64::ANY,
    ) {
        let policy = Policy { max_slowdown_ratio: slowdown, min_decode_tokens_per_sec: usual, ..Policy::default() };
        let mut guard = Guard::new(Setup { answer_tokens: None, usual_tokens_per_sec: Some(usual) });
        let mut outlook = Outlook::default();
        for (a, b, c, n, at) in looks {
            let memory = Memory { total: Bytes(a), available: Bytes(b), ..Memory::default() };
            let swap = Swap { used: Bytes(c), in_per_sec: Some(Bytes(a ^ b)), ..Swap::default() };
            let when = UNIX_EPOCH.checked_add(Duration::from_millis(at >> 20)).unwrap_or(UNIX_EPOCH);
            outlook.add(&Snapshot { at: when, memory: Some(memory), swap: Some(swap), ..Snapshot::default() });
            let model = LocalModel { weights: Bytes(c), kv_per_token: Bytes(a >> 20), ..LocalModel::default() };
            let facts = Facts { model: &model, n_past: n, context_len: n / 2, trimmable: Bytes(b), can_move: n % 2 == 0 };
            guard.token(Duration::from_nanos(at));
            if let Advice::HandOff(concern) | Advice::Relieve(_, concern) =
                guard.look(Duration::from_nanos(at), &policy, &outlook, &facts)
            {
                prop_assert!(!concern.sentence.is_empty() && !concern.sentence.contains("NaN"));
            }
            guard.may_return(Duration::from_nanos(c), &policy, &outlook);
        }
    }
}
