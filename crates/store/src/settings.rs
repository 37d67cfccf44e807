use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::OptionalExtension;

use crate::{NodeRow, Store, StoreError};

impl Store {
    /// The value of a setting, in the caller's own encoding; `None` where it was never set.
    ///
    /// # Errors
    /// Only what SQLite says.
    pub fn get_setting(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT value FROM settings WHERE key = ?1")?
                .query_row([key], |row| row.get(0))
                .optional()
        })
    }

    /// Keeps the value of a setting.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], or what else SQLite says.
    pub fn set_setting(&self, key: &str, value: &str) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO settings (key, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value",
                (key, value),
            )
        })
        .map(drop)
    }

    /// The nodes, in the order they were added.
    ///
    /// # Errors
    /// Only what SQLite says.
    pub fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT id, url, name, trust FROM nodes ORDER BY position")?
                .query_map([], |row| {
                    Ok(NodeRow { id: row.get(0)?, url: row.get(1)?, name: row.get(2)?, trust: row.get(3)? })
                })?
                .collect()
        })
    }

    /// Adds a node, or gives the one of that id another address and name, and another trust where the row says one.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], or what else SQLite says.
    pub fn add_node(&self, node: &NodeRow) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO nodes (id, url, name, trust) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE
                 SET url = excluded.url, name = excluded.name, trust = coalesce(excluded.trust, trust)",
                (&node.id, &node.url, &node.name, &node.trust),
            )
        })
        .map(drop)
    }

    /// Keeps whose machine a node is, in the caller's own word.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where there is none of that id.
    pub fn set_node_trust(&self, id: &str, trust: &str) -> Result<(), StoreError> {
        let changed =
            self.write(|transaction| transaction.execute("UPDATE nodes SET trust = ?2 WHERE id = ?1", (id, trust)))?;
        if changed == 0 { Err(StoreError::NotFound("such node")) } else { Ok(()) }
    }

    /// Forgets a node. Its key is [`crate::Secrets`]' to forget.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where there is none of that id.
    pub fn remove_node(&self, id: &str) -> Result<(), StoreError> {
        let removed = self.write(|transaction| transaction.execute("DELETE FROM nodes WHERE id = ?1", [id]))?;
        if removed == 0 { Err(StoreError::NotFound("such node")) } else { Ok(()) }
    }

    /// The model files that are used where they lie, in the order they were added. They may be gone by now.
    ///
    /// # Errors
    /// Only what SQLite says.
    pub fn added_models(&self) -> Result<Vec<PathBuf>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT path FROM added_models ORDER BY position")?
                .query_map([], |row| Ok(PathBuf::from(OsStr::from_bytes(row.get_ref(0)?.as_blob()?))))?
                .collect()
        })
    }

    /// Remembers a model file; adding it again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], or what else SQLite says.
    pub fn add_model_path(&self, path: &Path) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO added_models (path) VALUES (?1) ON CONFLICT DO NOTHING",
                [path.as_os_str().as_bytes()],
            )
        })
        .map(drop)
    }

    /// Forgets a model file; the file itself stays.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where it wasn't added.
    pub fn remove_model_path(&self, path: &Path) -> Result<(), StoreError> {
        let removed = self.write(|transaction| {
            transaction.execute("DELETE FROM added_models WHERE path = ?1", [path.as_os_str().as_bytes()])
        })?;
        if removed == 0 { Err(StoreError::NotFound("such added model")) } else { Ok(()) }
    }
}
