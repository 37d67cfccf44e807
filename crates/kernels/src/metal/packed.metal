// Products with weights in every packing of GGUF: those of `src/packed/`, whose formulas these are, and those that candle
// has kernels for too, by the formulas of `ggml-quants.c` of llama.cpp. Eight neighbouring weights share a scale and an
// entry of the codebook in most of them, so that is what a thread unpacks at a time.
#include <metal_stdlib>
using namespace metal;

struct Shape {
    uint columns;
    uint rows;
    /// Rows of x, or ids.
    uint count;
};

struct ExpertsShape {
    uint columns;
    uint rows;
    /// Rows of y, of an expert each.
    uint count;
    uint experts;
    /// Rows of y that are of the same row of x.
    uint share;
    uint is_affine;
    /// Rows of y of a threadgroup, at most TOKENS.
    uint tile;
};

static inline ushort ushort_at(device const uchar* bytes) { return ushort(bytes[0]) | ushort(bytes[1]) << 8; }

static inline uint uint_at(device const uchar* bytes) { return uint(ushort_at(bytes)) | uint(ushort_at(bytes + 2)) << 16; }

static inline float half_at(device const uchar* bytes) { return float(as_type<half>(ushort_at(bytes))); }

/// Eight signs out of the lowest seven bits: the eighth makes their number even.
static inline uint even_signs(uint bits) { return (bits & 127) | (popcount(bits & 127) & 1) << 7; }

/// `count` magnitudes, negative where the bit of `signs` is set.
static inline void write_signed(device const uchar* magnitudes, uint count, uint signs, float scale, thread float* out) {
    for (uint i = 0; i < count; ++i) {
        const float value = scale * float(magnitudes[i]);
        out[i] = signs >> i & 1 ? -value : value;
    }
}

/// Eight of 32 values with four bits each: the lower halves of sixteen bytes come first.
static inline void write_nibbles(
    device const uchar* bytes, uint length, uint part, device const uchar* codebook, float scale, thread float* out) {
    const uint first = 8 * part % length;
    const uint shift = 8 * part / length * 4;
    for (uint i = 0; i < 8; ++i) {
        out[i] = scale * float(as_type<char>(codebook[bytes[first + i] >> shift & 15]));
    }
}

/// One of 32 values with four bits each: the lower halves of sixteen bytes come first.
static inline uint nibble(device const uchar* bytes, uint part, uint i) { return bytes[8 * (part % 2) + i] >> 4 * (part / 2) & 15; }

struct Q1_0 {
    static constexpr constant uint LEN = 128;
    static constexpr constant uint BYTES = 18;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const float scale = half_at(block);
        for (uint i = 0; i < 8; ++i) {
            out[i] = block[2 + part] >> i & 1 ? scale : -scale;
        }
    }
};

struct Q2_0 {
    static constexpr constant uint LEN = 64;
    static constexpr constant uint BYTES = 18;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const float scale = half_at(block);
        const uint bits = ushort_at(block + 2 + 2 * part);
        for (uint i = 0; i < 8; ++i) {
            out[i] = (float(bits >> 2 * i & 3) - 1.0f) * scale;
        }
    }
};

struct TQ1_0 {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 54;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const float scale = half_at(block + 52);
        for (uint i = 0; i < 8; ++i) {
            // 32 bytes of five digits each, then 16 of five, then four of four.
            const uint at = 8 * part + i;
            const uint byte = at < 160 ? at % 32 : at < 240 ? 32 + (at - 160) % 16 : 48 + (at - 240) % 4;
            const uint digit = at < 160 ? at / 32 : at < 240 ? (at - 160) / 16 : (at - 240) / 4;
            uint power = 1;
            for (uint k = 0; k < digit; ++k) {
                power *= 3;
            }
            // The wanted digit is moved to the front and read off by one more factor of 3.
            const uint moved = block[byte] * power & 255;
            out[i] = (float(moved * 3 >> 8) - 1.0f) * scale;
        }
    }
};

