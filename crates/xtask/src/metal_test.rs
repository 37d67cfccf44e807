//! `cargo xtask metal-test`: the engine on candle's own Metal backend without a Mac. The same manifests and sources are
//! built once more in a workspace below the build folder, where two published crates are exchanged: candle-metal-kernels
//! gets our module over the emulator in place of the one that speaks Objective-C, and candle-core allocates buffers as
//! long as asked for. Nothing of theirs is committed, and the lock file stays as it is.

use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use toml::{Table, Value};

use crate::steps::Steps;
use crate::workspace::Workspace;

/// Where candle's Metal kernels are needed, and so downloaded.
const APPLE: &str = "aarch64-apple-darwin";

/// Text of candle-core and what stands there instead. Buffers rounded up and used again would hide reads beyond a
/// tensor's end and of what nobody wrote: they would find another tensor's values.
const CORE_EDITS: &[(&str, &str, &str)] = &[
    ("src/metal_backend/device.rs", "    size.next_power_of_two()\n", "    size\n"),
    (
        "src/metal_backend/device.rs",
        "if Arc::strong_count(sub) == 1 {\n                    best_buffer =",
        "if false {\n                    best_buffer =",
    ),
];

/// The interfaces of Apple's systems: what candle and `kernels` name of them, with the features that they ask for.
const STAND_INS: &[(&str, &str, &[&str])] = &[
    ("objc2", include_str!("../metal-test/objc2.rs"), &[]),
    ("objc2-foundation", include_str!("../metal-test/objc2_foundation.rs"), &[]),
    ("objc2-metal", include_str!("../metal-test/objc2_metal.rs"), &["block2", "MTLAllocation", "MTLResidencySet"]),
];

/// A crate's files by their path in it.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// `cargo xtask metal-test`.
pub(crate) fn metal_test(workspace: &Workspace) -> Result<()> {
    let mut steps = Steps::new(workspace.notes())?;
    run(workspace, &mut steps);
    steps.all_passed()
}

/// The kernels' properties and the products of every packing; every oracle model; then the beginning of each with every
/// access to memory checked, which takes twenty times as long; and a GPU that fails.
pub(crate) fn run(workspace: &Workspace, steps: &mut Steps) {
    if !steps.work("candle over the Metal emulator", || prepare(workspace)) {
        return;
    }
    let kernels = workspace.notes().join("metal-kernels.txt");
    // Of the last run.
    let _ = fs::remove_file(&kernels);
    let test = |checks: &str, package: &str, targets: &[&str], name: &[&str]| {
        let mut command = Command::new("cargo");
        command.current_dir(folder(workspace)).args(["test", "--package", package, "--features", "metal"]);
        command.args(targets).arg("--target-dir").arg(&workspace.target).args(["--", "--nocapture"]).args(name);
        command.env("TIDEGATE_METAL_CHECKS", checks).env("TIDEGATE_METAL_KERNELS", &kernels);
        command.env("TIDEGATE_BRIEFLY", "1");
        command
    };
    steps.run_tests("tensor operations on Metal", &mut test("fast", "kernels", &["--lib"], &[]));
    // What is ours bears all checks.
    let packed = ["--test", "packed_metal"];
    steps.run_tests("packed products on Metal, every access checked", &mut test("full", "kernels", &packed, &[]));
    let delta_rule = ["the_delta_rule_is_its_reference"];
    steps.run_tests("delta rule on Metal, every access checked", &mut test("full", "kernels", &["--lib"], &delta_rule));
    steps.run_tests("quantized products on Metal", &mut test("fast", "engine", &["--lib"], &["quant_tests"]));
    let oracles = ["--test", "oracles"];
    steps.run_tests(
        "models on Metal",
        &mut test("fast", "engine", &oracles, &["every_family_agrees_with_its_reference"]),
    );
    steps.run_tests(
        "models on Metal, every access checked",
        &mut test("full", "engine", &oracles, &["every_family_begins_well"]),
    );
    steps.run_tests("a GPU that fails", &mut test("fast", "device-faults", &["--tests"], &[]));
    steps.work("Metal kernels that ran", || kernels_that_ran(&kernels));
}

