#![no_main]

const MOST_MIB: usize = 64;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run(engine::fuzzing::tokenizer, data, MOST_MIB));
