use std::path::{Path, PathBuf};

/// Why something couldn't be kept or read, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The volume is full. Nothing was changed: keep what should have been written, and try again later.
    #[error("no space is left where chats are kept")]
    DiskFull(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The file is damaged. Opening the store anew moves it aside.
    #[error("{} is damaged", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A newer Tidegate wrote the file. It was not touched.
    #[error(
        "{} was written by a newer Tidegate (format {found}; this one knows formats up to {known}): update Tidegate to \
         open it",
        path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The version of its tables.
        found: i64,
        /// The newest version that this build knows.
        known: i64,
    },
    /// Another program holds the file for too long. Try again.
    #[error("the database is in use by another program")]
    Busy(#[source] rusqlite::Error),
    /// There is no such row, or none any more.
    #[error("there is no {0}")]
    NotFound(&'static str),
    /// The file or its folder can't be read or written: permissions, a missing volume, a failing disk.
    #[error("cannot open {}", path.display())]
    Access {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Anything else that SQLite says: a mistake in this crate.
    #[error("the database refused a statement")]
    Database(#[source] rusqlite::Error),
}

impl StoreError {
    /// Sorts what SQLite says about the file at `path`.
    pub(crate) fn from_sqlite(path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let path = path.to_owned();
        if let rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) = source {
            return Self::Corrupt { path, source: Box::new(source) };
        }
        match source.sqlite_error_code() {
            Some(Code::DiskFull) => Self::DiskFull(Box::new(source)),
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => Self::Corrupt { path, source: Box::new(source) },
            Some(Code::DatabaseBusy | Code::DatabaseLocked) => Self::Busy(source),
            Some(Code::CannotOpen | Code::PermissionDenied | Code::ReadOnly | Code::SystemIoFailure) => {
                Self::Access { path, source: Box::new(source) }
            }
            _ => Self::Database(source),
        }
    }

    /// Sorts what the system says about the file or folder at `path`.
    pub(crate) fn from_io(path: &Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::DiskFull(Box::new(source)),
            _ => Self::Access { path: path.to_owned(), source: Box::new(source) },
        }
    }
}
