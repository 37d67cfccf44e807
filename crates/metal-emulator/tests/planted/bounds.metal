// Accesses outside of what a kernel was given. Each bug has a twin without it, `…_fixed`.
#include <metal_stdlib>
using namespace metal;

#define KERNEL(name) kernel void name(device const float *x [[buffer(0)]], device float *y [[buffer(1)]], \
    threadgroup float *s [[threadgroup(0)]], uint i [[thread_position_in_grid]], uint t [[thread_position_in_threadgroup]])

KERNEL(read_past_end) { y[i] = x[i + 1]; }
KERNEL(read_past_end_fixed) { y[i] = x[min(i + 1, 63u)]; }

KERNEL(write_past_end) { y[i + 1] = x[i]; }
KERNEL(write_past_end_fixed) { y[i] = x[i]; }

KERNEL(read_before_start) { y[i] = x[int(i) - 1]; }
KERNEL(read_before_start_fixed) { y[i] = x[max(int(i) - 1, 0)]; }

KERNEL(vector_past_end) { y[i] = ((device const float4 *)x)[(i + 4) / 4].x; }
KERNEL(vector_past_end_fixed) { y[i] = ((device const float4 *)x)[i / 4].x; }

KERNEL(past_threadgroup_argument) { s[t + 1] = x[i]; y[i] = s[t + 1]; }
KERNEL(past_threadgroup_argument_fixed) { s[t] = x[i]; y[i] = s[t]; }

KERNEL(past_threadgroup_variable) {
    threadgroup float sums[32];
    sums[t] = x[i];
    y[i] = sums[t];
}
KERNEL(past_threadgroup_variable_fixed) {
    threadgroup float sums[64];
    sums[t] = x[i];
    y[i] = sums[t];
}

kernel void nothing_bound(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
    device const float *z [[buffer(2)]], uint i [[thread_position_in_grid]]) { y[i] = x[i] + z[i]; }
kernel void nothing_bound_fixed(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
    device const float *, uint i [[thread_position_in_grid]]) { y[i] = x[i]; }

kernel void write_to_bytes(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
    device uint *n [[buffer(3)]], uint i [[thread_position_in_grid]]) { *n = 1; y[i] = x[i]; }
kernel void write_to_bytes_fixed(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
    constant uint &n [[buffer(3)]], uint i [[thread_position_in_grid]]) { y[i] = x[i] * n; }

KERNEL(too_much_threadgroup_memory) {
    threadgroup float first[4096];
    threadgroup float second[4096 + 64];
    first[t] = x[i];
    second[t] = x[i];
    y[i] = first[t] + second[t];
}
KERNEL(too_much_threadgroup_memory_fixed) {
    threadgroup float first[4096];
    threadgroup float second[4096 - 64];
    first[t] = x[i];
    second[t] = x[i];
    y[i] = first[t] + second[t];
}
