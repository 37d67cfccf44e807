//! Where the engine computes, and what that means for memory. Metal and CUDA are chosen by Cargo feature, not by OS.

use std::sync::{Mutex, PoisonError};

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};
use kernels::packed::Packing;

use crate::gguf::TensorInfo;

pub(crate) const IS_FOR_GPU: bool = cfg!(any(feature = "metal", feature = "cuda"));

/// How keys and values are kept. The default is f16, as llama.cpp has it: half the memory of f32, and half of what a long
/// context has every token read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// As they are computed.
    F32,
    /// Rounded to half the memory.
    F16,
    /// In 8 bits with a scale for each 32: 28 % of f32, 56 % of f16. Keys with a bias (Qwen2, gpt-oss), and keys that are
    /// values too (latent attention, DeepSeek V4), are kept as f16.
    Q8,
}

impl KvType {
    /// The default.
    pub const DEFAULT: Self = Self::F16;

    /// How numbers are kept that this type doesn't pack.
    pub(crate) const fn unpacked(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 | Self::Q8 => DType::F16,
        }
    }
}

impl Default for KvType {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How the caches on `device` are made, so that one that was made in another way is told from them.
pub(crate) fn cache_format(device: &Device, kv_type: KvType) -> String {
    let kind = match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    };
    format!("{} {kind} {kv_type:?}", env!("CARGO_PKG_VERSION"))
}

static OPENED: Mutex<Option<Device>> = Mutex::new(None);

/// The device that this build computes on: the GPU it was built for where there is one, else the CPU. Opened once, and
/// again after [`forget`].
pub(crate) fn open() -> Device {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(find).clone()
}

/// After a fault: the next one is opened anew.
pub(crate) fn forget() {
    *OPENED.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn find() -> Device {
    #[cfg(feature = "metal")]
    match Device::new_metal(0) {
        Ok(device) => return device,
        Err(error) => tracing::warn!(%error, "no Metal device; computing on the CPU"),
    }
    #[cfg(feature = "cuda")]
    match Device::new_cuda(0) {
        Ok(device) => return device,
        Err(error) => tracing::warn!(%error, "no CUDA device; computing on the CPU"),
    }
    Device::Cpu
}

/// What the engine computes on, for people: `Metal, applegpu_g16s`, `CPU, 2 cores`.
pub fn device_name() -> String {
    match open() {
        #[cfg(feature = "metal")]
        Device::Metal(device) => format!("Metal, {}", kernels::metal::architecture_name(&device)),
        #[cfg(not(feature = "metal"))]
        Device::Metal(_) => "Metal".to_owned(),
        Device::Cuda(_) => "CUDA".to_owned(),
        Device::Cpu => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            format!("CPU, {cores} {}", if cores == 1 { "core" } else { "cores" })
        }
    }
}

/// Whether models live in a GPU's memory. Where they don't, the GPU's limits say nothing about what fits.
pub fn computes_on_gpu() -> bool {
    !matches!(open(), Device::Cpu)
}

/// Bytes that a matrix of `rows` × `columns` takes on the CPU beyond those in the file, in whose place its tiles are.
pub(crate) fn repacked_bytes(packing: Packing, rows: usize, columns: usize) -> u64 {
    let in_file = (columns / packing.block_len() * packing.block_bytes()) as u64 * rows as u64;
    match kernels::cpu::tiled_bytes(packing, rows, columns) {
        Some(tiled) if !IS_FOR_GPU => tiled - in_file,
        _ => 0,
    }
}

/// Bytes that a matrix of `rows` × `columns` takes on a GPU beyond those in the file: blocks that there are no kernels for
/// are unpacked to two bytes a weight. Metal has kernels of ours for all.
pub(crate) fn unpacked_bytes(packing: Packing, rows: usize, columns: usize) -> u64 {
    match packing {
        Packing::Ours(packed_type) if cfg!(feature = "cuda") => {
            let blocks = rows as u64 * (columns / packed_type.block_len()) as u64;
            blocks * (2 * packed_type.block_len() - packed_type.block_bytes()) as u64
        }
        _ => 0,
    }
}

/// Whether a tensor of which only rows are looked up stays in the mapped file, from which the CPU reads them.
pub(crate) fn is_left_in_file(name: &str) -> bool {
    !IS_FOR_GPU && is_embedding(name)
}

fn is_embedding(name: &str) -> bool {
    matches!(name, "token_embd.weight" | "per_layer_token_embd.weight")
}

/// Whether it is one of the matrices that latent attention takes into queries and output.
fn is_latent(name: &str) -> bool {
    name.ends_with(".attn_k_b.weight") || name.ends_with(".attn_v_b.weight")
}

/// Bytes of the copy that the CPU computes with where it doesn't with the file's: plain weights are candle's own, vectors
/// and the matrices of latent attention are unpacked to f32, and tables of whole numbers become indices.
pub(crate) fn unpacked_copy_bytes(name: &str, tensor: &TensorInfo) -> u64 {
    let values = tensor.shape.iter().map(|dimension| *dimension as u64).product::<u64>();
    match tensor.tensor_type.packing() {
        _ if IS_FOR_GPU || is_embedding(name) => 0,
        None => values.saturating_mul(size_of::<usize>() as u64),
        Some(Packing::Candle(GgmlDType::F32)) => values.saturating_mul(4),
        Some(_) if tensor.shape.len() == 1 || is_latent(name) => values.saturating_mul(4),
        Some(_) => 0,
    }
}
