// The gated delta rule of `src/delta_rule.rs`. A column of the state is a thread's own, so that nobody waits for another.
#include <metal_stdlib>
using namespace metal;

struct Shape {
    uint tokens;
    uint heads;
    uint key_dim;
    uint value_dim;
};

/// rows `(tokens, heads, 2 key_dim + value_dim + 2)`: query, key, value, decay, beta; before `(heads, key_dim, value_dim)` →
/// both: outputs `(tokens, heads, value_dim)`, then the state after. A grid of `value_dim × heads` threads.
[[kernel]] void delta_rule(
    constant Shape& shape [[buffer(0)]],
    device const float* rows [[buffer(1)]],
    device const float* before [[buffer(2)]],
    device float* both [[buffer(3)]],
    uint2 at [[thread_position_in_grid]]) {
    const uint column = at.x;
    const uint head = at.y;
    if (column >= shape.value_dim || head >= shape.heads) {
        return;
    }
    const uint width = 2 * shape.key_dim + shape.value_dim + 2;
    const ulong start = ulong(head) * shape.key_dim * shape.value_dim + column;
    device float* state = both + ulong(shape.tokens) * shape.heads * shape.value_dim + start;
    for (uint i = 0; i < shape.key_dim; ++i) {
        state[i * shape.value_dim] = before[start + i * shape.value_dim];
    }
    for (uint token = 0; token < shape.tokens; ++token) {
        const ulong row = ulong(token) * shape.heads + head;
        device const float* query = rows + row * width;
        device const float* key = query + shape.key_dim;
        device const float* value = key + shape.key_dim;
        const float decay = value[shape.value_dim];
        const float beta = value[shape.value_dim + 1];
        float known = 0;
        for (uint i = 0; i < shape.key_dim; ++i) {
            const float kept = decay * state[i * shape.value_dim];
            state[i * shape.value_dim] = kept;
            known += kept * key[i];
        }
        const float correction = beta * (value[column] - known);
        float output = 0;
        for (uint i = 0; i < shape.key_dim; ++i) {
            const float next = state[i * shape.value_dim] + key[i] * correction;
            state[i * shape.value_dim] = next;
            output += next * query[i];
        }
        both[row * shape.value_dim + column] = output;
    }
}
