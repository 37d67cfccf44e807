use candle_core::{DType, Device};
use kernels::{KvFormat, KvLayer, KvRows};

use super::GROWTH_STEP;
use crate::device::KvType;
use crate::spec::{BlockShape, Compression, Deepseek4Spec};

/// About so many of the last tokens can be taken back without a checkpoint; what they were compressed from is kept.
pub(crate) const SLACK: usize = 256;

/// What a layer of DeepSeek V4 remembers: the last tokens as they are, those before as blocks.
#[derive(Debug)]
pub(crate) struct Compressed {
    /// Keys of the last tokens, which are their values too.
    pub(crate) window: KvLayer,
    /// None, those that are attended to, or these and then those that the indexer chooses by.
    pub(crate) blocks: Vec<Blocks>,
}

/// Keys that each stand for a block of tokens.
#[derive(Debug)]
pub(crate) struct Blocks {
    pub(crate) shape: BlockShape,
    /// What the last tokens leave for the key of their block, and how much it counts: as keys and values.
    pub(crate) inputs: KvLayer,
    /// Keys of the blocks that are whole.
    pub(crate) keys: KvLayer,
}

/// What a sequence that goes on from here needs again; the keys of whole blocks never change.
#[derive(Clone, Debug)]
pub(crate) struct CompressedTail {
    pub(crate) window: KvRows,
    /// Of each kind of blocks.
    pub(crate) inputs: Vec<KvRows>,
}

impl Compressed {
    pub(crate) fn new(
        spec: &Deepseek4Spec,
        compression: Option<Compression>,
        kv_type: KvType,
        device: &Device,
    ) -> Self {
        let (f32, format) = (KvFormat::float(DType::F32), KvFormat::float(kv_type.unpacked()));
        let blocks = spec.blocks(compression).into_iter().map(|shape| Blocks {
            inputs: KvLayer::new(shape.inputs(), SLACK, f32, device),
            keys: KvLayer::new(shape.keys(), GROWTH_STEP / shape.len, format, device),
            shape,
        });
        Self { window: KvLayer::new(spec.window_keys(), SLACK, format, device), blocks: blocks.collect() }
    }

    /// Whether everything is still here that the token at position `n_past` needs.
    pub(super) fn can_trim(&self, n_past: usize) -> bool {
        self.window.can_trim(n_past) && self.blocks.iter().all(|blocks| blocks.inputs.can_trim(n_past))
    }

    /// Forgets every token from the `n_past`-th on.
    pub(super) fn trim(&mut self, n_past: usize) {
        self.window.trim(n_past);
        for blocks in &mut self.blocks {
            blocks.inputs.trim(n_past);
            blocks.keys.trim(n_past / blocks.shape.len);
        }
    }

    pub(super) fn tail(&self) -> candle_core::Result<CompressedTail> {
        let inputs = self.blocks.iter().map(|blocks| blocks.inputs.tail()).collect::<Result<_, _>>()?;
        Ok(CompressedTail { window: self.window.tail()?, inputs })
    }

    /// Goes back to the `n_past` tokens after which `tail` was taken.
    pub(super) fn restore(&mut self, tail: &CompressedTail, n_past: usize) {
        self.window.restore(&tail.window);
        for (blocks, inputs) in self.blocks.iter_mut().zip(&tail.inputs) {
            blocks.inputs.restore(inputs);
            blocks.keys.trim(n_past / blocks.shape.len);
        }
    }

    /// A copy with the first `n_past` tokens, or those of them that it still has.
    pub(super) fn copy(&self, n_past: usize) -> candle_core::Result<Self> {
        let copy = |blocks: &Blocks| {
            let (inputs, keys) = (blocks.inputs.copy(n_past)?, blocks.keys.copy(n_past / blocks.shape.len)?);
            Ok(Blocks { shape: blocks.shape, inputs, keys })
        };
        let blocks = self.blocks.iter().map(copy).collect::<candle_core::Result<_>>()?;
        Ok(Self { window: self.window.copy(n_past)?, blocks })
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        let bytes = |blocks: &Blocks| blocks.inputs.allocated_bytes() + blocks.keys.allocated_bytes();
        self.window.allocated_bytes() + self.blocks.iter().map(bytes).sum::<u64>()
    }
}

impl CompressedTail {
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.window.allocated_bytes() + self.inputs.iter().map(KvRows::allocated_bytes).sum::<u64>()
    }
}
