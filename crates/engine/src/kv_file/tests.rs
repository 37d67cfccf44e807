use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use kernels::{KvFormat, KvShape, Span};
use proptest::prelude::*;

use super::*;
use crate::device::KvType;
use crate::gguf::Gguf;
use crate::models::{self, Model, Part};
use crate::spec::StateShape;

const MODEL: Fingerprint = [7; 32];

/// A folder for each family, with `model-f32.gguf` and `input_ids.json`.
fn families(folder: &Path) -> Vec<PathBuf> {
    let packed = File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracles.tar.zst")).unwrap();
    let mut unpacked = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(packed).unwrap().read_to_end(&mut unpacked).unwrap();
    tar::Archive::new(unpacked.as_slice()).unpack(folder).unwrap();
    let folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    folders.filter(|path| path.join("model-f32.gguf").exists()).collect()
}

fn run(model: &dyn Model, tokens: &[TokenId], cache: &mut KvCache) -> Vec<Vec<f32>> {
    model.forward(&mut [Part { tokens, cache, logits: tokens.len() }]).unwrap().to_vec2().unwrap()
}

fn kind(layer: &LayerState) -> &'static str {
    match layer {
        LayerState::Tokens(layer) if layer.shape().values_in_keys => "latent",
        LayerState::Tokens(layer) if layer.shape().span == Span::All => "tokens",
        LayerState::Tokens(_) => "windowed",
        LayerState::Recurrent(_) => "recurrent",
        LayerState::Compressed(_) => "compressed",
        LayerState::Nothing => "nothing",
    }
}

/// Every family goes on from a file as from the cache that was written, bit for bit: after its last token, and after it
/// was wound back.
#[test]
fn what_is_read_is_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut kinds = BTreeSet::new();
    let families = families(folder.path());
    for (family, kv_type) in families.iter().flat_map(|family| [(family, KvType::DEFAULT), (family, KvType::Q8)]) {
        let gguf = Gguf::open(&family.join("model-f32.gguf")).unwrap();
        let tokens: Vec<TokenId> =
            serde_json::from_str(&fs::read_to_string(family.join("input_ids.json")).unwrap()).unwrap();
        let (half, rest) = tokens.split_at(tokens.len() / 2);
        let model = models::load(&gguf, &Device::Cpu, &mut |_, _| {}).unwrap().model;
        let mut written = model.new_cache(kv_type);
        for chunk in [&half[..half.len() / 2], &half[half.len() / 2..]] {
            run(model.as_ref(), chunk, &mut written);
            written.checkpoint();
        }
        kinds.extend(written.layers.iter().map(kind));
        let path = family.join(format!("{kv_type:?}.kv"));
        let bytes = write(&path, &MODEL, half, &written, u64::MAX).unwrap();
        assert_eq!(bytes, path.metadata().unwrap().len());
        assert_eq!(read_tokens(&path, &MODEL).unwrap(), half);
        let (sequence, mut found) = read(&path, &MODEL, model.new_cache(kv_type)).unwrap();
        assert_eq!((sequence.as_slice(), found.n_past()), (half, half.len()));
        for cache in [&mut written, &mut found] {
            assert_eq!(cache.checkpoints().len(), usize::from(cache.layers.iter().any(LayerState::needs_state)) * 2);
        }
        let name = family.file_name().unwrap();
        assert_eq!(run(model.as_ref(), rest, &mut found), run(model.as_ref(), rest, &mut written), "{name:?}");
        let left = written.trim(half.len() / 2 + 1);
        assert!(left >= half.len() / 2, "{name:?}");
        assert_eq!(found.trim(half.len() / 2 + 1), left, "{name:?}");
        let rest = &tokens[left..];
        assert_eq!(run(model.as_ref(), rest, &mut found), run(model.as_ref(), rest, &mut written), "{name:?}");
    }
    assert_eq!(Vec::from_iter(kinds), ["compressed", "latent", "nothing", "recurrent", "tokens", "windowed"]);
}

