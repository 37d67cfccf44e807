#![no_main]

use std::panic;
use std::thread;

/// What a schema or a grammar may cost by the limits that the engine sets.
const MOST_MIB: usize = 512;

libfuzzer_sys::fuzz_target!(
    init: {
        // llguidance may give up with a panic, which it catches itself or the engine does, on the thread that compiles.
        let abort = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if thread::current().name() != Some("engine-grammar") {
                abort(panic);
            }
        }));
    },
    |data: &[u8]| fuzz::run(engine::fuzzing::constraint, data, MOST_MIB)
);
