//! The caches of conversations on disk, while their model is not in memory.
//!
//! A file for each in one folder, `MODEL-TOKENS.kv` by the first bytes of two hashes. It is written when the model is
//! unloaded and read when a prompt of the same model begins with its tokens. Its time of change is when it was last
//! used. Whatever fails here is logged and costs no more than running a prompt again.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chat::Bytes;
use sha2::{Digest, Sha256};

use crate::device::{self, KvType};
use crate::gguf::Gguf;
use crate::kv_cache::KvCache;
use crate::kv_file::{self, Fingerprint, KvFileError};
use crate::models::TokenId;
use crate::slot::common_prefix;

/// Tokens that make it worth writing a cache, and reading one again: fewer are run as fast.
pub(crate) const LEAST_SAVED: usize = 256;
/// A file that nobody used for this long is removed.
const KEPT_UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);
/// What is still being written after this long never will be.
const LONGEST_WRITE: Duration = Duration::from_secs(3600);

/// The folder of the caches of all models.
#[derive(Clone, Debug)]
pub(crate) struct CacheFolder {
    path: PathBuf,
    limit: Bytes,
}

/// The files of one model.
#[derive(Debug)]
pub(crate) struct SavedCaches {
    folder: CacheFolder,
    model: Fingerprint,
    files: Vec<SavedCache>,
}

#[derive(Debug)]
struct SavedCache {
    path: PathBuf,
    tokens: Vec<TokenId>,
}

impl CacheFolder {
    /// The folder at `path`, whose files may take so much in all. Nothing is read or made yet.
    pub(crate) const fn new(path: PathBuf, limit: Bytes) -> Self {
        Self { path, limit }
    }

    /// The caches that there are of the model in `gguf`, as this engine makes them.
    pub(crate) fn of_model(&self, gguf: &Gguf, kv_type: KvType) -> SavedCaches {
        let format = device::cache_format(&device::open(), kv_type);
        let model = Sha256::new().chain_update(gguf.fingerprint()).chain_update(format).finalize().into();
        SavedCaches::find(self.clone(), model)
    }

    /// Removes what nobody used for long, what was never written to its end, and then the longest unused until the rest
    /// is within the limit.
    pub(crate) fn tidy(&self, now: SystemTime) {
        let mut files = self.files();
        // The newest first; a time to come counts as now.
        files.sort_by_key(|file| file.age(now));
        let mut bytes = 0_u64;
        for file in files {
            let age = file.age(now);
            let is_kept = if file.is_unfinished() { age <= LONGEST_WRITE } else { age <= KEPT_UNUSED };
            bytes = bytes.saturating_add(file.bytes);
            if !is_kept || bytes > self.limit.0 {
                remove(&file.path);
            }
        }
    }

    /// Removes all files.
    pub(crate) fn clear(&self) {
        for file in self.files() {
            remove(&file.path);
        }
    }

    /// The files that were written here; none where there is no folder yet.
    fn files(&self) -> Vec<FoundFile> {
        let entries = fs::read_dir(&self.path).into_iter().flatten();
        entries.filter_map(|entry| FoundFile::read(&entry.ok()?.path())).collect()
    }

    /// Makes the folder, for this user alone, where there isn't one.
    fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)
    }

    fn has_room(&self) -> io::Result<bool> {
        let disk = rustix::fs::statvfs(&self.path)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize) >= self.limit.0.saturating_mul(2))
    }
}

impl SavedCaches {
    fn find(folder: CacheFolder, model: Fingerprint) -> Self {
        let prefix = format!("{}-", hex(&model));
        let is_ours = |file: &FoundFile| !file.is_unfinished() && file.name().starts_with(&prefix);
        let files =
            folder.files().into_iter().filter(is_ours).filter_map(|FoundFile { path, .. }| match kv_file::read_tokens(
                &path, &model,
            ) {
                Ok(tokens) => Some(SavedCache { path, tokens }),
                Err(error) => {
                    refuse(&path, &error);
                    None
                }
            });
        Self { files: files.collect(), folder, model }
    }

    /// The cache of a sequence of up to `context_len` tokens that begins as `prompt` does, for the most and at least
    /// `least` tokens; `empty` makes one of its model.
    pub(crate) fn recall(
        &mut self,
        prompt: &[TokenId],
        least: usize,
        context_len: usize,
        empty: impl FnOnce() -> KvCache,
    ) -> Option<(Vec<TokenId>, KvCache)> {
        let files = self.files.iter().enumerate().filter(|(_, file)| file.tokens.len() <= context_len);
        let common = files.map(|(index, file)| (common_prefix(&file.tokens, prompt), index));
        let (_, best) = common.filter(|(common, _)| *common >= least).max()?;
        match kv_file::read(&self.files[best].path, &self.model, empty()) {
            Ok(recalled) => {
                mark_used(&self.files[best].path, SystemTime::now());
                Some(recalled)
            }
            Err(error) => {
                refuse(&self.files.remove(best).path, &error);
                None
            }
        }
    }

