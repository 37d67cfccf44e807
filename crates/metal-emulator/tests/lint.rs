//! Files of ours keep their address spaces apart, and the lint finds those that don't.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic")]

use metal_emulator::{libraries, lint};
use std::fs;
use std::path::Path;

/// What clang says against a kernel with this body and `device float *x`, `constant float &c`, `threadgroup float *s`.
fn check(name: &str, body: &str) -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.metal"));
    let text = format!(
        "#include <metal_stdlib>\nusing namespace metal;\nconstant float table[] = {{1, 2}};\n\
         void add(device float *to, float what) {{ *to += what; }}\n\
         kernel void f(device float *x, constant float &c, threadgroup float *s, uint i [[thread_position_in_grid]]) {{\n{body}\n}}\n"
    );
    fs::write(&file, text).unwrap();
    lint::address_spaces(&file).unwrap()
}

#[test]
fn files_of_ours_keep_address_spaces_apart() {
    for library in libraries().iter().filter(|library| !library.name().starts_with("candle/")) {
        assert_eq!(lint::address_spaces(library.source()).unwrap(), "", "{}", library.name());
    }
}

#[test]
fn mixed_address_spaces_are_found() {
    for (name, body) in [
        ("call", "add(s, c);"),
        ("assign", "device float *y = s;"),
        ("reference", "thread float &y = x[0];"),
        ("constant", "device const float *y = &c;"),
        ("variable", "threadgroup float sums[4]; device float *y = sums;"),
        ("write", "table[0] = 1;"),
    ] {
        let found = check(name, body);
        assert!(found.contains(&format!("{name}.metal:6")), "{name}: {found:?}");
    }
}

#[test]
fn separate_address_spaces_pass() {
    let body = "threadgroup float sums[4]; threadgroup float *t = sums; sums[i] = x[i] + c + s[0] + table[i & 1];\n\
                threadgroup_barrier(mem_flags::mem_threadgroup);\n\
                add(x + i, t[0] * float4(*(device float4 *)x).x + simd_sum(t[1]));\n\
                atomic_fetch_add_explicit((device atomic_uint *)x, 1u, memory_order_relaxed);\n\
                simdgroup_float8x8 m; simdgroup_load(m, x); simdgroup_store(m, s);";
    assert_eq!(check("separate", body), "");
}