struct TQ2_0 {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 66;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const float scale = half_at(block + 64);
        for (uint i = 0; i < 8; ++i) {
            const uint at = 8 * part + i;
            const uint digit = block[32 * (at / 128) + at % 32] >> 2 * (at % 128 / 32) & 3;
            out[i] = (float(digit) - 1.0f) * scale;
        }
    }
};

/// Eight values of -1, 0 and 1, all moved up or down by an eighth.
static inline void write_ternary(device const uchar* entry, float delta, float scale, thread float* out) {
    for (uint i = 0; i < 8; ++i) {
        out[i] = scale * (float(as_type<char>(entry[i])) + delta);
    }
}

struct IQ1S {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 50;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        const uint high = ushort_at(block + 34 + part / 4 * 2);
        const uint index = block[2 + part] | (high >> 3 * (part % 4) & 7) << 8;
        const float scale = half_at(block) * float(2 * (high >> 12 & 7) + 1);
        write_ternary(codebook + 8 * index, high & 0x8000 ? -0.125f : 0.125f, scale, out);
    }
};

struct IQ1M {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 56;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        uint d = 0;
        for (uint i = 0; i < 4; ++i) {
            d |= uint(ushort_at(block + 48 + 2 * i) >> 12) << 4 * i;
        }
        const uint group = part / 2;
        const uint steps = ushort_at(block + 48 + group / 4 * 2) >> 3 * (group % 4) & 7;
        const uint high = block[32 + group] >> 4 * (part % 2);
        const uint index = block[part] | (high & 7) << 8;
        const float scale = float(as_type<half>(ushort(d))) * float(2 * steps + 1);
        write_ternary(codebook + 8 * index, high & 8 ? -0.125f : 0.125f, scale, out);
    }
};

static inline float quarter_steps(float d, uint steps) { return d * (0.5f + float(steps)) * 0.25f; }

struct IQ2XXS {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 66;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        device const uchar* group = block + 2 + part / 4 * 8;
        const uint signs_and_scale = uint_at(group + 4);
        const uint signs = even_signs(signs_and_scale >> 7 * (part % 4));
        const float scale = quarter_steps(half_at(block), signs_and_scale >> 28);
        write_signed(codebook + 8 * group[part % 4], 8, signs, scale, out);
    }
};

struct IQ2XS {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 74;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        const uint index_and_signs = ushort_at(block + 2 + 2 * part);
        const float scale = quarter_steps(half_at(block), block[66 + part / 4] >> 4 * (part / 2 % 2) & 15);
        write_signed(codebook + 8 * (index_and_signs & 511), 8, even_signs(index_and_signs >> 9), scale, out);
    }
};

struct IQ2S {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 82;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        const uint index = block[2 + part] | (block[66 + part / 4] >> 2 * (part % 4) & 3) << 8;
        const float scale = quarter_steps(half_at(block), block[74 + part / 4] >> 4 * (part / 2 % 2) & 15);
        write_signed(codebook + 8 * index, 8, block[34 + part], scale, out);
    }
};

struct IQ3XXS {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 98;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        const uint signs_and_scale = uint_at(block + 66 + part / 4 * 4);
        const uint signs = even_signs(signs_and_scale >> 7 * (part % 4));
        const float scale = half_at(block) * (0.5f + float(signs_and_scale >> 28)) * 0.5f;
        write_signed(codebook + 4 * block[2 + 2 * part], 4, signs, scale, out);
        write_signed(codebook + 4 * block[3 + 2 * part], 4, signs >> 4, scale, out + 4);
    }
};

struct IQ3S {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 110;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        const uint group = part / 4;
        const uint steps = block[106 + group / 2] >> 4 * (group % 2) & 15;
        const float scale = half_at(block) * float(1 + 2 * steps);
        for (uint half_part = 0; half_part < 2; ++half_part) {
            const uint at = 2 * part + half_part;
            const uint index = block[2 + at] | (block[66 + at / 8] >> at % 8 & 1) << 8;
            write_signed(codebook + 4 * index, 4, block[74 + part] >> 4 * half_part, scale, out + 4 * half_part);
        }
    }
};

