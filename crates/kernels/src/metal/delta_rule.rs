use candle_core::{DType, Result, Tensor, bail};

use super::compiled::Source;
use super::launch::{Launch, SIMD_GROUP, narrow};
use crate::delta_rule::DeltaShape;

/// The gated delta rule, one launch for all tokens: outputs, then the state after, in one row.
pub(crate) fn delta_rule(rows: &Tensor, state: &Tensor) -> Result<Tensor> {
    let shape = DeltaShape::of(rows.layout(), state.layout())?;
    let DeltaShape { tokens, heads, key_dim, value_dim } = shape;
    if rows.dtype() != DType::F32 || state.dtype() != DType::F32 {
        bail!("the delta rule is computed in f32");
    }
    let launch = Launch {
        source: Source::DeltaRule,
        kernel: "delta_rule",
        shape: [narrow(tokens)?, narrow(heads)?, narrow(key_dim)?, narrow(value_dim)?],
        inputs: &[rows, state],
        output: (1, shape.both()),
        dtype: DType::F32,
        threadgroups: (value_dim.div_ceil(SIMD_GROUP), heads),
        threads: SIMD_GROUP,
        scratch: 0,
    };
    launch.run()?.flatten_all()
}
