//! Kernels with one bug each: every one is caught, as what it is, in every lane order, and its twin without the bug
//! passes.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, which may panic")]

use metal_emulator::{Buffer, Checks, Fault, FaultKind, Launch, Order, library};

const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Shuffled(7)];

/// 64 threads a threadgroup, 64 floats of threadgroup memory; `x` is written and `y` is not.
fn launch(file: &str, kernel: &str, threadgroups: u32, order: Order) -> Result<(), Fault> {
    let threads = 64 * threadgroups;
    let x = Buffer::from_slice(&(0..threads).map(|i| i as f32).collect::<Vec<_>>());
    let y = Buffer::new(4 * threads as usize);
    Launch::new(library(&format!("planted/{file}")).unwrap(), kernel)
        .threadgroups([threadgroups, 1, 1], [64, 1, 1])
        .buffer(0, &x, 0)
        .buffer(1, &y, 0)
        .value(3, &1u32)
        .threadgroup_memory(0, 256)
        .order(order)
        .run()
}

/// The kernel, how many threadgroups it is launched with, and what it must be caught as.
type Bug = (&'static str, u32, fn(&FaultKind) -> bool);

fn check(file: &str, bugs: &[Bug]) {
    let library = library(&format!("planted/{file}")).unwrap();
    for (kernel, threadgroups, is_expected) in bugs {
        for order in ORDERS {
            let fault = launch(file, kernel, *threadgroups, order).expect_err(kernel);
            assert!(is_expected(&fault.kind), "{kernel}, {order:?}: {fault}");
            assert!(fault.line.is_some() || matches!(fault.kind, FaultKind::ThreadgroupMemory { .. }), "{fault}");
            if let Err(fault) = launch(file, &format!("{kernel}_fixed"), *threadgroups, order) {
                panic!("{order:?}: {fault}");
            }
        }
        println!("{}", launch(file, kernel, *threadgroups, Order::Forward).unwrap_err());
    }
    // Nobody forgets to list one.
    assert_eq!(library.kernels().len(), 2 * bugs.len(), "kernels of {file}.metal");
}

#[test]
fn accesses_out_of_bounds() {
    let outside: fn(&FaultKind) -> bool = |kind| matches!(kind, FaultKind::OutOfBounds { .. });
    check(
        "bounds",
        &[
            ("read_past_end", 1, outside),
            ("write_past_end", 1, outside),
            ("read_before_start", 1, outside),
            ("vector_past_end", 1, outside),
            ("past_threadgroup_argument", 1, outside),
            ("past_threadgroup_variable", 1, outside),
            ("nothing_bound", 1, outside),
            ("write_to_bytes", 1, |kind| matches!(kind, FaultKind::ReadOnly { .. })),
            ("too_much_threadgroup_memory", 1, |kind| matches!(kind, FaultKind::ThreadgroupMemory { .. })),
        ],
    );
}

#[test]
fn memory_that_nobody_wrote_and_misaligned_accesses() {
    let unwritten: fn(&FaultKind) -> bool = |kind| matches!(kind, FaultKind::Uninitialized { .. });
    let misaligned: fn(&FaultKind) -> bool = |kind| matches!(kind, FaultKind::Misaligned { .. });
    check(
        "values",
        &[
            ("reads_its_output", 1, unwritten),
            ("threadgroup_memory_starts_zero", 2, unwritten),
            ("half_of_a_word", 1, unwritten),
            ("short_of_the_last", 1, unwritten),
            ("counter_starts_zero", 1, unwritten),
            ("float4_between_floats", 1, misaligned),
            ("half_at_an_odd_byte", 1, misaligned),
            ("divides_by_zero", 1, |kind| *kind == FaultKind::DivisionByZero),
        ],
    );
}

#[test]
fn divergence_and_races() {
    let divergent: fn(&FaultKind) -> bool = |kind| matches!(kind, FaultKind::DivergentSimd { .. });
    let race: fn(&FaultKind) -> bool = |kind| matches!(kind, FaultKind::Race { .. });
    // In some orders a thread reads before the other has written.
    let race_or_unwritten: fn(&FaultKind) -> bool =
        |kind| matches!(kind, FaultKind::Race { .. } | FaultKind::Uninitialized { .. });
    let between_threadgroups: fn(&FaultKind) -> bool = |kind| matches!(kind, FaultKind::ThreadgroupRace { .. });
    let between_or_unwritten: fn(&FaultKind) -> bool =
        |kind| matches!(kind, FaultKind::ThreadgroupRace { .. } | FaultKind::Uninitialized { .. });
    check(
        "order",
        &[
            ("sum_in_a_branch", 1, divergent),
            ("shuffle_after_a_barrier_of_some", 1, divergent),
            ("barrier_after_return", 1, |kind| matches!(kind, FaultKind::BarrierNotReached { finished: 1, .. })),
            ("barrier_in_each_branch", 1, |kind| matches!(kind, FaultKind::BarrierMismatch { .. })),
            ("no_barrier", 1, race_or_unwritten),
            ("barrier_that_orders_nothing", 1, race),
            ("barrier_for_the_other_memory", 1, race),
            ("device_memory_without_its_flag", 1, race),
            ("next_round_too_early", 1, race),
            ("all_write_one_word", 1, race),
            ("neighbours_of_a_simdgroup", 1, race_or_unwritten),
            ("simdgroup_barrier_between_simdgroups", 1, race_or_unwritten),
            ("atomic_and_plain", 1, race),
            ("threadgroups_write_one_word", 2, between_threadgroups),
            ("threadgroups_read_what_others_write", 2, between_or_unwritten),
        ],
    );
}

/// Without looking at accesses, guard pages still stop what leaves a buffer by more than its last 16 bytes.
#[test]
fn fast_launches_stop_at_guard_pages() {
    let library = library("planted/bounds").unwrap();
    let (x, y) = (Buffer::from_slice(&[1f32; 64]), Buffer::new(256));
    let launch = Launch::new(library, "read_past_end").threadgroups([1, 1, 1], [65, 1, 1]);
    let launch = launch.buffer(0, &x, 0).buffer(1, &y, 0).threadgroup_memory(0, 512).checks(Checks::Fast);
    let fault = launch.run().unwrap_err();
    assert!(matches!(fault.kind, FaultKind::OutOfBounds { .. }), "{fault}");
    assert_eq!(launch.clone().threadgroups([1, 1, 1], [60, 1, 1]).run(), Ok(()));
}

#[test]
fn wrong_launches_say_what_is_wrong() {
    let library = library("planted/bounds").unwrap();
    let y = Buffer::new(16);
    let message = |launch: Launch| launch.run().unwrap_err().to_string();
    assert!(message(Launch::new(library, "no_such")).contains("no such kernel"));
    assert!(message(Launch::new(library, "read_past_end").threads([1; 3], [1025, 1, 1])).contains("1024"));
    assert!(message(Launch::new(library, "read_past_end").buffer(1, &y, 17)).contains("byte 17"));
}
