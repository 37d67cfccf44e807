//! `make run`: set up, build for release, then become the program.

use anyhow::{Context, Result};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use crate::setup::{self, Tools};
use crate::steps::Steps;
use crate::workspace::{Workspace, has_display, on_macos};

/// What a build for macOS turns on: answers run on the GPU, and what stays on the CPU uses Apple's library.
pub(crate) const MACOS_FEATURES: &str = "app/metal,app/accelerate";

/// Opens the app. Without a display the same backend becomes a chat in the terminal, which needs neither Node nor a web view.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let mut steps = Steps::new(workspace.notes())?;
    if has_display() {
        let tools = setup::node(workspace, &mut steps)?;
        setup::ui_packages(workspace, &tools, &mut steps)?;
        setup::starter_model(workspace, &mut steps)?;
        build_ui(workspace, &tools, &mut steps)?;
        build_release(&mut steps, "tidegate-desktop")?;
        println!("Opening Tidegate: look for its icon in the menu bar.");
        become_program(workspace, "tidegate-desktop", arguments)
    } else {
        println!("No display here (DISPLAY and WAYLAND_DISPLAY are empty): Tidegate will be a chat in this terminal.");
        setup::starter_model(workspace, &mut steps)?;
        build_release(&mut steps, "cli")?;
        let chat: Vec<String> = std::iter::once("chat".to_owned()).chain(arguments.iter().cloned()).collect();
        become_program(workspace, "tidegate", &chat)
    }
}

/// Builds a program as people get it.
pub(crate) fn build_release(steps: &mut Steps, package: &str) -> Result<()> {
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--package", package]);
    if on_macos() {
        build.args(["--features", MACOS_FEATURES]);
    }
    steps.run("build", &mut build);
    steps.all_passed()
}

fn become_program(workspace: &Workspace, program: &str, arguments: &[String]) -> Result<()> {
    let path = workspace.target.join("release").join(program);
    let error = Command::new(&path).args(arguments).env("TIDEGATE_MODELS_DIR", workspace.models()).exec();
    Err(error).with_context(|| format!("starting {}", path.display()))
}

/// Builds the interface into ui/dist if something in ui/ is newer than what lies there.
pub(crate) fn build_ui(workspace: &Workspace, tools: &Tools, steps: &mut Steps) -> Result<()> {
    let ui = workspace.ui();
    let built = fs::metadata(ui.join("dist/index.html")).and_then(|metadata| metadata.modified()).ok();
    // The shell's build script puts a lone page there when it is built before the interface.
    let is_real = ui.join("dist/assets").is_dir();
    if is_real && built.is_some_and(|built| newest(&ui).is_ok_and(|newest| newest < built)) {
        return Ok(());
    }
    steps.run("interface", &mut tools.npm(workspace, &["run", "build"])?);
    steps.all_passed()
}

/// When something in `folder` was last changed. Folders count too: they change when a file is removed.
fn newest(folder: &Path) -> Result<SystemTime> {
    let mut newest = fs::metadata(folder)?.modified()?;
    if folder.join("dist").exists() {
        // Building makes and removes entries in here; a file that was removed here is one that the build reads anyway.
        newest = SystemTime::UNIX_EPOCH;
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if ["node_modules", "dist"].iter().any(|skipped| name == *skipped) || name.to_string_lossy().starts_with('.') {
            continue;
        }
        let metadata = entry.metadata()?;
        let changed = if metadata.is_dir() { self::newest(&entry.path())? } else { metadata.modified()? };
        newest = newest.max(changed);
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn changed_sources_are_newer_and_products_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let ui = dir.path();
        for folder in ["src", "dist", "node_modules"] {
            fs::create_dir(ui.join(folder)).unwrap();
        }
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let write = |name: &str, seconds| {
            fs::write(ui.join(name), name).unwrap();
            fs::File::open(ui.join(name)).unwrap().set_modified(at(seconds)).unwrap();
        };
        write("src/a.ts", 100);
        write("dist/index.html", 900);
        write("node_modules/x.js", 950);
        write("package.json", 200);
        fs::File::open(ui.join("src")).unwrap().set_modified(at(50)).unwrap();
        assert_eq!(newest(ui).unwrap(), at(200));
        write("src/a.ts", 300);
        assert_eq!(newest(ui).unwrap(), at(300));
        // A removed file is seen by its folder.
        fs::File::open(ui.join("src")).unwrap().set_modified(at(400)).unwrap();
        assert_eq!(newest(ui).unwrap(), at(400));
    }
}
