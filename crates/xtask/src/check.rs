//! What `make test` and CI do, step by step. Independent steps go on after a failure, so that one run tells all that is wrong.
//!
//! The dev profile serves the tests and the window that is driven: dependencies and the engine are optimized in it, so no
//! release build is needed. Cargo is always asked for the whole workspace: with the same features everywhere, nothing is
//! built twice.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::edges;
use crate::fuzz;
use crate::macos_link;
use crate::metal_test;
use crate::run;
use crate::setup::{self, Tools};
use crate::steps::Steps;
use crate::workspace::{Workspace, in_ci, on_macos, which};

/// A window that hangs should fail its own step, not the whole run.
const WINDOW_LIMIT: &str = "20m";
/// Above this the shared build folder of CI is thrown away: versions that are no longer used pile up in it.
const TARGET_LIMIT_GIB: u64 = 30;

/// What the test steps share.
struct Prepared {
    tools: Tools,
    starter: PathBuf,
}

/// `make test`.
pub(crate) fn test(workspace: &Workspace) -> Result<()> {
    let mut steps = Steps::new(workspace.notes())?;
    let prepared = prepare(workspace, &mut steps)?;
    tests(workspace, &prepared, &mut steps)?;
    steps.summary()
}

/// What `.ci/run` does: the quick checks first, then all tests, then what compiles everything once more in another way.
pub(crate) fn ci(workspace: &Workspace) -> Result<()> {
    let mut steps = Steps::new(workspace.notes())?;
    if in_ci() {
        forget_other_checkouts(workspace, &mut steps)?;
    }
    steps.run("format", cargo().args(["fmt", "--all", "--check"]));
    let fuzz = workspace.root.join("fuzz/Cargo.toml");
    steps.run("format of the fuzz targets", cargo().args(["fmt", "--check", "--manifest-path"]).arg(fuzz));
    steps.work("dependency edges", || edges::check(workspace));
    let mut prepared = prepare(workspace, &mut steps)?;
    licences(workspace, &mut prepared.tools, &mut steps)?;
    ui_lints(workspace, &prepared.tools, &mut steps)?;
    tests(workspace, &prepared, &mut steps)?;
    let lints = ["--all-targets", "--", "--deny", "warnings"];
    steps.run("clippy", whole_workspace("clippy").args(lints));
    let docs = ["--no-deps", "--document-private-items"];
    steps.run("docs", whole_workspace("doc").args(docs).env("RUSTDOCFLAGS", "--deny warnings"));
    if on_macos() {
        steps.not_run("macOS type check and link", "this is macOS, everything was built for it");
    } else {
        steps.run("macOS type check", &mut macos_check(workspace, &[]));
        macos_link::run(workspace, &mut steps);
    }
    fuzz::all(workspace, &mut steps)?;
    if in_ci() {
        steps.work("generated files are committed", || unchanged(workspace));
    }
    steps.summary()
}

/// `make shots`: pictures of every view over the scripted backend, and of the real window.
pub(crate) fn shots(workspace: &Workspace) -> Result<()> {
    let mut steps = Steps::new(workspace.notes())?;
    let mut tools = setup::node(workspace, &mut steps)?;
    setup::ui_packages(workspace, &tools, &mut steps)?;
    steps.run("pictures of every view", &mut with_browser(tools.npm(workspace, &["run", "shots"])?));
    if !on_macos() {
        setup::starter_model(workspace, &mut steps)?;
        setup::tauri_driver(workspace, &mut tools, &mut steps)?;
        run::build_ui(workspace, &tools, &mut steps)?;
        steps.run(
            "pictures of the real window",
            tools.command("bash")?.arg(workspace.root.join("scripts/e2e.sh")).arg("shots"),
        );
    }
    steps.all_passed()
}

