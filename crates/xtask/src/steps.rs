//! Runs commands one after the other: one line for each, with what it is doing while it runs and how long it took at its
//! end; the tail of its output and the command itself when it fails; a table of all of them when asked for.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::test_count::{TestCount, count_tests};

/// How often a line says what a long step is doing where there is no terminal to redraw.
const HEARTBEAT: Duration = Duration::from_secs(30);
const TAIL_LINES: usize = 60;

/// The steps so far and how they ended.
#[derive(Debug)]
pub(crate) struct Steps {
    logs: PathBuf,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    end: End,
    took: Duration,
    note: String,
    tests: Option<TestCount>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    NotRun,
}

impl Steps {
    pub(crate) fn new(logs: PathBuf) -> Result<Self> {
        fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        Ok(Self { logs, rows: Vec::new() })
    }

    /// Runs `command` as the step `name`. True when it succeeded; a failure has been reported and stays in the table.
    pub(crate) fn run(&mut self, name: &str, command: &mut Command) -> bool {
        let row = execute(&self.logs, name, command, false, &|_| String::new());
        self.finish(row)
    }

    /// Runs commands at the same time, each as a step of its name; what `note` finds in an output stands beside its time.
    pub(crate) fn run_together(&mut self, commands: Vec<(String, Command)>, note: fn(&str) -> String) {
        let logs = &self.logs;
        let rows: Vec<Row> = thread::scope(|scope| {
            let run = |(name, mut command): (String, Command)| {
                scope.spawn(move || execute(logs, &name, &mut command, false, &note))
            };
            let running: Vec<_> = commands.into_iter().map(run).collect();
            running.into_iter().map(|step| step.join().expect("a step reports what fails")).collect()
        });
        for row in rows {
            self.finish(row);
        }
    }

    /// As [`Self::run`], for a command that runs tests: it fails as well when it ran none.
    pub(crate) fn run_tests(&mut self, name: &str, command: &mut Command) -> bool {
        let row = execute(&self.logs, name, command, true, &|output| count_tests(output).to_string());
        self.finish(row)
    }

    /// Runs `work` in this process as the step `name`; what it returns stands beside its time.
    pub(crate) fn work(&mut self, name: &str, work: impl FnOnce() -> Result<String>) -> bool {
        let start = Instant::now();
        let outcome = work();
        let (end, note) = match outcome {
            Ok(note) => (End::Passed, note),
            Err(error) => {
                eprintln!("{error:#}");
                (End::Failed, String::new())
            }
        };
        self.finish(Row { name: name.to_owned(), end, took: start.elapsed(), note, tests: None })
    }

    /// Notes that a step was not run, and why.
    pub(crate) fn not_run(&mut self, name: &str, why: &str) {
        let note = format!("not run: {why}");
        self.finish(Row { name: name.to_owned(), end: End::NotRun, took: Duration::ZERO, note, tests: None });
    }

    /// An error when a step failed, for tasks that don't print the table.
    pub(crate) fn all_passed(&self) -> Result<()> {
        let failed: Vec<&str> =
            self.rows.iter().filter(|row| row.end == End::Failed).map(|row| row.name.as_str()).collect();
        if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
    }

    /// Prints every step with its time, then how many tests passed and failed, if every step that runs tests told.
    pub(crate) fn summary(&self) -> Result<()> {
        let total: Duration = self.rows.iter().map(|row| row.took).sum();
        println!("\n{:<44} {:>9}", "step", "time");
        for row in &self.rows {
            println!("{} {:<42} {:>9}  {}", mark(row.end), row.name, seconds(row.took), row.note);
        }
        println!("  {:<42} {:>9}", "total", seconds(total));
        let counts: Vec<&TestCount> = self.rows.iter().filter_map(|row| row.tests.as_ref()).collect();
        if !counts.is_empty() && counts.iter().all(|count| count.passed + count.failed > 0) {
            let (passed, failed, skipped) = counts
                .iter()
                .fold((0, 0, 0), |sum, count| (sum.0 + count.passed, sum.1 + count.failed, sum.2 + count.skipped));
            let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
            println!("\n{passed} passed, {failed} failed{skipped}");
        }
        self.all_passed()
    }

