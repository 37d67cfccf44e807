//! Files of inputs, and what writes GGUF.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use tempfile::TempDir;

use crate::LoadError;
use crate::gguf::Gguf;

/// Zeros behind every file of weights, which stand for them: an input is only a header. They take no room.
const WEIGHTS: u64 = 2 << 20;

/// A folder for one input, which is removed with it.
pub(super) fn folder() -> TempDir {
    tempfile::tempdir().expect("there is a folder for temporary files")
}

pub(super) fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("the folder for temporary files has room");
}

/// Writes a header with zeros behind it.
pub(super) fn write_header(path: &Path, header: &[u8]) {
    let written = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(header)?;
        file.set_len(header.len() as u64 + WEIGHTS)
    };
    written().expect("the folder for temporary files has room");
}

/// The model in `files`, of which the first is opened; more than one are named as parts.
pub(super) fn open(files: &[&[u8]]) -> Result<Gguf, LoadError> {
    let folder = folder();
    let path = |index: usize| match files.len() {
        1 => folder.path().join("model.gguf"),
        count => folder.path().join(format!("model-{:05}-of-{count:05}.gguf", index + 1)),
    };
    files.iter().enumerate().for_each(|(index, file)| write_header(&path(index), file));
    // What is mapped stays when the folder is gone.
    Gguf::open(&path(0))
}

/// Writes a header.
#[derive(Default)]
pub(super) struct Header {
    values: Vec<u8>,
    value_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
}

impl Header {
    pub(super) fn text(&mut self, key: &str, text: &str) {
        self.key(key, 8);
        push_text(&mut self.values, text);
    }

    pub(super) fn number(&mut self, key: &str, number: u32) {
        self.key(key, 4);
        self.values.extend(number.to_le_bytes());
    }

    pub(super) fn flag(&mut self, key: &str, flag: bool) {
        self.key(key, 7);
        self.values.push(u8::from(flag));
    }

    pub(super) fn texts(&mut self, key: &str, texts: &[&str]) {
        self.array(key, 8, texts.len());
        texts.iter().for_each(|text| push_text(&mut self.values, text));
    }

    pub(super) fn floats(&mut self, key: &str, floats: &[f32]) {
        self.array(key, 6, floats.len());
        self.values.extend(floats.iter().flat_map(|float| float.to_le_bytes()));
    }

    pub(super) fn bytes(&mut self, key: &str, bytes: &[u8]) {
        self.array(key, 0, bytes.len());
        self.values.extend(bytes);
    }

    /// A matrix at the beginning of the data.
    pub(super) fn matrix(&mut self, name: &str, rows: u64, columns: u64, type_id: u32) {
        push_text(&mut self.tensors, name);
        self.tensors.extend(2_u32.to_le_bytes());
        self.tensors.extend([columns, rows].iter().flat_map(|dimension| dimension.to_le_bytes()));
        self.tensors.extend(type_id.to_le_bytes());
        self.tensors.extend(0_u64.to_le_bytes());
        self.tensor_count += 1;
    }

    /// The file with these weights.
    pub(super) fn file(&self, weights: &[u8]) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.value_count.to_le_bytes());
        file.extend(&self.values);
        file.extend(&self.tensors);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(weights);
        file
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.value_count += 1;
        push_text(&mut self.values, key);
        self.values.extend(kind.to_le_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9);
        self.values.extend(kind.to_le_bytes());
        self.values.extend((len as u64).to_le_bytes());
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
