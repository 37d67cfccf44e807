use candle_core::{DType, Device, MetalDevice, Result, Tensor, bail};

use super::compiled::{Source, codebook};
use super::launch::{Launch, SIMD_GROUP, narrow};
use super::packed::{ROWS, TOKENS};
use crate::experts::{Gating, Routing};
use crate::packed::Packing;

/// As in `experts.metal`.
#[repr(C)]
struct Shape {
    experts: u32,
    used: u32,
    gating: u32,
    groups: u32,
    groups_used: u32,
    has_values: u32,
    norms_weights: u32,
    weight_scale: f32,
}

impl Shape {
    fn of(routing: &Routing, has_values: bool) -> Result<Self> {
        Ok(Self {
            experts: narrow(routing.experts)?,
            used: narrow(routing.used)?,
            gating: match routing.gating {
                Gating::Softmax => 0,
                Gating::Sigmoid => 1,
                Gating::SqrtSoftplus => 2,
                Gating::SoftmaxOfChosen => 3,
            },
            groups: narrow(routing.groups)?,
            groups_used: narrow(routing.groups_used)?,
            has_values: has_values.into(),
            norms_weights: routing.norms_weights.into(),
            weight_scale: routing.weight_scale,
        })
    }
}

/// [`Routing::choose`], with a SIMD-group for each token.
pub(crate) fn choose_experts(routing: &Routing, logits: &Tensor) -> Result<Tensor> {
    let (tokens, experts) = logits.dims2()?;
    let scratch = (experts + routing.groups) * DType::F32.size_in_bytes();
    // What every Apple GPU has for a threadgroup.
    if scratch > 32 << 10 {
        bail!("{experts} experts are too many to choose from");
    }
    let launch = Launch {
        source: Source::Experts,
        kernel: "choose_experts",
        shape: Shape::of(routing, routing.choice_bias.is_some())?,
        inputs: &[&of_f32(logits)?, routing.choice_bias.as_ref().unwrap_or(logits)],
        output: (tokens, routing.used),
        dtype: DType::U32,
        threadgroups: (tokens, 1),
        threads: SIMD_GROUP,
        scratch,
    };
    launch.run()
}

/// [`Routing::weigh`], with a SIMD-group for each token. An id that is no expert has a score of 0.
pub(crate) fn weigh_experts(routing: &Routing, logits: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let tokens = logits.dim(0)?;
    let launch = Launch {
        source: Source::Experts,
        kernel: "weigh_experts",
        shape: Shape::of(routing, routing.expert_scale.is_some())?,
        inputs: &[&of_f32(logits)?, &of_u32(ids)?, routing.expert_scale.as_ref().unwrap_or(logits)],
        output: (tokens, routing.used),
        dtype: DType::F32,
        threadgroups: (tokens, 1),
        threads: SIMD_GROUP,
        scratch: 0,
    };
    launch.run()
}

/// `base` `(tokens, columns)` and what was made for each chosen expert, `(tokens · used, columns)`, by its weight
/// `(tokens, used)`, added up in their order → `(tokens, columns)`. All are f32.
///
/// # Errors
/// When the shapes don't fit together, or a tensor isn't on the GPU.
pub fn add_weighted(base: &Tensor, made: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let ((tokens, columns), (of_weights, used)) = (base.dims2()?, weights.dims2()?);
    if of_weights != tokens || made.dims() != [tokens * used, columns] {
        bail!("{:?} made by {:?} weights for {:?}", made.dims(), weights.dims(), base.dims());
    }
    let launch = Launch {
        source: Source::Experts,
        kernel: "add_weighted",
        shape: [narrow(tokens)?, narrow(used)?, narrow(columns)?],
        inputs: &[&of_f32(base)?, &of_f32(made)?, &of_f32(weights)?],
        output: (tokens, columns),
        dtype: DType::F32,
        threadgroups: (columns.div_ceil(SIMD_GROUP), tokens),
        threads: SIMD_GROUP,
        scratch: 0,
    };
    launch.run()
}

/// Which experts the tokens of a step go to, on the GPU.
pub struct ChosenExperts {
    /// `(count)`: expert after expert of token after token.
    ids: Tensor,
    /// Indices of `ids`, in the order of the experts.
    order: Tensor,
}

