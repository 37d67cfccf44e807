//! The graph against `transformers`: tiny random models with the logits that it gives in float32. The fixtures come
//! from torch 2.11 and transformers 5.23, converted by llama.cpp's own converter.

use std::path::PathBuf;

use candle_core::{Device, Tensor};

use super::llama::Llama;
use super::*;
use crate::gguf::Weights;

const TOLERANCE: f32 = 1e-3;

struct Oracle {
    model: Llama,
    tokens: Vec<TokenId>,
    logits: Vec<Vec<f32>>,
}

impl Oracle {
    fn load(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracles").join(name);
        let gguf = Gguf::open(&folder.join("model-f32.gguf")).unwrap();
        let mut ignore = |_, _| {};
        let mut weights = Weights::new(&gguf, &Device::Cpu, &mut ignore);
        let model = Llama::load(Spec::read(&gguf).unwrap(), &mut weights).unwrap();
        let tokens = std::fs::read_to_string(folder.join("input_ids.json")).unwrap();
        Self {
            model,
            tokens: serde_json::from_str(&tokens).unwrap(),
            logits: Tensor::read_npy(folder.join("logits.npy")).unwrap().to_vec2().unwrap(),
        }
    }

    /// Runs the tokens in parts of these lengths after `cache`, and compares the logits of every position.
    fn check_parts(&self, parts: &[usize], cache: &mut KvCache) {
        let mut at = cache.n_past();
        for part in parts {
            let logits = self.model.forward_all(&self.tokens[at..at + part], cache).unwrap().to_vec2::<f32>().unwrap();
            for (i, found) in logits.iter().enumerate() {
                assert_close(found, &self.logits[at + i], at + i);
            }
            at += part;
        }
        assert_eq!(at, self.tokens.len());
    }
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

fn assert_close(found: &[f32], expected: &[f32], position: usize) {
    assert_eq!(found.len(), expected.len());
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < TOLERANCE, "position {position} differs by {difference}");
    assert_eq!(argmax(found), argmax(expected), "position {position}");
}

fn check(name: &str) {
    let oracle = Oracle::load(name);
    let len = oracle.tokens.len();
    oracle.check_parts(&[len], &mut oracle.model.new_cache());
    oracle.check_parts(&[7, 1, 13, 2, len - 23], &mut oracle.model.new_cache());
    oracle.check_parts(&vec![1; len], &mut oracle.model.new_cache());

    let mut trimmed = oracle.model.new_cache();
    oracle.check_parts(&[len], &mut trimmed);
    let noise: Vec<TokenId> = oracle.tokens.iter().rev().copied().collect();
    oracle.model.forward(&noise, &mut trimmed).unwrap();
    trimmed.trim(len / 3);
    assert_eq!(trimmed.n_past(), len / 3);
    oracle.check_parts(&[len - len / 3], &mut trimmed);

    let last = oracle.model.forward(&oracle.tokens, &mut oracle.model.new_cache()).unwrap();
    assert_close(&last.to_vec1::<f32>().unwrap(), &oracle.logits[len - 1], len - 1);
}

#[test]
fn llama_with_stretched_frequencies() {
    check("llama");
}

#[test]
fn mistral() {
    check("mistral");
}

#[test]
fn qwen2_with_biases() {
    check("qwen2");
}

#[test]
fn smollm3_with_layers_without_positions() {
    check("smollm3");
}

#[test]
fn a_full_cache_takes_what_the_header_predicts() {
    let oracle = Oracle::load("qwen2");
    let mut cache = oracle.model.new_cache();
    oracle.model.forward(&oracle.tokens, &mut cache).unwrap();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracles/qwen2/model-f32.gguf");
    let predicted = crate::read_header(&path).unwrap().footprint(crate::kv_cache::GROWTH_STEP);
    assert_eq!(predicted.kv_cache, cache.allocated());
}
