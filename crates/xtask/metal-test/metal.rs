//! candle's `metal` module over the emulator, in place of the one that speaks Objective-C. Same names, same contracts,
//! with these differences: a dispatch runs at once and to its end, so nothing is ever in flight; a buffer is as long as
//! asked for; and what a kernel does wrong fails the command buffer, as on a GPU, with the emulator's words for it.
//!
//! `TIDEGATE_METAL_CHECKS=full` looks at every load and store. `TIDEGATE_METAL_KERNELS` names a file to which each kernel
//! that runs is added. [`fail`] makes a command buffer fail as a GPU's does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::c_void;
use std::fs::OpenOptions;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::{ptr, slice};

use metal_emulator::{Checks, ConstantValue, Launch};
use objc2_foundation::NSRange;
pub use objc2_metal::MTLResourceOptions;
use objc2_metal::{AlwaysResident, MTLCompileOptions, MTLSize};

use crate::MetalKernelError;

/// Memory of the device, which is the host's too.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer(metal_emulator::Buffer);

pub type BufferMap = HashMap<usize, Vec<Arc<Buffer>>>;

impl Buffer {
    pub fn contents(&self) -> *mut u8 {
        self.data()
    }

    /// candle reads through this pointer; what it writes, it tells with [`Self::did_modify_range`].
    pub fn data(&self) -> *mut u8 {
        self.0.as_unmarked_mut_ptr()
    }

    pub fn length(&self) -> usize {
        self.0.len()
    }

    pub fn did_modify_range(&self, range: NSRange) {
        self.0.mark_written(range.location..range.location + range.length);
    }

    pub fn set_label(&self, _: &str) {}
}

impl Hash for Buffer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_ptr().hash(state);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetalDeviceType {
    Phone,
    BasePro,
    Max,
    Ultra,
    Medium,
}

/// The emulator as a GPU.
#[derive(Clone, Debug)]
pub struct Device;

impl AsRef<()> for Device {
    fn as_ref(&self) -> &() {
        &()
    }
}

impl Device {
    pub fn registry_id(&self) -> u64 {
        0
    }

    pub fn all() -> Vec<Self> {
        vec![Self]
    }

    pub fn system_default() -> Option<Self> {
        Some(Self)
    }

    pub fn new_buffer(&self, length: usize, _: MTLResourceOptions) -> Result<Buffer, MetalKernelError> {
        Ok(Buffer(metal_emulator::Buffer::new(length)))
    }

    pub fn new_buffer_with_data(
        &self,
        pointer: *const c_void,
        length: usize,
        _: MTLResourceOptions,
    ) -> Result<Buffer, MetalKernelError> {
        // SAFETY: candle passes the address and the length of a slice.
        Ok(Buffer(metal_emulator::Buffer::from_slice(unsafe { bytes(pointer, length) })))
    }

    pub fn new_library_with_source(
        &self,
        source: &str,
        _: Option<&MTLCompileOptions>,
    ) -> Result<Library, MetalKernelError> {
        metal_emulator::library_with_source(source)
            .map(Library)
            .ok_or_else(|| MetalKernelError::LoadLibraryError("the emulator was not built with this source".to_owned()))
    }

    pub fn new_compute_pipeline_state_with_function(
        &self,
        function: &Function,
    ) -> Result<ComputePipeline, MetalKernelError> {
        Ok(ComputePipeline(Arc::new(function.clone())))
    }

    pub fn new_command_queue(&self) -> Result<crate::CommandQueue, MetalKernelError> {
        OPENED.fetch_add(1, Ordering::Relaxed);
        Ok(CommandQueue)
    }

    pub fn recommended_max_working_set_size(&self) -> usize {
        1 << 32
    }

    pub fn current_allocated_size(&self) -> usize {
        0
    }

    /// That of an M4 Max: candle chooses tiles by the last letter.
    pub fn architecture_name(&self) -> String {
        "applegpu_g16s".to_owned()
    }

    pub fn device_type(&self) -> MetalDeviceType {
        MetalDeviceType::Max
    }
}

