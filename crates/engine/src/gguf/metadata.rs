use std::collections::HashMap;
use std::ops::Range;

use super::cursor::Cursor;
use crate::LoadError;

/// One value of the header. Arrays stay in the file: a vocabulary is only decoded by whoever needs it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Text as it stands in the file; not every writer makes sure of UTF-8.
    Text(Vec<u8>),
    Array(ArrayValue),
}

/// Where an array lies in the file; its elements were walked over once, so they are all there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ArrayValue {
    kind: u32,
    count: usize,
    range: Range<usize>,
}

impl ArrayValue {
    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    /// Its elements as they stand in `file`.
    pub(crate) fn bytes<'f>(&self, file: &'f [u8]) -> &'f [u8] {
        file.get(self.range.clone()).unwrap_or_default()
    }
}

const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;
/// Deeper nesting than any known writer makes; bounds the recursion.
const DEEPEST_ARRAY: usize = 4;

/// The key-value part of a header.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata {
    values: HashMap<String, Value>,
}

impl Metadata {
    pub(super) fn insert(&mut self, key: String, value: Value) -> bool {
        self.values.insert(key, value).is_none()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    pub(crate) fn text(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            Value::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        }
    }

    pub(crate) fn unsigned(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::Float(x) => Some(*x),
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            _ => None,
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    pub(crate) fn array(&self, key: &str) -> Option<&ArrayValue> {
        match self.get(key)? {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

/// Metadata that is made rather than read, with its arrays encoded as a file has them.
#[derive(Default)]
pub(crate) struct MetadataWriter {
    metadata: Metadata,
    arrays: Vec<u8>,
}

impl MetadataWriter {
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.values.insert(key.to_owned(), value.into());
    }

    pub(crate) fn texts<'t>(&mut self, key: &str, texts: impl Iterator<Item = &'t str>) {
        self.array(key, TEXT, texts, |text, bytes| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.bytes());
        });
    }

    pub(crate) fn i32s(&mut self, key: &str, numbers: impl Iterator<Item = i32>) {
        self.array(key, I32, numbers, |number, bytes| bytes.extend(number.to_le_bytes()));
    }

    pub(crate) fn f32s(&mut self, key: &str, numbers: impl Iterator<Item = f32>) {
        self.array(key, F32, numbers, |number, bytes| bytes.extend(number.to_le_bytes()));
    }

    pub(crate) fn bools(&mut self, key: &str, claims: impl Iterator<Item = bool>) {
        self.array(key, BOOL, claims, |claim, bytes| bytes.push(u8::from(claim)));
    }

    fn array<T>(
        &mut self,
        key: &str,
        kind: u32,
        elements: impl Iterator<Item = T>,
        mut write: impl FnMut(T, &mut Vec<u8>),
    ) {
        let (start, mut count) = (self.arrays.len(), 0);
        for element in elements {
            write(element, &mut self.arrays);
            count += 1;
        }
        let array = ArrayValue { kind, count, range: start..self.arrays.len() };
        self.metadata.values.insert(key.to_owned(), Value::Array(array));
    }

    /// The metadata, and the bytes that its arrays lie in.
    pub(crate) fn finish(self) -> (Metadata, Vec<u8>) {
        (self.metadata, self.arrays)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Unsigned(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

impl From<bool> for Value {
    fn from(claim: bool) -> Self {
        Self::Bool(claim)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.as_bytes().to_vec())
    }
}

/// Reads one value of the type `kind`.
pub(super) fn read_value(cursor: &mut Cursor<'_>, kind: u32) -> Result<Value, LoadError> {
    Ok(match kind {
        TEXT => Value::Text(cursor.bytes()?.to_vec()),
        ARRAY => Value::Array(skip_array(cursor, 1)?),
        _ => read_scalar(cursor, kind)?,
    })
}

fn read_scalar(cursor: &mut Cursor<'_>, kind: u32) -> Result<Value, LoadError> {
    Ok(match kind {
        0 => Value::Unsigned(u64::from(cursor.u8()?)),
        1 => Value::Signed(i64::from(cursor.u8()?.cast_signed())),
        2 => Value::Unsigned(u64::from(cursor.u16()?)),
        3 => Value::Signed(i64::from(cursor.u16()?.cast_signed())),
        4 => Value::Unsigned(u64::from(cursor.u32()?)),
        5 => Value::Signed(i64::from(cursor.u32()?.cast_signed())),
        6 => Value::Float(f64::from(f32::from_bits(cursor.u32()?))),
        7 => Value::Bool(cursor.u8()? != 0),
        10 => Value::Unsigned(cursor.u64()?),
        11 => Value::Signed(cursor.u64()?.cast_signed()),
        12 => Value::Float(f64::from_bits(cursor.u64()?)),
        _ => return Err(cursor.malformed(format!("unknown value type {kind}"))),
    })
}

const fn scalar_size(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn skip_array(cursor: &mut Cursor<'_>, depth: usize) -> Result<ArrayValue, LoadError> {
    if depth > DEEPEST_ARRAY {
        return Err(cursor.malformed("arrays nested too deeply"));
    }
    let kind = cursor.u32()?;
    let least_bytes = match kind {
        TEXT => 8,
        ARRAY => 12,
        _ => scalar_size(kind).ok_or_else(|| cursor.malformed(format!("unknown value type {kind} in an array")))?,
    };
    let count = cursor.count("array elements", least_bytes)?;
    let start = cursor.position();
    match kind {
        TEXT => {
            for _ in 0..count {
                cursor.bytes()?;
            }
        }
        ARRAY => {
            for _ in 0..count {
                skip_array(cursor, depth + 1)?;
            }
        }
        // `count` made sure that the product is within the file.
        _ => {
            cursor.take(count * least_bytes)?;
        }
    }
    Ok(ArrayValue { kind, count, range: start..cursor.position() })
}

impl ArrayValue {
    /// Every text of an array of texts; `None` for another kind of array.
    pub(crate) fn texts<'a>(&self, file: &'a [u8]) -> Option<Vec<&'a [u8]>> {
        if self.kind != TEXT {
            return None;
        }
        let mut cursor = Cursor::new(file.get(..self.range.end)?, self.range.start);
        (0..self.count).map(|_| cursor.bytes().ok()).collect()
    }

    /// Every number of an array of numbers, 1 and 0 of one of claims; `None` for another kind of array.
    pub(crate) fn numbers(&self, file: &[u8]) -> Option<Vec<f64>> {
        let mut cursor = Cursor::new(file.get(..self.range.end)?, self.range.start);
        (0..self.count)
            .map(|_| match read_scalar(&mut cursor, self.kind).ok()? {
                Value::Unsigned(n) => Some(n as f64),
                Value::Signed(n) => Some(n as f64),
                Value::Float(x) => Some(x),
                Value::Bool(claim) => Some(f64::from(u8::from(claim))),
                Value::Text(_) | Value::Array(_) => None,
            })
            .collect()
    }
}
