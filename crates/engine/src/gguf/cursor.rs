use chat::Bytes;

use crate::LoadError;

/// No part of a header is larger; a count that asks for more is damage, one that asks for less and doesn't fit is a
/// download that stopped.
const LARGEST_PLAUSIBLE: u64 = 1 << 30;

/// Reads little-endian values out of a file's bytes and never past their end.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(crate) const fn position(&self) -> usize {
        self.at
    }

    pub(crate) const fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    pub(crate) fn malformed(&self, what: impl Into<String>) -> LoadError {
        LoadError::Malformed { at: self.at as u64, what: what.into() }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], LoadError> {
        let end = self.at.checked_add(len);
        let Some((end, taken)) = end.and_then(|end| Some((end, self.bytes.get(self.at..end)?))) else {
            return Err(LoadError::Truncated { at: Bytes(self.bytes.len() as u64), expected: None });
        };
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut value = [0; N];
        value.copy_from_slice(self.take(N)?);
        Ok(value)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, LoadError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, LoadError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that take at least `least_bytes` each; refused where the rest of the file couldn't hold them.
    pub(crate) fn count(&mut self, what: &str, least_bytes: usize) -> Result<usize, LoadError> {
        let at = self.at;
        let count = self.u64()?;
        let most = (self.remaining() / least_bytes.max(1)) as u64;
        if count > most && count.saturating_mul(least_bytes as u64) <= LARGEST_PLAUSIBLE {
            return Err(LoadError::Truncated { at: Bytes(self.bytes.len() as u64), expected: None });
        }
        if count > most {
            let what = format!("{count} {what}, more than the rest of the file can hold");
            return Err(LoadError::Malformed { at: at as u64, what });
        }
        // At most `remaining`, which is a usize.
        Ok(count as usize)
    }

    /// A length and so many bytes.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], LoadError> {
        let len = self.count("bytes of text", 1)?;
        self.take(len)
    }

    /// A length and so many bytes of UTF-8.
    pub(crate) fn text(&mut self) -> Result<&'a str, LoadError> {
        let at = self.at;
        std::str::from_utf8(self.bytes()?)
            .map_err(|_| LoadError::Malformed { at: at as u64, what: "a name that is not UTF-8".to_owned() })
    }
}