struct IQ4NL {
    static constexpr constant uint LEN = 32;
    static constexpr constant uint BYTES = 18;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        write_nibbles(block + 2, 16, part, codebook, half_at(block), out);
    }
};

struct IQ4XS {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 136;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        const uint group = part / 4;
        const uint low = block[4 + group / 2] >> 4 * (group % 2) & 15;
        const uint steps = low | (ushort_at(block + 2) >> 2 * group & 3) << 4;
        write_nibbles(block + 8 + 16 * group, 16, part % 4, codebook, half_at(block) * (float(steps) - 32.0f), out);
    }
};

struct MXFP4 {
    static constexpr constant uint LEN = 32;
    static constexpr constant uint BYTES = 17;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        const uint exponent = block[0];
        // 2^(exponent - 128), of which the first two are subnormal.
        const float scale = as_type<float>(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
        write_nibbles(block + 1, 16, part, codebook, scale, out);
    }
};

struct NVFP4 {
    static constexpr constant uint LEN = 64;
    static constexpr constant uint BYTES = 36;
    static void unpack(device const uchar* block, uint part, device const uchar* codebook, thread float* out) {
        const uint group = part / 2;
        const uint bits = block[group];
        const uint exponent = bits >> 3 & 15;
        const float mantissa = float(bits & 7);
        // The format's one NaN is read as zero. 2^(exponent - 7) as a float's own bits.
        const float value = exponent == 0 ? mantissa * 0.001953125f
                                          : (1.0f + mantissa * 0.125f) * as_type<float>((exponent + 120) << 23);
        const float scale = bits == 127 ? 0.0f : 0.5f * value;
        write_nibbles(block + 4 + 8 * group, 8, part % 2, codebook, scale, out);
    }
};

struct Q4_0 {
    static constexpr constant uint LEN = 32;
    static constexpr constant uint BYTES = 18;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const float scale = half_at(block);
        for (uint i = 0; i < 8; ++i) {
            out[i] = (float(nibble(block + 2, part, i)) - 8.0f) * scale;
        }
    }
};

// Where a minimum is added or taken off, here and below, the product is exact in f32: whether the GPU rounds once, in a
// fused multiplication and addition, or twice, the bits are the same.
struct Q4_1 {
    static constexpr constant uint LEN = 32;
    static constexpr constant uint BYTES = 20;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const float scale = half_at(block);
        const float least = half_at(block + 2);
        for (uint i = 0; i < 8; ++i) {
            out[i] = float(nibble(block + 4, part, i)) * scale + least;
        }
    }
};

struct Q5_0 {
    static constexpr constant uint LEN = 32;
    static constexpr constant uint BYTES = 22;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const float scale = half_at(block);
        const uint high = uint_at(block + 2) >> 8 * part;
        for (uint i = 0; i < 8; ++i) {
            out[i] = (float(nibble(block + 6, part, i) | (high >> i & 1) << 4) - 16.0f) * scale;
        }
    }
};

struct Q5_1 {
    static constexpr constant uint LEN = 32;
    static constexpr constant uint BYTES = 24;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const float scale = half_at(block);
        const float least = half_at(block + 2);
        const uint high = uint_at(block + 4) >> 8 * part;
        for (uint i = 0; i < 8; ++i) {
            out[i] = float(nibble(block + 8, part, i) | (high >> i & 1) << 4) * scale + least;
        }
    }
};

struct Q8_0 {
    static constexpr constant uint LEN = 32;
    static constexpr constant uint BYTES = 34;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const float scale = half_at(block);
        for (uint i = 0; i < 8; ++i) {
            out[i] = float(as_type<char>(block[2 + 8 * part + i])) * scale;
        }
    }
};

