//! Programs that are measured: none of them outlives this one, however it ends; none runs without end; and how much memory
//! each took is known.

use anyhow::{Context, Result, bail, ensure};
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::steps::shell_line;
use crate::workspace::on_macos;

/// A run that takes longer hangs.
pub(super) const LIMIT: Duration = Duration::from_secs(600);
/// What a program that nobody watches any more is ended by: a shell whose input this program holds. The system closes it
/// when this program ends, even by SIGKILL. What a terminal sends to all of them doesn't end the shell first.
const GUARD: &str = r#"trap "" INT TERM HUP; read -r line; kill -KILL "$1""#;

/// A program that runs, and is ended when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    guard: Child,
    line: String,
    ended: Option<End>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug)]
struct End {
    succeeded: bool,
    peak_memory: u64,
}

/// What a program printed.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) output: String,
    /// When the first byte came, from the start of the program on.
    pub(super) first_byte: Duration,
}

impl Running {
    /// Starts `command`, whose outputs are the caller's to set.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let line = shell_line(command);
        let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("starting {line}"))?;
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "guard", &child.id().to_string()]).stdin(Stdio::piped()).stderr(Stdio::null());
        match guard.stdout(Stdio::null()).spawn() {
            Ok(guard) => Ok(Self { child, guard, line, ended: None }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error).context("starting the shell that watches it")
            }
        }
    }

    /// Whether it hasn't ended by itself.
    pub(super) fn is_running(&mut self) -> Result<bool> {
        if self.ended.is_none() {
            self.ended = wait(self.child.id(), libc::WNOHANG)?;
        }
        Ok(self.ended.is_none())
    }

    /// Ends it where it runs. Returns the most bytes of memory that it had, with what it mapped of files.
    pub(super) fn end(&mut self) -> Result<u64> {
        if self.is_running()? {
            self.child.kill()?;
            self.ended = wait(self.child.id(), 0)?;
        }
        Ok(self.ended.context("it was waited for")?.peak_memory)
    }

    /// Waits until it ends, at most until `deadline`; an error where it failed.
    fn finish(&mut self, deadline: Instant) -> Result<()> {
        while self.is_running()? {
            ensure!(Instant::now() < deadline, "took more than {} s: {}", LIMIT.as_secs(), self.line);
            thread::sleep(Duration::from_millis(2));
        }
        ensure!(self.ended.is_some_and(|end| end.succeeded), "it failed");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The guard first: it must not end another program that got the number of this one.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        let _ = self.end();
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// When it fails, with the last line of what it complained of, or runs longer than [`LIMIT`].
pub(super) fn said_by(command: &mut Command) -> Result<Said> {
    let started = Instant::now();
    let mut running = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (mut stdout, stderr) =
        running.child.stdout.take().zip(running.child.stderr.take()).context("its outputs are pipes")?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut output = vec![0];
        let read = stdout.read_exact(&mut output);
        let first_byte = started.elapsed();
        // Nobody waits for the rest of a program that takes too long.
        let _ = tell.send(match read {
            Ok(()) => stdout.read_to_end(&mut output).map(|_| (output, first_byte)),
            Err(_) => Ok((Vec::new(), first_byte)),
        });
    });
    let complaints = thread::spawn(move || io::read_to_string(stderr).unwrap_or_default());
    let finished = running.finish(started + LIMIT);
    drop(running);
    if let Err(error) = finished {
        // It has ended now, and with it its output.
        let complaints = complaints.join().unwrap_or_default();
        let last = complaints.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("without a word");
        bail!("{error:#}: {}", last.trim());
    }
    let (output, first_byte) = told.recv().context("its output was not read")??;
    Ok(Said { output: String::from_utf8_lossy(&output).into_owned(), first_byte })
}

/// How the child `pid` ended; `None` where `options` don't wait and it hasn't.
#[expect(unsafe_code, reason = "the standard library doesn't tell how much memory a child took")]
fn wait(pid: u32, options: i32) -> Result<Option<End>> {
    let mut status = 0;
    // SAFETY: plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are written to and outlive the call; the child is ours and was not waited for.
    let waited = unsafe { libc::wait4(pid.try_into()?, &raw mut status, options, &raw mut usage) };
    ensure!(waited >= 0, "waiting for a program: {}", io::Error::last_os_error());
    // macOS counts bytes, Linux KiB.
    let unit = if on_macos() { 1 } else { 1024 };
    let succeeded = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
    Ok((waited != 0).then(|| End { succeeded, peak_memory: u64::try_from(usage.ru_maxrss).unwrap_or(0) * unit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_time_to_the_first_byte_does_not_wait_for_the_end() {
        let started = Instant::now();
        let said = said_by(&mut shell("printf x; sleep 0.2; printf y")).unwrap();
        assert_eq!(said.output, "xy");
        assert!(said.first_byte < started.elapsed() - Duration::from_millis(150));
        assert_eq!(said_by(&mut Command::new("true")).unwrap().output, "");
    }

    #[test]
    fn a_failure_says_why() {
        let error = said_by(&mut shell("echo no such model >&2; echo >&2; exit 3")).unwrap_err();
        assert_eq!(error.to_string(), "it failed: no such model");
        assert!(said_by(&mut Command::new("/nowhere/at-all")).unwrap_err().to_string().contains("starting /nowhere"));
    }

    #[test]
    fn its_peak_of_memory_is_known_after_it_was_ended() {
        let mut running = Running::start(&mut shell("exec sleep 60")).unwrap();
        assert!(running.is_running().unwrap());
        let peak = running.end().unwrap();
        assert!((100_000..1_000_000_000).contains(&peak), "{peak}");
        assert!(!running.is_running().unwrap());
    }

    /// What holds the guard's input here is dropped, as the system does it where this program is killed.
    #[test]
    fn nothing_outlives_this_program() {
        let mut running = Running::start(&mut shell("exec sleep 60")).unwrap();
        drop(running.guard.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(20);
        while running.is_running().unwrap() {
            assert!(Instant::now() < deadline, "it goes on");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
