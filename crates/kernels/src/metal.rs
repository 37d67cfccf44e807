//! What only Apple's GPUs have.

use candle_core::MetalDevice;
use candle_metal_kernels::metal::Device;

/// Apple's name for the family of this GPU, such as `applegpu_g16s`: an M4 Max.
pub fn architecture_name(device: &MetalDevice) -> String {
    let device: &Device = device.metal_device();
    device.architecture_name()
}
