//! How a CUDA device keeps the memory of tensors that are made and dropped hundreds of times for each token.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{CudaDevice, Result};

/// Freed memory that stays with the process: more than one step takes beside weights and caches.
const KEPT_BYTES: u64 = 512 << 20;

/// Has `device` keep freed memory for the next tensors, which it otherwise hands back to the system whenever it is waited
/// for, and not note each tensor's uses, which only several streams need.
pub(crate) fn keep_freed(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    let mut bytes = KEPT_BYTES;
    #[expect(unsafe_code, reason = "the driver's own calls")]
    // SAFETY: the context's device is one, its default pool lives as long, and the threshold is a number of 64 bits. All
    // work of a device is on one stream.
    unsafe {
        device.disable_event_tracking();
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut bytes).cast()).w()
    }
}
