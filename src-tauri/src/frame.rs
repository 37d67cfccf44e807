//! The window's two shapes and their remembered sizes: plain values, and one small file in the data folder.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use specta::Type;

/// Which of its two shapes the one window has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Type)]
#[serde(rename_all = "camelCase")]
pub(crate) enum View {
    Panel,
    Window,
}

/// Logical pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Size {
    pub width: f64,
    pub height: f64,
}

impl View {
    pub(crate) fn smallest(self) -> Size {
        match self {
            Self::Panel => Size { width: 360.0, height: 480.0 },
            Self::Window => Size { width: 720.0, height: 480.0 },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Sizes {
    panel: Size,
    window: Size,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { panel: Size { width: 400.0, height: 620.0 }, window: Size { width: 1040.0, height: 720.0 } }
    }
}

/// Remembers the size of each view. A file that can't be read or written only costs the memory of a size.
pub(crate) struct Frame {
    path: PathBuf,
    sizes: Mutex<Sizes>,
}

impl Frame {
    pub(crate) fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("window.json");
        let sizes = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, sizes: Mutex::new(sizes.unwrap_or_default()) }
    }

    pub(crate) fn size(&self, view: View) -> Size {
        let sizes = *self.sizes.lock().expect("no panic while sizes are held");
        let (size, least) = match view {
            View::Panel => (sizes.panel, view.smallest()),
            View::Window => (sizes.window, view.smallest()),
        };
        Size { width: size.width.max(least.width), height: size.height.max(least.height) }
    }

    pub(crate) fn remember(&self, view: View, size: Size) {
        let mut sizes = self.sizes.lock().expect("no panic while sizes are held");
        let slot = match view {
            View::Panel => &mut sizes.panel,
            View::Window => &mut sizes.window,
        };
        if *slot == size {
            return;
        }
        *slot = size;
        let saved = serde_json::to_vec(&*sizes).map_err(std::io::Error::from);
        if let Err(error) = saved.and_then(|bytes| std::fs::write(&self.path, bytes)) {
            tracing::warn!(%error, "cannot remember the window's size");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_view_keeps_its_size_across_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let frame = Frame::open(dir.path());
        assert_eq!(frame.size(View::Panel), Size { width: 400.0, height: 620.0 });
        frame.remember(View::Panel, Size { width: 480.0, height: 700.0 });
        frame.remember(View::Window, Size { width: 10.0, height: 900.0 });

        let again = Frame::open(dir.path());
        assert_eq!(again.size(View::Panel), Size { width: 480.0, height: 700.0 });
        assert_eq!(again.size(View::Window), Size { width: 720.0, height: 900.0 });
    }

    #[test]
    fn a_broken_file_gives_the_first_sizes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("window.json"), b"{").unwrap();
        assert_eq!(Frame::open(dir.path()).size(View::Window), Size { width: 1040.0, height: 720.0 });
    }
}
