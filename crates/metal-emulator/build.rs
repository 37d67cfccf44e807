//! Compiles every `.metal` file that tests run: those of candle, of `crates/kernels`, and the planted bugs.

#[path = "src/build/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "the same text is a module of the library")]
mod build;

use build::{Compiler, Instrumentation};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

struct Source {
    /// `candle/reduce`, `kernels/gate`, `planted/race`.
    name: String,
    path: PathBuf,
    is_counted: bool,
}

fn main() {
    if variable("CARGO_CFG_TARGET_OS") == "linux"
        && let Err(error) = compile_all()
    {
        println!("cargo::error={}", error.replace('\n', "\ncargo::error="));
    }
}

fn compile_all() -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    // Beside the profiles' folders, so that a changed build script finds what an earlier one compiled.
    let target_folder = out.ancestors().nth(4).unwrap_or(&out);
    let (host, target) = (variable("HOST"), variable("TARGET"));
    // As the cc crate names it.
    let linker = PathBuf::from(variable(&format!("CC_{}", target.replace('-', "_"))));
    let cross = (host != target).then_some((target.as_str(), linker.as_path()));
    let cache = target_folder.join("metal-emulator");
    let compiler = Compiler::find(&root.join("shim"), &cache, &variable("CARGO_CFG_TARGET_ARCH"), cross)?;
    let mut sources = Vec::new();
    add(&mut sources, "candle", &candle_kernels(&root)?, false)?;
    add(&mut sources, "planted", &root.join("tests/planted"), true)?;
    let ours = root.join("../kernels/src/metal");
    if ours.exists() {
        add(&mut sources, "kernels", &ours, true)?;
    }
    for folder in [if ours.exists() { ours } else { root.join("../kernels/src") }, root.join("tests/planted")] {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    for file in ["shim", "src/build", "build.rs"] {
        println!("cargo::rerun-if-changed={}", root.join(file).display());
    }
    let built = in_parallel(&compiler, &sources)?;
    compiler.prune(&built.concat());
    fs::write(out.join("libraries.rs"), manifest(&sources, &built)?).map_err(|error| error.to_string())
}

/// Where cargo keeps the sources of candle-metal-kernels, which on Linux no crate is built with.
fn candle_kernels(root: &Path) -> Result<PathBuf, String> {
    let metadata = |offline: &[&str]| {
        let mut command = Command::new(variable("CARGO"));
        // Only this feature makes cargo know it.
        command.args(["metadata", "--format-version", "1", "--locked", "--features", "metal"]);
        command.args(offline).current_dir(root.join("../kernels"));
        command.output().map_err(|error| format!("cargo metadata: {error}"))
    };
    let mut output = metadata(&["--offline"])?;
    if !output.status.success() {
        output = metadata(&[])?;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let manifest = text
        .split("\"manifest_path\":\"")
        .filter_map(|rest| rest.split('"').next())
        .find(|path| path.contains("/candle-metal-kernels-") && path.ends_with("/Cargo.toml"))
        .ok_or_else(|| {
            format!("cargo metadata knows no candle-metal-kernels: {}", String::from_utf8_lossy(&output.stderr))
        })?;
    Ok(Path::new(manifest).with_file_name("src/metal_src"))
}

fn add(sources: &mut Vec<Source>, origin: &str, folder: &Path, is_counted: bool) -> Result<(), String> {
    let mut files = build::files(folder, &["metal"])?;
    files.sort();
    for path in files {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        sources.push(Source { name: format!("{origin}/{stem}"), path, is_counted });
    }
    Ok(())
}

/// For each source, the library without checks and the one with them.
fn in_parallel(compiler: &Compiler, sources: &[Source]) -> Result<Vec<[PathBuf; 2]>, String> {
    let jobs: Vec<(&Source, Instrumentation)> = sources
        .iter()
        .flat_map(|source| {
            let full = if source.is_counted { Instrumentation::AccessesAndBlocks } else { Instrumentation::Accesses };
            [(source, Instrumentation::None), (source, full)]
        })
        .collect();
    // The largest files first, so that the last worker doesn't end long after the others.
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|&job| std::cmp::Reverse(fs::metadata(&jobs[job].0.path).map_or(0, |file| file.len())));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(&job) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((job, compiler.compile(&jobs[job].0.path, jobs[job].1)));
        }
        done
    };
    let workers = variable("NUM_JOBS").parse().unwrap_or(1);
    let mut done: Vec<_> = thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|handle| handle.join().unwrap_or_default()).collect()
    });
    done.sort_by_key(|(job, _)| *job);
    let paths = done.into_iter().map(|(_, path)| path).collect::<Result<Vec<_>, _>>()?;
    Ok(paths.chunks_exact(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect())
}

fn manifest(sources: &[Source], built: &[[PathBuf; 2]]) -> Result<String, String> {
    let mut text = String::from("&[\n");
    for (source, [fast, full]) in sources.iter().zip(built) {
        let metal = fs::read_to_string(&source.path).map_err(|error| error.to_string())?;
        let _ = writeln!(
            text,
            "Compiled {{ name: {:?}, source: {:?}, source_key: {}, fast: {fast:?}, full: {full:?}, is_counted: {} }},",
            source.name,
            source.path,
            build::source_key(&metal),
            source.is_counted
        );
    }
    text.push(']');
    Ok(text)
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
