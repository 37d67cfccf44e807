//! Where the engine computes, and what that means for memory. Metal and CUDA are chosen by Cargo feature, not by OS.

use std::sync::OnceLock;

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

/// The device that this build computes on: the GPU it was built for where there is one, else the CPU. Opened once.
pub(crate) fn open() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(find).clone()
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

/// Bytes of the second, faster layout in which the device keeps a matrix of `rows` × `columns`.
pub(crate) fn repacked_bytes(dtype: GgmlDType, rows: usize, columns: usize) -> u64 {
    if cfg!(any(feature = "metal", feature = "cuda")) { 0 } else { kernels::cpu::repacked_bytes(dtype, rows, columns) }
}
