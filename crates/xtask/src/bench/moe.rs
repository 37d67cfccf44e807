//! A mixture of experts of OLMoE's shape, with fewer layers and random weights: 64 experts, of which 8 compute a token. Good
//! for measuring speed, and for nothing else.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

const LAYERS: usize = 4;
const HIDDEN: usize = 2048;
const HEADS: usize = 16;
const HEAD: usize = 128;
const EXPERTS: usize = 64;
const USED: u32 = 8;
const EXPERT_HIDDEN: usize = 1024;
const CONTEXT: u32 = 4096;

const ALIGNMENT: u64 = 32;
/// Bytes of a block of 256 weights in Q4_K.
const BLOCK: usize = 144;

/// How a tensor's weights are written.
#[derive(Clone, Copy)]
enum Weights {
    /// Random blocks of Q4_K around zero.
    Q4K,
    /// Random numbers around zero.
    Random,
    /// Ones.
    Ones,
}

struct TensorSpec {
    name: String,
    /// The innermost dimension first.
    shape: Vec<usize>,
    weights: Weights,
}

impl TensorSpec {
    fn bytes(&self) -> u64 {
        let count: usize = self.shape.iter().product();
        (match self.weights {
            Weights::Q4K => count / 256 * BLOCK,
            Weights::Random | Weights::Ones => count * 4,
        }) as u64
    }
}

/// Writes the model to `file`, with the tokenizer of the GGUF file `tokenizer_of`.
pub(super) fn write(file: &Path, tokenizer_of: &Path) -> Result<()> {
    let source = fs::read(tokenizer_of).with_context(|| format!("reading {}", tokenizer_of.display()))?;
    let tokenizer = tokenizer(&source).with_context(|| format!("in {}", tokenizer_of.display()))?;
    let tensors = tensors(tokenizer.vocabulary);
    let mut values = Values::default();
    values.text("general.architecture", "qwen3moe");
    values.text("general.name", "A random mixture of 64 experts");
    for (key, value) in [
        ("block_count", LAYERS as u32),
        ("context_length", CONTEXT),
        ("embedding_length", HIDDEN as u32),
        ("feed_forward_length", EXPERT_HIDDEN as u32),
        ("expert_feed_forward_length", EXPERT_HIDDEN as u32),
        ("expert_count", EXPERTS as u32),
        ("expert_used_count", USED),
        ("attention.head_count", HEADS as u32),
        ("attention.head_count_kv", HEADS as u32),
        ("attention.key_length", HEAD as u32),
        ("attention.value_length", HEAD as u32),
    ] {
        values.number(&format!("qwen3moe.{key}"), U32, value.to_le_bytes());
    }
    values.number("qwen3moe.attention.layer_norm_rms_epsilon", F32, 1e-6_f32.to_le_bytes());
    values.number("qwen3moe.rope.freq_base", F32, 1e4_f32.to_le_bytes());
    // "Mostly Q4_K_S".
    values.number("general.file_type", U32, 14_u32.to_le_bytes());
    values.bytes.extend(tokenizer.values);
    values.count += tokenizer.count;

    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(values.count.to_le_bytes());
    header.extend(values.bytes);
    let mut offset = 0_u64;
    for tensor in &tensors {
        push_text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().for_each(|dimension| header.extend((*dimension as u64).to_le_bytes()));
        let type_id: u32 = if matches!(tensor.weights, Weights::Q4K) { 12 } else { 0 };
        header.extend(type_id.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);

    let pools = [Weights::Q4K, Weights::Random, Weights::Ones].map(pool);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(file)?);
    out.write_all(&header)?;
    for tensor in &tensors {
        let pool = &pools[tensor.weights as usize];
        let mut left = tensor.bytes();
        while left > 0 {
            let part = left.min(pool.len() as u64);
            out.write_all(&pool[..part as usize])?;
            left -= part;
        }
        let padding = tensor.bytes().next_multiple_of(ALIGNMENT) - tensor.bytes();
        out.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
    }
    out.flush().context("writing the mixture")
}

fn tensors(vocabulary: usize) -> Vec<TensorSpec> {
    let spec = |name: String, shape: &[usize], weights| TensorSpec { name, shape: shape.to_vec(), weights };
    let mut tensors = vec![
        spec("token_embd.weight".into(), &[HIDDEN, vocabulary], Weights::Q4K),
        spec("output_norm.weight".into(), &[HIDDEN], Weights::Ones),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize], weights| {
            tensors.push(spec(format!("blk.{layer}.{name}.weight"), shape, weights));
        };
        add("attn_norm", &[HIDDEN], Weights::Ones);
        for name in ["attn_q", "attn_k", "attn_v"] {
            add(name, &[HIDDEN, HEADS * HEAD], Weights::Q4K);
        }
        add("attn_output", &[HEADS * HEAD, HIDDEN], Weights::Q4K);
        add("attn_q_norm", &[HEAD], Weights::Ones);
        add("attn_k_norm", &[HEAD], Weights::Ones);
        add("ffn_norm", &[HIDDEN], Weights::Ones);
        add("ffn_gate_inp", &[HIDDEN, EXPERTS], Weights::Random);
        add("ffn_gate_exps", &[HIDDEN, EXPERT_HIDDEN, EXPERTS], Weights::Q4K);
        add("ffn_up_exps", &[HIDDEN, EXPERT_HIDDEN, EXPERTS], Weights::Q4K);
        add("ffn_down_exps", &[EXPERT_HIDDEN, HIDDEN, EXPERTS], Weights::Q4K);
    }
    tensors
}

