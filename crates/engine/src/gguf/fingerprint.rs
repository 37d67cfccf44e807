use sha2::{Digest, Sha256};

use super::Gguf;

/// Blocks of weights that are looked at in each file, from its first to its last.
const BLOCKS: usize = 48;
const BLOCK_BYTES: usize = 4096;
/// No more than one word in so many is padding.
const MOST_PADDED: usize = 64;

/// Names what token ids mean: the beginning of SHA-256 over the words of the vocabulary in their order, in hexadecimal.
/// Models in which it is the same understand each other's tokens, whatever their weights and templates.
pub(crate) fn vocabulary_name(gguf: &Gguf) -> String {
    let mut hash = Sha256::new();
    if let Some(words) = gguf.metadata().array("tokenizer.ggml.tokens") {
        hash.update(words.bytes(&gguf.map));
    }
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether both mean the same by a token's id. One may have a few more words at its end, with which files are padded.
pub(crate) fn same_vocabulary(one: &Gguf, other: &Gguf) -> bool {
    let words = |gguf| {
        let words = Gguf::metadata(gguf).array("tokenizer.ggml.tokens")?;
        Some((words.len(), words.bytes(&gguf.map)))
    };
    let (Some(one), Some(other)) = (words(one), words(other)) else { return false };
    let (short, long) = if one.0 < other.0 { (one, other) } else { (other, one) };
    short.0 > 0 && long.0 - short.0 <= long.0 / MOST_PADDED && long.1.starts_with(short.1)
}

impl Gguf {
    /// Tells the model from any other: SHA-256 over the length, the header and a few dozen evenly spaced blocks of
    /// weights of every file. Milliseconds at any size; weights that were changed between the blocks, in a file of the
    /// same length, go unnoticed.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in &self.parts {
            let (header, weights) = part.map.split_at(part.header_len);
            hash.update((header.len() as u64).to_le_bytes());
            hash.update((weights.len() as u64).to_le_bytes());
            hash.update(header);
            let last = weights.len().saturating_sub(BLOCK_BYTES);
            let starts = (0..BLOCKS - 1).map(|block| last / (BLOCKS - 1) * block).chain([last]);
            for start in starts {
                hash.update(&weights[start..weights.len().min(start + BLOCK_BYTES)]);
            }
        }
        hash.finalize().into()
    }
}