/// How many there are in the file, which is sorted; each process has added its own.
fn kernels_that_ran(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let names: BTreeSet<&str> = text.lines().collect();
    ensure!(!names.is_empty(), "no kernel ran: the models were not on the emulated device");
    fs::write(file, names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    Ok(format!("{}, listed in {}", names.len(), file.display()))
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("metal-test")
}

/// Makes the workspace. Files that are as they were are left alone, so that cargo builds nothing twice.
fn prepare(workspace: &Workspace) -> Result<String> {
    let folder = folder(workspace);
    fs::create_dir_all(&folder)?;
    let (linked, crates) = (folder.join("crates"), workspace.root.join("crates"));
    if fs::read_link(&linked).ok().as_ref() != Some(&crates) {
        // There may be one to another checkout.
        let _ = fs::remove_file(&linked);
        symlink(&crates, &linked).with_context(|| format!("linking {}", linked.display()))?;
    }
    let lock = read_table(&workspace.root.join("Cargo.lock"))?;
    let published = Published::find(workspace)?;
    let mut core = published.files("candle-core", &lock)?;
    edit(&mut core, CORE_EDITS).context("candle-core is not as it was")?;
    write_crate(&folder.join("candle-core"), &core)?;
    let mut kernels = published.files("candle-metal-kernels", &lock)?;
    over_emulator(&mut kernels).context("candle-metal-kernels is not as it was")?;
    write_crate(&folder.join("candle-metal-kernels"), &kernels)?;
    for (name, source, features) in STAND_INS {
        write_crate(&folder.join(name), &stand_in(name, &version(&lock, name)?, source, features)?)?;
    }
    let mut files = Files::from([
        ("Cargo.toml".into(), manifest(workspace)?.into_bytes()),
        ("device-faults/Cargo.toml".into(), include_bytes!("../metal-test/device-faults.toml").into()),
        ("device-faults/src/lib.rs".into(), Vec::new()),
        ("device-faults/tests/device_faults.rs".into(), include_bytes!("../metal-test/device_faults.rs").into()),
    ]);
    // Cargo takes out of it what the exchanged crates don't need, so the original is what tells whether it is current.
    let original = fs::read(workspace.root.join("Cargo.lock"))?;
    if fs::read(folder.join("Cargo.lock.original")).ok().as_ref() != Some(&original) {
        files.insert("Cargo.lock".into(), original.clone());
        files.insert("Cargo.lock.original".into(), original);
    }
    write_files(&folder, &files)?;
    Ok(String::new())
}

/// What cargo knows of the crates that it has downloaded.
struct Published(String);

impl Published {
    /// Downloads what is missing.
    fn find(workspace: &Workspace) -> Result<Self> {
        let mut metadata = Command::new("cargo");
        metadata.current_dir(&workspace.root).args(["metadata", "--format-version", "1", "--locked"]);
        metadata.args(["--features", "engine/metal", "--filter-platform", APPLE]);
        let output = metadata.output().context("starting cargo")?;
        ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Self(String::from_utf8(output.stdout)?))
    }

    /// The manifest and the library's sources of the locked version of a crate.
    fn files(&self, name: &str, lock: &Table) -> Result<Files> {
        let ending = format!("/{name}-{}/Cargo.toml", version(lock, name)?);
        // Only manifests' paths end like this in what cargo said.
        let manifest = self.0.split('"').find(|word| word.ends_with(&ending));
        let manifest = manifest.with_context(|| format!("cargo does not say where {name} is"))?;
        let folder = Path::new(manifest).parent().context("a manifest lies in a folder")?;
        let mut files = Files::new();
        read_files(folder, Path::new("src"), &mut files)?;
        // Tests and examples have dependencies of their own, which may not be here.
        let mut manifest = read_table(Path::new(manifest))?;
        for part in ["dev-dependencies", "test", "example", "bench"] {
            manifest.remove(part);
        }
        files.insert("Cargo.toml".into(), manifest.to_string().into_bytes());
        Ok(files)
    }
}

