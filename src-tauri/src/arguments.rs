//! What the command line says. A start from the Finder or a desktop file says nothing.

use std::path::{Path, PathBuf};

use clap::Parser;

/// Chat with language models on this machine, handed to a node when it can't.
#[derive(Debug, Clone, Parser)]
#[command(name = "tidegate-desktop", version)]
pub struct Arguments {
    /// Keep chats, settings and keys in this folder
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// List the models of this folder too (may be repeated)
    #[arg(long = "models", value_name = "DIR", env = "TIDEGATE_MODELS_DIR")]
    pub models_dirs: Vec<PathBuf>,

    /// Open the large window at start
    #[arg(long)]
    pub show: bool,

    /// Model files to look at, as the desktop passes them when one is opened with Tidegate
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

impl Arguments {
    /// The files in the arguments of a second start, made in `folder`; arguments that don't parse name none.
    pub(crate) fn files_of(argv: &[String], folder: &Path) -> Vec<PathBuf> {
        let files = Self::try_parse_from(argv).map(|arguments| arguments.files).unwrap_or_default();
        files.into_iter().map(|file| folder.join(file)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_names_its_files() {
        let argv = ["tidegate-desktop", "--show", "/a.gguf", "b.gguf"].map(str::to_owned);
        assert_eq!(
            Arguments::files_of(&argv, Path::new("/models")),
            [PathBuf::from("/a.gguf"), PathBuf::from("/models/b.gguf")]
        );
        assert!(Arguments::files_of(&["x".to_owned(), "--nonsense".to_owned()], Path::new("/")).is_empty());
    }
}
