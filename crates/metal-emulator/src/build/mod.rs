//! From a `.metal` file to a shared object: clang's preprocessor, the rewriter, clang. Used by the crate's build script,
//! which includes this module, and by [`crate::lint`].

mod tokens;
mod translate;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// clang-19 is the first whose `__bf16` computes on every CPU.
const CLANGS: &[&str] = &["clang-19", "clang-20", "clang-21", "clang-22", "clang"];
const OLDEST_CLANG: u32 = 19;

/// The headers that the language has; all of them are `shim/metal.h`, which is included anyway.
const HEADERS: &[&str] = &[
    "metal_atomic",
    "metal_common",
    "metal_compute",
    "metal_geometric",
    "metal_integer",
    "metal_limits",
    "metal_math",
    "metal_matrix",
    "metal_relational",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_stdlib",
    "metal_type_traits",
    "metal_types",
];

/// What the language version 3.1 predefines.
const PREDEFINED: &[&str] = &["__METAL__=1", "__METAL_VERSION__=310", "__METAL_MACOS__=1", "__HAVE_BFLOAT__=1"];

const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-w",
    "-nostdinc++",
    "-fvisibility=hidden",
    "-fsigned-char",
    "-fno-exceptions",
    "-fno-rtti",
    // Kernels reinterpret bytes. Products and sums round one by one, literals are float: as the language says.
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Xclang",
    "-cl-single-precision-constant",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
    // A local variable that nobody set is NaN or a number far off, in every run.
    "-ftrivial-auto-var-init=pattern",
];

/// What a library is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Instrumentation {
    /// None. Vectors may lie at any multiple of 4 bytes.
    None,
    /// Every load and store calls the scheduler.
    Accesses,
    /// As before, and every block of code is counted.
    AccessesAndBlocks,
}

impl Instrumentation {
    fn flags(self) -> impl Iterator<Item = &'static str> {
        let flags: [&[&str]; 2] = match self {
            Self::None => [&["-fmax-type-align=4"], &[]],
            Self::Accesses => [ACCESSES, &[]],
            Self::AccessesAndBlocks => [ACCESSES, BLOCKS],
        };
        flags.into_iter().flatten().copied()
    }
}

const ACCESSES: &[&str] = &[
    "-DMETAL_EMULATOR_FULL",
    "-gline-tables-only",
    "-fsanitize=thread",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
    // On ARM the division itself goes on with 0.
    "-fsanitize=integer-divide-by-zero",
    "-fsanitize-trap=integer-divide-by-zero",
];

// A flag for each block: a counter of eight bits is zero again after 256 times.
const BLOCKS: &[&str] = &["-fsanitize-coverage=inline-bool-flag,pc-table,no-prune"];

/// clang with this crate's shim, for one target.
#[derive(Debug, Clone)]
pub struct Compiler {
    clang: PathBuf,
    version: String,
    shim: PathBuf,
    cache: PathBuf,
    target: Vec<String>,
    linker: PathBuf,
}

impl Compiler {
    /// Looks for clang. Intermediate files and results go to `cache`; `cross` is another target than the host's, as a
    /// triple, and the C compiler that links for it.
    ///
    /// # Errors
    /// When there is no clang, or only an older one; the text says what to install.
    pub fn find(shim: &Path, cache: &Path, arch: &str, cross: Option<(&str, &Path)>) -> Result<Self, String> {
        let (clang, version) = find_clang()?;
        let headers = cache.join("include");
        fs::create_dir_all(&headers).map_err(|error| format!("cannot create {}: {error}", headers.display()))?;
        for header in HEADERS {
            write(&headers.join(header), "")?;
        }
        // Conversion between half and float is an instruction from this level on.
        let mut flags: Vec<String> = if arch == "x86_64" { vec!["-march=x86-64-v3".into()] } else { vec![] };
        // Without the other system's C headers.
        flags.extend(cross.into_iter().flat_map(|(target, _)| [format!("--target={target}"), "-ffreestanding".into()]));
        let linker = cross.map_or_else(|| clang.clone(), |(_, linker)| linker.to_owned());
        Ok(Self { clang, version, shim: shim.to_owned(), cache: cache.to_owned(), target: flags, linker })
    }

    /// Compiles a `.metal` file to a shared object and returns its path; one that was compiled before is taken as it is.
    ///
    /// # Errors
    /// What the preprocessor, the rewriter or clang says.
    pub fn compile(&self, source: &Path, instrumentation: Instrumentation) -> Result<PathBuf, String> {
        let cpp = self.translate(source)?;
        let key = self.key(&cpp, instrumentation)?;
        let stem = source.file_stem().unwrap_or(OsStr::new("kernels")).to_string_lossy();
        let built = self.cache.join(format!("{stem}-{key:016x}.so"));
        if built.exists() {
            return Ok(built);
        }
        let text = self.cache.join(format!("{stem}-{key:016x}.cpp"));
        write(&text, &cpp)?;
        // Under a name of its own until it is whole: another build may want the same file.
        let unfinished = self.cache.join(format!("{stem}-{key:016x}-{}.so", thread_name()));
        let hooks = self.hooks()?;
        let mut command = Command::new(&self.clang);
        let object = unfinished.with_extension("o");
        command.args(&self.target).args(FLAGS).args(instrumentation.flags()).arg("-I").arg(&self.shim);
        run(command.args(["-x", "c++", "-c"]).arg(&text).arg("-o").arg(&object))?;
        let mut link = Command::new(&self.linker);
        run(link
            .args(["-shared", "-nostdlib"])
            .arg(&object)
            .arg(&hooks)
            .args(["-lm", "-lgcc", "-o"])
            .arg(&unfinished))?;
        let _ = fs::remove_file(&object);
        fs::rename(&unfinished, &built).map_err(|error| format!("cannot write {}: {error}", built.display()))?;
        Ok(built)
    }

