//! What ran in this process: kernels, and source lines of the files whose lines are counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::Checks;
use crate::fault::SourceLine;
use crate::registry::{Library, libraries};

/// What never ran, by library.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// How many kernels there are, and how many ran.
    pub kernels: (usize, usize),
    /// Host names of kernels that never ran.
    pub idle_kernels: BTreeMap<&'static str, Vec<&'static str>>,
    /// Lines with code that never ran under [`Checks::Full`], for files of ours.
    pub idle_lines: BTreeSet<SourceLine>,
}

/// The report over the libraries that `is_wanted` chooses by name.
pub fn report(is_wanted: impl Fn(&str) -> bool) -> Report {
    let mut report = Report::default();
    for library in libraries().iter().filter(|library| is_wanted(library.name())) {
        let launched = library.launched();
        let kernels = library.kernels();
        report.kernels.0 += kernels.len();
        report.kernels.1 += launched.len();
        let idle: Vec<_> = kernels.into_iter().filter(|kernel| !launched.contains(kernel)).collect();
        if !idle.is_empty() {
            report.idle_kernels.insert(library.name(), idle);
        }
        if library.is_counted() {
            report.idle_lines.extend(idle_lines(library));
        }
    }
    report
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} of {} kernels ran", self.kernels.1, self.kernels.0)?;
        for (library, kernels) in &self.idle_kernels {
            writeln!(f, "{library}: never ran: {}", kernels.join(", "))?;
        }
        self.idle_lines.iter().try_for_each(|line| writeln!(f, "{line}: never ran"))
    }
}

/// A line has code in several places, one for each instance of a template; it ran if one of them did.
fn idle_lines(library: &Library) -> BTreeSet<SourceLine> {
    let mut blocks = library.loaded_full().map(|loaded| loaded.image.blocks()).unwrap_or_default();
    blocks.sort_unstable();
    let did_run = |address: usize| {
        let block = blocks.partition_point(|(start, _)| *start <= address);
        block > 0 && blocks[block - 1].1
    };
    let lines = Lines::of(library);
    let rows = || lines.rows.iter().filter(|row| row.is_metal && row.line > 0);
    let ran: BTreeSet<u32> = rows().filter(|row| did_run(row.address)).map(|row| row.line).collect();
    rows().filter(|row| !ran.contains(&row.line)).map(|row| metal_line(library, row.line)).collect()
}

/// A line of the library's `.metal` file.
pub(crate) fn metal_line(library: &Library, line: u32) -> SourceLine {
    SourceLine { file: library.source(), line }
}

/// The line of the `.metal` file that the code at an offset comes from. Code of the shim belongs to its caller.
pub(crate) fn line_of(library: &Library, offset: usize) -> Option<SourceLine> {
    let lines = Lines::of(library);
    // A return address is behind the call.
    let end = lines.rows.partition_point(|row| row.address < offset);
    let row = lines.rows[..end].iter().rev().find(|row| row.is_metal && row.line > 0)?;
    Some(metal_line(library, row.line))
}

/// The line table of a library with full checks.
struct Lines {
    /// By address.
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    address: usize,
    line: u32,
    is_metal: bool,
}

impl Lines {
    fn of(library: &Library) -> Arc<Self> {
        static KNOWN: LazyLock<Mutex<HashMap<&'static str, Arc<Lines>>>> = LazyLock::new(Mutex::default);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || Arc::new(Self { rows: read(library.binary(Checks::Full), library.source()) });
        Arc::clone(known.entry(library.name()).or_insert_with(read))
    }
}

/// objdump comes with the linker that cargo uses; without it faults and reports have no lines.
fn read(binary: &Path, source: &Path) -> Vec<Row> {
    let output = Command::new("objdump").arg("--dwarf=decodedline").arg(binary).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    parse(&text, &source.file_name().unwrap_or_default().to_string_lossy())
}

/// Rows are `file line address …`; `-` in place of a line ends a sequence.
fn parse(text: &str, metal: &str) -> Vec<Row> {
    let row = |text: &str| {
        let mut words = text.split_whitespace();
        let (file, line, address) = (words.next()?, words.next()?, words.next()?);
        let address = usize::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
        Some(Row { address, line: line.parse().unwrap_or(0), is_metal: file == metal })
    };
    let mut rows: Vec<Row> = text.lines().filter_map(row).collect();
    rows.sort_by_key(|row| row.address);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_tables_are_read() {
        let text = "\
File name                            Line number    Starting address    View    Stmt
race.metal                                    5              0x1147        \n\
math.h                                       60              0x1150               x
race.metal                                    -              0x1170
";
        let row = |address, line, is_metal| Row { address, line, is_metal };
        let expected = [row(0x1147, 5, true), row(0x1150, 60, false), row(0x1170, 0, true)];
        assert_eq!(parse(text, "race.metal"), expected);
    }
}
