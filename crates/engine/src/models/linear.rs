use std::sync::Arc;

use candle_core::Tensor;
#[cfg(feature = "metal")]
use candle_core::{Device, MetalDevice};
use kernels::cpu::Tiles;
#[cfg(feature = "metal")]
use kernels::metal::PackedExperts;

use crate::LoadError;
use crate::gguf::{MappedBytes, Matrix, Weights};

/// A matrix of weights, with an optional bias.
pub(crate) struct Linear {
    matrix: Arc<Matrix>,
    /// What the product is multiplied with, before the bias.
    scale: Option<f32>,
    bias: Option<Tensor>,
}

impl Linear {
    /// The matrix `name.weight`, with `name.bias` where the file has it.
    pub(crate) fn load(weights: &mut Weights<'_>, name: &str, rows: usize, columns: usize) -> Result<Self, LoadError> {
        let matrix = weights.matrix(&format!("{name}.weight"), rows, columns)?;
        let scale = weights.scales(name, 1)?.map(|scales| scales[0]);
        let bias = format!("{name}.bias");
        let bias = if weights.has(&bias) { Some(weights.vector(&bias, rows)?) } else { None };
        Ok(Self { matrix: Arc::new(matrix), scale, bias })
    }

    /// A matrix of one row, which some files have as a vector.
    pub(crate) fn load_row(weights: &mut Weights<'_>, name: &str, columns: usize) -> Result<Self, LoadError> {
        let name = format!("{name}.weight");
        let row = if weights.rows(&name)? == 1 {
            weights.unpacked(&name, &[1, columns])
        } else {
            weights.unpacked(&name, &[columns])
        }?;
        let row = row.reshape((1, columns)).map_err(LoadError::Device)?;
        Ok(Self { matrix: Arc::new(Matrix::Plain(row)), scale: None, bias: None })
    }

    /// One matrix per expert, out of the tensor `(experts, rows, columns)` that the file has.
    pub(crate) fn load_experts(
        weights: &mut Weights<'_>,
        name: &str,
        experts: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<Self>, LoadError> {
        let matrices = weights.experts(&format!("{name}.weight"), experts, rows, columns)?;
        let scales = weights.scales(name, experts)?;
        let bias = format!("{name}.bias");
        let biases = if weights.has(&bias) { Some(weights.unpacked(&bias, &[experts, rows])?) } else { None };
        let linear = |(expert, matrix)| {
            let scale = scales.as_ref().map(|scales| scales[expert]);
            let bias = biases.as_ref().map(|biases| biases.get(expert)).transpose()?;
            Ok(Self { matrix: Arc::new(matrix), scale, bias })
        };
        matrices.into_iter().enumerate().map(linear).collect::<candle_core::Result<_>>().map_err(LoadError::Device)
    }

    /// As [`Self::load_experts`], in one buffer of an Apple GPU's.
    #[cfg(feature = "metal")]
    pub(crate) fn load_packed_experts(
        weights: &mut Weights<'_>,
        name: &str,
        (experts, rows, columns): (usize, usize, usize),
        device: &MetalDevice,
    ) -> Result<PackedExperts, LoadError> {
        let matrices = weights.packed_experts(&format!("{name}.weight"), (experts, rows, columns), device)?;
        let scale = weights.scales(name, experts)?;
        let scale = scale.map(|scale| Tensor::from_vec(scale, experts, &Device::Metal(device.clone())));
        let scale = scale.transpose().map_err(LoadError::Device)?;
        let bias = format!("{name}.bias");
        let bias = if weights.has(&bias) { Some(weights.unpacked(&bias, &[experts, rows])?) } else { None };
        match (&scale, &bias) {
            (None, None) => Ok(matrices),
            (scale, bias) => matrices.with_affine(scale.as_ref(), bias.as_ref()).map_err(LoadError::Device),
        }
    }

    /// A matrix `(parts · rows, columns)`, cut into parts of `rows` rows.
    pub(crate) fn load_parts(
        weights: &mut Weights<'_>,
        name: &str,
        parts: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<Self>, LoadError> {
        let matrices = weights.matrix_in_parts(&format!("{name}.weight"), parts, rows, columns)?;
        let scale = weights.scales(name, 1)?.map(|scales| scales[0]);
        Ok(matrices.into_iter().map(|matrix| Self { matrix: Arc::new(matrix), scale, bias: None }).collect())
    }

    /// A matrix that others use too: an embedding that is the output as well.
    pub(crate) const fn shared(matrix: Arc<Matrix>) -> Self {
        Self { matrix, scale: None, bias: None }
    }

    /// `x` `(tokens, columns)` → `(tokens, rows)`.
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        Ok(Self::forward_all(&[self], x)?.remove(0))
    }

    /// [`Self::forward`] of each of `linears`, which cost less together than one by one.
    pub(crate) fn forward_all(linears: &[&Self], x: &Tensor) -> candle_core::Result<Vec<Tensor>> {
        let matrices: Vec<(&Matrix, Option<&Tensor>)> = linears
            .iter()
            .map(|Self { matrix, scale, bias }| (&**matrix, bias.as_ref().filter(|_| scale.is_none())))
            .collect();
        let mut products = Matrix::products(&matrices, x)?;
        for (product, Self { scale, bias, .. }) in products.iter_mut().zip(linears) {
            let Some(scale) = scale else { continue };
            *product = product.affine(f64::from(*scale), 0.0)?;
            if let Some(bias) = bias {
                *product = product.broadcast_add(bias)?;
            }
        }
        Ok(products)
    }

    /// The matrix with its bias where they are all there is to the product, and it is in tiles.
    fn tiles(&self) -> Option<(&Tiles<MappedBytes>, Option<&Tensor>)> {
        let tiles = self.matrix.tiles().filter(|_| self.scale.is_none())?;
        Some((tiles, self.bias.as_ref()))
    }

    /// What each expert's matrix in each of `sets` makes of its share of `x`: `counts[expert]` of the rows of `x` that
    /// `rows` names (without it, of all in order), one expert's after the other's.
    pub(crate) fn forward_experts(
        sets: &[&Vec<Self>],
        x: &Tensor,
        rows: Option<&[u32]>,
        counts: &[usize],
    ) -> candle_core::Result<Vec<Tensor>> {
        let in_tiles: Option<Vec<Vec<_>>> = sets.iter().map(|set| set.iter().map(Self::tiles).collect()).collect();
        if let Some(sets) = in_tiles {
            return Tiles::expert_products(&sets, &x.contiguous()?, rows, counts);
        }
        let mut products = vec![Vec::new(); sets.len()];
        let mut first = 0;
        for (expert, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let share = match rows {
                Some(rows) => x.index_select(&Tensor::new(&rows[first..first + count], x.device())?, 0)?,
                None => x.narrow(0, first, *count)?,
            };
            let matrices: Vec<&Self> = sets.iter().map(|set| &set[expert]).collect();
            for (all, product) in products.iter_mut().zip(Self::forward_all(&matrices, &share)?) {
                all.push(product);
            }
            first += count;
        }
        products.iter().map(|of_set| Tensor::cat(of_set, 0)).collect()
    }
}
