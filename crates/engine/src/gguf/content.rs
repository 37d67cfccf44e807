use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use chat::Bytes;
use memmap2::Mmap;

use crate::LoadError;

/// What a part of a model consists of.
pub(crate) enum Content {
    /// A mapped file.
    Mapped(Mmap),
    /// Bytes that were computed from files.
    Made(Vec<u8>),
}

impl Content {
    /// Maps a file. No page is touched.
    ///
    /// # Errors
    /// When the file can't be read, or is empty.
    pub(crate) fn map(path: &Path) -> Result<Self, LoadError> {
        let read_error = |source| LoadError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if metadata.is_dir() {
            return Err(read_error(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
        }
        if metadata.len() == 0 {
            return Err(LoadError::Truncated { at: Bytes(0), expected: None });
        }
        #[expect(unsafe_code, reason = "a memory map has no safe constructor")]
        // SAFETY: the map is read-only and private to this process. Somebody who truncates the file while it is mapped
        // makes a later read fault, which no check of ours could prevent; models are replaced by renaming, not in place.
        let map = unsafe { Mmap::map(&file) }.map_err(read_error)?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Made(bytes) => bytes,
        }
    }
}