/// `cargo xtask bindings`.
pub(crate) fn write_bindings(workspace: &Workspace) -> Result<()> {
    let mut steps = Steps::new(workspace.notes())?;
    let test = ["test", "--package", "tidegate-desktop", "bindings"];
    steps.run_tests("bindings", cargo().args(test).env("UPDATE_BINDINGS", "1"));
    steps.all_passed()
}

/// `cargo xtask macos-check [clippy]`.
pub(crate) fn macos(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let mut steps = Steps::new(workspace.notes())?;
    steps.run("macOS type check", &mut macos_check(workspace, arguments));
    steps.all_passed()
}

fn prepare(workspace: &Workspace, steps: &mut Steps) -> Result<Prepared> {
    let mut tools = setup::node(workspace, steps)?;
    setup::ui_packages(workspace, &tools, steps)?;
    setup::clients(workspace, &tools, steps)?;
    let starter = setup::starter_model(workspace, steps)?;
    if !on_macos() {
        setup::tauri_driver(workspace, &mut tools, steps)?;
    }
    // The shell embeds it, so it comes before the first compilation.
    run::build_ui(workspace, &tools, steps)?;
    Ok(Prepared { tools, starter })
}

fn tests(workspace: &Workspace, prepared: &Prepared, steps: &mut Steps) -> Result<()> {
    let Prepared { tools, starter } = prepared;
    let models = workspace.models();
    let with_models = |command: &mut Command| {
        command.env("TIDEGATE_MODELS_DIR", &models).env("TIDEGATE_STARTER_MODEL", starter);
    };
    if !in_ci() {
        steps.work("dependency edges", || edges::check(workspace));
    }
    steps.run_tests("interface: unit tests", &mut tools.npm(workspace, &["run", "test"])?);

    let locked: &[&str] = if in_ci() { &["--locked"] } else { &[] };
    let built = steps.run("build", whole_workspace("build").arg("--all-targets").args(locked));
    if built {
        let mut rust = whole_workspace("test");
        rust.arg("--no-fail-fast").args(locked);
        with_models(&mut rust);
        steps.run_tests("Rust tests", &mut rust);
    } else {
        steps.not_run("Rust tests", "the build failed");
    }
    if on_macos() {
        steps.not_run("models on Metal", "the Rust tests run them on this Mac's GPU");
    } else {
        metal_test::run(workspace, steps);
    }

    let name = "official clients";
    if built {
        let mut clients = tools.npm_in(&workspace.clients(), &["test"])?;
        clients.env("TIDEGATE_BIN_DIR", workspace.target.join("debug"));
        with_models(&mut clients);
        steps.run_tests(name, &mut clients);
    } else {
        steps.not_run(name, "the build failed");
    }

    steps.run_tests("interface: in a browser", &mut with_browser(tools.npm(workspace, &["run", "e2e"])?));

    let script = workspace.root.join("scripts/e2e.sh");
    let name = "the real window";
    if on_macos() {
        steps.not_run(name, "there is no WebDriver for web views on macOS");
    } else if !built {
        steps.not_run(name, "the build failed");
    } else {
        let mut window = tools.command("timeout")?;
        // In the foreground, so that a key stroke reaches it; it ends the whole group when time is up.
        window
            .args(["--kill-after=10s", WINDOW_LIMIT, "bash"])
            .arg(script)
            .env("TIDEGATE_BIN_DIR", workspace.target.join("debug"));
        with_models(&mut window);
        steps.run_tests(name, &mut with_browser(window));
    }
    Ok(())
}

fn ui_lints(workspace: &Workspace, tools: &Tools, steps: &mut Steps) -> Result<()> {
    steps.run("interface: types", &mut tools.npm(workspace, &["run", "check"])?);
    steps.run("interface: lint", &mut tools.npm(workspace, &["run", "lint"])?);
    Ok(())
}

