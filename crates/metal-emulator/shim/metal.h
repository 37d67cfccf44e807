// Metal's standard library for clang on a CPU: included before the text of a `.metal` file.
#pragma once
#include "abi.h"
#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_CONST static constexpr const
#include "types.h"
#include "math.h"
#include "simd.h"
#include "bind.h"
using namespace metal;

// Address spaces mean nothing on a CPU; `src/lint.rs` compiles with them.
#ifdef METAL_EMULATOR_LINT
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2))) const
#define threadgroup __attribute__((address_space(3)))
#else
#define device
#define constant const
#define threadgroup
#endif
#define thread
#define static_cast emulator::static_cast_
// Constructors of clang's vectors can't be declared, so their call form is a macro.
#define float2(...) emulator::make<float, 2>(__VA_ARGS__)
#define float3(...) emulator::make<float, 3>(__VA_ARGS__)
#define float4(...) emulator::make<float, 4>(__VA_ARGS__)
#define half2(...) emulator::make<half, 2>(__VA_ARGS__)
#define half3(...) emulator::make<half, 3>(__VA_ARGS__)
#define half4(...) emulator::make<half, 4>(__VA_ARGS__)
#define bfloat2(...) emulator::make<bfloat, 2>(__VA_ARGS__)
#define bfloat3(...) emulator::make<bfloat, 3>(__VA_ARGS__)
#define bfloat4(...) emulator::make<bfloat, 4>(__VA_ARGS__)
#define bool2(...) emulator::make<bool, 2>(__VA_ARGS__)
#define bool3(...) emulator::make<bool, 3>(__VA_ARGS__)
#define bool4(...) emulator::make<bool, 4>(__VA_ARGS__)
#define char2(...) emulator::make<char, 2>(__VA_ARGS__)
#define char3(...) emulator::make<char, 3>(__VA_ARGS__)
#define char4(...) emulator::make<char, 4>(__VA_ARGS__)
#define uchar2(...) emulator::make<uchar, 2>(__VA_ARGS__)
#define uchar3(...) emulator::make<uchar, 3>(__VA_ARGS__)
#define uchar4(...) emulator::make<uchar, 4>(__VA_ARGS__)
#define short2(...) emulator::make<short, 2>(__VA_ARGS__)
#define short3(...) emulator::make<short, 3>(__VA_ARGS__)
#define short4(...) emulator::make<short, 4>(__VA_ARGS__)
#define ushort2(...) emulator::make<ushort, 2>(__VA_ARGS__)
#define ushort3(...) emulator::make<ushort, 3>(__VA_ARGS__)
#define ushort4(...) emulator::make<ushort, 4>(__VA_ARGS__)
#define int2(...) emulator::make<int, 2>(__VA_ARGS__)
#define int3(...) emulator::make<int, 3>(__VA_ARGS__)
#define int4(...) emulator::make<int, 4>(__VA_ARGS__)
#define uint2(...) emulator::make<uint, 2>(__VA_ARGS__)
#define uint3(...) emulator::make<uint, 3>(__VA_ARGS__)
#define uint4(...) emulator::make<uint, 4>(__VA_ARGS__)
#define long2(...) emulator::make<long, 2>(__VA_ARGS__)
#define long3(...) emulator::make<long, 3>(__VA_ARGS__)
#define long4(...) emulator::make<long, 4>(__VA_ARGS__)
#define ulong2(...) emulator::make<ulong, 2>(__VA_ARGS__)
#define ulong3(...) emulator::make<ulong, 3>(__VA_ARGS__)
#define ulong4(...) emulator::make<ulong, 4>(__VA_ARGS__)
