//! The `tidegate` command: chat in a terminal, serve without a window, show the machine's readings, tell whether a
//! file fits. Parses, calls `app`, prints; answers go to standard output, everything else to standard error.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line program speaks through these")]

mod args;
mod bench;
mod chat;
mod fit;
mod log;
mod logging;
mod route;
mod serve;
mod service;
mod style;
mod vitals;

use std::process::ExitCode;

use anyhow::Context;
use app::AppError;
use app::chat::Bytes;
use args::{Args, Command};
use clap::Parser;
use logging::Logging;

/// What the shell is told when the command itself was fine but its answer is no.
pub(crate) const DOES_NOT_FIT: u8 = 3;

fn main() -> ExitCode {
    let args = Args::parse();
    let logging = Logging::start();
    match run(args, &logging) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {}", style::stderr().critical("error:"), explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args, logging: &Logging) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let code = match args.command {
        Command::Chat(args) => runtime.block_on(chat::run(args)),
        Command::Serve(args) => runtime.block_on(serve::run(args, logging)),
        Command::Vitals(args) => vitals::run(&args),
        Command::Fit(args) => runtime.block_on(fit::run(args)),
        Command::Route(args) => route::run(&args),
        Command::Log(args) => runtime.block_on(log::run(args)),
        Command::Bench(args) => runtime.block_on(bench::run(args)),
        Command::HoldMemory(args) => Ok(app::hold_memory(Bytes(args.most))),
    };
    // A thread that waits for a line on standard input can't be ended, so it isn't waited for.
    runtime.shutdown_background();
    code
}

/// An error with its causes and, where the app has one, what to do about it.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
    // `AppError` tells its hint as part of its sentence.
    if error.downcast_ref::<AppError>().is_none() && !text.ends_with('.') {
        text.push('.');
    }
    text
}
