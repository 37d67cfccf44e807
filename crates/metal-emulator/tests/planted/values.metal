// Memory that nobody wrote, and addresses that are no multiple of a type's size.
#include <metal_stdlib>
using namespace metal;

#define KERNEL(name) kernel void name(device const float *x [[buffer(0)]], device float *y [[buffer(1)]], \
    threadgroup float *s [[threadgroup(0)]], uint i [[thread_position_in_grid]], uint t [[thread_position_in_threadgroup]])

KERNEL(reads_its_output) { y[i] += x[i]; }
KERNEL(reads_its_output_fixed) { y[i] = x[i]; y[i] += x[i]; }

KERNEL(threadgroup_memory_starts_zero) { s[t] += x[i]; y[i] = s[t]; }
KERNEL(threadgroup_memory_starts_zero_fixed) { s[t] = 0; s[t] += x[i]; y[i] = s[t]; }

KERNEL(half_of_a_word) { ((device half *)y)[2 * i] = half(x[i]); y[i] = y[i] + 1; }
KERNEL(half_of_a_word_fixed) { ((device half2 *)y)[i] = half2(x[i]); y[i] = y[i] + 1; }

KERNEL(short_of_the_last) {
    if (t < 63) s[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = s[63 - t];
}
KERNEL(short_of_the_last_fixed) {
    s[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = s[63 - t];
}

KERNEL(counter_starts_zero) {
    threadgroup atomic_uint count;
    atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
    y[i] = x[i];
}
KERNEL(counter_starts_zero_fixed) {
    threadgroup atomic_uint count;
    if (t == 0) atomic_store_explicit(&count, 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
    y[i] = x[i];
}

KERNEL(float4_between_floats) { y[i] = dot(*(device const float4 *)(x + i % 60), float4(1)); }
KERNEL(float4_between_floats_fixed) { y[i] = dot(float4(*(device const packed_float4 *)(x + i % 60)), float4(1)); }

KERNEL(half_at_an_odd_byte) { y[i] = float(*(device const half *)((device const char *)x + 3)); }
KERNEL(half_at_an_odd_byte_fixed) { y[i] = float(*(device const half *)((device const char *)x + 2)); }

KERNEL(divides_by_zero) { y[i] = x[i] + (64 / (t % 63)); }
KERNEL(divides_by_zero_fixed) { y[i] = x[i] + (64 / (t % 63 + 1)); }
