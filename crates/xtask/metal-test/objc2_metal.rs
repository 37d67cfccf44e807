//! Stands in for the crate `objc2-metal`: what candle and our own crates name of it, with Apple's names and values.
#![allow(non_snake_case, non_upper_case_globals)]

use objc2::rc::Retained;
use objc2_foundation::NSURL;

/// Extent of a grid or of a threadgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MTLSize {
    pub width: usize,
    pub height: usize,
    pub depth: usize,
}

/// Where a buffer lies and who orders what is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MTLResourceOptions(pub usize);

impl MTLResourceOptions {
    pub const StorageModeShared: Self = Self(0);
    pub const StorageModePrivate: Self = Self(2 << 4);
    pub const HazardTrackingModeUntracked: Self = Self(1 << 8);
}

/// How a library is compiled, which was settled when the emulator was built.
pub struct MTLCompileOptions;

impl MTLCompileOptions {
    pub fn new() -> Retained<Self> {
        Retained::new(Self)
    }

    pub fn setMathMode(&self, _: MTLMathMode) {}

    pub fn setMathFloatingPointFunctions(&self, _: MTLMathFloatingPointFunctions) {}

    pub fn setFastMathEnabled(&self, _: bool) {}
}

pub struct MTLMathMode;

impl MTLMathMode {
    pub const Fast: Self = Self;
    pub const Relaxed: Self = Self;
}

pub struct MTLMathFloatingPointFunctions;

impl MTLMathFloatingPointFunctions {
    pub const Fast: Self = Self;
    pub const Precise: Self = Self;
}

/// What keeps buffers in a GPU's memory.
pub trait MTLResidencySet {
    fn requestResidency(&self);

    fn endResidency(&self);
}

/// A residency set where all memory is the GPU's.
pub struct AlwaysResident;

impl MTLResidencySet for AlwaysResident {
    fn requestResidency(&self) {}

    fn endResidency(&self) {}
}

/// Records the GPU's work for Xcode, which the emulator cannot.
pub struct MTLCaptureManager;

impl MTLCaptureManager {
    /// # Safety
    /// Safe here; on a Mac it is not known to be.
    pub unsafe fn sharedCaptureManager() -> Retained<Self> {
        Retained::new(Self)
    }

    pub fn startCaptureWithDescriptor_error(&self, _: &MTLCaptureDescriptor) -> Result<(), &'static str> {
        Err("an emulated device records nothing")
    }
}

pub struct MTLCaptureDescriptor;

impl MTLCaptureDescriptor {
    pub fn new() -> Retained<Self> {
        Retained::new(Self)
    }

    pub fn setDestination(&self, _: MTLCaptureDestination) {}

    pub fn set_capture_device(&self, _: &()) {}

    pub fn setOutputURL(&self, _: Option<&NSURL>) {}
}

pub struct MTLCaptureDestination;

impl MTLCaptureDestination {
    pub const GPUTraceDocument: Self = Self;
}