struct Q2K {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 84;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const uint steps = block[part / 2];
        const float scale = half_at(block + 80) * float(steps & 15);
        const float least = half_at(block + 82) * float(steps >> 4);
        device const uchar* low = block + 16 + 32 * (part / 16) + 8 * (part % 4);
        for (uint i = 0; i < 8; ++i) {
            out[i] = scale * float(low[i] >> 2 * (part / 4 % 4) & 3) - least;
        }
    }
};

struct Q3K {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 110;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const uint group = part / 2;
        device const uchar* all_steps = block + 96;
        const uint steps = (all_steps[group % 8] >> 4 * (group / 8) & 15) | (all_steps[8 + group % 4] >> 2 * (group / 4) & 3) << 4;
        const float scale = half_at(block + 108) * (float(steps) - 32.0f);
        device const uchar* high = block + 8 * (part % 4);
        device const uchar* low = block + 32 + 32 * (part / 16) + 8 * (part % 4);
        for (uint i = 0; i < 8; ++i) {
            const uint value = (low[i] >> 2 * (part / 4 % 4) & 3) | (high[i] >> part / 4 & 1) << 2;
            out[i] = scale * (float(value) - 4.0f);
        }
    }
};

/// Steps of scale and minimum of one of the eight groups of a block, in six bits each.
static inline uint2 scale_and_least(device const uchar* steps, uint group) {
    if (group < 4) {
        return uint2(steps[group] & 63, steps[group + 4] & 63);
    }
    const uint low = steps[group + 4];
    return uint2((low & 15) | (steps[group - 4] >> 6) << 4, low >> 4 | (steps[group] >> 6) << 4);
}

struct Q4K {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 144;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const uint group = part / 4;
        const uint2 steps = scale_and_least(block + 4, group);
        const float scale = half_at(block) * float(steps.x);
        const float least = half_at(block + 2) * float(steps.y);
        device const uchar* low = block + 16 + 32 * (group / 2) + 8 * (part % 4);
        for (uint i = 0; i < 8; ++i) {
            out[i] = scale * float(low[i] >> 4 * (group % 2) & 15) - least;
        }
    }
};

struct Q5K {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 176;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const uint group = part / 4;
        const uint2 steps = scale_and_least(block + 4, group);
        const float scale = half_at(block) * float(steps.x);
        const float least = half_at(block + 2) * float(steps.y);
        device const uchar* high = block + 16 + 8 * (part % 4);
        device const uchar* low = block + 48 + 32 * (group / 2) + 8 * (part % 4);
        for (uint i = 0; i < 8; ++i) {
            out[i] = scale * float((low[i] >> 4 * (group % 2) & 15) | (high[i] >> group & 1) << 4) - least;
        }
    }
};

struct Q6K {
    static constexpr constant uint LEN = 256;
    static constexpr constant uint BYTES = 210;
    static void unpack(device const uchar* block, uint part, device const uchar*, thread float* out) {
        const float scale = half_at(block + 208) * float(as_type<char>(block[192 + part / 2]));
        // Four runs of 32 values share their bytes of two high bits, two by two those of the low four.
        const uint run = part / 4 % 4;
        device const uchar* low = block + 64 * (part / 16) + 32 * (run % 2) + 8 * (part % 4);
        device const uchar* high = block + 128 + 32 * (part / 16) + 8 * (part % 4);
        for (uint i = 0; i < 8; ++i) {
            const uint value = (low[i] >> 4 * (run / 2) & 15) | (high[i] >> 2 * run & 3) << 4;
            out[i] = scale * (float(value) - 32.0f);
        }
    }
};

struct F32 {
    static constexpr constant uint BYTES = 4;
    static float at(device const uchar* weight) { return *reinterpret_cast<device const float*>(weight); }
};

struct F16 {
    static constexpr constant uint BYTES = 2;
    static float at(device const uchar* weight) { return float(*reinterpret_cast<device const half*>(weight)); }
};

struct BF16 {
    static constexpr constant uint BYTES = 2;
    static float at(device const uchar* weight) {
        return as_type<float>(uint(*reinterpret_cast<device const ushort*>(weight)) << 16);
    }
};

