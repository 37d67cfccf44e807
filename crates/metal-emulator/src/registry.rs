//! What the build script compiled, loaded when it is first used.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Debug, Formatter};
use std::path::Path;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use crate::Checks;
use crate::build::source_key;
use crate::image::{Image, Kernel};

/// One `.metal` file as the build script left it.
struct Compiled {
    name: &'static str,
    source: &'static str,
    source_key: u64,
    fast: &'static str,
    full: &'static str,
    is_counted: bool,
}

static COMPILED: &[Compiled] = include!(concat!(env!("OUT_DIR"), "/libraries.rs"));

static LIBRARIES: LazyLock<Vec<Library>> = LazyLock::new(|| {
    let library =
        |compiled| Library { compiled, fast: OnceLock::new(), full: OnceLock::new(), launched: Mutex::default() };
    COMPILED.iter().map(library).collect()
});

/// The kernels of one `.metal` file.
pub struct Library {
    compiled: &'static Compiled,
    fast: OnceLock<Loaded>,
    full: OnceLock<Loaded>,
    launched: Mutex<BTreeSet<&'static str>>,
}

pub(crate) struct Loaded {
    pub(crate) image: &'static Image,
    pub(crate) kernels: HashMap<&'static str, &'static Kernel>,
}

/// Every library, in the order of their names within each origin.
pub fn libraries() -> &'static [Library] {
    &LIBRARIES
}

/// The library with a name: `candle/quantized` for candle-metal-kernels' `quantized.metal`, `kernels/…` for the files of
/// `crates/kernels`, `planted/…` for this crate's own tests.
pub fn library(name: &str) -> Option<&'static Library> {
    LIBRARIES.iter().find(|library| library.name() == name)
}

/// The library that was compiled from exactly this text.
pub fn library_with_source(source: &str) -> Option<&'static Library> {
    let key = source_key(source);
    LIBRARIES.iter().find(|library| library.compiled.source_key == key)
}

impl Library {
    /// Its name: see [`library`].
    pub fn name(&self) -> &'static str {
        self.compiled.name
    }

    /// The `.metal` file.
    pub fn source(&self) -> &'static Path {
        Path::new(self.compiled.source)
    }

    /// The host names of its kernels, sorted.
    pub fn kernels(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.loaded(Checks::Fast).kernels.keys().copied().collect();
        names.sort_unstable();
        names
    }

    /// Whether it has a kernel with this host name.
    pub fn has_kernel(&self, name: &str) -> bool {
        self.loaded(Checks::Fast).kernels.contains_key(name)
    }

    /// Kernels that ran in this process, to their end or to a fault.
    pub fn launched(&self) -> BTreeSet<&'static str> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the lines that run under [`Checks::Full`] are counted.
    pub fn is_counted(&self) -> bool {
        self.compiled.is_counted
    }

    pub(crate) fn note_launch(&self, kernel: &'static str) {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel);
    }

    pub(crate) fn loaded(&self, checks: Checks) -> &Loaded {
        let slot = if checks == Checks::Full { &self.full } else { &self.fast };
        slot.get_or_init(|| match Image::load(self.binary(checks)) {
            Ok(image) => Loaded { image, kernels: image.kernels().collect() },
            Err(error) => panic!("library {}: {error}", self.name()),
        })
    }

    /// The library of full checks, if any kernel of it ran.
    pub(crate) fn loaded_full(&self) -> Option<&Loaded> {
        self.full.get()
    }

    /// The shared object.
    pub(crate) fn binary(&self, checks: Checks) -> &'static Path {
        Path::new(if checks == Checks::Full { self.compiled.full } else { self.compiled.fast })
    }
}

impl Debug for Library {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Library({})", self.name())
    }
}
