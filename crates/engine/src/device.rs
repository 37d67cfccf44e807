//! Where the engine computes, and what that means for memory. Metal and CUDA are chosen by Cargo feature, not by OS.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};

/// Bytes of one stored key or value: f32 where the CPU computes, f16 on a GPU.
pub(crate) const KV_VALUE_BYTES: u64 = if cfg!(any(feature = "metal", feature = "cuda")) { 2 } else { 4 };

/// The type of stored keys and values on `device`.
pub(crate) const fn kv_dtype(device: &Device) -> DType {
    match device {
        Device::Cpu => DType::F32,
        Device::Cuda(_) | Device::Metal(_) => DType::F16,
    }
}

/// The device that this build computes on: the GPU it was built for where there is one, else the CPU.
pub(crate) fn open() -> Device {
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

/// What the engine computes on, for people: `Metal`, `CPU, 2 cores`.
pub fn device_name() -> String {
    if cfg!(feature = "metal") {
        if let Device::Metal(_) = open() {
            return "Metal".to_owned();
        }
    } else if cfg!(feature = "cuda")
        && let Device::Cuda(_) = open()
    {
        return "CUDA".to_owned();
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("CPU, {cores} {}", if cores == 1 { "core" } else { "cores" })
}

/// Bytes of the second, faster layout in which the device keeps a matrix of `rows` × `columns`.
pub(crate) fn repacked_bytes(dtype: GgmlDType, rows: usize, columns: usize) -> u64 {
    if cfg!(any(feature = "metal", feature = "cuda")) { 0 } else { kernels::cpu::repacked_bytes(dtype, rows, columns) }
}
