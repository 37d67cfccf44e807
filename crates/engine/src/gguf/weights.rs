#[cfg(feature = "metal")]
use candle_core::MetalDevice;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use chat::Bytes;
use kernels::cpu::{FloatMatrix, TILE_ROWS, Tiles};
#[cfg(feature = "metal")]
use kernels::metal::PackedExperts;
use kernels::packed::{PackedMatrix, Packing};

use super::mapped::{MappedBytes, mapped, tiled};
use super::{Gguf, LockedPieces, Matrix, TensorInfo};
use crate::LoadError;
use crate::wiring::Pieces;

/// Hands out the tensors of a model. On the CPU they are repacked, or stay mapped: then the system reads them when
/// they are needed and takes the memory back when it is short. A GPU gets a copy, with CUDA in f16 where candle lacks the packing.
pub(crate) struct Weights<'a> {
    gguf: &'a Gguf,
    device: Device,
    loaded: u64,
    total: u64,
    on_progress: &'a mut dyn FnMut(Bytes, Bytes),
    in_use: InUse,
}

/// The weights that every token reads, where they are read: what there is to keep in RAM.
#[derive(Default)]
pub(crate) struct InUse {
    /// On the CPU: parts of the file, and tiles.
    mapped: Vec<MappedBytes>,
    #[cfg(feature = "metal")]
    buffers: Vec<kernels::metal::WeightBuffer>,
}

impl InUse {
    /// Notes weights in a GPU's memory.
    fn note_copy(&mut self, copy: &Tensor) {
        #[cfg(feature = "metal")]
        self.buffers.extend(kernels::metal::WeightBuffer::of_tensor(copy));
        #[cfg(not(feature = "metal"))]
        let _ = copy;
    }

    /// The pieces that can be held in RAM one by one; `None` where `device` has no way to do so.
    pub(crate) fn pieces(self, device: &Device) -> Option<Box<dyn Pieces>> {
        match device {
            Device::Cpu => Some(Box::new(LockedPieces::new(&self.mapped))),
            #[cfg(feature = "metal")]
            Device::Metal(metal) => Some(Box::new(kernels::metal::ResidentBuffers::new(metal, self.buffers)?)),
            _ => None,
        }
    }
}

impl<'a> Weights<'a> {
    pub(crate) fn new(gguf: &'a Gguf, device: &Device, on_progress: &'a mut dyn FnMut(Bytes, Bytes)) -> Self {
        let total = gguf.header.tensors.values().map(|tensor| tensor.bytes as u64).sum();
        Self { gguf, device: device.clone(), loaded: 0, total, on_progress, in_use: InUse::default() }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.gguf.header.tensors.contains_key(name)
    }

    pub(crate) const fn device(&self) -> &Device {
        &self.device
    }

    /// Which of those that were handed out every token reads.
    pub(crate) fn into_in_use(self) -> InUse {
        self.in_use
    }

    /// The outermost dimension of a tensor.
    pub(crate) fn rows(&self, name: &str) -> Result<usize, LoadError> {
        self.info(name)?.shape.first().copied().ok_or_else(|| LoadError::Missing(name.to_owned()))
    }

