//! Models in several files, `name-00001-of-00005.gguf` and so on, as llama.cpp's `gguf-split` writes them. The first has
//! the metadata; each says which part it is (`split.no`, from 0), of how many (`split.count`), and how many tensors they
//! have together (`split.tensors.count`).

use std::path::{Path, PathBuf};

use super::parse::{Gguf, Header, Part};
use crate::LoadError;

/// The name of a file that is one part of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartName {
    /// The name that all parts share.
    pub model: String,
    folder: PathBuf,
    /// From 1.
    number: u64,
    count: u64,
    extension: String,
}

impl PartName {
    /// Reads a name like `name-00002-of-00005.gguf`; `None` for any other.
    pub fn parse(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_str()?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (model, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| {
            let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse().ok()).flatten()
        };
        let (number, count) = (digits(number)?, digits(count)?);
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        let extension = path.extension()?.to_str()?.to_owned();
        let name = Self { model: model.to_owned(), folder, number, count, extension };
        (1..=count).contains(&number).then_some(name)
    }

    /// The first part, which has the metadata and stands for the model.
    pub fn first(&self) -> PathBuf {
        self.path_of(1)
    }

    /// All parts, from the first.
    pub fn all(&self) -> impl Iterator<Item = PathBuf> {
        (1..=self.count).map(|number| self.path_of(number))
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{}-{number:05}-of-{:05}.{}", self.model, self.count, self.extension))
    }
}

/// What a part says about itself.
#[derive(Clone, Copy, PartialEq)]
struct Split {
    no: u64,
    count: u64,
    tensors: Option<u64>,
}

impl Split {
    fn of(header: &Header) -> Option<Self> {
        let number = |key: &str| header.metadata.unsigned(key);
        // A file that was "split" into one part is whole.
        let count = number("split.count").filter(|count| *count > 1)?;
        Some(Self { no: number("split.no").unwrap_or(0), count, tensors: number("split.tensors.count") })
    }
}

/// Adds the other parts to one that was opened; gives back a file that is no part of anything.
///
/// # Errors
/// When a part is missing or damaged, or isn't of this model.
pub(super) fn join(opened: Part, header: Header) -> Result<Gguf, LoadError> {
    let Some(split) = Split::of(&header) else {
        return Ok(Gguf::whole(opened, header));
    };
    let name = PartName::parse(&opened.path).filter(|name| (name.number - 1, name.count) == (split.no, split.count));
    let Some(name) = name else {
        // Saturating: the header may say anything.
        let number = split.no.saturating_add(1);
        return Err(wrong_part(
            &opened.path,
            format!(
                "it is part {number} of {count}, so its name must end in `-{number:05}-of-{count:05}.gguf`",
                count = split.count
            ),
        ));
    };
    let mut opened = Some((opened, header));
    let mut model: Option<Gguf> = None;
    for (no, path) in (0..split.count).zip(name.all()) {
        let (part, header) = match opened.take_if(|_| no == split.no) {
            Some(opened) => opened,
            None => open_part(&path, no, split)?,
        };
        match &mut model {
            None => model = Some(Gguf::whole(part, header)),
            Some(model) => add(model, part, header)?,
        }
    }
    let model = model.expect("a split has more than one part");
    match split.tensors {
        Some(tensors) if tensors != model.header.tensors.len() as u64 => {
            let found = model.header.tensors.len();
            Err(wrong_part(&model.path, format!("the parts have {found} tensors together, and it says {tensors}")))
        }
        _ => Ok(model),
    }
}

fn open_part(path: &Path, no: u64, split: Split) -> Result<(Part, Header), LoadError> {
    let (part, header) = Gguf::map(path).map_err(|error| match error {
        LoadError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            LoadError::MissingPart { file: file_name(path), part: no + 1, count: split.count }
        }
        other => LoadError::Part { file: file_name(path), cause: Box::new(other) },
    })?;
    match Split::of(&header) {
        Some(found) if found == (Split { no, ..split }) => Ok((part, header)),
        Some(found) if (found.no, found.count) == (no, split.count) => {
            Err(wrong_part(path, "its model has another number of tensors".to_owned()))
        }
        Some(found) => {
            let number = found.no.saturating_add(1);
            Err(wrong_part(path, format!("it says that it is part {number} of {}", found.count)))
        }
        None => Err(wrong_part(path, "it says that it is a whole model".to_owned())),
    }
}

fn add(model: &mut Gguf, part: Part, header: Header) -> Result<(), LoadError> {
    // Later parts repeat these or leave them out.
    for key in ["general.architecture", "general.name"] {
        if let Some(theirs) = header.metadata.text(key)
            && model.metadata().text(key).is_some_and(|ours| ours != theirs)
        {
            return Err(wrong_part(&part.path, format!("its `{key}` differs from that of the first part")));
        }
    }
    let index = model.parts.len();
    for (name, tensor) in header.tensors {
        let twice = format!("it has a tensor `{}` that another part has", super::parse::shorten(&name));
        if model.header.tensors.insert(name, super::TensorInfo { part: index, ..tensor }).is_some() {
            return Err(wrong_part(&part.path, twice));
        }
    }
    model.files.push(part.file());
    model.parts.push(part);
    Ok(())
}

fn wrong_part(path: &Path, what: String) -> LoadError {
    LoadError::WrongPart { file: file_name(path), what }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
