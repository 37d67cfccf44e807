use std::ops::Range;

use candle_core::{Device, Tensor};

use super::TokenId;
use super::rope::Angles;
use crate::kv_cache::KvCache;

/// Tokens that are to be run after one sequence.
pub(crate) struct Part<'a> {
    pub(crate) tokens: &'a [TokenId],
    pub(crate) cache: &'a mut KvCache,
    /// How many of them, from the last one back, get logits; at least one.
    pub(crate) logits: usize,
}

/// One forward: the tokens of all parts laid end to end. Matrices take them at once; what remembers a sequence takes
/// each part's rows by themselves.
pub(super) struct Batch {
    pub(super) tokens: Vec<TokenId>,
    /// The rows of each part.
    pub(super) spans: Vec<Range<usize>>,
    /// The position of each row in its own sequence.
    pub(super) positions: Vec<usize>,
    pub(super) device: Device,
    /// For each kind of rotary positions.
    pub(super) angles: Vec<Angles>,
}

impl Batch {
    pub(super) fn new(parts: &[Part<'_>], device: &Device) -> Self {
        let mut batch = Self {
            tokens: Vec::new(),
            spans: Vec::new(),
            positions: Vec::new(),
            device: device.clone(),
            angles: Vec::new(),
        };
        for part in parts {
            let (start, n_past) = (batch.tokens.len(), part.cache.n_past());
            batch.tokens.extend_from_slice(part.tokens);
            batch.spans.push(start..batch.tokens.len());
            batch.positions.extend(n_past..n_past + part.tokens.len());
        }
        batch
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The rows of `x` `(tokens, …)` that get logits, part after part.
    pub(super) fn select(&self, x: &Tensor, parts: &[Part<'_>]) -> candle_core::Result<Tensor> {
        let wanted = |(span, part): (&Range<usize>, &Part<'_>)| span.end - part.logits..span.end;
        let wanted: Vec<Range<usize>> = self.spans.iter().zip(parts).map(wanted).collect();
        match wanted.as_slice() {
            [one] => rows(x, one),
            _ if wanted.iter().map(Range::len).sum::<usize>() == self.len() => Ok(x.clone()),
            _ => {
                let rows: Vec<u32> = wanted.into_iter().flatten().map(|row| row as u32).collect();
                x.index_select(&Tensor::new(rows, &self.device)?, 0)
            }
        }
    }

    /// Runs `each` on the rows of one part after the other and joins what comes out.
    pub(super) fn by_part<'p>(
        &self,
        parts: &'p mut [Part<'_>],
        mut each: impl FnMut(Range<usize>, &'p mut KvCache) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let mut outs = Vec::with_capacity(parts.len());
        for (span, part) in self.spans.iter().zip(parts) {
            outs.push(each(span.clone(), part.cache)?);
        }
        match outs.as_slice() {
            [out] => Ok(out.clone()),
            outs => Tensor::cat(outs, 0),
        }
    }
}

/// The rows `span` of `x`, without a copy.
pub(super) fn rows(x: &Tensor, span: &Range<usize>) -> candle_core::Result<Tensor> {
    x.narrow(0, span.start, span.len())
}
