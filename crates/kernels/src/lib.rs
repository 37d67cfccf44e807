//! The tensor operations that decide speed. Each has a reference in plain candle ops, which runs on every device, and
//! a fast version where candle or we have one; a property test compares the two.
//!
//! Knows tensors and shapes, never models or files. A sequence is `(tokens, heads, head_dim)` here: no batch dimension.
//! Start at [`attention()`] and [`KvLayer`].

#![warn(missing_docs)]

pub mod cpu;
#[cfg(feature = "metal")]
pub mod metal;
pub mod packed;

mod add;
mod attention;
mod delta_rule;
mod experts;
mod gate;
mod key_sets;
mod kv_layer;
mod kv_q8;
mod norm;
mod rope;

pub use add::{add, add_rows};
pub use attention::{MOST_SCORES, attention, attention_reference, attention_scratch_bytes};
pub use delta_rule::{DeltaSteps, delta_rule, delta_rule_reference};
pub use experts::{Gating, Routing, best};
pub use gate::{Activation, gated, gated_reference, sigmoid};
pub use key_sets::{KeySet, attention_over_sets, softmax};
pub use kv_layer::{KvFormat, KvLayer, KvNumbers, KvRows, KvShape, Plane, Span};
pub use norm::{rms_norm, rms_norm_reference};
pub use rope::{Pairing, Turn, rope, rope_reference};

/// Runs one step: a part of the prompt, or one token. What Apple's frameworks release automatically within it is
/// released at its end; a thread without a run loop would keep it for good (candle #2271).
#[cfg(feature = "metal")]
pub fn step<T>(run: impl FnOnce() -> T) -> T {
    objc2::rc::autoreleasepool(|_| run())
}

/// Runs one step: a part of the prompt, or one token. Only Metal has something to release at its end.
#[cfg(not(feature = "metal"))]
pub fn step<T>(run: impl FnOnce() -> T) -> T {
    run()
}

#[cfg(test)]
mod tests;