#[derive(Clone, Debug)]
pub struct Library(&'static metal_emulator::Library);

#[derive(Clone, Debug)]
pub struct Function {
    library: &'static metal_emulator::Library,
    name: String,
    constants: Vec<(u32, ConstantValue)>,
}

impl Library {
    pub fn get_function(&self, name: &str, constants: Option<&ConstantValues>) -> Result<Function, MetalKernelError> {
        if !self.0.has_kernel(name) {
            return Err(MetalKernelError::LoadFunctionError(name.to_owned()));
        }
        let constants = constants.map(|constants| constants.0.as_slice()).unwrap_or_default();
        let constants = constants.iter().map(|(index, value)| (*index as u32, value.to_emulator())).collect();
        Ok(Function { library: self.0, name: name.to_owned(), constants })
    }
}

#[derive(Debug, PartialEq)]
pub enum Value {
    USize(usize),
    Bool(bool),
    F32(f32),
    U16(u16),
}

impl Value {
    fn to_emulator(&self) -> ConstantValue {
        match self {
            Self::USize(value) => (*value).into(),
            Self::Bool(value) => (*value).into(),
            Self::F32(value) => (*value).into(),
            Self::U16(value) => u32::from(*value).into(),
        }
    }
}

/// Keys of candle's pipelines, none of which has a NaN.
impl Eq for Value {}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::F32(value) => value.to_bits().hash(state),
            Self::USize(value) => value.hash(state),
            Self::U16(value) => value.hash(state),
            Self::Bool(value) => value.hash(state),
        }
    }
}

#[derive(Debug, Eq, PartialEq, Hash)]
pub struct ConstantValues(Vec<(usize, Value)>);

impl ConstantValues {
    pub fn new(values: Vec<(usize, Value)>) -> Self {
        Self(values)
    }
}

#[derive(Clone, Debug)]
pub struct ComputePipeline(Arc<Function>);

impl ComputePipeline {
    pub fn max_total_threads_per_threadgroup(&self) -> usize {
        1024
    }
}

/// All memory is the device's, so there is nothing to keep there.
pub struct ResidencySet(AlwaysResident);

impl ResidencySet {
    pub fn new(_: &Device) -> Self {
        Self(AlwaysResident)
    }

    pub fn raw(&self) -> Option<&AlwaysResident> {
        Some(&self.0)
    }

    pub fn insert(&self, _: &Buffer) {}

    pub fn insert_batch<'a>(&self, _: impl IntoIterator<Item = &'a Buffer>) {}

    pub fn remove(&self, _: &Buffer) {}

    pub fn remove_batch<'a>(&self, _: impl IntoIterator<Item = &'a Buffer>) {}
}

static OPENED: AtomicUsize = AtomicUsize::new(0);

/// How many devices candle has opened: each has a queue of its own.
pub fn opened() -> usize {
    OPENED.load(Ordering::Relaxed)
}

/// How many dispatches there still are before the one that fails, and with which `localizedDescription`.
static FAILURE: Mutex<Option<(usize, String)>> = Mutex::new(None);

/// Fails the command buffer of a later dispatch, once, after `dispatches` that don't.
pub fn fail(dispatches: usize, description: &str) {
    *locked(&FAILURE) = Some((dispatches, description.to_owned()));
}

/// The failure that is due with this dispatch.
fn failure() -> Option<String> {
    let mut failure = locked(&FAILURE);
    match failure.as_mut() {
        Some((left @ 1.., _)) => {
            *left -= 1;
            None
        }
        _ => failure.take().map(|(_, description)| description),
    }
}

#[derive(Clone)]
pub struct CommandQueue;

/// The one queue.
pub struct Commands {
    /// Held while something is encoded, as candle does: who asks for a second encoder then waits for ever.
    encoding: Mutex<()>,
    fault: Arc<Mutex<Option<String>>>,
}

impl Commands {
    pub fn new(_: CommandQueue, _: &ResidencySet) -> Result<Self, MetalKernelError> {
        Ok(Self { encoding: Mutex::new(()), fault: Arc::default() })
    }