    /// Writes the caches that are worth it, as many as the limit allows. The first is the one used last.
    pub(crate) fn save<'a>(&mut self, caches: impl Iterator<Item = (&'a [TokenId], &'a KvCache)>, now: SystemTime) {
        let mut caches = caches.filter(|(tokens, _)| tokens.len() >= LEAST_SAVED).peekable();
        if caches.peek().is_none() {
            return;
        }
        match self.folder.make().and_then(|()| self.folder.has_room()) {
            Ok(true) => {}
            Ok(false) => return tracing::info!("no caches are kept: the disk is nearly full"),
            Err(error) => return tracing::warn!(%error, "no caches are kept"),
        }
        let mut left = self.folder.limit.0;
        for (rank, (tokens, cache)) in (0..).zip(caches) {
            match self.save_one(tokens, cache, left) {
                Ok((path, bytes)) => {
                    left = left.saturating_sub(bytes);
                    // In the order of their use.
                    mark_used(&path, now - Duration::from_secs(rank));
                }
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "a cache is not kept"),
            }
        }
        self.folder.tidy(now);
    }

    /// Gives the file, which may be there already, and its length.
    fn save_one(
        &mut self,
        tokens: &[TokenId],
        cache: &KvCache,
        most_bytes: u64,
    ) -> Result<(PathBuf, u64), KvFileError> {
        let mut hash = Sha256::new();
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        let path = self.folder.path.join(format!("{}-{}.kv", hex(&self.model), hex(&hash.finalize())));
        if self.files.iter().any(|file| file.path == path)
            && let Ok(metadata) = path.metadata()
        {
            return Ok((path, metadata.len()));
        }
        // Under another name until it is whole. This process writes one at a time.
        let unfinished = path.with_extension(format!("{}.part", std::process::id()));
        let written = kv_file::write(&unfinished, &self.model, tokens, cache, most_bytes)
            .and_then(|bytes| Ok(fs::rename(&unfinished, &path).map(|()| bytes)?));
        if written.is_err() {
            remove(&unfinished);
        }
        let bytes = written?;
        // The same conversation when it was shorter.
        let is_older = |file: &mut SavedCache| tokens.starts_with(&file.tokens);
        self.files.extract_if(.., is_older).for_each(|older| remove(&older.path));
        self.files.push(SavedCache { path: path.clone(), tokens: tokens.to_vec() });
        Ok((path, bytes))
    }
}

/// A file of the folder that has the name of one of ours.
struct FoundFile {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl FoundFile {
    fn read(path: &Path) -> Option<Self> {
        let extension = path.extension()?;
        let metadata = path.symlink_metadata().ok().filter(fs::Metadata::is_file)?;
        let is_ours = extension == "kv" || extension == "part";
        is_ours.then_some(Self { path: path.to_owned(), bytes: metadata.len(), used: metadata.modified().ok()? })
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn is_unfinished(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "part")
    }

    fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.used).unwrap_or_default()
    }
}

/// A file of this model that is not as it should be is good for nothing.
fn refuse(path: &Path, error: &KvFileError) {
    tracing::warn!(error = error as &dyn std::error::Error, file = %path.display(), "a saved cache cannot be used");
    if matches!(error, KvFileError::Refused(_)) {
        remove(path);
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, file = %path.display(), "a saved cache cannot be removed");
    }
}

fn mark_used(path: &Path, time: SystemTime) {
    if let Err(error) = File::options().append(true).open(path).and_then(|file| file.set_modified(time)) {
        tracing::warn!(%error, file = %path.display(), "a saved cache keeps its old time");
    }
}