    fn finish(&mut self, row: Row) -> bool {
        clear_line();
        let gap = if row.note.is_empty() { "" } else { "  " };
        println!("{} {}  {}{gap}{}", mark(row.end), row.name, seconds(row.took), row.note);
        let passed = row.end == End::Passed;
        self.rows.push(row);
        passed
    }
}

fn execute(logs: &Path, name: &str, command: &mut Command, runs_tests: bool, note: &dyn Fn(&str) -> String) -> Row {
    let start = Instant::now();
    let log = logs.join(format!("{}.log", slug(name)));
    let mut passed = match run_logged(name, command, &log, start) {
        Ok(passed) => passed,
        Err(error) => {
            eprintln!("{error:#}");
            false
        }
    };
    let text = fs::read(&log).map(|bytes| plain(&bytes)).unwrap_or_default();
    let tests = runs_tests.then(|| count_tests(&text));
    let mut note = note(&text);
    if !passed {
        clear_line();
        println!("{}", digest(&text));
        println!("whole output: {}\nto repeat it: {}", log.display(), shell_line(command));
    } else if tests.as_ref().is_some_and(|count| count.passed == 0) {
        passed = false;
        note = "ran no test".to_owned();
    }
    let end = if passed { End::Passed } else { End::Failed };
    Row { name: name.to_owned(), end, took: start.elapsed(), note, tests }
}

fn run_logged(name: &str, command: &mut Command, log: &Path, start: Instant) -> Result<bool> {
    let file = File::create(log).with_context(|| format!("writing {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    // Colours and cursor movements would be all over the log; cargo's bar is what the status line shows.
    command.env("NO_COLOR", "1").env("CARGO_TERM_COLOR", "never").env_remove("FORCE_COLOR");
    command.env("CARGO_TERM_PROGRESS_WHEN", "always").env("CARGO_TERM_PROGRESS_WIDTH", "90");
    let program = command.get_program().to_owned();
    let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    let mut ticker = Ticker::new(name, start);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        ticker.tick(|| last_line(log));
        thread::sleep(Duration::from_millis(50));
    }
}

/// The line that says how a long step is getting on: redrawn on a terminal, repeated now and then elsewhere.
#[derive(Debug)]
pub(crate) struct Ticker {
    name: String,
    start: Instant,
    last: Instant,
    every: Duration,
}

impl Ticker {
    pub(crate) fn new(name: &str, start: Instant) -> Self {
        let every = if stdout().is_terminal() { Duration::from_millis(250) } else { HEARTBEAT };
        Self { name: name.to_owned(), start, last: start, every }
    }

    pub(crate) fn tick(&mut self, state: impl FnOnce() -> String) {
        if self.last.elapsed() < self.every {
            return;
        }
        self.last = Instant::now();
        let line = format!("  {} … {}  {}", self.name, seconds(self.start.elapsed()), state());
        let short: String = line.chars().take(110).collect();
        if stdout().is_terminal() {
            print!("\r\x1b[2K{short}");
            // Losing a status line is no reason to stop the step.
            let _ = stdout().flush();
        } else {
            println!("{short}");
        }
    }
}

/// Ends a redrawn line, so that the next print starts on a clean one.
pub(crate) fn clear_line() {
    if stdout().is_terminal() {
        print!("\r\x1b[2K");
    }
}

fn mark(end: End) -> char {
    match end {
        End::Passed => '✓',
        End::Failed => '✗',
        End::NotRun => '–',
    }
}

fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    if whole >= 60 { format!("{} min {:02} s", whole / 60, whole % 60) } else { format!("{:.1} s", time.as_secs_f64()) }
}

