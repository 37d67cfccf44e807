use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use chat::Redacted;

use crate::StoreError;
use crate::store::{beside, make_private_folder};

/// The keys of nodes, in a file that only this user can read. Each change replaces the file as a whole, so a crash
/// leaves the old one or the new one. Two processes that change it at the same moment: the later one wins.
#[derive(Debug)]
pub struct Secrets {
    path: PathBuf,
    // Changes of this process come one after the other.
    changing: Mutex<()>,
}

impl Secrets {
    /// The file `secrets` in `folder`. Nothing is read or made yet.
    pub fn in_folder(folder: &Path) -> Self {
        Self { path: folder.join("secrets"), changing: Mutex::new(()) }
    }

    /// The key of a node; `None` where it has none.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for a file that this crate didn't write, [`StoreError::Access`].
    pub fn get(&self, node_id: &str) -> Result<Option<Redacted<String>>, StoreError> {
        Ok(self.load()?.remove(node_id).map(Redacted))
    }

    /// Keeps the key of a node.
    ///
    /// # Errors
    /// As [`Secrets::get`], and [`StoreError::DiskFull`]; then the file is as it was.
    pub fn set(&self, node_id: &str, key: &Redacted<String>) -> Result<(), StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = self.load()?;
        keys.insert(node_id.to_owned(), key.expose().to_owned());
        self.save(&keys)
    }

    /// Forgets the key of a node; one that has none is left alone.
    ///
    /// # Errors
    /// As [`Secrets::set`].
    pub fn remove(&self, node_id: &str) -> Result<(), StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = self.load()?;
        if keys.remove(node_id).is_none() {
            return Ok(());
        }
        self.save(&keys)
    }

    fn load(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(StoreError::from_io(&self.path, error)),
        };
        self.tighten()?;
        // The text of the error names the line and never what is in it.
        parse(&bytes).map_err(|line| StoreError::Corrupt {
            path: self.path.clone(),
            source: format!("line {line} is not a node and its key").into(),
        })
    }

    /// Takes back what others may do with the file, such as after it was restored from a backup.
    fn tighten(&self) -> Result<(), StoreError> {
        let io = |error| StoreError::from_io(&self.path, error);
        let mode = std::fs::metadata(&self.path).map_err(io)?.permissions().mode();
        if mode & 0o077 == 0 {
            return Ok(());
        }
        std::fs::set_permissions(&self.path, Permissions::from_mode(0o600)).map_err(io)
    }

    fn save(&self, keys: &BTreeMap<String, String>) -> Result<(), StoreError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        make_private_folder(folder)?;
        let next = beside(&self.path, ".next");
        let written = write_synced(&next, &render(keys))
            .and_then(|()| std::fs::rename(&next, &self.path))
            // The new name itself has to reach the disk too.
            .and_then(|()| File::open(folder)?.sync_all());
        if written.is_err() {
            // A leftover holds keys; where it can't be removed, the next change replaces it.
            let _ = std::fs::remove_file(&next);
        }
        written.map_err(|error| StoreError::from_io(&self.path, error))
    }
}

fn write_synced(path: &Path, text: &str) -> std::io::Result<()> {
    // A leftover of a crash may have been given another mode; the file is always made anew.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// One line for each node: its id, a tab, its key. Backslash, tab and line feed are escaped.
fn render(keys: &BTreeMap<String, String>) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n");
    keys.iter().fold(String::new(), |mut text, (id, key)| {
        writeln!(text, "{}\t{}", escape(id), escape(key)).expect("a string takes what is written to it");
        text
    })
}

/// The reverse of [`render`], or the number of the first line that it can't have written.
fn parse(bytes: &[u8]) -> Result<BTreeMap<String, String>, usize> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1)?;
    text.split_terminator('\n')
        .enumerate()
        .map(|(index, line)| {
            let (id, key) = line.split_once('\t').ok_or(index + 1)?;
            Ok((unescape(id).ok_or(index + 1)?, unescape(key).ok_or(index + 1)?))
        })
        .collect()
}

fn unescape(text: &str) -> Option<String> {
    let mut characters = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next()? {
                '\\' => '\\',
                't' => '\t',
                'n' => '\n',
                _ => return None,
            },
            '\t' => return None,
            other => other,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_whatever_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let keys = ["sk-123", "", "a\tb\nc\\d\\n", "ключ \u{1F511}", "\r\n"];
        let secrets = Secrets::in_folder(folder.path());
        for (n, key) in keys.iter().enumerate() {
            secrets.set(&format!("node-{n}"), &Redacted((*key).to_owned())).unwrap();
        }
        let secrets = Secrets::in_folder(folder.path());
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(secrets.get(&format!("node-{n}")).unwrap().unwrap().expose(), *key);
        }
        assert_eq!(secrets.get("another").unwrap(), None);
    }

    #[test]
    fn a_removed_key_is_gone_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = Secrets::in_folder(folder.path());
        secrets.remove("studio").unwrap();
        secrets.set("studio", &Redacted("sk-studio".to_owned())).unwrap();
        secrets.set("attic", &Redacted("sk-attic".to_owned())).unwrap();

        secrets.remove("studio").unwrap();

        assert_eq!(std::fs::read_to_string(folder.path().join("secrets")).unwrap(), "attic\tsk-attic\n");
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secrets"]);
    }

    #[test]
    fn only_this_user_can_read_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, file) = (folder.path().join("data"), folder.path().join("data/secrets"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let secrets = Secrets::in_folder(&inner);
        secrets.set("studio", &Redacted("sk-studio".to_owned())).unwrap();
        assert_eq!((mode(&inner), mode(&file)), (0o700, 0o600));

        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        secrets.get("studio").unwrap();
        assert_eq!(mode(&file), 0o600);
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_without_a_word_of_its_content() {
        let folder = tempfile::tempdir().unwrap();
        for content in
            [b"studio\tsk-1\nsk-secret\n".as_slice(), b"studio\tsk-1\na\tsk-secret\\x\n", b"a\tb\n\xff\tsk-secret"]
        {
            std::fs::write(folder.path().join("secrets"), content).unwrap();
            let error = Secrets::in_folder(folder.path()).set("attic", &Redacted("k".to_owned())).unwrap_err();
            let StoreError::Corrupt { source, .. } = &error else { panic!("{error:?}") };
            assert_eq!(source.to_string(), "line 2 is not a node and its key");
            assert!(!format!("{error:?}").contains("sk-"), "{error:?}");
            assert_eq!(std::fs::read(folder.path().join("secrets")).unwrap(), content);
        }
    }
}
