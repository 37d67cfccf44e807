#!/usr/bin/env python3
"""Writes tests/fixtures/quants/*.bin: blocks of every GGUF type and the f32 that they stand for.

    pip install gguf==0.19.0 numpy && python3 tools/quant_reference.py

The reference is `gguf.quants`, which llama.cpp tests against ggml's C code bit by bit; Q1_0 and Q2_0, which it lacks,
are computed here. A file is little-endian: how many blocks; of how many the weights follow; FNV-1a of the bytes of all
weights; the blocks; the weights of the first ones. Scales are finite, so that no weight is NaN, whose bits nobody
promises.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

FIXTURES = Path(__file__).parent.parent / "fixtures" / "quants"
# Where a block has its scales in f16.
F16_SCALES = {
    "Q1_0": [0], "Q2_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "TQ1_0": [52], "TQ2_0": [64],
    "IQ1_S": [0], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ4_NL": [0],
    "IQ4_XS": [0],
}  # fmt: skip
OTHER = ["F32", "F16", "BF16", "IQ1_M", "MXFP4", "NVFP4"]
SIZES = {t.name: s for t, s in GGML_QUANT_SIZES.items()} | {"Q1_0": (128, 18), "Q2_0": (64, 18)}
# Enough random indices that every entry of the codebook occurs.
BLOCKS = {"IQ1_S": 640, "IQ2_S": 320, "IQ2_XS": 144, "IQ2_XXS": 64, "IQ3_XXS": 64, "IQ3_S": 80}
# Zero of both signs, the smallest and the largest numbers.
EDGE_SCALES = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF], dtype="<u2")


def scales(random, count):
    """f16 scales as bits: edges first, then what weights have."""
    usual = random.uniform(2.0**-12, 2.0**-3, count) * random.choice([-1, 1], count)
    bits = usual.astype("<f2").view("<u2")
    edges = EDGE_SCALES[:count]
    bits[: len(edges)] = edges
    return bits


def blocks_of(name, random):
    block_len, block_bytes = SIZES[name]
    count = BLOCKS.get(name, max(12, 1536 // block_len))
    blocks = random.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    if name in ("F32", "F16", "BF16"):
        # No infinities and no NaN: the sign and the exponent are in the last two bytes.
        top, exponent = blocks[:, -2:].copy().view("<u2"), 0x7C00 if name == "F16" else 0x7F80
        blocks[:, -2:] = np.where(top & exponent == exponent, 0, top).astype("<u2").view(np.uint8)
        return blocks
    # Bodies of only zeros, only ones, and alternating bits, under ordinary scales.
    for row, byte in zip(blocks[8:11], (0x00, 0xFF, 0xAA)):
        row[:] = byte
    for at in F16_SCALES.get(name, []):
        blocks[:, at : at + 2] = scales(random, count).view(np.uint8).reshape(count, 2)
    if name == "IQ1_M":
        # The scale's four nibbles are the highest of four 16-bit words.
        words = blocks[:, 48:].copy().view("<u2")
        nibbles = (scales(random, count)[:, None] >> np.array([0, 4, 8, 12], dtype="<u2")) & 0xF
        blocks[:, 48:] = ((words & 0x0FFF) | (nibbles << 12)).astype("<u2").view(np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = random.integers(100, 136, count)
        blocks[:6, 0] = [0, 1, 2, 252, 253, 254]
    if name == "NVFP4":
        blocks[:, :4] = random.permutation(np.resize(np.arange(256), count * 4)).astype(np.uint8).reshape(count, 4)
    return blocks


def unpacked(name, blocks):
    if name in ("Q1_0", "Q2_0"):
        bits = 1 if name == "Q1_0" else 2
        digits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").reshape(len(blocks), -1, bits)
        values = (digits << np.arange(bits, dtype=np.uint8)).sum(axis=-1).astype(np.float32)
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        return (values * 2 - 1 if bits == 1 else values - 1) * scale
    return dequantize(blocks, GGMLQuantizationType[name]).astype(np.float32)


def fnv1a(content):
    value = 0xCBF29CE484222325
    for byte in content:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def main():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate([*F16_SCALES, *OTHER]):
        blocks = blocks_of(name, np.random.default_rng(seed))
        with np.errstate(over="ignore"):
            weights = unpacked(name, blocks)
        weights = weights.reshape(len(blocks), -1).astype("<f4")
        assert not np.isnan(weights).any(), name
        shown = min(len(blocks), max(3, 768 // SIZES[name][0]))
        head = np.array([len(blocks), shown], dtype="<u4").tobytes() + fnv1a(weights.tobytes()).to_bytes(8, "little")
        (FIXTURES / f"{name}.bin").write_bytes(head + blocks.tobytes() + weights[:shown].tobytes())


if __name__ == "__main__":
    main()
