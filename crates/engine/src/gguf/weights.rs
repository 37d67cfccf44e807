use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, matmul,
    matmul_f16,
};
use candle_core::quantized::{GgmlDType, GgmlType, QStorage, QTensor, QuantizedType};
use candle_core::{CpuStorage, Device, Tensor};
use chat::Bytes;
use half::{bf16, f16};
use memmap2::Mmap;

use super::{Gguf, TensorInfo};
use crate::LoadError;

/// Hands out the tensors of a file. On the CPU they stay mapped: the system reads them when they are needed and takes
/// the memory back when it is short. A GPU gets a copy.
pub(crate) struct Weights<'a> {
    gguf: &'a Gguf,
    device: Device,
    loaded: u64,
    total: u64,
    on_progress: &'a mut dyn FnMut(Bytes, Bytes),
}

impl<'a> Weights<'a> {
    pub(crate) fn new(gguf: &'a Gguf, device: &Device, on_progress: &'a mut dyn FnMut(Bytes, Bytes)) -> Self {
        let total = gguf.header.tensors.values().map(|tensor| tensor.bytes as u64).sum();
        Self { gguf, device: device.clone(), loaded: 0, total, on_progress }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.gguf.header.tensors.contains_key(name)
    }

    pub(crate) const fn device(&self) -> &Device {
        &self.device
    }

    /// The outermost dimension of a tensor.
    pub(crate) fn rows(&self, name: &str) -> Result<usize, LoadError> {
        self.info(name)?.shape.first().copied().ok_or_else(|| LoadError::Missing(name.to_owned()))
    }

    /// A matrix to multiply with, in the packing of the file or a faster one with the same numbers.
    pub(crate) fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<QTensor, LoadError> {
        let (range, dtype) = self.packed(name, rows, columns)?;
        if let (Device::Cpu, GgmlDType::Q5_0) = (&self.device, dtype) {
            // candle multiplies Q5_0 one weight at a time; the same numbers as Q8_0 have a SIMD product.
            let wide = copied(&kernels::cpu::q5_0_as_q8_0(&self.gguf.map[range]), GgmlDType::Q8_0);
            return QTensor::new(wide, (rows, columns)).map_err(LoadError::Device);
        }
        self.as_in_file(range, dtype, rows, columns)
    }

    /// A matrix of which only rows are looked up.
    pub(crate) fn table(&mut self, name: &str, rows: usize, columns: usize) -> Result<QTensor, LoadError> {
        let (range, dtype) = self.packed(name, rows, columns)?;
        self.as_in_file(range, dtype, rows, columns)
    }

    fn packed(&mut self, name: &str, rows: usize, columns: usize) -> Result<(Range<usize>, GgmlDType), LoadError> {
        let tensor = self.info(name)?;
        check_shape(name, tensor, &[rows, columns])?;
        let range = tensor.start..tensor.start + tensor.bytes;
        self.read_ahead(range.clone());
        Ok((range, candle_type(name, tensor)?))
    }

    fn as_in_file(
        &self,
        range: Range<usize>,
        dtype: GgmlDType,
        rows: usize,
        columns: usize,
    ) -> Result<QTensor, LoadError> {
        let storage = match self.device {
            Device::Cpu => mapped(&self.gguf.map, range, dtype),
            _ => QStorage::from_data(self.gguf.map[range].into(), &self.device, dtype).map_err(LoadError::Device)?,
        };
        QTensor::new(storage, (rows, columns)).map_err(LoadError::Device)
    }

    /// A small tensor, unpacked.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Tensor, LoadError> {
        let tensor = self.info(name)?;
        check_shape(name, tensor, &[len])?;
        let dtype = candle_type(name, tensor)?;
        let range = tensor.start..tensor.start + tensor.bytes;
        self.read_ahead(range.clone());
        let packed = QTensor::new(mapped(&self.gguf.map, range, dtype), len).map_err(LoadError::Device)?;
        packed.dequantize(&self.device).map_err(LoadError::Device)
    }

    fn info(&self, name: &str) -> Result<&'a TensorInfo, LoadError> {
        self.gguf.header.tensors.get(name).ok_or_else(|| LoadError::Missing(name.to_owned()))
    }

    /// Brings the pages into memory now, where it can be shown, rather than in the middle of the first token.
    fn read_ahead(&mut self, range: Range<usize>) {
        const PAGE: usize = 4096;
        const BETWEEN_REPORTS: usize = 16 << 20;
        for part in self.gguf.map[range].chunks(BETWEEN_REPORTS) {
            let touched = part.iter().step_by(PAGE).fold(0_u8, |sum, byte| sum ^ byte);
            std::hint::black_box(touched);
            self.loaded += part.len() as u64;
            (self.on_progress)(Bytes(self.loaded), Bytes(self.total));
        }
    }
}

fn check_shape(name: &str, tensor: &TensorInfo, expected: &[usize]) -> Result<(), LoadError> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(LoadError::WrongShape { tensor: name.to_owned(), found: tensor.shape.clone(), expected: expected.to_vec() })
}

fn candle_type(name: &str, tensor: &TensorInfo) -> Result<GgmlDType, LoadError> {
    tensor.tensor_type.candle().ok_or_else(|| LoadError::UnsupportedTensorType {
        tensor: name.to_owned(),
        tensor_type: tensor.tensor_type.name().to_owned(),
    })
}

