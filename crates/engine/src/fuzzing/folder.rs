use super::{file, gguf, sections};
use crate::gguf::Gguf;
use crate::safetensors;

/// Bytes of the name of a file.
const LONGEST_NAME: usize = 100;

/// A section for each file of a folder as models are published in: a line with its name, then its content. After
/// `header ` the content is the header of a file of weights, whose length is written before it.
///
/// Reads the folder, and what there is to say of the model.
pub fn folder(data: &[u8]) {
    let folder = file::folder();
    for section in sections(data) {
        let (name, content) = section.split_at(section.iter().position(|byte| *byte == b'\n').unwrap_or(section.len()));
        let content = content.strip_prefix(b"\n").unwrap_or(content);
        let Ok(name) = std::str::from_utf8(name) else { continue };
        let (name, is_header) = match name.strip_prefix("header ") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let has_ending = [".json", ".safetensors", ".model", ".jinja"].iter().any(|ending| name.ends_with(ending));
        if !has_ending || name.len() > LONGEST_NAME || name.contains(['/', '\0']) {
            continue;
        }
        let path = folder.path().join(name);
        if is_header {
            file::write_header(&path, &[&(content.len() as u64).to_le_bytes(), content].concat());
        } else {
            file::write(&path, content);
        }
    }
    std::hint::black_box((safetensors::is_model_folder(folder.path()), crate::model_files(folder.path())));
    if let Ok(gguf) = Gguf::open(folder.path()) {
        gguf::describe(&gguf);
    }
}