/// The first bytes of a hash, enough for a name.
fn hex(hash: &[u8]) -> String {
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use candle_core::{DType, Tensor};
    use kernels::{KvFormat, KvLayer, KvShape, Span};

    use super::*;
    use crate::kv_cache::LayerState;

    const MODEL: Fingerprint = [7; 32];

    fn empty() -> KvCache {
        let shape = KvShape { kv_heads: 1, key_dim: 4, value_dim: 4, values_in_keys: false, span: Span::All };
        KvCache::new(vec![LayerState::Tokens(KvLayer::new(
            shape,
            64,
            KvFormat::float(DType::F32),
            &candle_core::Device::Cpu,
        ))])
    }

    fn cache(tokens: usize) -> KvCache {
        let mut cache = empty();
        let LayerState::Tokens(layer) = &mut cache.layers[0] else { unreachable!() };
        let rows = Tensor::ones((tokens, 1, 4), DType::F32, &candle_core::Device::Cpu).unwrap();
        layer.append(&rows, &rows).unwrap();
        cache.advance(tokens);
        cache
    }

    fn tokens(first: u32, len: usize) -> Vec<TokenId> {
        [first].into_iter().chain(1..len as u32).collect()
    }

    fn save(folder: &CacheFolder, all: &[Vec<TokenId>], now: SystemTime) -> SavedCaches {
        let mut saved = SavedCaches::find(folder.clone(), MODEL);
        let caches: Vec<KvCache> = all.iter().map(|tokens| cache(tokens.len())).collect();
        saved.save(all.iter().map(Vec::as_slice).zip(&caches), now);
        saved
    }

    /// The first tokens of the sequences that there are files of.
    fn found(folder: &CacheFolder) -> Vec<TokenId> {
        let mut found: Vec<_> =
            SavedCaches::find(folder.clone(), MODEL).files.iter().map(|file| file.tokens[0]).collect();
        found.sort_unstable();
        found
    }

    fn folder(limit: u64) -> (tempfile::TempDir, CacheFolder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = CacheFolder::new(temporary.path().join("caches"), Bytes(limit));
        (temporary, folder)
    }

    #[test]
    fn the_longest_common_beginning_is_recalled() {
        let (_temporary, folder) = folder(1 << 20);
        save(&folder, &[tokens(1, 300), tokens(2, 300), tokens(3, 255)], SystemTime::now());
        assert_eq!(found(&folder), [1, 2], "a short one is not worth it");
        let mut saved = SavedCaches::find(folder, MODEL);
        let prompt = tokens(2, 400);
        assert!(saved.recall(&prompt, 301, 1000, empty).is_none());
        assert!(saved.recall(&prompt, 256, 299, empty).is_none(), "it has more tokens than the context");
        let (sequence, cache) = saved.recall(&prompt, 256, 1000, empty).unwrap();
        assert_eq!((sequence, cache.n_past()), (tokens(2, 300), 300));
    }

    #[test]
    fn only_this_user_can_read_them() {
        let (_temporary, folder) = folder(1 << 20);
        save(&folder, &[tokens(1, 300)], SystemTime::now());
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder.path), mode(&folder.files()[0].path)), (0o700, 0o600));
    }

    #[test]
    fn a_longer_conversation_replaces_its_beginning() {
        let (_temporary, folder) = folder(1 << 20);
        let now = SystemTime::now();
        save(&folder, &[tokens(1, 300), tokens(2, 300)], now);
        save(&folder, &[tokens(1, 400), tokens(2, 300)], now);
        assert_eq!(found(&folder), [1, 2]);
        assert_eq!(folder.files().len(), 2);
    }

    #[test]
    fn the_longest_unused_are_removed() {
        // One of 300 tokens takes about 11 kB.
        let (_temporary, folder) = folder(35_000);
        let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
        save(&folder, &[tokens(1, 300)], now - 3 * day);
        save(&folder, &[tokens(2, 300)], now - 2 * day);
        save(&folder, &[tokens(4, 300), tokens(3, 300)], now);
        assert_eq!(found(&folder), [2, 3, 4]);
        save(&folder, &[tokens(5, 300), tokens(6, 300), tokens(7, 300), tokens(8, 300)], now + day);
        assert_eq!(found(&folder), [5, 6, 7], "those used last, and no more than the limit allows");
        folder.tidy(now + 7 * day);
        assert_eq!(found(&folder), [5, 6, 7]);
        folder.tidy(now + 9 * day);
        assert!(folder.files().is_empty());
    }

    #[test]
    fn what_is_not_whole_is_removed_and_what_is_not_ours_is_left_alone() {
        let (_temporary, folder) = folder(1 << 20);
        let now = SystemTime::now();
        save(&folder, &[tokens(1, 300)], now);
        fs::write(folder.path.join("notes.txt"), "mine").unwrap();
        fs::write(folder.path.join("a.1.part"), "half").unwrap();
        let whole = folder.files().into_iter().find(|file| !file.is_unfinished()).unwrap().path;
        let bytes = fs::read(&whole).unwrap();
        fs::write(&whole, &bytes[..bytes.len() - 1]).unwrap();
        let mut saved = SavedCaches::find(folder.clone(), MODEL);
        assert!(saved.recall(&tokens(1, 400), 256, 1000, empty).is_none());
        assert!(!whole.exists());
        folder.tidy(now + 2 * LONGEST_WRITE);
        assert!(folder.files().is_empty());
        assert!(folder.path.join("notes.txt").exists());
    }

    #[test]
    fn nothing_is_written_to_a_full_disk() {
        let (_temporary, folder) = folder(u64::MAX / 4);
        save(&folder, &[tokens(1, 300)], SystemTime::now());
        assert!(folder.files().is_empty());
    }
}
