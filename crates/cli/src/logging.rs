//! The log: to standard error, or to a file that begins anew when it is large.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// A file that would be larger is set aside first, as `NAME.1`.
const MOST_BYTES: u64 = 10 << 20;
/// Files that were set aside and are kept.
const KEPT: usize = 5;
/// Says what is logged, over anything else.
const VARIABLE: &str = "TIDEGATE_LOG";

/// The log of this process.
pub(crate) struct Logging {
    target: Target,
    set_filter: Box<dyn Fn(EnvFilter)>,
}

/// `None` is standard error.
type Target = Arc<Mutex<Option<LogFile>>>;

impl Logging {
    /// Starts the log on standard error, with errors only unless the environment says otherwise.
    pub(crate) fn start() -> Self {
        let target = Target::default();
        let writer = target.clone();
        let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("error"));
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            // It would tell of a line that can't be written where it couldn't be, and panic.
            .log_internal_errors(false)
            .with_writer(move || Line(writer.clone()))
            .with_env_filter(filter)
            .with_filter_reloading();
        let handle = log.reload_handle();
        log.init();
        let set_filter = move |filter| {
            // It fails only where there is no log any more.
            let _ = handle.reload(filter);
        };
        Self { target, set_filter: Box::new(set_filter) }
    }

    /// Writes what is of `level` or worse from now on, unless the environment says what is written.
    pub(crate) fn set_level(&self, level: &str) {
        if EnvFilter::try_from_env(VARIABLE).is_err() {
            (self.set_filter)(EnvFilter::new(level));
        }
    }

    /// Writes to this file from now on, opened anew: somebody may have moved the one that was written to.
    ///
    /// # Errors
    /// Where it can't be opened; the log stays where it was.
    pub(crate) fn write_to(&self, path: Option<&Path>) -> anyhow::Result<()> {
        let open = |path: &Path| LogFile::open(path).with_context(|| format!("cannot write to {}", path.display()));
        let file = path.map(open).transpose()?;
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(())
    }
}

/// Where one line goes.
struct Line(Target);

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => file.append(text).map(|()| text.len()),
            None => io::stderr().write(text),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let bytes = text.len() as u64;
        if self.bytes > 0 && self.bytes + bytes > MOST_BYTES && self.set_aside().is_err() {
            // Its folder may be somebody else's. Better a large log than none; it is tried again after as much more.
            self.bytes = 0;
        }
        self.file.write_all(text)?;
        self.bytes += bytes;
        Ok(())
    }

    fn set_aside(&mut self) -> io::Result<()> {
        let aside = |number: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..KEPT).rev() {
            // There may be fewer yet.
            let _ = fs::rename(aside(number), aside(number + 1));
        }
        fs::rename(&self.path, aside(1))?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_log_is_set_aside_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        let line = vec![b'x'; usize::try_from(MOST_BYTES).unwrap()];
        for _ in 0..KEPT + 3 {
            log.append(&line).unwrap();
        }
        log.append(b"new\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), KEPT + 1);
        // Where it can't be set aside, for it is gone, writing goes on.
        fs::remove_file(&path).unwrap();
        assert!(log.append(&line).is_ok() && log.append(b"last\n").is_ok() && !path.exists());
        fs::write(&path, b"new\n").unwrap();
        // What is there is gone on with.
        LogFile::open(&path).unwrap().append(b"more\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new\nmore\n");
    }
}
