//! The few fields of `tokenizer.model` that GGUF carries too. It is a protocol buffer,
//! <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>.

use crate::LoadError;

/// A vocabulary of SentencePiece.
#[derive(Debug, Default, PartialEq)]
pub(super) struct SentencePieces {
    pub(super) pieces: Vec<Piece>,
    /// A text begins with a space that nobody wrote.
    pub(super) adds_space: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    /// Numbered as in `tokenizer.ggml.token_type`.
    pub(super) kind: u64,
}

const NORMAL: u64 = 1;
/// `TrainerSpec.model_type` of one that merges; 1, which is the default, is the unigram model.
const BPE: u64 = 2;

impl SentencePieces {
    /// # Errors
    /// When it is no such file, or not of the kind that merges.
    pub(super) fn parse(file: &[u8]) -> Result<Self, LoadError> {
        let broken = || LoadError::BadFile {
            file: "tokenizer.model".to_owned(),
            what: "it is not a SentencePiece model".to_owned(),
        };
        let mut model = Self { pieces: Vec::new(), adds_space: true };
        let mut kind = NORMAL;
        for field in fields(file) {
            match field.ok_or_else(broken)? {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::parse(piece).ok_or_else(broken)?),
                (2, Field::Bytes(trainer)) => kind = number(trainer, 3).ok_or_else(broken)?.unwrap_or(NORMAL),
                (3, Field::Bytes(normalizer)) => {
                    model.adds_space = number(normalizer, 3).ok_or_else(broken)?.unwrap_or(1) != 0;
                }
                _ => {}
            }
        }
        match kind {
            _ if model.pieces.is_empty() => Err(broken()),
            BPE => Ok(model),
            _ => Err(LoadError::NeedsGguf("`tokenizer.model` is of a kind that is not read from folders".to_owned())),
        }
    }
}

impl Piece {
    fn parse(message: &[u8]) -> Option<Self> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: NORMAL };
        for field in fields(message) {
            match field? {
                (1, Field::Bytes(text)) => piece.text = String::from_utf8_lossy(text).into_owned(),
                (2, Field::Four(bytes)) => piece.score = f32::from_le_bytes(bytes),
                (3, Field::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        Some(piece)
    }
}

/// The number in field `wanted` of a message: `None` for a broken message, and inside it where the field isn't there.
#[expect(clippy::option_option, reason = "told apart in the doc")]
fn number(message: &[u8], wanted: u64) -> Option<Option<u64>> {
    let mut found = None;
    for field in fields(message) {
        if let (name, Field::Number(value)) = field?
            && name == wanted
        {
            found = Some(value);
        }
    }
    Some(found)
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    Eight,
}

/// The fields of a message with their numbers; ends with a `None` where the message is broken.
fn fields(mut message: &[u8]) -> impl Iterator<Item = Option<(u64, Field<'_>)>> {
    std::iter::from_fn(move || {
        if message.is_empty() {
            return None;
        }
        let field = next_field(&mut message);
        if field.is_none() {
            message = &[];
        }
        Some(field)
    })
}

fn next_field<'a>(message: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = varint(message)?;
    let field = match tag & 7 {
        0 => Field::Number(varint(message)?),
        1 => take(message, 8).map(|_| Field::Eight)?,
        2 => {
            let len = usize::try_from(varint(message)?).ok()?;
            Field::Bytes(take(message, len)?)
        }
        5 => Field::Four(take(message, 4)?.try_into().ok()?),
        _ => return None,
    };
    Some((tag >> 3, field))
}

fn take<'a>(message: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = message.split_at_checked(len)?;
    *message = rest;
    Some(taken)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces `<unk>` and `▁a`, merging, without a space at the beginning.
    const MODEL: &[u8] = b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02\
        \x0a\x0b\x0a\x04\xe2\x96\x81a\x15\x00\x00\x80\xbf\x12\x02\x18\x02\x1a\x02\x18\x00";

    #[test]
    fn pieces_have_scores_and_kinds() {
        let model = SentencePieces::parse(MODEL).unwrap();
        let piece = |text: &str, score, kind| Piece { text: text.to_owned(), score, kind };
        assert_eq!(model.pieces, [piece("<unk>", 0.0, 2), piece("▁a", -1.0, NORMAL)]);
        assert!(!model.adds_space);
        let unigram = [&MODEL[..29], b"\x12\x02\x18\x01"].concat();
        assert!(SentencePieces::parse(&unigram).unwrap_err().to_string().contains("GGUF"));
        assert!(SentencePieces::parse(b"IQ== 0\nIg== 1\n").is_err(), "what tiktoken has under this name");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), at in 0_usize..40) {
            let _ = SentencePieces::parse(&bytes);
            let mut model = MODEL.to_vec();
            for (i, byte) in bytes.iter().take(3).enumerate() {
                if let Some(changed) = model.get_mut(at + i) {
                    *changed = *byte;
                }
            }
            if let Ok(model) = SentencePieces::parse(&model) {
                prop_assert!(model.pieces.len() <= MODEL.len());
            }
        }
    }
}