    /// The file as C++ for clang with the shim.
    fn translate(&self, source: &Path) -> Result<String, String> {
        translate::translate(&self.preprocess(source)?).map_err(|error| format!("{}: {error}", source.display()))
    }

    /// What clang's front end says against a file whose address spaces it knows; empty when it takes it.
    ///
    /// # Errors
    /// What the preprocessor or the rewriter says.
    pub fn lint(&self, source: &Path) -> Result<String, String> {
        let cpp = translate::translate_with_spaces(&self.preprocess(source)?)?;
        let key = self.key(&cpp, Instrumentation::None)?;
        let text = self.cache.join(format!("lint-{key:016x}.cpp"));
        write(&text, &cpp)?;
        let mut command = Command::new(&self.clang);
        command.args(&self.target).args(FLAGS).args(["-DMETAL_EMULATOR_LINT", "-fsyntax-only", "-I"]).arg(&self.shim);
        Ok(run(command.args(["-x", "c++"]).arg(text)).err().unwrap_or_default())
    }

    /// The file after clang's preprocessor.
    fn preprocess(&self, source: &Path) -> Result<String, String> {
        let mut command = Command::new(&self.clang);
        command
            .args(["-E", "-x", "c++", "-std=c++17", "-nostdinc", "-undef", "-w", "-I"])
            .arg(self.cache.join("include"));
        command.args(PREDEFINED.iter().map(|name| format!("-D{name}")));
        run(command.arg(source))
    }

    /// Removes what was compiled more than a week ago and is not among `used`.
    pub fn prune(&self, used: &[PathBuf]) {
        let is_old = |path: &PathBuf| {
            let age = fs::metadata(path).and_then(|file| file.modified()).map(|at| at.elapsed().unwrap_or_default());
            age.is_ok_and(|age| age > Duration::from_secs(7 * 24 * 3600))
        };
        let old = files(&self.cache, &["so", "cpp"]).unwrap_or_default();
        for path in old.iter().filter(|path| !used.contains(path) && is_old(path)) {
            let _ = fs::remove_file(path);
        }
    }

    /// The object file of the callbacks.
    fn hooks(&self) -> Result<PathBuf, String> {
        let source = self.shim.join("hooks.cpp");
        let key = self.key("", Instrumentation::None)?;
        let built = self.cache.join(format!("hooks-{key:016x}.o"));
        if !built.exists() {
            let unfinished = self.cache.join(format!("hooks-{key:016x}-{}.o", thread_name()));
            run(Command::new(&self.clang)
                .args(&self.target)
                .args(FLAGS)
                .arg("-O2")
                .arg("-c")
                .arg(&source)
                .arg("-o")
                .arg(&unfinished))?;
            fs::rename(&unfinished, &built).map_err(|error| format!("cannot write {}: {error}", built.display()))?;
        }
        Ok(built)
    }

    /// A number for everything that the result depends on.
    fn key(&self, cpp: &str, instrumentation: Instrumentation) -> Result<u64, String> {
        let mut hash = fnv(FNV_START, cpp.as_bytes());
        let mut headers: Vec<PathBuf> = files(&self.shim, &["h", "cpp"])?;
        headers.sort();
        for header in headers {
            hash = fnv(hash, &fs::read(&header).map_err(|error| format!("cannot read {}: {error}", header.display()))?);
        }
        let mut flags: Vec<&str> = FLAGS.iter().copied().chain(instrumentation.flags()).collect();
        flags.extend(self.target.iter().map(String::as_str));
        flags.push(&self.version);
        Ok(flags.into_iter().fold(hash, |hash, flag| fnv(hash, flag.as_bytes())))
    }
}

/// Files of a folder with one of these extensions; folders in it are not entered.
///
/// # Errors
/// When the folder can't be read.
pub fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let is_wanted = |path: &PathBuf| path.extension().is_some_and(|ext| extensions.iter().any(|wanted| ext == *wanted));
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_wanted).collect())
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, which is the same in every version of every compiler.
pub(crate) fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The number by which [`crate::library_with_source`] finds a library.
pub fn source_key(text: &str) -> u64 {
    fnv(FNV_START, text.as_bytes())
}

fn find_clang() -> Result<(PathBuf, String), String> {
    for name in CLANGS {
        let Ok(output) = Command::new(name).arg("--version").output() else { continue };
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        let major =
            version.split("version ").nth(1).and_then(|rest| rest.split('.').next()).and_then(|n| n.parse().ok());
        if major.is_some_and(|major: u32| major >= OLDEST_CLANG) {
            return Ok((name.into(), version));
        }
    }
    Err(format!(
        "Metal kernels are tested with clang {OLDEST_CLANG} or newer, which is not here. \
                 On Debian and Ubuntu: apt-get install clang-{OLDEST_CLANG}"
    ))
}

fn thread_name() -> String {
    format!("{}-{:?}", std::process::id(), std::thread::current().id()).replace(['(', ')'], "")
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}\n{}", String::from_utf8_lossy(&output.stderr)))
}