    pub fn command_encoder(&self) -> Result<CommandsGuard<'_>, MetalKernelError> {
        let encoder = ComputeCommandEncoder { bound: Mutex::default(), fault: self.fault.clone() };
        Ok(CommandsGuard { _encoding: locked(&self.encoding), encoder })
    }

    pub fn blit_command_encoder(&self) -> Result<BlitCommandsGuard<'_>, MetalKernelError> {
        Ok(BlitCommandsGuard { _encoding: locked(&self.encoding), encoder: BlitCommandEncoder })
    }

    pub fn wait_until_completed(&self) -> Result<(), MetalKernelError> {
        self.flush_and_wait()
    }

    pub fn flush_and_wait(&self) -> Result<(), MetalKernelError> {
        match locked(&self.fault).take() {
            None => Ok(()),
            Some(fault) => Err(MetalKernelError::CommandBufferError(fault)),
        }
    }

    pub fn flush_and_wait_current(&self) -> Result<(), MetalKernelError> {
        self.flush_and_wait()
    }

    pub fn flush(&self) -> Result<(), MetalKernelError> {
        Ok(())
    }
}

pub struct CommandsGuard<'a> {
    _encoding: MutexGuard<'a, ()>,
    encoder: ComputeCommandEncoder,
}

impl AsRef<ComputeCommandEncoder> for CommandsGuard<'_> {
    fn as_ref(&self) -> &ComputeCommandEncoder {
        &self.encoder
    }
}

impl CommandsGuard<'_> {
    pub fn set_label(&self, _: &str) {}

    pub fn set_compute_pipeline_state(&self, pipeline: &ComputePipeline) {
        self.encoder.set_compute_pipeline_state(pipeline);
    }
}

/// What the next dispatch is given. Every guard begins with nothing bound, so that a dispatch that relies on what
/// another kernel was given fails.
#[derive(Default)]
struct Bound {
    pipeline: Option<ComputePipeline>,
    arguments: BTreeMap<u32, Argument>,
    threadgroup_memory: BTreeMap<u32, usize>,
}

enum Argument {
    Buffer(metal_emulator::Buffer, usize),
    Bytes(Vec<u8>),
}

pub struct ComputeCommandEncoder {
    bound: Mutex<Bound>,
    /// Of the first dispatch since the last wait that had one.
    fault: Arc<Mutex<Option<String>>>,
}

impl AsRef<ComputeCommandEncoder> for ComputeCommandEncoder {
    fn as_ref(&self) -> &ComputeCommandEncoder {
        self
    }
}

impl ComputeCommandEncoder {
    pub fn set_threadgroup_memory_length(&self, index: usize, length: usize) {
        locked(&self.bound).threadgroup_memory.insert(index as u32, length);
    }

    pub fn set_input_buffer(&self, index: usize, buffer: Option<&Buffer>, offset: usize) {
        let arguments = &mut locked(&self.bound).arguments;
        match buffer {
            Some(Buffer(buffer)) => arguments.insert(index as u32, Argument::Buffer(buffer.clone(), offset)),
            None => arguments.remove(&(index as u32)),
        };
    }

    pub fn set_output_buffer(&self, index: usize, buffer: Option<&Buffer>, offset: usize) {
        self.set_input_buffer(index, buffer, offset);
    }

    pub fn set_bytes_directly(&self, index: usize, length: usize, pointer: *const c_void) {
        // SAFETY: candle passes the address and the length of a slice.
        let bytes = unsafe { bytes(pointer, length) }.to_vec();
        locked(&self.bound).arguments.insert(index as u32, Argument::Bytes(bytes));
    }

    pub fn set_bytes<T>(&self, index: usize, value: &T) {
        self.set_bytes_directly(index, size_of::<T>(), ptr::from_ref(value).cast());
    }

    pub fn set_compute_pipeline_state(&self, pipeline: &ComputePipeline) {
        locked(&self.bound).pipeline = Some(pipeline.clone());
    }

    pub fn set_label(&self, _: &str) {}

    pub fn end_encoding(&self) {}

    pub fn dispatch_threads(&self, threads: MTLSize, per_threadgroup: MTLSize) {
        self.dispatch(true, |launch| launch.threads(extent(threads), extent(per_threadgroup)));
    }

    pub fn dispatch_thread_groups(&self, threadgroups: MTLSize, per_threadgroup: MTLSize) {
        let are_many = extent(threadgroups) != [1; 3];
        self.dispatch(are_many, |launch| launch.threadgroups(extent(threadgroups), extent(per_threadgroup)));
    }