fn mapped(map: &Arc<Mmap>, range: Range<usize>, dtype: GgmlDType) -> QStorage {
    match dtype {
        GgmlDType::F32 => mapped_blocks::<f32>(map, range, dtype),
        GgmlDType::Q4_0 => mapped_blocks::<BlockQ4_0>(map, range, dtype),
        GgmlDType::Q4_1 => mapped_blocks::<BlockQ4_1>(map, range, dtype),
        GgmlDType::Q5_0 => mapped_blocks::<BlockQ5_0>(map, range, dtype),
        GgmlDType::Q5_1 => mapped_blocks::<BlockQ5_1>(map, range, dtype),
        GgmlDType::Q8_0 => mapped_blocks::<BlockQ8_0>(map, range, dtype),
        GgmlDType::Q2K => mapped_blocks::<BlockQ2K>(map, range, dtype),
        GgmlDType::Q3K => mapped_blocks::<BlockQ3K>(map, range, dtype),
        GgmlDType::Q4K => mapped_blocks::<BlockQ4K>(map, range, dtype),
        GgmlDType::Q5K => mapped_blocks::<BlockQ5K>(map, range, dtype),
        GgmlDType::Q6K => mapped_blocks::<BlockQ6K>(map, range, dtype),
        GgmlDType::F16 => mapped_blocks::<f16>(map, range, dtype),
        GgmlDType::BF16 => mapped_blocks::<bf16>(map, range, dtype),
        // Types of activations, which no file has.
        GgmlDType::Q8_1 | GgmlDType::Q8K => copied(&map[range], dtype),
    }
}

fn copied(bytes: &[u8], dtype: GgmlDType) -> QStorage {
    // candle reinterprets the bytes and wants them aligned, which a fresh allocation of words is whatever the file's
    // alignment.
    let mut aligned = vec![0_u64; bytes.len().div_ceil(8)];
    for (word, chunk) in aligned.iter_mut().zip(bytes.chunks(8)) {
        let mut value = [0; 8];
        value[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(value);
    }
    #[expect(unsafe_code, reason = "words are read as bytes")]
    // SAFETY: the words are initialised, and at least as many bytes as `bytes` has.
    let aligned = unsafe { std::slice::from_raw_parts(aligned.as_ptr().cast::<u8>(), bytes.len()) };
    QStorage::Cpu(dtype.from_data(aligned.into()))
}

fn mapped_blocks<T: GgmlType + 'static>(map: &Arc<Mmap>, range: Range<usize>, dtype: GgmlDType) -> QStorage {
    let is_aligned = (map.as_ptr() as usize + range.start).is_multiple_of(align_of::<T>());
    if !is_aligned || !range.len().is_multiple_of(size_of::<T>()) {
        return copied(&map[range], dtype);
    }
    QStorage::Cpu(Box::new(MappedBlocks::<T> { map: map.clone(), range, blocks: PhantomData }))
}

/// Packed weights in the mapped file, which candle computes with as if they were its own.
struct MappedBlocks<T> {
    map: Arc<Mmap>,
    range: Range<usize>,
    blocks: PhantomData<T>,
}

impl<T: GgmlType> MappedBlocks<T> {
    fn blocks(&self) -> &[T] {
        let bytes = &self.map[self.range.clone()];
        #[expect(unsafe_code, reason = "mapped bytes are read as candle's blocks")]
        // SAFETY: `mapped_blocks` made sure of the alignment and of a whole number of blocks, the map lives as long as
        // `self`, and every type it is called with consists of integers and floats, which any bytes are valid for.
        unsafe {
            std::slice::from_raw_parts(bytes.as_ptr().cast::<T>(), bytes.len() / size_of::<T>())
        }
    }
}

impl<T: GgmlType> QuantizedType for MappedBlocks<T> {
    fn dtype(&self) -> GgmlDType {
        T::DTYPE
    }

    fn matmul_t(&self, mkn: (usize, usize, usize), lhs: &[f32], dst: &mut [f32]) -> candle_core::Result<()> {
        matmul(mkn, lhs, self.blocks(), dst)
    }

    fn matmul_t_f16(&self, mkn: (usize, usize, usize), lhs: &[f16], dst: &mut [f16]) -> candle_core::Result<()> {
        matmul_f16(mkn, lhs, self.blocks(), dst)
    }

    fn embedding(&self, ids: &[u32], rows: usize, hidden: usize) -> candle_core::Result<CpuStorage> {
        let row_blocks = hidden / T::BLCK_SIZE;
        let mut out = vec![0_f32; ids.len() * hidden];
        for (out_row, id) in out.chunks_exact_mut(hidden).zip(ids) {
            let row = *id as usize;
            let start = row * row_blocks;
            let Some(blocks) = self.blocks().get(start..start + row_blocks).filter(|_| row < rows) else {
                candle_core::bail!("token {row} is not one of {rows}");
            };
            T::to_float(blocks, out_row);
        }
        Ok(CpuStorage::F32(out))
    }

    fn dequantize(&self, elem_count: usize) -> candle_core::Result<CpuStorage> {
        let mut values = vec![0_f32; elem_count];
        T::to_float(self.blocks(), &mut values);
        Ok(CpuStorage::F32(values))
    }

    fn storage_size_in_bytes(&self) -> usize {
        self.range.len()
    }

    fn as_ptr(&self) -> *const u8 {
        self.map[self.range.clone()].as_ptr()
    }

    fn block_size(&self) -> usize {
        T::BLCK_SIZE
    }

    fn from_float(&mut self, _: &[f32]) {
        unreachable!("mapped weights are never written")
    }

    fn from_float_imatrix(&mut self, _: &[f32], _: &[f32], _: usize) {
        unreachable!("mapped weights are never written")
    }

    fn size(&self) -> usize {
        self.range.len()
    }
}
