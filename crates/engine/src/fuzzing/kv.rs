use candle_core::{DType, Device};
use kernels::{KvFormat, KvLayer, KvNumbers, KvShape, Span};
use sha2::{Digest, Sha256};

use super::file;
use crate::kv_cache::{Blocks, Compressed, KvCache, LayerState, Recurrent};
use crate::kv_file::{self, Fingerprint, MAGIC, VERSION};
use crate::spec::{BlockShape, StateShape};

const F32: KvFormat = KvFormat::float(DType::F32);
/// With keys that have a bias.
const Q8: KvFormat = KvFormat { keys: KvNumbers::Float(DType::F16), values: KvNumbers::Q8 };
const MODEL: Fingerprint = [7; 32];
/// The file is the input as it is; without this, the input is what lies between fingerprint and checksum.
const AS_IT_IS: u8 = 1 << 7;

/// A byte for the layers of the model, a bit each, and for whether a file begins and ends as it should; then the file.
///
/// Reads the cache. One that is taken is written, and from then on what is read is what was written.
pub fn kv(data: &[u8]) {
    let [kinds, content @ ..] = data else { return };
    let folder = file::folder();
    let (path, again) = (folder.path().join("a.kv"), folder.path().join("b.kv"));
    let begun = [&MAGIC, VERSION.to_le_bytes().as_slice(), &MODEL, content].concat();
    if kinds & AS_IT_IS == 0 {
        file::write(&path, &[begun.as_slice(), &Sha256::digest(&begun)].concat());
    } else {
        file::write(&path, content);
    }
    let named = kv_file::read_tokens(&path, &MODEL);
    let Ok((tokens, mut cache)) = kv_file::read(&path, &MODEL, empty(*kinds)) else { return };
    assert_eq!(named.expect("they are read first"), tokens);
    assert_eq!(tokens.len(), cache.n_past());
    // It may have had more tokens than a layer with a window keeps.
    let mut written = [Vec::new(), Vec::new()];
    for written in &mut written {
        kv_file::write(&again, &MODEL, &tokens, &cache, u64::MAX).expect("it is whole");
        *written = std::fs::read(&again).expect("it was written");
        let (found, read) = kv_file::read(&again, &MODEL, empty(*kinds)).expect("it was written by us");
        assert_eq!(found, tokens);
        cache = read;
        std::fs::remove_file(&again).expect("it was written");
    }
    assert!(written[0] == written[1], "another file of the same cache");
    for n_past in [cache.n_past().saturating_sub(1), cache.n_past() / 2] {
        if let Some(copy) = cache.copy(n_past).expect("there is memory") {
            assert_eq!(copy.n_past(), n_past);
        }
        assert!(cache.trim(n_past) <= n_past);
        cache.checkpoint();
    }
}

/// The cache of a model with a layer of each kind that is asked for.
fn empty(kinds: u8) -> KvCache {
    let shape = KvShape { kv_heads: 2, key_dim: 2, value_dim: 2, values_in_keys: false, span: Span::All };
    let tokens = |shape, format| LayerState::Tokens(KvLayer::new(shape, 4, format, &Device::Cpu));
    let recurrent = |memory| LayerState::Recurrent(Recurrent::new(StateShape { conv: (2, 3), memory }, &Device::Cpu));
    let layer = |kind| match kind {
        0 => tokens(shape, F32),
        1 => tokens(KvShape { span: Span::Window(3), ..shape }, KvFormat::float(DType::F16)),
        2 => tokens(KvShape { span: Span::Chunk(4), ..shape }, Q8),
        3 => tokens(KvShape { values_in_keys: true, ..shape }, F32),
        4 => recurrent(Some((1, 2, 2))),
        5 => recurrent(None),
        _ => LayerState::Compressed(compressed(KvShape { span: Span::Window(3), values_in_keys: true, ..shape })),
    };
    KvCache::new((0..7).filter(|kind| kinds & (1 << kind) != 0).map(layer).collect())
}

fn compressed(window: KvShape) -> Compressed {
    let shape = BlockShape { len: 2, series: 2, dim: 2 };
    let layer = |shape, growth| KvLayer::new(shape, growth, F32, &Device::Cpu);
    let blocks = Blocks { shape, inputs: layer(shape.inputs(), 4), keys: layer(shape.keys(), 2) };
    Compressed { window: layer(window, 4), blocks: vec![blocks] }
}
