//! A loaded library as `shim/abi.h` lays it out. Both files change together.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr;

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Triple {
    x: u32,
    y: u32,
    z: u32,
}

impl From<[u32; 3]> for Triple {
    fn from([x, y, z]: [u32; 3]) -> Self {
        Self { x, y, z }
    }
}

impl From<Triple> for [u32; 3] {
    fn from(Triple { x, y, z }: Triple) -> Self {
        [x, y, z]
    }
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Thread {
    pub(crate) position_in_grid: Triple,
    pub(crate) position_in_threadgroup: Triple,
    pub(crate) threadgroup_position: Triple,
    pub(crate) threads_per_threadgroup: Triple,
    pub(crate) threadgroups_per_grid: Triple,
    pub(crate) threads_per_grid: Triple,
    pub(crate) index_in_threadgroup: u32,
    pub(crate) lane: u32,
    pub(crate) simdgroup: u32,
    pub(crate) simdgroups: u32,
}

#[repr(C)]
pub(crate) struct Collective {
    pub(crate) run: unsafe extern "C" fn(*const *mut Collective),
    pub(crate) line: u32,
}

pub(crate) const WRITE: u32 = 1;
pub(crate) const ATOMIC: u32 = 2;
pub(crate) const ALIGNED: u32 = 4;
pub(crate) const UPDATE: u32 = 8;

#[repr(C)]
pub(crate) struct Current {
    pub(crate) thread: *const Thread,
    pub(crate) stack_start: usize,
    pub(crate) stack_len: usize,
}

#[repr(C)]
pub(crate) struct Hooks {
    pub(crate) current: *mut Current,
    pub(crate) collective: unsafe extern "C" fn(*mut Collective),
    pub(crate) threadgroup_barrier: unsafe extern "C" fn(u32, u32),
    pub(crate) simdgroup_barrier: unsafe extern "C" fn(u32),
    pub(crate) threadgroup_variable: unsafe extern "C" fn(usize, usize, usize) -> *mut u8,
    pub(crate) access: unsafe extern "C" fn(usize, usize, u32, usize),
}

#[repr(C)]
pub(crate) struct Parameter {
    pub(crate) kind: c_char,
    pub(crate) index: u32,
    pub(crate) is_used: Option<unsafe extern "C" fn() -> bool>,
}

#[repr(C)]
pub(crate) struct Kernel {
    name: *const c_char,
    pub(crate) function: *mut c_void,
    parameters: *const Parameter,
    parameter_count: usize,
    pub(crate) invoke: unsafe extern "C" fn(*mut c_void, *const *mut u8, *const Thread, *const Parameter),
    next: *const Kernel,
}

// SAFETY: a description that nobody changes after loading.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    pub(crate) fn parameters(&self) -> &[Parameter] {
        // SAFETY: a static array of the library, which is never unloaded.
        unsafe { std::slice::from_raw_parts(self.parameters, self.parameter_count) }
    }
}

#[repr(C)]
pub(crate) struct Constant {
    name: *const c_char,
    pub(crate) index: u32,
    pub(crate) value: *mut u8,
    pub(crate) size: usize,
    pub(crate) is_float: bool,
    pub(crate) is_defined: *mut bool,
    next: *const Constant,
}

impl Constant {
    pub(crate) fn name(&self) -> &'static str {
        text(self.name)
    }
}

#[repr(C)]
pub(crate) struct Image {
    pub(crate) hooks: *mut *const Hooks,
    kernels: *const Kernel,
    constants: *const Constant,
    pub(crate) start: usize,
    pub(crate) end: usize,
    flags: *const u8,
    flags_end: *const u8,
    blocks: *const [usize; 2],
}

// SAFETY: written once by the library's constructors; what changes later changes under the scheduler's lock.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Image {
    /// Loads a library that the build script made. It stays for the life of the process.
    pub(crate) fn load(path: &Path) -> Result<&'static Self, String> {
        let file = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: the library is ours and its constructors only fill in its own image.
        let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: dlerror gives a string after a failure.
            return Err(unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned());
        }
        // SAFETY: the handle is valid and the symbol has this type in `shim/hooks.cpp`.
        let image = unsafe { libc::dlsym(handle, c"metal_emulator_image".as_ptr()).cast::<Self>().as_ref() };
        image.ok_or_else(|| format!("{} is no library of kernels", path.display()))
    }

    pub(crate) fn kernels(&'static self) -> impl Iterator<Item = (&'static str, &'static Kernel)> {
        // SAFETY: a list of static objects of the library that ends with null.
        let following = |at: *const Kernel| unsafe { at.as_ref() };
        std::iter::successors(following(self.kernels), move |kernel| following(kernel.next))
            .map(|kernel| (text(kernel.name), kernel))
    }

    pub(crate) fn constants(&'static self) -> impl Iterator<Item = &'static Constant> {
        // SAFETY: as for the kernels.
        let following = |at: *const Constant| unsafe { at.as_ref() };
        std::iter::successors(following(self.constants), move |constant| following(constant.next))
    }

    /// For each block of code its offset in the file, and whether it ran. None where blocks are not counted.
    pub(crate) fn blocks(&self) -> Vec<(usize, bool)> {
        let count = (self.flags_end as usize).saturating_sub(self.flags as usize);
        let block = |i: usize| {
            // SAFETY: clang makes one pair and one flag for each block; flags are bytes that are only ever set.
            unsafe { ((*self.blocks.add(i))[0] - self.start, ptr::read_volatile(self.flags.add(i)) != 0) }
        };
        (0..count).map(block).collect()
    }
}

fn text(at: *const c_char) -> &'static str {
    // SAFETY: names are string literals of the library.
    unsafe { CStr::from_ptr(at) }.to_str().unwrap_or("?")
}
