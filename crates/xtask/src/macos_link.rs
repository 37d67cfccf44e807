//! `cargo xtask macos-link`: links the programs for Apple silicon on Linux, and holds what they want of Apple's libraries
//! against what those have.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::run::MACOS_FEATURES;
use crate::steps::Steps;
use crate::workspace::Workspace;

/// `cargo xtask macos-link`.
pub(crate) fn macos_link(workspace: &Workspace) -> Result<()> {
    let mut steps = Steps::new(workspace.notes())?;
    run(workspace, &mut steps);
    steps.all_passed()
}

/// Both programs, with what a Mac's GPU needs.
pub(crate) fn run(workspace: &Workspace, steps: &mut Steps) {
    let mut link = Command::new(workspace.root.join("scripts/macos-link.sh"));
    link.current_dir(&workspace.root);
    link.args(["--workspace", "--exclude", "xtask", "--bins", "--features", MACOS_FEATURES]);
    if steps.run("macOS link", &mut link) {
        steps.work("Apple's symbols", || symbols(workspace));
    }
}

/// The names of programs, as cargo writes them.
const PROGRAMS: [&str; 2] = ["tidegate", "tidegate-desktop"];

fn symbols(workspace: &Workspace) -> Result<String> {
    let known = fs::read_to_string(workspace.root.join("scripts/apple-symbols.txt"))?;
    let known: BTreeSet<&str> = known.lines().filter(|line| !line.starts_with('#')).filter_map(last_word).collect();
    let folder = workspace.target.join("macos-link/aarch64-apple-darwin/debug");
    let mut wanted = BTreeSet::new();
    for program in PROGRAMS {
        let file = folder.join(format!("{program}.symbols"));
        let list = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        wanted.extend(
            list.lines().filter(|line| !line.starts_with("libSystem ")).filter_map(last_word).map(str::to_owned),
        );
    }
    let unknown = unknown(&wanted, &known);
    ensure!(unknown.is_empty(), "not in scripts/apple-symbols.txt: {}", unknown.join(", "));
    Ok(format!("{} wanted, all of them in macOS 14", wanted.len()))
}

fn last_word(line: &str) -> Option<&str> {
    line.split_whitespace().next_back()
}

fn unknown(wanted: &BTreeSet<String>, known: &BTreeSet<&str>) -> Vec<String> {
    wanted.iter().filter(|symbol| !known.contains(symbol.as_str())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_that_nobody_has_is_told() {
        let wanted = ["_CFRelease", "_CFRelaese"].map(str::to_owned).into();
        assert_eq!(unknown(&wanted, &BTreeSet::from(["_CFRelease", "_objc_msgSend"])), ["_CFRelaese"]);
    }
}
