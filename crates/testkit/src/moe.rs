//! A large model with a mixture of experts, to measure speed with: its weights are random.

use std::path::Path;

use crate::gguf::{GgufBuilder, Random, SPECIAL, TINY_TEMPLATE, tiny_words};

const LAYERS: usize = 4;
const HIDDEN: usize = 2048;
const HEADS: usize = 16;
const HEAD_DIM: usize = 128;
const EXPERTS: usize = 64;
const EXPERTS_USED: usize = 8;
const EXPERT_WIDTH: usize = 1024;
const VOCABULARY: usize = 32_000;
/// What `tidegate bench --depth` writes, which counts on a token for each word: the tokenizer merges them letter by letter.
const WORDS: [&str; 32] = [
    "time", "water", "house", "light", "day", "hand", "work", "night", "river", "stone", "green", "world", "road",
    "music", "paper", "train", "field", "voice", "table", "glass", "letter", "winter", "summer", "bridge", "garden",
    "market", "window", "island", "forest", "silver", "horse", "ship",
];

/// Writes `path`, a file of about 1 GB: four layers of the shape of `OLMoE` 1B-7B, 8 of 64 experts for each
/// token, as architecture `qwen3moe`, which llama.cpp reads too. Matrices are `Q4_K`, routers and norms f32.
///
/// # Errors
/// When it cannot be written.
pub fn write_moe_model(path: &Path) -> std::io::Result<()> {
    let mut words = tiny_words(&[]);
    let mut merges = Vec::new();
    for word in WORDS {
        let mut known = "Ġ".to_owned();
        for letter in word.chars() {
            let longer = format!("{known}{letter}");
            if !merges.contains(&format!("{known} {letter}")) {
                merges.push(format!("{known} {letter}"));
            }
            if !words.contains(&longer) {
                words.push(longer.clone());
            }
            known = longer;
        }
    }
    words.extend((words.len()..VOCABULARY).map(|id| format!("unused{id}")));
    let types: Vec<i32> = (0..VOCABULARY).map(|id| if (SPECIAL..SPECIAL + 3).contains(&id) { 3 } else { 1 }).collect();
    let file = GgufBuilder::new()
        .text("general.architecture", "qwen3moe")
        .text("general.name", "Random experts")
        .u32("general.file_type", 15)
        .u32("qwen3moe.block_count", LAYERS as u32)
        .u32("qwen3moe.context_length", 8192)
        .u32("qwen3moe.embedding_length", HIDDEN as u32)
        .u32("qwen3moe.feed_forward_length", EXPERT_WIDTH as u32)
        .u32("qwen3moe.expert_feed_forward_length", EXPERT_WIDTH as u32)
        .u32("qwen3moe.expert_count", EXPERTS as u32)
        .u32("qwen3moe.expert_used_count", EXPERTS_USED as u32)
        .u32("qwen3moe.attention.head_count", HEADS as u32)
        .u32("qwen3moe.attention.head_count_kv", HEADS as u32)
        .u32("qwen3moe.attention.key_length", HEAD_DIM as u32)
        .u32("qwen3moe.attention.value_length", HEAD_DIM as u32)
        .f32("qwen3moe.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("qwen3moe.rope.freq_base", 10_000.0)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", &words)
        .i32s("tokenizer.ggml.token_type", &types)
        .texts("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.bos_token_id", SPECIAL as u32)
        .u32("tokenizer.ggml.eos_token_id", SPECIAL as u32 + 2)
        .text("tokenizer.chat_template", TINY_TEMPLATE);
    let mut random = Random(1);
    let mut file = q4_k(file, &mut random, "token_embd", &[VOCABULARY, HIDDEN]);
    file = file.tensor("output_norm.weight", &[HIDDEN], &[1.0; HIDDEN]);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}");
        for (part, shape) in [
            ("attn_q", &[HIDDEN, HIDDEN][..]),
            ("attn_k", &[HIDDEN, HIDDEN]),
            ("attn_v", &[HIDDEN, HIDDEN]),
            ("attn_output", &[HIDDEN, HIDDEN]),
            ("ffn_gate_exps", &[EXPERTS, EXPERT_WIDTH, HIDDEN]),
            ("ffn_up_exps", &[EXPERTS, EXPERT_WIDTH, HIDDEN]),
            ("ffn_down_exps", &[EXPERTS, HIDDEN, EXPERT_WIDTH]),
        ] {
            file = q4_k(file, &mut random, &name(part), shape);
        }
        for (part, len) in
            [("attn_norm", HIDDEN), ("ffn_norm", HIDDEN), ("attn_q_norm", HEAD_DIM), ("attn_k_norm", HEAD_DIM)]
        {
            file = file.tensor(&format!("{}.weight", name(part)), &[len], &vec![1.0; len]);
        }
        let router = random.values(EXPERTS * HIDDEN);
        file = file.tensor(&format!("{}.weight", name("ffn_gate_inp")), &[EXPERTS, HIDDEN], &router);
    }
    std::fs::write(path, file.build())
}

/// Adds a matrix of random codes, whose mean is about zero and whose spread is about 0.02.
fn q4_k(file: GgufBuilder, random: &mut Random, name: &str, shape: &[usize]) -> GgufBuilder {
    const TYPE: u32 = 12;
    const BLOCK_LEN: usize = 256;
    const BLOCK_BYTES: usize = 144;
    /// 2⁻¹³ and 2⁻¹⁰ in f16: minima stand for eight codes.
    const SCALES: [u8; 4] = [0x00, 0x08, 0x00, 0x14];
    let count = shape.iter().product::<usize>() / BLOCK_LEN;
    let mut blocks = Vec::with_capacity(count * BLOCK_BYTES);
    for _ in 0..count {
        blocks.extend(SCALES);
        // Of each 32 weights, the scale and the minimum are the same six bits.
        let scales: [u8; 4] = random.bits().to_le_bytes()[..4].try_into().expect("four of eight");
        let upper: [u8; 4] = random.bits().to_le_bytes()[..4].try_into().expect("four of eight");
        blocks.extend(scales);
        blocks.extend(scales);
        blocks.extend(upper.map(|bits| bits & 15 | bits << 4));
        (0..BLOCK_LEN / 16).for_each(|_| blocks.extend(random.bits().to_le_bytes()));
    }
    file.raw_tensor(&format!("{name}.weight"), shape, TYPE, blocks)
}