impl ChosenExperts {
    /// `ids` `(tokens, used)` of u32.
    ///
    /// # Errors
    /// When they aren't on the GPU.
    pub fn new(ids: &Tensor) -> Result<Self> {
        let ids = of_u32(&ids.flatten_all()?)?;
        let count = ids.elem_count();
        let launch = Launch {
            source: Source::Experts,
            kernel: "order_by_expert",
            shape: narrow(count)?,
            inputs: &[&ids],
            output: (1, count),
            dtype: DType::U32,
            threadgroups: (count.div_ceil(SIMD_GROUP), 1),
            threads: SIMD_GROUP,
            scratch: 0,
        };
        let order = launch.run()?;
        Ok(Self { ids, order })
    }
}

/// The matrices of all experts of a layer, packed, in one buffer of the GPU's.
pub struct PackedExperts {
    blocks: Tensor,
    codebook: Tensor,
    /// `(experts, 1 + rows)`: what an expert's products are multiplied with, and what is added to each.
    affine: Option<Tensor>,
    packing: Packing,
    experts: usize,
    rows: usize,
    columns: usize,
}

impl PackedExperts {
    /// Copies `blocks`, of `experts` matrices of `rows` × `columns`, to `device`.
    ///
    /// # Errors
    /// When a row isn't a whole number of blocks, `blocks` isn't as many rows or none, or there is no memory for them.
    pub fn new(
        blocks: &[u8],
        packing: Packing,
        (experts, rows, columns): (usize, usize, usize),
        device: &MetalDevice,
    ) -> Result<Self> {
        packing.check_rows(blocks.len(), experts.saturating_mul(rows), columns)?;
        if blocks.is_empty() {
            bail!("{experts} experts of {rows} rows");
        }
        let blocks = Tensor::from_slice(blocks, blocks.len(), &Device::Metal(device.clone()))?;
        Ok(Self { blocks, codebook: codebook(device, packing)?, affine: None, packing, experts, rows, columns })
    }

    /// Multiplies an expert's products with its `scale` `(experts)` and adds its `bias` `(experts, rows)`, both of f32.
    ///
    /// # Errors
    /// When they have another shape, or aren't on the GPU.
    pub fn with_affine(self, scale: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Self> {
        let device = self.blocks.device();
        let scale = match scale {
            Some(scale) => scale.reshape((self.experts, 1))?,
            None => Tensor::ones((self.experts, 1), DType::F32, device)?,
        };
        let bias = match bias {
            Some(bias) => bias.reshape((self.experts, self.rows))?,
            None => Tensor::zeros((self.experts, self.rows), DType::F32, device)?,
        };
        let affine = Tensor::cat(&[scale, bias], 1)?.contiguous()?;
        Ok(Self { affine: Some(affine), ..self })
    }

    /// The blocks as they lie in the GPU's memory.
    pub const fn blocks(&self) -> &Tensor {
        &self.blocks
    }

    /// The product of each chosen expert with what it is given: `x` of f32, `(tokens, columns)` or one row for each of the
    /// chosen `(tokens · used, columns)` → `(tokens · used, rows)`, computed in f32. Zeros for an id that is no expert. A
    /// row doesn't depend on the others.
    ///
    /// # Errors
    /// When `x` has another shape or isn't on the GPU.
    pub fn product(&self, x: &Tensor, chosen: &ChosenExperts) -> Result<Tensor> {
        let ((given, columns), count) = (x.dims2()?, chosen.ids.elem_count());
        if columns != self.columns || given == 0 || !count.is_multiple_of(given) {
            bail!("{given} rows of {columns} values for {count} products with rows of {}", self.columns);
        }
        // Where few share an expert, threads unpack for one each, rather than for several experts one after the other.
        let tile = (count / self.experts).clamp(1, TOKENS);
        let is_affine = self.affine.is_some().into();
        let [columns, rows, narrow_count, experts, share, is_affine, narrow_tile] =
            [columns, self.rows, count, self.experts, count / given, is_affine, tile].map(narrow);
        let launch = Launch {
            source: Source::Packed,
            kernel: &format!("packed_experts_{}", self.packing.kernel_name()),
            shape: [columns?, rows?, narrow_count?, experts?, share?, is_affine?, narrow_tile?],
            inputs: &[
                &self.blocks,
                &self.codebook,
                &of_f32(x)?,
                &chosen.ids,
                &chosen.order,
                self.affine.as_ref().unwrap_or(&self.codebook),
            ],
            output: (count, self.rows),
            dtype: DType::F32,
            threadgroups: (self.rows.div_ceil(ROWS), count.div_ceil(tile)),
            threads: SIMD_GROUP * ROWS,
            scratch: 0,
        };
        launch.run()
    }
}

fn of_f32(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.contiguous()
}

fn of_u32(ids: &Tensor) -> Result<Tensor> {
    ids.to_dtype(DType::U32)?.contiguous()
}