    /// A matrix to multiply with, in the packing of the file or a faster one with the same numbers.
    pub(crate) fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        let (bytes, packing) = self.packed(name, &[rows, columns])?;
        self.fastest(bytes, packing, rows, columns)
    }

    /// The matrices of all experts, which a GGUF file has as one tensor `(experts, rows, columns)`, and a published
    /// folder each by itself under its [`expert_name`].
    pub(crate) fn experts(
        &mut self,
        name: &str,
        experts: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<Matrix>, LoadError> {
        if !self.has(name) && self.has(&expert_name(name, 0)) {
            return (0..experts).map(|expert| self.matrix(&expert_name(name, expert), rows, columns)).collect();
        }
        let (bytes, packing) = self.packed(name, &[experts, rows, columns])?;
        self.fastest_parts(&bytes, packing, experts, rows, columns)
    }

    /// The matrices of [`Self::experts`] in one buffer of an Apple GPU's.
    #[cfg(feature = "metal")]
    pub(crate) fn packed_experts(
        &mut self,
        name: &str,
        (experts, rows, columns): (usize, usize, usize),
        device: &MetalDevice,
    ) -> Result<PackedExperts, LoadError> {
        let (bytes, packing) = if !self.has(name) && self.has(&expert_name(name, 0)) {
            self.packed_one_by_one(name, experts, &[rows, columns])?
        } else {
            self.packed(name, &[experts, rows, columns])?
        };
        self.touch(&bytes);
        PackedExperts::new(&bytes, packing, (experts, rows, columns), device)
            .inspect(|copy| self.in_use.note_copy(copy.blocks()))
            .map_err(LoadError::Device)
    }

    /// Experts that are a tensor each, one after the other. They must be packed alike.
    #[cfg(feature = "metal")]
    fn packed_one_by_one(
        &mut self,
        name: &str,
        experts: usize,
        shape: &[usize],
    ) -> Result<(MappedBytes, Packing), LoadError> {
        let (first, packing) = self.packed(&expert_name(name, 0), shape)?;
        let mut all = first.to_vec();
        for expert in 1..experts {
            let name = expert_name(name, expert);
            match self.packed(&name, shape)? {
                (bytes, other) if other == packing => all.extend_from_slice(&bytes),
                _ => return Err(unsupported(&name, self.info(&name)?)),
            }
        }
        Ok((MappedBytes::made(all), packing))
    }

    /// A matrix `(parts · rows, columns)`, cut into parts of `rows` rows.
    pub(crate) fn matrix_in_parts(
        &mut self,
        name: &str,
        parts: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<Matrix>, LoadError> {
        let (bytes, packing) = self.packed(name, &[parts * rows, columns])?;
        self.fastest_parts(&bytes, packing, parts, rows, columns)
    }

    /// What the products with NVFP4 matrices are multiplied with, one number each, where the file has that: the tensor
    /// `name.scale` beside `name.weight`.
    pub(crate) fn scales(&mut self, name: &str, matrices: usize) -> Result<Option<Vec<f32>>, LoadError> {
        let scale = format!("{name}.scale");
        let weight = self.gguf.header.tensors.get(&format!("{name}.weight"));
        // Other packings have their scales inside; there, a tensor of this name means something else.
        if weight.is_none_or(|weight| weight.tensor_type.name() != "NVFP4") || !self.has(&scale) {
            return Ok(None);
        }
        self.vector(&scale, matrices)?.to_vec1().map(Some).map_err(LoadError::Device)
    }

    fn fastest(
        &mut self,
        bytes: MappedBytes,
        packing: Packing,
        rows: usize,
        columns: usize,
    ) -> Result<Matrix, LoadError> {
        if self.device.is_cpu()
            && let Some(tiles) = tiled(bytes.clone(), packing, rows, columns, |bytes| self.report(bytes))?
        {
            self.in_use.mapped.push(tiles.clone());
            return Tiles::new(tiles, packing, rows, columns).map(Matrix::Tiled).map_err(LoadError::Device);
        }
        self.note(&bytes);
        self.touch(&bytes);
        match self.as_in_file(bytes, packing, rows, columns)? {
            Matrix::Candle(blocks) => Matrix::from_candle(blocks).map_err(LoadError::Device),
            other => Ok(other),
        }
    }

    /// The parts of `rows` rows of one matrix.
    fn fastest_parts(
        &mut self,
        bytes: &MappedBytes,
        packing: Packing,
        parts: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<Matrix>, LoadError> {
        // Whole tiles can be cut like the blocks; hundreds of experts would each take a map of their own.
        if self.device.is_cpu()
            && rows.is_multiple_of(TILE_ROWS)
            && let Some(tiles) = tiled(bytes.clone(), packing, parts * rows, columns, |bytes| self.report(bytes))?
        {
            self.in_use.mapped.push(tiles.clone());
            let part = |part| Tiles::new(tiles.part(part, parts), packing, rows, columns).map(Matrix::Tiled);
            return (0..parts).map(part).collect::<Result<_, _>>().map_err(LoadError::Device);
        }
        (0..parts).map(|part| self.fastest(bytes.part(part, parts), packing, rows, columns)).collect()
    }

    /// Notes a matrix that is multiplied with where it lies in the file.
    fn note(&mut self, bytes: &MappedBytes) {
        if self.device.is_cpu() {
            self.in_use.mapped.push(bytes.clone());
        }
    }

    /// A matrix of which only rows are looked up.
    pub(crate) fn table(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        let (bytes, packing) = self.packed(name, &[rows, columns])?;
        if self.gguf.is_only_looked_up(name) {
            // A few rows are read for each token; the rest needn't be in memory.
            self.report(bytes.len());
        } else {
            self.note(&bytes);
            self.touch(&bytes);
        }
        self.as_in_file(bytes, packing, rows, columns)
    }

    fn packed(&mut self, name: &str, shape: &[usize]) -> Result<(MappedBytes, Packing), LoadError> {
        let tensor = self.info(name)?;
        check_shape(name, tensor, shape)?;
        let bytes = self.bytes(tensor);
        let (bytes, tensor_type) = match tensor.change {
            None => (bytes, tensor.tensor_type),
            Some(change) => {
                let (made, tensor_type) = change.apply(&bytes, tensor.tensor_type, shape);
                (MappedBytes::made(made), tensor_type)
            }
        };
        let packing = tensor_type.packing().ok_or_else(|| unsupported(name, tensor))?;
        Ok((bytes, packing))
    }

    fn as_in_file(
        &mut self,
        bytes: MappedBytes,
        packing: Packing,
        rows: usize,
        columns: usize,
    ) -> Result<Matrix, LoadError> {
        let matrix = match (packing, &self.device) {
            (packing, Device::Cpu) if FloatMatrix::<MappedBytes>::can_hold(packing) => {
                FloatMatrix::new(bytes, packing, rows, columns).map(Matrix::Floats)
            }
            (Packing::Candle(dtype), Device::Cpu) => {
                QTensor::new(mapped(bytes, dtype), (rows, columns)).map(Box::new).map(Matrix::Candle)
            }
            (Packing::Candle(GgmlDType::F32), Device::Metal(_)) => {
                QTensor::new(mapped(bytes, GgmlDType::F32), (rows, columns))
                    .and_then(|weights| weights.dequantize(&self.device))
                    .inspect(|copy| self.in_use.note_copy(copy))
                    .map(Matrix::Plain)
            }
            #[cfg(feature = "metal")]
            (packing, Device::Metal(device)) => {
                kernels::metal::PackedTensor::new(&bytes, packing, rows, columns, device)
                    .inspect(|copy| self.in_use.note_copy(copy.blocks()))
                    .map(Matrix::Metal)
            }
            (Packing::Candle(dtype), device) => QStorage::from_data((&*bytes).into(), device, dtype)
                .and_then(|copy| QTensor::new(copy, (rows, columns)))
                .map(Box::new)
                .map(Matrix::Candle),
            (Packing::Ours(packed_type), device) => {
                PackedMatrix::new(bytes, packed_type, rows, columns).and_then(|matrix| match device {
                    Device::Cpu => Ok(Matrix::Packed(matrix)),
                    gpu => matrix.to_f16()?.to_device(gpu).map(Matrix::Plain),
                })
            }
        };
        matrix.map_err(LoadError::Device)
    }

    /// A small tensor of one dimension, unpacked.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Tensor, LoadError> {
        self.unpacked(name, &[len])
    }

    /// A small tensor, unpacked to f32.
    pub(crate) fn unpacked(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let (bytes, packing) = self.packed(name, shape)?;
        self.touch(&bytes);
        let tensor = match packing {
            Packing::Candle(dtype) => {
                QTensor::new(mapped(bytes, dtype), shape).and_then(|blocks| blocks.dequantize(&self.device))
            }
            Packing::Ours(packed_type) => {
                let mut weights = vec![0_f32; shape.iter().product()];
                packed_type.unpack(&bytes, &mut weights);
                Tensor::from_vec(weights, shape, &self.device)
            }
        };
        tensor.map_err(LoadError::Device)
    }

    /// A tensor of 32-bit whole numbers, row by row.
    pub(crate) fn integers(&mut self, name: &str, shape: &[usize]) -> Result<Vec<i32>, LoadError> {
        let tensor = self.info(name)?;
        check_shape(name, tensor, shape)?;
        if tensor.tensor_type.name() != "I32" {
            return Err(unsupported(name, tensor));
        }
        let bytes = self.bytes(tensor);
        self.touch(&bytes);
        Ok(bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect())
    }

    fn info(&self, name: &str) -> Result<&'a TensorInfo, LoadError> {
        self.gguf.header.tensors.get(name).ok_or_else(|| LoadError::Missing(name.to_owned()))
    }

    /// The bytes of a tensor, which the system begins to read, and what most often comes next: a disk that waits until
    /// these were repacked would stand still half of the time.
    fn bytes(&self, tensor: &TensorInfo) -> MappedBytes {
        const NEXT: usize = 64 << 20;
        let bytes = MappedBytes::new(&self.gguf.parts[tensor.part].map, tensor.start..tensor.start + tensor.bytes);
        bytes.read_ahead(NEXT);
        bytes
    }

    /// Brings the pages into memory now, where it can be shown, rather than in the middle of the first token.
    fn touch(&mut self, bytes: &[u8]) {
        const PAGE: usize = 4096;
        for part in bytes.chunks(BETWEEN_REPORTS) {
            let touched = part.iter().step_by(PAGE).fold(0_u8, |sum, byte| sum ^ byte);
            std::hint::black_box(touched);
            self.report(part.len());
        }
    }

    /// So many bytes more are loaded.
    fn report(&mut self, bytes: usize) {
        let before = self.loaded;
        // What is made of a tensor may be longer than what the file has.
        self.loaded = (before + bytes as u64).min(self.total);
        let step = BETWEEN_REPORTS as u64;
        if before / step != self.loaded / step || self.loaded == self.total {
            (self.on_progress)(Bytes(self.loaded), Bytes(self.total));
        }
    }
}

/// Bytes that are loaded between two reports.
const BETWEEN_REPORTS: usize = 16 << 20;

/// The name of one expert's matrix of those that `name` has all: `blk.0.ffn_up_exps.3.weight`.
pub(crate) fn expert_name(name: &str, expert: usize) -> String {
    format!("{}.{expert}.weight", name.strip_suffix(".weight").unwrap_or(name))
}

fn check_shape(name: &str, tensor: &TensorInfo, expected: &[usize]) -> Result<(), LoadError> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(LoadError::WrongShape { tensor: name.to_owned(), found: tensor.shape.clone(), expected: expected.to_vec() })
}

fn unsupported(name: &str, tensor: &TensorInfo) -> LoadError {
    LoadError::UnsupportedTensorType { tensor: name.to_owned(), tensor_type: tensor.tensor_type.name().to_owned() }
}