/// Puts our module in the place of the one that speaks Objective-C.
fn over_emulator(kernels: &mut Files) -> Result<()> {
    let before = kernels.len();
    kernels.retain(|path, _| !path.starts_with("src/metal"));
    ensure!(kernels.len() < before, "there is no src/metal");
    kernels.insert("src/metal.rs".into(), include_bytes!("../metal-test/metal.rs").into());
    let manifest = kernels.get_mut(Path::new("Cargo.toml")).context("there is no manifest")?;
    let mut table: Table = std::str::from_utf8(manifest)?.parse()?;
    let dependencies =
        table.get_mut("dependencies").and_then(Value::as_table_mut).context("there are no dependencies")?;
    // Calls back from Objective-C.
    dependencies.remove("block2").context("block2 is not used")?;
    let emulator = Table::from_iter([("path".to_owned(), "../crates/metal-emulator".into())]);
    dependencies.insert("metal-emulator".to_owned(), emulator.into());
    *manifest = table.to_string().into_bytes();
    Ok(())
}

/// Replaces each text by the other; one that isn't there exactly once is an error.
fn edit(files: &mut Files, edits: &[(&str, &str, &str)]) -> Result<()> {
    for (file, old, new) in edits {
        let bytes = files.get_mut(Path::new(file)).with_context(|| format!("there is no {file}"))?;
        let text = std::str::from_utf8(bytes).with_context(|| format!("{file} is no text"))?;
        let found = text.matches(old).count();
        ensure!(found == 1, "{file} has this {found} times instead of once: {old}");
        *bytes = text.replace(old, new).into_bytes();
    }
    Ok(())
}

fn stand_in(name: &str, version: &str, source: &str, features: &[&str]) -> Result<Files> {
    let features: Table = features.iter().map(|name| ((*name).to_owned(), Value::Array(Vec::new()))).collect();
    let mut dependencies = Table::new();
    for (other, source_of_other, _) in STAND_INS {
        let is_used = source.contains(&format!("use {}::", other.replace('-', "_")));
        if is_used && source_of_other != &source {
            dependencies.insert(
                (*other).to_owned(),
                Table::from_iter([("path".to_owned(), format!("../{other}").into())]).into(),
            );
        }
    }
    let package = [("name", name), ("version", version), ("edition", "2024")];
    let package: Table = package.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    let sections = [("package", package), ("features", features), ("dependencies", dependencies)];
    let manifest: Table = sections.into_iter().map(|(key, table)| (key.to_owned(), table.into())).collect();
    Ok(Files::from([
        ("Cargo.toml".into(), manifest.to_string().into_bytes()),
        ("src/lib.rs".into(), source.as_bytes().to_vec()),
    ]))
}

/// The workspace's manifest for the crates that compute, with candle exchanged.
fn manifest(workspace: &Workspace) -> Result<String> {
    let mut table = read_table(&workspace.root.join("Cargo.toml"))?;
    let section = table.get_mut("workspace").and_then(Value::as_table_mut).context("there is no workspace")?;
    let members = vec!["crates/engine", "crates/kernels", "crates/metal-emulator", "device-faults"];
    section.insert("members".to_owned(), members.into());
    section.remove("default-members");
    let names = ["candle-core", "candle-metal-kernels"].into_iter().chain(STAND_INS.iter().map(|(name, ..)| *name));
    let patches = names.map(|name| (name.to_owned(), Table::from_iter([("path".to_owned(), name.into())]).into()));
    let registry = Table::from_iter([("crates-io".to_owned(), Table::from_iter(patches).into())]);
    table.insert("patch".to_owned(), registry.into());
    // What costs time here is the emulator; everything else is built anew and need not be optimized.
    let profile = table.get_mut("profile").and_then(|profiles| profiles.get_mut("dev")).and_then(Value::as_table_mut);
    let packages = profile.and_then(|dev| dev.get_mut("package")).and_then(Value::as_table_mut);
    let packages = packages.context("there are no profiles of packages")?;
    for exchanged in ["candle-core", "candle-nn", "engine", "kernels"] {
        packages.remove(exchanged).with_context(|| format!("{exchanged} has no profile"))?;
    }
    let optimized = Table::from_iter([("opt-level".to_owned(), 3.into())]);
    packages.insert("metal-emulator".to_owned(), optimized.into());
    Ok(table.to_string())
}