fn slug(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

/// `bytes` as text without terminal control, carriage returns as line ends.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\r' => out.push('\n'),
            // "ESC [ … letter": the only kind of sequence that the tools called here print.
            '\x1b' if chars.next() == Some('[') => {
                chars.by_ref().find(char::is_ascii_alphabetic);
            }
            '\x1b' => {}
            _ => out.push(c),
        }
    }
    out
}

fn last_line(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(2000)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = read().map(|bytes| plain(&bytes)).unwrap_or_default();
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// What of a failed step's output people need: the output of each failed Rust test, and the end.
fn digest(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.trim_start().starts_with("Building ["))
        .collect();
    let mut kept = Vec::new();
    let mut in_failure = false;
    for line in &lines {
        in_failure =
            line.starts_with("---- ") || (in_failure && *line != "failures:" && !line.starts_with("test result:"));
        if in_failure {
            kept.push(*line);
        }
    }
    kept.truncate(200);
    kept.extend(&lines[lines.len().saturating_sub(TAIL_LINES)..]);
    kept.iter().map(|line| format!("  | {line}\n")).collect()
}

/// `command` as one would type it.
pub(crate) fn shell_line(command: &Command) -> String {
    let quote = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy().into_owned();
        let is_plain = word.chars().all(|c| c.is_alphanumeric() || "-_=./:,+@%$".contains(c));
        if is_plain && !word.is_empty() { word } else { format!("'{}'", word.replace('\'', r"'\''")) }
    };
    let mut words = Vec::new();
    if let Some(dir) = command.get_current_dir() {
        words.extend(["cd".to_owned(), quote(dir.as_os_str()), "&&".to_owned()]);
    }
    for (key, value) in command.get_envs() {
        let key = key.to_string_lossy();
        // Only how it was shown here, not what it did.
        if let Some(value) = value
            && key != "NO_COLOR"
            && !key.starts_with("CARGO_TERM_")
        {
            words.push(format!("{key}={}", quote(value)));
        }
    }
    words.push(quote(command.get_program()));
    words.extend(command.get_args().map(quote));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_told_with_its_output_and_fails_the_summary() {
        let dir = tempfile::tempdir().unwrap();
        let mut steps = Steps::new(dir.path().to_owned()).unwrap();
        assert!(steps.run("good one", Command::new("sh").args(["-c", "echo fine"])));
        assert!(steps.all_passed().is_ok());
        assert!(!steps.run("bad one", Command::new("sh").args(["-c", "echo broken; exit 3"])));
        assert_eq!(fs::read_to_string(dir.path().join("bad-one.log")).unwrap(), "broken\n");
        assert_eq!(steps.summary().unwrap_err().to_string(), "failed: bad one");
    }

    #[test]
    fn a_test_step_without_tests_fails() {
        let dir = tempfile::tempdir().unwrap();
        let mut steps = Steps::new(dir.path().to_owned()).unwrap();
        assert!(!steps.run_tests("none", &mut Command::new("true")));
        assert!(steps.run_tests("one", Command::new("echo").arg("test result: ok. 1 passed; 0 failed; 0 ignored")));
    }

    #[test]
    fn a_missing_program_is_a_failure_not_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let mut steps = Steps::new(dir.path().to_owned()).unwrap();
        assert!(!steps.run("missing", &mut Command::new("/nowhere/at-all")));
    }

    #[test]
    fn control_sequences_and_cargos_bar_are_left_out() {
        assert_eq!(plain(b"\x1b[1;31mred\x1b[0m\rnext"), "red\nnext");
        let text = "---- a::b stdout ----\npanicked\nfailures:\n    a::b\nBuilding [==> ] 3/9\nend\n";
        assert_eq!(digest(text).matches("panicked").count(), 2, "once as a failure, once in the tail");
        assert!(!digest(text).contains("Building"));
    }

    #[test]
    fn commands_are_told_as_typed() {
        let mut command = Command::new("npm");
        command.args(["run", "it's"]).env("A", "b c").env("NO_COLOR", "1").current_dir("/x");
        assert_eq!(shell_line(&command), r"cd /x && A='b c' npm run 'it'\''s'");
    }
}