/// Rows of whole blocks.
template <typename Packing>
struct Blocks {
    static ulong bytes(uint columns) { return ulong(columns / Packing::LEN) * Packing::BYTES; }
    /// How many weights the part has.
    static uint len(uint, uint) { return 8; }
    static void unpack(device const uchar* row, uint part, uint, device const uchar* codebook, thread float* out) {
        constexpr uint parts = Packing::LEN / 8;
        Packing::unpack(row + ulong(part / parts) * Packing::BYTES, part % parts, codebook, out);
    }
};

/// Rows of plain weights, which may end within a part.
template <typename Weight>
struct Plain {
    static ulong bytes(uint columns) { return ulong(columns) * Weight::BYTES; }
    static uint len(uint columns, uint part) { return min(8u, columns - 8 * part); }
    static void unpack(device const uchar* row, uint part, uint columns, device const uchar*, thread float* out) {
        for (uint i = 0; i < len(columns, part); ++i) {
            out[i] = Weight::at(row + ulong(8 * part + i) * Weight::BYTES);
        }
    }
};

/// Parts of a row.
static inline uint parts_of(uint columns) { return (columns + 7) / 8; }

/// Rows of a threadgroup, of a SIMD-group each.
constant constexpr uint ROWS = 4;
/// Tokens for which weights are unpacked once.
constant constexpr uint TOKENS = 4;