    fn dispatch(&self, are_many: bool, over: impl FnOnce(Launch<'_>) -> Launch<'_>) {
        let mut fault = locked(&self.fault);
        if fault.is_some() {
            // What comes after a fault never runs on a GPU either, and would tell of its consequences.
            return;
        }
        *fault = failure();
        if fault.is_some() {
            return;
        }
        let bound = locked(&self.bound);
        let ComputePipeline(function) = bound.pipeline.as_ref().expect("a pipeline is set before a dispatch");
        let checks = match function.library.name() {
            // The first two guard threadgroup memory with `mem_none`, which by the specification orders none of it; the
            // third reads an argument that a function constant has switched off, for nothing.
            "candle/reduce" | "candle/gemv" | "candle/mlx_gemm" => Checks::Fast,
            // Their last threadgroup does again what others do, with the same outcome.
            "candle/affine" | "candle/binary" | "candle/cast" | "candle/unary" if are_many => Checks::Fast,
            _ => *CHECKS,
        };
        let mut launch = over(Launch::new(function.library, &function.name)).checks(checks);
        for (index, argument) in &bound.arguments {
            launch = match argument {
                Argument::Buffer(buffer, offset) => launch.buffer(*index, buffer, *offset),
                Argument::Bytes(bytes) => launch.bytes(*index, bytes),
            };
        }
        for (index, length) in &bound.threadgroup_memory {
            launch = launch.threadgroup_memory(*index, *length);
        }
        for (index, value) in &function.constants {
            launch = launch.constant(*index, *value);
        }
        // As MLX's, from which it is, candle's product of a matrix and a vector has barriers that only some threads reach.
        if function.name.starts_with("gemv") {
            launch = launch.open_barriers_early();
        }
        note(function);
        *fault = launch.run().err().map(|fault| fault.to_string());
    }
}

pub struct BlitCommandsGuard<'a> {
    _encoding: MutexGuard<'a, ()>,
    encoder: BlitCommandEncoder,
}

pub struct BlitCommandEncoder;

impl AsRef<BlitCommandEncoder> for BlitCommandsGuard<'_> {
    fn as_ref(&self) -> &BlitCommandEncoder {
        &self.encoder
    }
}

impl BlitCommandsGuard<'_> {
    pub fn set_label(&self, _: &str) {}

    pub fn copy_from_buffer(&mut self, from: &Buffer, from_offset: usize, to: &Buffer, to_offset: usize, size: usize) {
        let (from, to) = (&from.0, &to.0);
        assert!(from_offset + size <= from.len() && to_offset + size <= to.len(), "a copy beyond a buffer's end");
        // SAFETY: both ranges lie in their buffers; they may be the same buffer's.
        unsafe { ptr::copy(from.as_ptr().add(from_offset), to.as_unmarked_mut_ptr().add(to_offset), size) };
        to.mark_written(to_offset..to_offset + size);
    }

    pub fn fill_buffer(&mut self, buffer: &Buffer, (start, length): (usize, usize), value: u8) {
        buffer.0.write(start, &vec![value; length]);
    }
}

static CHECKS: LazyLock<Checks> = LazyLock::new(|| match std::env::var("TIDEGATE_METAL_CHECKS").as_deref() {
    Ok("full") => Checks::Full,
    _ => Checks::Fast,
});

/// Adds a kernel to the file of those that ran, once in this process.
fn note(function: &Function) {
    static NOTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let line = format!("{} {}\n", function.library.name(), function.name);
    let Some(path) = std::env::var_os("TIDEGATE_METAL_KERNELS") else { return };
    if locked(&NOTED).insert(line.clone()) {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the file of kernels can be written");
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn extent(size: MTLSize) -> [u32; 3] {
    [size.width, size.height, size.depth].map(|threads| u32::try_from(threads).expect("a grid that Metal allows"))
}

/// # Safety
/// `pointer` is that of `length` initialised bytes, or `length` is 0.
unsafe fn bytes<'a>(pointer: *const c_void, length: usize) -> &'a [u8] {
    if length == 0 {
        return &[];
    }
    // SAFETY: as this function's.
    unsafe { slice::from_raw_parts(pointer.cast(), length) }
}
