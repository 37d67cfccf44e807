//! Set-up, the steps of `make run` and `make test`, and the repository's own checks, run as `cargo xtask …`.
//!
//! It is built first on a fresh machine, so it has few dependencies and leaves work to ordinary tools (curl, pip, npm,
//! cargo). It must never hold product behaviour. Start reading at `Task` below; `steps.rs` is how every command is run
//! and reported, `check.rs` lists what `test` and `ci` do.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool for developers talks on its terminal"
)]

mod bench;
mod catalog;
mod check;
mod edges;
mod fetch;
mod fuzz;
mod macos_link;
mod metal_test;
mod run;
mod setup;
mod steps;
mod test_count;
mod workspace;

use anyhow::{Result, bail};
use std::process::ExitCode;

use crate::workspace::Workspace;

const USAGE: &str = "cargo xtask TASK
  setup         install what is missing (Node, the interface's packages) and fetch the starter model
  run           setup, build for release, open Tidegate (without a display: chat in the terminal)
  test          everything that can be tested on this machine
  ci            test, and what only matters before a change lands: format, lints, docs, licences, macOS
  fuzz          damaged files, templates, answers: `fuzz [--seconds N | --keep] [TARGET…]`
  shots         pictures of every view
  bench         measure Tidegate beside llama.cpp, which is built first: `bench [--rounds N] [--only NAME,…]`
  bench-count   count the kernels' instructions and compare them with those that are committed: `bench-count [--write]`
  metal-test    run the engine on candle's Metal backend over the emulator (Linux)
  bindings      write ui/src/ipc/bindings.gen.ts anew
  check-deps    which crate may use which
  macos-check   type-check the macOS code on Linux; `macos-check clippy` lints it
  macos-link    link the macOS programs on Linux, and check what they want of Apple's libraries";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((task, rest)) = arguments.split_first() else { bail!("which task?\n{USAGE}") };
    let workspace = Workspace::find()?;
    match task.as_str() {
        "setup" => setup::setup(&workspace),
        "run" => run::run(&workspace, rest),
        "bench" => bench::bench(&workspace, rest),
        "bench-count" => bench::bench_count(&workspace, rest),
        "test" => check::test(&workspace),
        "ci" => check::ci(&workspace),
        "fuzz" => fuzz::fuzz(&workspace, rest),
        "metal-test" => metal_test::metal_test(&workspace),
        "shots" => check::shots(&workspace),
        "bindings" => check::write_bindings(&workspace),
        "check-deps" => edges::check(&workspace).map(|summary| println!("{summary}")),
        "macos-check" => check::macos(&workspace, rest),
        "macos-link" => macos_link::macos_link(&workspace),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("no task `{other}`\n{USAGE}"),
    }
}
