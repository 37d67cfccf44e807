//! Models as they are published: a folder of `config.json`, `*.safetensors` and a tokenizer.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::gguf::{
    FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, LAYERS, MERGES, TINY_TEMPLATE, TINY_VOCABULARY, tiny_tensors, tiny_words,
};

/// Writes safetensors files.
#[derive(Clone, Debug, Default)]
pub struct SafetensorsBuilder {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl SafetensorsBuilder {
    /// A file without tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor; `dtype` is the format's name of its type.
    #[must_use]
    pub fn tensor(mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) -> Self {
        let start = self.data.len();
        self.data.extend_from_slice(bytes);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, self.data.len()] });
        self.header.insert(name.to_owned(), entry);
        self
    }

    /// Names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.header.keys()
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let mut header = serde_json::to_vec(&self.header).expect("a map of JSON is JSON");
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(&self.data);
        file
    }
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredAs {
    /// Four bytes each.
    F32,
    /// The upper two of them.
    Bf16,
}

/// Writes the model that [`tiny_model`](crate::gguf::tiny_model) is into `folder` as its makers would have published it,
/// with the weights in so many files. As F32 it gives the same answers.
///
/// # Errors
/// When a file cannot be written.
pub fn write_tiny_folder(folder: &Path, seed: u64, stored_as: StoredAs, shards: usize) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut files = vec![SafetensorsBuilder::new(); shards];
    for (i, (name, shape, values)) in tiny_tensors(seed, TINY_VOCABULARY).into_iter().enumerate() {
        let values = match shape.as_slice() {
            [rows, columns] if name.contains("attn_q") => unpermuted(&values, HEADS, *rows, *columns),
            [rows, columns] if name.contains("attn_k") => unpermuted(&values, KV_HEADS, *rows, *columns),
            _ => values,
        };
        let (dtype, bytes): (_, Vec<u8>) = match stored_as {
            StoredAs::F32 => ("F32", values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            StoredAs::Bf16 => {
                ("BF16", values.iter().flat_map(|value| value.to_le_bytes().into_iter().skip(2)).collect())
            }
        };
        let file = &mut files[i % shards];
        *file = std::mem::take(file).tensor(&published(&name), dtype, &shape, &bytes);
    }
    if let [file] = files.as_slice() {
        fs::write(folder.join("model.safetensors"), file.build())?;
    } else {
        let name = |no: usize| format!("model-{:05}-of-{shards:05}.safetensors", no + 1);
        let mut index = Map::new();
        for (no, file) in files.iter().enumerate() {
            fs::write(folder.join(name(no)), file.build())?;
            index.extend(file.names().map(|tensor| (tensor.clone(), name(no).into())));
        }
        write_json(folder, "model.safetensors.index.json", &json!({ "weight_map": index }))?;
    }
    let special = TINY_VOCABULARY - 3;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "bos_token_id": special, "eos_token_id": [special + 2],
    });
    write_json(folder, "config.json", &config)?;
    let words = tiny_words(&[]);
    let added: Vec<Value> = (special..TINY_VOCABULARY)
        .map(|id| json!({ "id": id, "content": words[id], "special": true, "normalized": false }))
        .collect();
    let vocabulary: Map<String, Value> =
        words.into_iter().zip(0..special).map(|(word, id)| (word, id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": added, "normalizer": null, "post_processor": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocabulary, "merges": MERGES.map(|(left, right)| format!("{left} {right}")) },
    });
    write_json(folder, "tokenizer.json", &tokenizer)?;
    let settings = json!({ "bos_token": "<|endoftext|>", "eos_token": { "content": "<|im_end|>" } });
    write_json(folder, "tokenizer_config.json", &settings)?;
    fs::write(folder.join("chat_template.jinja"), TINY_TEMPLATE)
}

fn write_json(folder: &Path, name: &str, value: &Value) -> io::Result<()> {
    fs::write(folder.join(name), value.to_string())
}

/// GGUF has the two halves of each head in turn.
fn unpermuted(values: &[f32], heads: usize, rows: usize, columns: usize) -> Vec<f32> {
    let head_dim = rows / heads;
    let row_of = |row: usize| {
        let (head, at) = (row / head_dim, row % head_dim);
        head * head_dim + 2 * (at % (head_dim / 2)) + at / (head_dim / 2)
    };
    (0..rows).flat_map(|row| &values[row_of(row) * columns..][..columns]).copied().collect()
}

fn published(name: &str) -> String {
    match name {
        "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
        "output.weight" => "lm_head.weight".to_owned(),
        "output_norm.weight" => "model.norm.weight".to_owned(),
        _ => [
            ("blk", "model.layers"),
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ]
        .iter()
        .fold(name.to_owned(), |name, (gguf, published)| name.replace(gguf, published)),
    }
}