/// About a megabyte of weights, which are repeated: nothing computes faster because of that.
fn pool(weights: Weights) -> Vec<u8> {
    let mut state = 1_u64;
    let mut random = || {
        // xorshift64* (Vigna: An experimental exploration of Marsaglia's xorshift generators, 2016).
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    match weights {
        Weights::Q4K => {
            let mut blocks: Vec<u8> = (0..7_919 * BLOCK / 8).flat_map(|_| random().to_le_bytes()).collect();
            for block in blocks.as_chunks_mut::<BLOCK>().0 {
                // As f16, 7.6e-5 for the scales and 7.5 times that for the minimums: weights of about ±0.02 around zero.
                block[..4].copy_from_slice(&[0x00, 0x05, 0xb0, 0x10]);
            }
            blocks
        }
        Weights::Random => {
            let number = |random: u64| (random >> 40) as f32 / (1 << 23) as f32 - 1.0;
            (0..1 << 18).flat_map(|_| (number(random()) * 0.05).to_le_bytes()).collect()
        }
        Weights::Ones => 1_f32.to_le_bytes().repeat(1 << 12),
    }
}

const U32: u32 = 4;
const F32: u32 = 6;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Keys and values as they stand in a file.
#[derive(Default)]
struct Values {
    bytes: Vec<u8>,
    count: u64,
}

impl Values {
    fn text(&mut self, key: &str, value: &str) {
        self.key(key, TEXT);
        push_text(&mut self.bytes, value);
    }

    fn number(&mut self, key: &str, type_id: u32, value: [u8; 4]) {
        self.key(key, type_id);
        self.bytes.extend(value);
    }

    fn key(&mut self, key: &str, type_id: u32) {
        push_text(&mut self.bytes, key);
        self.bytes.extend(type_id.to_le_bytes());
        self.count += 1;
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// What a file says of its tokenizer, byte by byte.
struct Tokenizer {
    values: Vec<u8>,
    count: u64,
    /// Tokens.
    vocabulary: usize,
}

fn tokenizer(file: &[u8]) -> Result<Tokenizer> {
    let mut rest = file.strip_prefix(b"GGUF\x03\0\0\0").context("it is no GGUF file of version 3")?;
    let (_tensors, values) = (take_u64(&mut rest)?, take_u64(&mut rest)?);
    let mut tokenizer = Tokenizer { values: Vec::new(), count: 0, vocabulary: 0 };
    for _ in 0..values {
        let entry = rest;
        let key = take_text(&mut rest)?;
        let type_id = take_u32(&mut rest)?;
        if key == b"tokenizer.ggml.tokens" {
            let mut array = rest;
            take_u32(&mut array)?;
            tokenizer.vocabulary = take_u64(&mut array)?.try_into()?;
        }
        skip(&mut rest, type_id)?;
        if key.starts_with(b"tokenizer.") {
            tokenizer.values.extend(&entry[..entry.len() - rest.len()]);
            tokenizer.count += 1;
        }
    }
    ensure!(tokenizer.vocabulary > 0, "it has no tokens");
    Ok(tokenizer)
}

fn skip(rest: &mut &[u8], type_id: u32) -> Result<()> {
    let bytes = match type_id {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        TEXT => return take_text(rest).map(|_| ()),
        ARRAY => {
            let (of, count) = (take_u32(rest)?, take_u64(rest)?);
            return (0..count).try_for_each(|_| skip(rest, of));
        }
        _ => bail!("it has a value of type {type_id}"),
    };
    take(rest, bytes).map(|_| ())
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let len = take_u64(rest)?;
    take(rest, len)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32> {
    Ok(u32::from_le_bytes(take(rest, 4)?.try_into()?))
}

fn take_u64(rest: &mut &[u8]) -> Result<u64> {
    Ok(u64::from_le_bytes(take(rest, 8)?.try_into()?))
}

fn take<'a>(rest: &mut &'a [u8], bytes: u64) -> Result<&'a [u8]> {
    rest.split_off(..usize::try_from(bytes)?).context("it ends in its header")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_is_copied_as_it_is() {
        let mut values = Values::default();
        values.text("general.architecture", "llama");
        values.text("tokenizer.ggml.model", "gpt2");
        values.key("tokenizer.ggml.tokens", ARRAY);
        values.bytes.extend(TEXT.to_le_bytes());
        values.bytes.extend(2_u64.to_le_bytes());
        push_text(&mut values.bytes, "a");
        push_text(&mut values.bytes, "bc");
        values.number("tokenizer.ggml.eos_token_id", U32, 1_u32.to_le_bytes());
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(0_u64.to_le_bytes());
        file.extend(values.count.to_le_bytes());
        file.extend(&values.bytes);
        let read = tokenizer(&file).unwrap();
        assert_eq!((read.count, read.vocabulary), (3, 2));
        assert!(values.bytes.ends_with(&read.values));
        for end in 0..file.len() {
            assert!(tokenizer(&file[..end]).is_err(), "cut off after {end}");
        }
    }

    #[test]
    fn the_mixture_has_the_shape_of_one() {
        let tensors = tensors(49_152);
        let bytes: u64 = tensors.iter().map(TensorSpec::bytes).sum();
        assert!((900_000_000..1_500_000_000).contains(&bytes), "{bytes}");
        assert_eq!(tensors.len(), 2 + LAYERS * 12);
    }
}
