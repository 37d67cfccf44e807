//! The report of what never ran.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic")]

use metal_emulator::{Buffer, Launch, coverage, library};

/// The line of `tests/planted/values.metal` that holds `text`.
fn line_of(text: &str) -> u32 {
    let metal = include_str!("planted/values.metal");
    metal.lines().position(|line| line.contains(text)).unwrap() as u32 + 1
}

#[test]
fn kernels_and_lines_that_never_ran_are_named() {
    let (x, y) = (Buffer::from_slice(&[1f32; 64]), Buffer::new(256));
    Launch::new(library("planted/values").unwrap(), "short_of_the_last_fixed")
        .threadgroups([1, 1, 1], [64, 1, 1])
        .buffer(0, &x, 0)
        .buffer(1, &y, 0)
        .threadgroup_memory(0, 256)
        .run()
        .unwrap();
    let report = coverage::report(|name| name == "planted/values");
    assert_eq!(report.kernels, (16, 1));
    let idle = &report.idle_kernels["planted/values"];
    assert!(idle.contains(&"short_of_the_last") && !idle.contains(&"short_of_the_last_fixed"), "{idle:?}");
    let idle: Vec<u32> = report.idle_lines.iter().map(|line| line.line).collect();
    assert!(idle.contains(&line_of("if (t < 63) s[t] = x[i];")), "{report}");
    // The twin's first line is like the other's but for the condition.
    let ran = line_of("KERNEL(short_of_the_last_fixed)") + 1;
    assert!((ran..ran + 3).all(|line| !idle.contains(&line)), "{report}");
}
