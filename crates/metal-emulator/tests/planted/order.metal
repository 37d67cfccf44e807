// Barriers and SIMD-group operations that not all threads reach, and races.
#include <metal_stdlib>
using namespace metal;

#define KERNEL(name) kernel void name(device const float *x [[buffer(0)]], device float *y [[buffer(1)]], \
    threadgroup float *s [[threadgroup(0)]], uint i [[thread_position_in_grid]], uint t [[thread_position_in_threadgroup]])
#define SYNC threadgroup_barrier(mem_flags::mem_threadgroup)

KERNEL(sum_in_a_branch) { y[i] = t % 32 < 16 ? simd_sum(x[i]) : 0; }
KERNEL(sum_in_a_branch_fixed) { float sum = simd_sum(x[i]); y[i] = t % 32 < 16 ? sum : 0; }

KERNEL(shuffle_after_a_barrier_of_some) {
    float v = x[i];
    if (t < 40) v = simd_shuffle_xor(v, 1);
    y[i] = v;
}
KERNEL(shuffle_after_a_barrier_of_some_fixed) {
    float v = x[i];
    if (t < 32) v = simd_shuffle_xor(v, 1);
    y[i] = v;
}

KERNEL(barrier_after_return) {
    if (t == 63) return;
    s[t] = x[i];
    SYNC;
    y[i] = s[0];
}
KERNEL(barrier_after_return_fixed) {
    s[t] = x[i];
    SYNC;
    if (t == 63) return;
    y[i] = s[0];
}

KERNEL(barrier_in_each_branch) {
    s[t] = x[i];
    if (t < 32) {
        SYNC;
    } else {
        SYNC;
    }
    y[i] = s[63 - t];
}
KERNEL(barrier_in_each_branch_fixed) {
    s[t] = x[i];
    SYNC;
    y[i] = s[63 - t];
}

KERNEL(no_barrier) { s[t] = x[i]; y[i] = s[63 - t]; }
KERNEL(no_barrier_fixed) { s[t] = x[i]; SYNC; y[i] = s[63 - t]; }

KERNEL(barrier_that_orders_nothing) { s[t] = x[i]; threadgroup_barrier(mem_flags::mem_none); y[i] = s[63 - t]; }
KERNEL(barrier_that_orders_nothing_fixed) { s[t] = x[i]; SYNC; y[i] = s[63 - t]; }

KERNEL(barrier_for_the_other_memory) { s[t] = x[i]; threadgroup_barrier(mem_flags::mem_device); y[i] = s[63 - t]; }
KERNEL(barrier_for_the_other_memory_fixed) {
    s[t] = x[i];
    threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
    y[i] = s[63 - t];
}

KERNEL(device_memory_without_its_flag) { y[i] = x[i]; SYNC; s[t] = y[i ^ 1]; }
KERNEL(device_memory_without_its_flag_fixed) { y[i] = x[i]; threadgroup_barrier(mem_flags::mem_device); s[t] = y[i ^ 1]; }

KERNEL(next_round_too_early) {
    for (int round = 0; round < 2; round++) {
        s[t] = x[i] + round;
        SYNC;
        y[i] = s[63 - t];
    }
}
KERNEL(next_round_too_early_fixed) {
    for (int round = 0; round < 2; round++) {
        s[t] = x[i] + round;
        SYNC;
        y[i] = s[63 - t];
        SYNC;
    }
}

KERNEL(all_write_one_word) { s[0] = x[i]; y[i] = x[i]; }
KERNEL(all_write_one_word_fixed) { if (t == 0) s[0] = x[i]; y[i] = x[i]; }

KERNEL(neighbours_of_a_simdgroup) { s[t] = x[i]; y[i] = s[t ^ 1]; }
KERNEL(neighbours_of_a_simdgroup_fixed) {
    s[t] = x[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = s[t ^ 1];
}

KERNEL(simdgroup_barrier_between_simdgroups) {
    s[t] = x[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = s[t ^ 32];
}
KERNEL(simdgroup_barrier_between_simdgroups_fixed) { s[t] = x[i]; SYNC; y[i] = s[t ^ 32]; }

KERNEL(atomic_and_plain) {
    threadgroup atomic_uint count;
    if (t == 0) atomic_store_explicit(&count, 0u, memory_order_relaxed);
    SYNC;
    atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
    y[i] = *(threadgroup uint *)&count;
}
KERNEL(atomic_and_plain_fixed) {
    threadgroup atomic_uint count;
    if (t == 0) atomic_store_explicit(&count, 0u, memory_order_relaxed);
    SYNC;
    atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
    SYNC;
    y[i] = *(threadgroup uint *)&count + x[i];
}

KERNEL(threadgroups_write_one_word) { if (t == 0) y[0] = x[i]; }
KERNEL(threadgroups_write_one_word_fixed) { y[i] = x[i]; }

KERNEL(threadgroups_read_what_others_write) { y[i] = x[i]; if (t == 0) y[i] = y[i < 64 ? 64 : 0]; }
KERNEL(threadgroups_read_what_others_write_fixed) { y[i] = x[i]; if (t == 0) y[i] = y[i]; }
