use candle_core::Device;
use kernels::KvLayer;

use crate::device;
use crate::spec::Spec;

/// Tokens by which a cache grows: large enough that copying is rare, small enough that a short chat stays small.
pub(crate) const GROWTH_STEP: usize = 1024;

/// Keys and values of one sequence in every layer. Owned by a slot and passed to the model.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) layers: Vec<KvLayer>,
}

impl KvCache {
    pub(crate) fn new(spec: &Spec, device: &Device) -> Self {
        let layer = || KvLayer::new(spec.kv_heads, spec.head_dim, GROWTH_STEP, device::kv_dtype(device), device);
        Self { layers: (0..spec.layers).map(|_| layer()).collect() }
    }

    /// Tokens in the cache.
    pub(crate) fn n_past(&self) -> usize {
        // A forward that failed half-way leaves the later layers shorter.
        self.layers.iter().map(KvLayer::len).min().unwrap_or(0)
    }

    /// Forgets every token from the `n_past`-th on.
    pub(crate) fn trim(&mut self, n_past: usize) {
        for layer in &mut self.layers {
            layer.trim(n_past);
        }
    }

    /// Bytes that are allocated now.
    #[cfg(test)]
    pub(crate) fn allocated(&self) -> chat::Bytes {
        chat::Bytes(self.layers.iter().map(KvLayer::allocated_bytes).sum())
    }
}
