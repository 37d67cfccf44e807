//! Where things lie: the checkout, the build folder, the cache that outlives checkouts. The one place that reads the environment.

use anyhow::{Context, Result};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders that every task works with.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The checkout.
    pub(crate) root: PathBuf,
    /// Cargo's build folder.
    pub(crate) target: PathBuf,
    /// Downloaded tools and models; safe to delete, slow to fill again.
    pub(crate) cache: PathBuf,
}

impl Workspace {
    /// The workspace that this program was built from.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("xtask lies in crates/xtask")?;
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        let cache = match non_empty("XDG_CACHE_HOME") {
            Some(dir) => PathBuf::from(dir),
            None => PathBuf::from(non_empty("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
        }
        .join("tidegate");
        fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
        Ok(Self { root: root.to_owned(), target, cache })
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    pub(crate) fn ui(&self) -> PathBuf {
        self.root.join("ui")
    }

    /// Tests with the official clients of the gateway's dialects.
    pub(crate) fn clients(&self) -> PathBuf {
        self.root.join("tests/clients")
    }

    /// Stamps and logs of this tool: gone with the build folder.
    pub(crate) fn notes(&self) -> PathBuf {
        self.target.join("xtask")
    }
}

/// Whether a window can be opened here.
pub(crate) fn has_display() -> bool {
    on_macos() || non_empty("DISPLAY").is_some() || non_empty("WAYLAND_DISPLAY").is_some()
}

pub(crate) fn on_macos() -> bool {
    env::consts::OS == "macos"
}

/// Whether this is a run of CI: nobody answers questions, and the lock file must not change.
pub(crate) fn in_ci() -> bool {
    non_empty("CI").is_some()
}

/// An address instead of the public model hub, as other tools take it.
pub(crate) fn hub_override() -> Option<String> {
    non_empty("HF_ENDPOINT").and_then(|url| url.into_string().ok())
}

/// The search path, with `folders` before it.
pub(crate) fn path_with(folders: &[PathBuf]) -> Result<OsString> {
    let current = env::var_os("PATH").unwrap_or_default();
    env::join_paths(folders.iter().cloned().chain(env::split_paths(&current))).context("a folder's name holds a colon")
}

/// Where `program` lies on the search path.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn non_empty(variable: &str) -> Option<OsString> {
    env::var_os(variable).filter(|value| !value.is_empty())
}
