#![no_main]

/// What a template may cost by the limits that the engine sets.
const MOST_MIB: usize = 512;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run(engine::fuzzing::template, data, MOST_MIB));
