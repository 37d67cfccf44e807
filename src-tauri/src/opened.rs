//! Model files opened from the desktop or named at the start. macOS tells of them before the app is set up, and the
//! interface listens later still, so they wait here until it takes them.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use tauri::{AppHandle, Manager};
use tauri_specta::Event;

use crate::ipc::events::FilesOpened;
use crate::window;

#[derive(Default)]
pub(crate) struct OpenedFiles(Mutex<Vec<String>>);

impl OpenedFiles {
    /// What nobody has taken yet, once.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, files: impl IntoIterator<Item = PathBuf>) {
        let files = files.into_iter().map(|file| file.to_string_lossy().into_owned());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(files);
    }
}

/// Keeps `files` for the interface and tells it, if it listens already.
pub(crate) fn open(handle: &AppHandle, files: Vec<PathBuf>) {
    if !files.is_empty() {
        handle.state::<OpenedFiles>().put(files);
        window::log("tell of opened files", FilesOpened.emit(handle));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_taken_once_in_order() {
        let opened = OpenedFiles::default();
        opened.put([PathBuf::from("/a.gguf")]);
        opened.put([PathBuf::from("/b.gguf"), PathBuf::from("/c.gguf")]);
        assert_eq!(opened.take(), ["/a.gguf", "/b.gguf", "/c.gguf"]);
        assert!(opened.take().is_empty());
    }
}
