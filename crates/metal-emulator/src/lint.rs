//! Address spaces: `device`, `constant` and `threadgroup` pointers that Apple's compiler would not convert into each
//! other, found by clang's own address spaces. Kernels run without them here.

use std::path::Path;

use crate::build::Compiler;

/// Compiles a `.metal` file with its address spaces as far as types are checked. Empty when clang takes it, otherwise its
/// messages, with lines of the file.
///
/// Stricter than Metal in one thing: a struct in device or constant memory can't be copied as a whole, only read through
/// a reference.
///
/// # Errors
/// When clang is missing or the file can't be preprocessed.
pub fn address_spaces(metal: &Path) -> Result<String, String> {
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim");
    let cache = Path::new(env!("OUT_DIR")).join("lint");
    Compiler::find(&shim, &cache, std::env::consts::ARCH, None)?.lint(metal)
}