/// A layer that keeps all tokens, one with a window, one with keys alone, and one with a state.
fn small_empty() -> KvCache {
    let shape = KvShape { kv_heads: 2, key_dim: 2, value_dim: 2, values_in_keys: false, span: Span::All };
    let shapes = [shape, KvShape { span: Span::Window(3), ..shape }, KvShape { values_in_keys: true, ..shape }];
    let state = StateShape { conv: (2, 3), memory: Some((1, 2, 2)) };
    let tokens =
        shapes.map(|shape| LayerState::Tokens(KvLayer::new(shape, 4, KvFormat::float(DType::F32), &Device::Cpu)));
    KvCache::new(tokens.into_iter().chain([LayerState::Recurrent(Recurrent::new(state, &Device::Cpu))]).collect())
}

/// The file of a cache with a few tokens and a checkpoint.
fn small_file(folder: &Path) -> Vec<u8> {
    let mut cache = small_empty();
    for tokens in [5, 4] {
        for layer in &mut cache.layers {
            match layer {
                LayerState::Tokens(layer) => {
                    let rows = Tensor::ones((tokens, 2, 2), DType::F32, &Device::Cpu).unwrap();
                    layer.append(&rows, &rows).unwrap();
                }
                LayerState::Recurrent(state) => {
                    state.conv = Some(Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap());
                    state.memory = Some(Tensor::ones((1, 2, 2), DType::F32, &Device::Cpu).unwrap());
                }
                LayerState::Compressed(_) | LayerState::Nothing => {}
            }
        }
        cache.advance(tokens);
        cache.checkpoint();
    }
    let path = folder.join("small.kv");
    write(&path, &MODEL, &[1, 2, 3, 4, 5, 6, 7, 8, 9], &cache, u64::MAX).unwrap();
    fs::read(path).unwrap()
}

fn read_bytes(bytes: &[u8]) -> Result<(Vec<TokenId>, KvCache)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.kv");
    fs::write(&path, bytes).unwrap();
    read(&path, &MODEL, small_empty())
}

fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let content = bytes.len().saturating_sub(CHECKSUM_BYTES as usize);
    bytes.truncate(content);
    let checksum = Sha256::digest(&bytes);
    bytes.extend(checksum);
    bytes
}

#[test]
fn every_changed_byte_and_every_other_length_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = small_file(folder.path());
    assert!(read_bytes(&whole).is_ok());
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(read_bytes(&changed).is_err(), "byte {at} of {}", whole.len());
        assert!(read_bytes(&whole[..at]).is_err(), "{at} bytes of {}", whole.len());
    }
    assert!(read_bytes(&[whole.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn a_refusal_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let whole = small_file(folder.path());
    let check = |at: usize, value: u64, sentence: &str| {
        let mut changed = whole.clone();
        changed[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let error = read_bytes(&with_checksum(changed)).unwrap_err();
        assert_eq!(error.to_string(), sentence);
    };
    let tokens = MAGIC.len() + 4 + MODEL.len();
    let first_layer = tokens + 8 + 9 * 4;
    check(0, 0, "it is another kind of file");
    check(8, 2 | 7 << 32, "it is of another version");
    check(12, 0, "it is of another model, or was made in another way");
    check(tokens, u64::MAX, "it ends too early");
    check(tokens, 1 << 40, "it ends too early");
    check(tokens, 8, "a layer lacks tokens");
    check(first_layer, 1, "a layer lacks tokens");
    check(first_layer + 8, u64::MAX, "a layer lacks tokens");
    let too_small = write(&folder.path().join("large.kv"), &MODEL, &[], &small_empty(), 40).unwrap_err();
    assert_eq!(too_small.to_string(), "it takes more than the 40 bytes that it may");
}

proptest! {
    /// A file that somebody made on purpose, its checksum included, may be taken or refused, and that is all.
    #[test]
    fn a_forged_file_does_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        number in prop::option::of((any::<prop::sample::Index>(), prop_oneof![Just(u64::MAX), 0..20_u64])),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = small_file(folder.path());
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some((at, value)) = number {
            let at = at.index(bytes.len() - 8);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok((tokens, mut cache)) = read_bytes(&with_checksum(bytes)) {
            prop_assert_eq!(tokens.len(), cache.n_past());
            cache.trim(cache.n_past().saturating_sub(1));
        }
    }
}
