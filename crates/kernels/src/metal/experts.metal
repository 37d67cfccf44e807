// Which experts a token gets and what comes of it: `src/experts.rs`. Nothing of this is read back.
#include <metal_stdlib>
using namespace metal;

struct Routing {
    uint experts;
    uint used;
    /// As `Gating` counts them.
    uint gating;
    uint groups;
    uint groups_used;
    /// Whether there is a choice bias or an expert scale.
    uint has_values;
    uint norms_weights;
    float weight_scale;
};

constant constexpr uint SOFTMAX = 0;
constant constexpr uint SIGMOID = 1;
constant constexpr uint SQRT_SOFTPLUS = 2;
constant constexpr uint SOFTMAX_OF_CHOSEN = 3;

/// `ln(1 + y)` for y from 0 to 1, as `2 artanh(y / (2 + y))`: Metal has no `log1p`, and `log(1 + y)` loses a small y.
static inline float log_of_one_and(float y) {
    const float s = y / (2.0f + y);
    float sum = 0;
    for (int power = 13; power > 0; power -= 2) {
        sum = sum * s * s + 1.0f / float(power);
    }
    return 2.0f * s * sum;
}

/// What turns the logits of a token into scores.
struct Gate {
    uint gating;
    float most;
    float sum;

    float score(float logit) const {
        if (gating == SOFTMAX) {
            return precise::exp(logit - most) / sum;
        }
        if (gating == SIGMOID) {
            return 1.0f / (1.0f + precise::exp(-logit));
        }
        if (gating == SQRT_SOFTPLUS) {
            return sqrt(max(logit, 0.0f) + log_of_one_and(precise::exp(-abs(logit))));
        }
        return logit;
    }
};

/// By a whole SIMD-group.
static inline Gate gate_of(device const float* logits, constant Routing& routing, uint lane) {
    Gate gate = {routing.gating, 0, 1};
    if (routing.gating == SOFTMAX) {
        float most = -INFINITY;
        for (uint i = lane; i < routing.experts; i += 32) {
            most = max(most, logits[i]);
        }
        gate.most = simd_max(most);
        float sum = 0;
        for (uint i = lane; i < routing.experts; i += 32) {
            sum += precise::exp(logits[i] - gate.most);
        }
        gate.sum = simd_sum(sum);
    }
    return gate;
}

/// An integer that orders floats as Rust's `total_cmp` does: NaN has its place, whatever the compiler makes of NaN.
static inline int key_of(float value) {
    const int bits = as_type<int>(value);
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}

/// A place in the order of values: the largest first, of equals the first.
struct Place {
    int key;
    int index;

    bool is_before(int other, int at) const { return key > other || (key == other && index < at); }
};

static inline Place before_all() { return {numeric_limits<int>::max(), -1}; }

/// The value that comes after `last`, found by a whole SIMD-group; `count` where there is none.
static inline Place next(threadgroup const float* values, int count, Place last, uint lane) {
    Place best = {numeric_limits<int>::lowest(), count};
    for (int i = int(lane); i < count; i += 32) {
        const int key = key_of(values[i]);
        if (last.is_before(key, i) && (best.index == count || key > best.key)) {
            best = {key, i};
        }
    }
    const int key = simd_max(best.key);
    return {key, simd_min(best.key == key ? best.index : count)};
}