/// The version of a crate that is locked; an error where there are several.
fn version(lock: &Table, name: &str) -> Result<String> {
    let packages = lock.get("package").and_then(Value::as_array).context("Cargo.lock has no packages")?;
    let text = |package: &Value, key: &str| package.get(key).and_then(Value::as_str).map(str::to_owned);
    let mut found = packages.iter().filter(|package| text(package, "name").as_deref() == Some(name));
    match (found.next(), found.next()) {
        (Some(package), None) => text(package, "version").with_context(|| format!("{name} has no version")),
        (None, _) => bail!("{name} is not in Cargo.lock"),
        (Some(_), Some(_)) => bail!("several versions of {name} are in Cargo.lock"),
    }
}

fn read_table(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.parse().with_context(|| format!("in {}", path.display()))
}

/// Adds the files below `part` of `folder`.
fn read_files(folder: &Path, part: &Path, files: &mut Files) -> Result<()> {
    for entry in fs::read_dir(folder.join(part)).with_context(|| format!("reading {}", folder.join(part).display()))? {
        let entry = entry?;
        let path = part.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            read_files(folder, &path, files)?;
        } else {
            files.insert(path, fs::read(entry.path())?);
        }
    }
    Ok(())
}

/// Has exactly these files in `folder`.
fn write_crate(folder: &Path, files: &Files) -> Result<()> {
    let mut old = Files::new();
    if folder.join("src").exists() {
        read_files(folder, Path::new("src"), &mut old)?;
    }
    for path in old.keys().filter(|path| !files.contains_key(*path)) {
        fs::remove_file(folder.join(path))?;
    }
    write_files(folder, files)
}

/// Writes what is not there already: cargo goes by a file's time.
fn write_files(folder: &Path, files: &Files) -> Result<()> {
    for (path, bytes) in files {
        let path = folder.join(path);
        if fs::read(&path).ok().as_ref() == Some(bytes) {
            continue;
        }
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_whose_text_is_not_there_once_is_an_error() {
        let check = |text: &str, expected: Result<&str, &str>| {
            let mut files = Files::from([("a.rs".into(), text.into())]);
            let edited = edit(&mut files, &[("a.rs", "old", "new")]).map_err(|error| error.to_string());
            let text = String::from_utf8(files.remove(Path::new("a.rs")).unwrap()).unwrap();
            assert_eq!(edited.map(|()| text), expected.map(str::to_owned).map_err(str::to_owned));
        };
        check("an old text", Ok("an new text"));
        check("a text", Err("a.rs has this 0 times instead of once: old"));
        check("old and old", Err("a.rs has this 2 times instead of once: old"));
        assert!(edit(&mut Files::new(), &[("a.rs", "old", "new")]).is_err());
    }

    #[test]
    fn the_locked_version_is_found_where_there_is_one() {
        let lock = "package = [{ name = 'a', version = '1.0' }, { name = 'b', version = '1.0' }, { name = 'b', version = '2.0' }]";
        let lock: Table = lock.parse().unwrap();
        assert_eq!(version(&lock, "a").unwrap(), "1.0");
        assert!(version(&lock, "b").is_err());
        assert!(version(&lock, "c").is_err());
    }

    #[test]
    fn a_crate_has_no_other_files_and_those_that_stay_keep_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let files = |names: &[&str]| {
            names.iter().map(|name| (PathBuf::from(name), name.as_bytes().to_vec())).collect::<Files>()
        };
        write_crate(dir.path(), &files(&["Cargo.toml", "src/lib.rs", "src/metal/mod.rs"])).unwrap();
        let written = |name: &str| fs::metadata(dir.path().join(name)).and_then(|metadata| metadata.modified());
        let before = written("src/lib.rs").unwrap();
        write_crate(dir.path(), &files(&["Cargo.toml", "src/lib.rs", "src/metal.rs"])).unwrap();
        assert_eq!(written("src/lib.rs").unwrap(), before);
        assert!(written("src/metal.rs").is_ok() && written("src/metal/mod.rs").is_err());
    }
}