/// x `(count, columns)` → y `(count, rows)`. A grid of `⌈rows / ROWS⌉ × ⌈count / TOKENS⌉` threadgroups.
template <typename Rows>
[[kernel]] void packed_product(
    constant Shape& shape [[buffer(0)]],
    device const uchar* blocks [[buffer(1)]],
    device const uchar* codebook [[buffer(2)]],
    device const float* x [[buffer(3)]],
    device float* y [[buffer(4)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    const uint row = group.x * ROWS + simdgroup;
    if (row >= shape.rows) {
        return;
    }
    const uint first = group.y * TOKENS;
    const uint tokens = min(TOKENS, shape.count - first);
    device const uchar* weights = blocks + row * Rows::bytes(shape.columns);
    float sums[TOKENS] = {0, 0, 0, 0};
    for (uint part = lane; part < parts_of(shape.columns); part += 32) {
        float eight[8];
        Rows::unpack(weights, part, shape.columns, codebook, eight);
        for (uint token = 0; token < tokens; ++token) {
            device const float* values = x + ulong(first + token) * shape.columns + 8 * part;
            for (uint i = 0; i < Rows::len(shape.columns, part); ++i) {
                sums[token] += eight[i] * values[i];
            }
        }
    }
    for (uint token = 0; token < tokens; ++token) {
        const float sum = simd_sum(sums[token]);
        if (lane == 0) {
            y[ulong(first + token) * shape.rows + row] = sum;
        }
    }
}

/// Each row of y is the product of the expert `ids[row]` of `(experts, rows, columns)` with the row `row / share` of x,
/// `(count / share, columns)` → y `(count, rows)`; zeros where there is no such expert. `order` has the rows of y sorted by
/// expert, so that weights are unpacked once for several. affine `(experts, 1 + rows)` has the factor of an expert's
/// products and what is added to each. A grid of `⌈rows / ROWS⌉ × ⌈count / tile⌉` threadgroups.
template <typename Rows>
[[kernel]] void packed_experts(
    constant ExpertsShape& shape [[buffer(0)]],
    device const uchar* blocks [[buffer(1)]],
    device const uchar* codebook [[buffer(2)]],
    device const float* x [[buffer(3)]],
    device const uint* ids [[buffer(4)]],
    device const uint* order [[buffer(5)]],
    device const float* affine [[buffer(6)]],
    device float* y [[buffer(7)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    const uint row = group.x * ROWS + simdgroup;
    if (row >= shape.rows) {
        return;
    }
    const uint first = group.y * shape.tile;
    const uint tokens = min(shape.tile, shape.count - first);
    uint experts[TOKENS];
    for (uint token = 0; token < tokens; ++token) {
        experts[token] = ids[order[first + token]];
    }
    float sums[TOKENS] = {0, 0, 0, 0};
    for (uint part = lane; part < parts_of(shape.columns); part += 32) {
        float eight[8];
        uint unpacked = shape.experts;
        for (uint token = 0; token < tokens; ++token) {
            const uint expert = experts[token];
            if (expert >= shape.experts) {
                continue;
            }
            if (expert != unpacked) {
                device const uchar* weights = blocks + (ulong(expert) * shape.rows + row) * Rows::bytes(shape.columns);
                Rows::unpack(weights, part, shape.columns, codebook, eight);
                unpacked = expert;
            }
            device const float* values = x + ulong(order[first + token] / shape.share) * shape.columns + 8 * part;
            for (uint i = 0; i < Rows::len(shape.columns, part); ++i) {
                sums[token] += eight[i] * values[i];
            }
        }
    }
    for (uint token = 0; token < tokens; ++token) {
        float sum = simd_sum(sums[token]);
        if (lane == 0) {
            if (shape.is_affine && experts[token] < shape.experts) {
                device const float* of_expert = affine + ulong(experts[token]) * (1 + shape.rows);
                sum = sum * of_expert[0] + of_expert[1 + row];
            }
            y[ulong(order[first + token]) * shape.rows + row] = sum;
        }
    }
}

/// The rows `ids` `(count)` → y `(count, columns)`; zeros where there is no such row. A grid of `⌈columns / 8⌉ × count`
/// threads.
template <typename Rows>
[[kernel]] void packed_rows(
    constant Shape& shape [[buffer(0)]],
    device const uchar* blocks [[buffer(1)]],
    device const uchar* codebook [[buffer(2)]],
    device const uint* ids [[buffer(3)]],
    device float* y [[buffer(4)]],
    uint2 at [[thread_position_in_grid]]) {
    if (at.x >= parts_of(shape.columns) || at.y >= shape.count) {
        return;
    }
    const uint row = ids[at.y];
    float eight[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (row < shape.rows) {
        Rows::unpack(blocks + row * Rows::bytes(shape.columns), at.x, shape.columns, codebook, eight);
    }
    for (uint i = 0; i < Rows::len(shape.columns, at.x); ++i) {
        y[ulong(at.y) * shape.columns + 8 * at.x + i] = eight[i];
    }
}

#define KERNEL(kernel, rows, name) \
    template [[host_name(#kernel "_" #name)]] [[kernel]] decltype(kernel<rows<name>>) kernel<rows<name>>;

#define FOR(rows, name) \
    KERNEL(packed_product, rows, name) \
    KERNEL(packed_experts, rows, name) \
    KERNEL(packed_rows, rows, name)

FOR(Blocks, Q1_0)
FOR(Blocks, Q2_0)
FOR(Blocks, TQ1_0)
FOR(Blocks, TQ2_0)
FOR(Blocks, IQ1S)
FOR(Blocks, IQ1M)
FOR(Blocks, IQ2XXS)
FOR(Blocks, IQ2XS)
FOR(Blocks, IQ2S)
FOR(Blocks, IQ3XXS)
FOR(Blocks, IQ3S)
FOR(Blocks, IQ4NL)
FOR(Blocks, IQ4XS)
FOR(Blocks, MXFP4)
FOR(Blocks, NVFP4)
FOR(Blocks, Q4_0)
FOR(Blocks, Q4_1)
FOR(Blocks, Q5_0)
FOR(Blocks, Q5_1)
FOR(Blocks, Q8_0)
FOR(Blocks, Q2K)
FOR(Blocks, Q3K)
FOR(Blocks, Q4K)
FOR(Blocks, Q5K)
FOR(Blocks, Q6K)
FOR(Plain, F32)
FOR(Plain, F16)
FOR(Plain, BF16)