/// logits `(tokens, experts)` → ids `(tokens, used)`, the best first. bias `(experts)` counts for the choice. `by` has room
/// for `experts + groups` values. A grid of `tokens` SIMD-groups.
[[kernel]] void choose_experts(
    constant Routing& routing [[buffer(0)]],
    device const float* all_logits [[buffer(1)]],
    device const float* bias [[buffer(2)]],
    device uint* ids [[buffer(3)]],
    threadgroup float* by [[threadgroup(0)]],
    uint token [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]) {
    const uint experts = routing.experts;
    device const float* logits = all_logits + ulong(token) * experts;
    const Gate gate = gate_of(logits, routing, lane);
    for (uint i = lane; i < experts; i += 32) {
        const float score = gate.score(logits[i]);
        by[i] = routing.has_values ? score + bias[i] : score;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (routing.groups_used < routing.groups) {
        // A group counts as much as its best two experts.
        threadgroup float* sums = by + experts;
        const uint len = experts / routing.groups;
        for (uint group = lane; group < routing.groups; group += 32) {
            threadgroup const float* scores = by + group * len;
            uint best = 0;
            for (uint i = 1; i < len; ++i) {
                best = key_of(scores[i]) > key_of(scores[best]) ? i : best;
            }
            uint second = best == 0 ? 1 : 0;
            for (uint i = second + 1; i < len; ++i) {
                second = i != best && key_of(scores[i]) > key_of(scores[second]) ? i : second;
            }
            sums[group] = len == 1 ? scores[0] : scores[best] + scores[second];
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        Place last = before_all();
        for (uint k = 0; k < routing.groups_used; ++k) {
            last = next(sums, int(routing.groups), last, lane);
        }
        for (uint i = lane; i < experts; i += 32) {
            if (last.is_before(key_of(sums[i / len]), int(i / len))) {
                by[i] = -INFINITY;
            }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    Place last = before_all();
    for (uint k = 0; k < routing.used; ++k) {
        last = next(by, int(experts), last, lane);
        if (lane == 0) {
            ids[ulong(token) * routing.used + k] = uint(last.index);
        }
    }
}

/// logits `(tokens, experts)`, ids `(tokens, used)` → weights `(tokens, used)`; an id that is no expert has a score of 0.
/// scale `(experts)` multiplies an expert's weight. A grid of `tokens` SIMD-groups.
[[kernel]] void weigh_experts(
    constant Routing& routing [[buffer(0)]],
    device const float* all_logits [[buffer(1)]],
    device const uint* all_ids [[buffer(2)]],
    device const float* scale [[buffer(3)]],
    device float* all_weights [[buffer(4)]],
    uint token [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]) {
    device const float* logits = all_logits + ulong(token) * routing.experts;
    const Gate gate = gate_of(logits, routing, lane);
    if (lane > 0) {
        return;
    }
    device const uint* ids = all_ids + ulong(token) * routing.used;
    device float* weights = all_weights + ulong(token) * routing.used;
    float most = -INFINITY;
    for (uint k = 0; k < routing.used; ++k) {
        weights[k] = ids[k] < routing.experts ? gate.score(logits[ids[k]]) : 0.0f;
        most = max(most, weights[k]);
    }
    float sum = 0;
    for (uint k = 0; k < routing.used; ++k) {
        if (routing.gating == SOFTMAX_OF_CHOSEN) {
            weights[k] = precise::exp(weights[k] - most);
        }
        sum += weights[k];
    }
    const float softmax = routing.gating == SOFTMAX_OF_CHOSEN ? 1.0f / sum : 1.0f;
    const float norm = routing.norms_weights ? 1.0f / (sum * softmax + 1e-20f) : 1.0f;
    for (uint k = 0; k < routing.used; ++k) {
        const float of_expert = routing.has_values && ids[k] < routing.experts ? scale[ids[k]] : 1.0f;
        weights[k] = weights[k] * softmax * norm * routing.weight_scale * of_expert;
    }
}

/// ids `(count)` → the places of all in the order of their experts, of the same expert the first first. A grid of `count`
/// threads.
[[kernel]] void order_by_expert(
    constant uint& count [[buffer(0)]],
    device const uint* ids [[buffer(1)]],
    device uint* order [[buffer(2)]],
    uint at [[thread_position_in_grid]]) {
    if (at >= count) {
        return;
    }
    uint before = 0;
    for (uint other = 0; other < count; ++other) {
        before += ids[other] < ids[at] || (ids[other] == ids[at] && other < at) ? 1 : 0;
    }
    order[before] = at;
}

struct Sums {
    uint tokens;
    uint used;
    uint columns;
};

/// base `(tokens, columns)` and what was made for each chosen expert `(tokens · used, columns)` by its weight
/// `(tokens, used)`, added up in their order → y `(tokens, columns)`. A grid of `columns × tokens` threads.
[[kernel]] void add_weighted(
    constant Sums& sums [[buffer(0)]],
    device const float* base [[buffer(1)]],
    device const float* made [[buffer(2)]],
    device const float* weights [[buffer(3)]],
    device float* y [[buffer(4)]],
    uint2 at [[thread_position_in_grid]]) {
    if (at.x >= sums.columns || at.y >= sums.tokens) {
        return;
    }
    float sum = base[ulong(at.y) * sums.columns + at.x];
    for (uint k = 0; k < sums.used; ++k) {
        const ulong row = ulong(at.y) * sums.used + k;
        sum += weights[row] * made[row * sums.columns + at.x];
    }
    y[ulong(at.y) * sums.columns + at.x] = sum;
}
