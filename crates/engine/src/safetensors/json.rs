use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::LoadError;

/// The largest tokenizers have 40 MB.
const LARGEST: u64 = 256 << 20;

/// The file `name` in the folder; `None` where it isn't there.
///
/// # Errors
/// When the system refuses to read it, or it is larger than any such file.
pub(super) fn read_bytes(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, LoadError> {
    let path = folder.join(name);
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::Read { path, source }),
        Ok(len) if len as u64 > LARGEST => {
            Err(LoadError::BadFile { file: name.to_owned(), what: "it is larger than any such file".to_owned() })
        }
        Ok(_) => Ok(Some(bytes)),
    }
}

/// The file `name` in the folder; `None` where it isn't there.
///
/// # Errors
/// As [`read_bytes`], and when it is no JSON of this shape.
pub(super) fn read_optional<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, LoadError> {
    let Some(bytes) = read_bytes(folder, name)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|error| LoadError::BadFile { file: name.to_owned(), what: error.to_string() })
}

/// What a file lacks.
pub(super) fn lacks(file: &str, key: &str) -> LoadError {
    LoadError::BadFile { file: file.to_owned(), what: format!("it lacks `{key}`") }
}
