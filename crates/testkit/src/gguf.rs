use std::path::{Path, PathBuf};

/// Writes GGUF files of version 3, small enough to be made anew in each test.
#[derive(Clone, Debug, Default)]
pub struct GgufBuilder {
    values: Vec<u8>,
    value_count: u64,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

const ALIGNMENT: usize = 32;
const F32: u32 = 0;

impl GgufBuilder {
    /// A file of no values and no tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text.
    #[must_use]
    pub fn text(mut self, key: &str, value: &str) -> Self {
        self.key(key, 8);
        push_text(&mut self.values, value);
        self
    }

    /// Adds a `u16`.
    #[must_use]
    pub fn u16(mut self, key: &str, value: u16) -> Self {
        self.key(key, 2);
        self.values.extend(value.to_le_bytes());
        self
    }

    /// Adds a `u64`.
    #[must_use]
    pub fn u64(mut self, key: &str, value: u64) -> Self {
        self.key(key, 10);
        self.values.extend(value.to_le_bytes());
        self
    }

    /// Adds an `i32`.
    #[must_use]
    pub fn i32(mut self, key: &str, value: i32) -> Self {
        self.key(key, 5);
        self.values.extend(value.to_le_bytes());
        self
    }

    /// Adds a `u32`.
    #[must_use]
    pub fn u32(mut self, key: &str, value: u32) -> Self {
        self.key(key, 4);
        self.values.extend(value.to_le_bytes());
        self
    }

    /// Adds an `f32`.
    #[must_use]
    pub fn f32(mut self, key: &str, value: f32) -> Self {
        self.key(key, 6);
        self.values.extend(value.to_le_bytes());
        self
    }

    /// Adds a `bool`.
    #[must_use]
    pub fn bool(mut self, key: &str, value: bool) -> Self {
        self.key(key, 7);
        self.values.push(u8::from(value));
        self
    }

    /// Adds an array of texts.
    #[must_use]
    pub fn texts<S: AsRef<str>>(mut self, key: &str, values: &[S]) -> Self {
        self.array(key, 8, values.len());
        for value in values {
            push_text(&mut self.values, value.as_ref());
        }
        self
    }