/// Licences, bans and sources always; advisories where their database can be had.
fn licences(workspace: &Workspace, tools: &mut Tools, steps: &mut Steps) -> Result<()> {
    setup::cargo_deny(workspace, tools, steps)?;
    let deny = |arguments: &[&str]| -> Result<Command> {
        let mut command = tools.command("cargo-deny")?;
        command.current_dir(&workspace.root).args(["--all-features", "--color", "never"]).args(arguments);
        Ok(command)
    };
    steps.run("licences, bans, sources", &mut deny(&["check", "licenses", "bans", "sources"])?);
    let mut fetch = Command::new("timeout");
    fetch.arg("60").arg(tools.command("cargo-deny")?.get_program()).args(["fetch", "db"]).current_dir(&workspace.root);
    let can_reach = fetch.output().is_ok_and(|output| output.status.success());
    if can_reach {
        steps.run("security advisories", &mut deny(&["check", "--disable-fetch", "advisories"])?);
    } else {
        steps.not_run("security advisories", "their database cannot be reached from here");
    }
    Ok(())
}

fn macos_check(workspace: &Workspace, arguments: &[String]) -> Command {
    let mut command = Command::new(workspace.root.join("scripts/macos-check.sh"));
    command.current_dir(&workspace.root);
    let whole = ["--workspace", "--all-targets", "--features", run::MACOS_FEATURES];
    match arguments.split_first() {
        Some((first, rest)) if first == "clippy" => {
            command.arg("clippy").args(whole).args(rest).args(["--", "--deny", "warnings"]);
        }
        _ => {
            command.args(whole).args(arguments);
        }
    }
    command
}

/// `cargo TASK --workspace`, with what the machine's GPU needs.
fn whole_workspace(task: &str) -> Command {
    let mut command = cargo();
    command.args([task, "--workspace"]);
    if on_macos() {
        command.args(["--features", run::MACOS_FEATURES]);
    }
    command
}

pub(crate) fn cargo() -> Command {
    Command::new("cargo")
}

/// Tells the browser tests where the system's Chromium is.
fn with_browser(mut command: Command) -> Command {
    if let Some(browser) = ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(which) {
        command.env("CHROMIUM", browser);
    }
    command
}

/// The build folder of CI serves every clone: dependencies stay, what was built of another clone's own crates goes.
fn forget_other_checkouts(workspace: &Workspace, steps: &mut Steps) -> Result<()> {
    if workspace.target.starts_with(&workspace.root) {
        return Ok(());
    }
    let marker = workspace.notes().join("checkout");
    let here = workspace.root.to_string_lossy().into_owned();
    if fs::read_to_string(&marker).is_ok_and(|text| text == here) {
        return Ok(());
    }
    fs::create_dir_all(workspace.notes())?;
    if gibibytes(&workspace.target) > TARGET_LIMIT_GIB {
        let folders = ["debug", "macos-check", "fuzz"].map(|name| workspace.target.join(name));
        for folder in folders.iter().filter(|folder| folder.exists()) {
            fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
        }
    }
    let mut clean = cargo();
    clean.args(["clean", "--quiet"]);
    for name in edges::own_crates().filter(|name| *name != "xtask") {
        clean.args(["--package", name]);
    }
    if steps.run("forget other checkouts", &mut clean) {
        fs::write(marker, here)?;
    }
    Ok(())
}

fn gibibytes(folder: &Path) -> u64 {
    let output = Command::new("du").arg("-sk").arg(folder).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let kibibytes: u64 = text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
    kibibytes / (1 << 20)
}

/// What tests generate must be what is committed.
fn unchanged(workspace: &Workspace) -> Result<String> {
    let output = Command::new("git")
        .args(["status", "--porcelain", "--", "Cargo.lock", "fuzz/Cargo.lock", "ui/package-lock.json", "ui/src/ipc"])
        .current_dir(&workspace.root)
        .output()
        .context("starting git")?;
    let changed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || !changed.is_empty() {
        bail!("the run changed files that are committed:\n{changed}");
    }
    Ok(String::new())
}
