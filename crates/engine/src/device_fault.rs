/// How a GPU failed. Nothing that it held can be trusted after that: the model is unloaded, and the next answer begins on
/// a device that is opened anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// There was no memory for the weights, the cache or a step.
    #[error("the GPU ran out of memory: close other apps, take a shorter context or a smaller model, and ask again")]
    OutOfMemory,
    /// The system stopped a step that took too long: the GPU is busy with something else, or hung.
    #[error("the GPU took too long and was stopped by the system: ask again, and close what else uses it")]
    Timeout,
    /// The device is gone, or this process may not use it any more.
    #[error("the GPU was taken away: ask again once it is back, or ask a node")]
    Lost,
    /// A step failed in another way.
    #[error("the GPU failed and was started anew: ask again")]
    Failed,
}

/// What the drivers' messages have in them: Metal's `MTLCommandBufferError` in the words of its `localizedDescription`, and
/// candle's where a buffer can't be made; CUDA's `CUresult` by name. The first that is found counts.
const SIGNS: [(&str, DeviceFault); 18] = [
    ("kIOGPUCommandBufferCallbackErrorOutOfMemory", DeviceFault::OutOfMemory),
    ("Insufficient Memory", DeviceFault::OutOfMemory),
    ("Failed to create metal resource", DeviceFault::OutOfMemory),
    ("CUDA_ERROR_OUT_OF_MEMORY", DeviceFault::OutOfMemory),
    ("CUBLAS_STATUS_ALLOC_FAILED", DeviceFault::OutOfMemory),
    ("kIOGPUCommandBufferCallbackErrorTimeout", DeviceFault::Timeout),
    ("kIOGPUCommandBufferCallbackErrorHang", DeviceFault::Timeout),
    ("GPU Timeout Error", DeviceFault::Timeout),
    ("GPU Hang Error", DeviceFault::Timeout),
    ("CUDA_ERROR_LAUNCH_TIMEOUT", DeviceFault::Timeout),
    ("kIOGPUCommandBufferCallbackErrorBackgroundExecutionNotPermitted", DeviceFault::Lost),
    ("kIOGPUCommandBufferCallbackErrorAccessRevoked", DeviceFault::Lost),
    ("Insufficient Permission", DeviceFault::Lost),
    ("Device Removed", DeviceFault::Lost),
    ("CUDA_ERROR_DEVICE_UNAVAILABLE", DeviceFault::Lost),
    ("CUDA_ERROR_NO_DEVICE", DeviceFault::Lost),
    ("Command buffer had following error", DeviceFault::Failed),
    ("CUDA_ERROR_", DeviceFault::Failed),
];

impl DeviceFault {
    /// Of an error that came from the device; `None` where it came from the graph: a shape that doesn't fit, a type that
    /// an operation lacks.
    pub(crate) fn of(error: &candle_core::Error) -> Option<Self> {
        let text = error.to_string();
        SIGNS.iter().find(|(sign, _)| text.contains(sign)).map(|(_, fault)| *fault)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Error, MetalError, Tensor};

    use super::*;

    fn fault(text: &str) -> Option<DeviceFault> {
        DeviceFault::of(&Error::Metal(MetalError::from(text.to_owned())).bt())
    }

    #[test]
    fn messages_of_drivers_are_told_apart() {
        let buffer = |text: &str| fault(&format!("Command buffer had following error: {text}"));
        let memory = "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)";
        assert_eq!(buffer(memory), Some(DeviceFault::OutOfMemory));
        assert_eq!(fault("Failed to create metal resource: Buffer"), Some(DeviceFault::OutOfMemory));
        let timeout = "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)";
        assert_eq!(buffer(timeout), Some(DeviceFault::Timeout));
        let revoked = "Insufficient Permission (to submit GPU work from background) \
            (00000006:kIOGPUCommandBufferCallbackErrorBackgroundExecutionNotPermitted)";
        assert_eq!(buffer(revoked), Some(DeviceFault::Lost));
        let page = "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)";
        assert_eq!(buffer(page), Some(DeviceFault::Failed));
        let cuda = |text: &str| DeviceFault::of(&Error::Cuda(text.into()));
        let out_of_memory = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        assert_eq!(cuda(out_of_memory), Some(DeviceFault::OutOfMemory));
        let illegal = r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered")"#;
        assert_eq!(cuda(illegal), Some(DeviceFault::Failed));
    }

    #[test]
    fn a_mistake_in_the_graph_is_no_fault_of_the_device() {
        let [a, b] = [3, 4].map(|n| Tensor::zeros((2, n), candle_core::DType::F32, &Device::Cpu).unwrap());
        assert_eq!(DeviceFault::of(&a.matmul(&b).unwrap_err()), None);
        assert_eq!(fault("unsupported dtype for rope: U8"), None);
    }
}