    /// Adds an array of `i32`.
    #[must_use]
    pub fn i32s(mut self, key: &str, values: &[i32]) -> Self {
        self.array(key, 5, values.len());
        self.values.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    /// Adds an array of `f32`.
    #[must_use]
    pub fn f32s(mut self, key: &str, values: &[f32]) -> Self {
        self.array(key, 6, values.len());
        self.values.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    /// Adds a tensor of `f32`; `shape` has the outermost dimension first.
    #[must_use]
    pub fn tensor(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw_tensor(name, shape, F32, bytes)
    }

    /// Adds a tensor of any type, packed already; `type_id` is GGUF's number of the type.
    #[must_use]
    pub fn raw_tensor(mut self, name: &str, shape: &[usize], type_id: u32, bytes: Vec<u8>) -> Self {
        let shape = shape.iter().rev().map(|dimension| *dimension as u64).collect();
        self.tensors.push((name.to_owned(), shape, type_id, bytes));
        self
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend(self.value_count.to_le_bytes());
        file.extend(&self.values);
        let mut offset = 0;
        for (name, shape, type_id, bytes) in &self.tensors {
            push_text(&mut file, name);
            file.extend((shape.len() as u32).to_le_bytes());
            file.extend(shape.iter().flat_map(|dimension| dimension.to_le_bytes()));
            file.extend(type_id.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset += bytes.len().next_multiple_of(ALIGNMENT);
        }
        for (.., bytes) in &self.tensors {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            file.extend(bytes);
        }
        file
    }

    /// The same model in `count` files as llama.cpp's `gguf-split` writes them: the first has the values, each has a
    /// share of the tensors.
    pub fn split(&self, count: u16) -> Vec<Self> {
        let share = self.tensors.len().div_ceil(usize::from(count));
        let part = |no: u16| {
            let mut part = if no == 0 { Self { tensors: Vec::new(), ..self.clone() } } else { Self::new() };
            part.tensors.extend(self.tensors.iter().skip(usize::from(no) * share).take(share).cloned());
            part.u16("split.no", no).u16("split.count", count).i32("split.tensors.count", self.tensors.len() as i32)
        };
        (0..count).map(part).collect()
    }

    /// Writes [`split`](Self::split) files of the model `name` into `folder`; gives their paths.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn write_split(&self, folder: &Path, name: &str, count: u16) -> std::io::Result<Vec<PathBuf>> {
        let parts = (1..).zip(self.split(count));
        parts.map(|(number, part)| part.write(folder, &format!("{name}-{number:05}-of-{count:05}.gguf"))).collect()
    }

    /// Writes the file as `name` in `folder`; gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> std::io::Result<PathBuf> {
        let path = folder.join(name);
        std::fs::write(&path, self.build())?;
        Ok(path)
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.value_count += 1;
        push_text(&mut self.values, key);
        self.values.extend(kind.to_le_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9);
        self.values.extend(kind.to_le_bytes());
        self.values.extend((len as u64).to_le_bytes());
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Vocabulary of [`tiny_model`]: 256 bytes, a few merged words, and three special tokens.
pub const TINY_VOCABULARY: usize = 256 + MERGES.len() + 3;
/// The first of the special tokens.
pub(crate) const SPECIAL: usize = TINY_VOCABULARY - 3;
pub(crate) const MERGES: [(&str, &str); 5] = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")];
pub(crate) const HIDDEN: usize = 64;
pub(crate) const FEED_FORWARD: usize = 128;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const LAYERS: usize = 2;
/// ChatML, the template of [`tiny_model`].
pub const TINY_TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
                                   {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A loadable model of some 400 KB with random weights: architecture `llama`, byte-level tokenizer, ChatML template,
/// context 512. Its answers are noise, but the same noise for the same `seed`.
pub fn tiny_model(seed: u64) -> GgufBuilder {
    tiny_model_with(seed, TINY_TEMPLATE, &[])
}

/// [`tiny_model`] with another template, and more control tokens after its own.
pub fn tiny_model_with(seed: u64, template: &str, marks: &[&str]) -> GgufBuilder {
    let words = tiny_words(marks);
    tiny_file(512, template, &words, tiny_tensors(seed, words.len()))
}

/// [`tiny_model_with`] whose answers never end before `context_len` tokens: what is done to a running answer in a test
/// comes in time, whatever is drawn. `template` is [`TINY_TEMPLATE`] where it doesn't matter.
pub fn endless_model(seed: u64, context_len: u32, template: &str, marks: &[&str]) -> GgufBuilder {
    let words = tiny_words(marks);
    let mut tensors = tiny_tensors(seed, words.len());
    for (name, _, values) in &mut tensors {
        // The first feature is one in every word, and no layer writes to it; it speaks against the control tokens alone.
        let first_of_each = |values: &mut Vec<f32>, value| values.iter_mut().step_by(HIDDEN).for_each(|v| *v = value);
        match name.as_str() {
            "token_embd.weight" => first_of_each(values, 1.0),
            "output.weight" => {
                first_of_each(values, 0.0);
                values[SPECIAL * HIDDEN..].iter_mut().step_by(HIDDEN).for_each(|v| *v = -100.0);
            }
            _ if name.ends_with("attn_output.weight") => values[..HIDDEN].fill(0.0),
            _ if name.ends_with("ffn_down.weight") => values[..FEED_FORWARD].fill(0.0),
            _ => {}
        }
    }
    tiny_file(context_len, template, &words, tensors)
}

fn tiny_file(
    context_len: u32,
    template: &str,
    words: &[String],
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
) -> GgufBuilder {
    let types: Vec<i32> = (0..words.len()).map(|id| if id >= SPECIAL { 3 } else { 1 }).collect();
    let merges = MERGES.map(|(left, right)| format!("{left} {right}"));
    let file = GgufBuilder::new()
        .text("general.architecture", "llama")
        .text("general.name", "Tiny")
        .u32("general.file_type", 0)
        .u32("llama.block_count", LAYERS as u32)
        .u32("llama.context_length", context_len)
        .u32("llama.embedding_length", HIDDEN as u32)
        .u32("llama.feed_forward_length", FEED_FORWARD as u32)
        .u32("llama.attention.head_count", HEADS as u32)
        .u32("llama.attention.head_count_kv", KV_HEADS as u32)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 10_000.0)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", words)
        .i32s("tokenizer.ggml.token_type", &types)
        .texts("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.bos_token_id", SPECIAL as u32)
        .u32("tokenizer.ggml.eos_token_id", SPECIAL as u32 + 2)
        .text("tokenizer.chat_template", template);
    tensors.into_iter().fold(file, |file, (name, shape, values)| file.tensor(&name, &shape, &values))
}

/// The words of [`tiny_model`], the three special ones last, then `marks`.
pub(crate) fn tiny_words(marks: &[&str]) -> Vec<String> {
    let mut words: Vec<String> = (0..=255).map(|byte| byte_character(byte).to_string()).collect();
    words.extend(MERGES.iter().map(|(left, right)| format!("{left}{right}")));
    words.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].iter().chain(marks).map(|mark| (*mark).to_owned()));
    words
}

/// Names, shapes and values of [`tiny_model`]'s tensors, for a vocabulary of `words`.
pub(crate) fn tiny_tensors(seed: u64, words: usize) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut random = Random(seed);
    let mut tensors = Vec::new();
    let kv_width = HIDDEN / HEADS * KV_HEADS;
    let ones = vec![1.0; HIDDEN];
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        for (part, rows, columns) in [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", kv_width, HIDDEN),
            ("attn_v", kv_width, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", FEED_FORWARD, HIDDEN),
            ("ffn_up", FEED_FORWARD, HIDDEN),
            ("ffn_down", HIDDEN, FEED_FORWARD),
        ] {
            tensors.push((name(part), vec![rows, columns], random.values(rows * columns)));
        }
        for part in ["attn_norm", "ffn_norm"] {
            tensors.push((name(part), vec![HIDDEN], ones.clone()));
        }
    }
    tensors.push(("token_embd.weight".to_owned(), vec![words, HIDDEN], random.values(words * HIDDEN)));
    tensors.push(("output.weight".to_owned(), vec![words, HIDDEN], random.values(words * HIDDEN)));
    tensors.push(("output_norm.weight".to_owned(), vec![HIDDEN], ones));
    tensors
}

/// GPT-2's visible stand-in for a byte.
fn byte_character(byte: u8) -> char {
    const fn is_visible(byte: u8) -> bool {
        matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
    }
    if is_visible(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|other| !is_visible(*other)).count();
    char::from_u32(0x100 + hidden_before as u32).expect("68 characters from U+0100 on exist")
}

/// `SplitMix64`, enough for weights.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    /// Uniform in ±0.3, about what initialised weights of this width look like.
    fn value(&mut self) -> f32 {
        ((self.bits() >> 40) as f32 / (1_u32 << 24) as f32 - 0.5) * 0.6
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
