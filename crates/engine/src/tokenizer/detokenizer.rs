/// Puts the bytes of tokens together and gives them out as soon as they are whole characters.
pub(crate) struct Detokenizer {
    pending: Vec<u8>,
    /// The first word of an answer begins with a space that nobody wrote.
    drop_space: bool,
}

impl Detokenizer {
    pub(super) const fn new(drop_space: bool) -> Self {
        Self { pending: Vec::new(), drop_space }
    }

    /// The text that is whole after `piece`.
    pub(crate) fn push(&mut self, piece: &[u8]) -> String {
        let piece = if self.drop_space && !piece.is_empty() {
            self.drop_space = false;
            piece.strip_prefix(b" ").unwrap_or(piece)
        } else {
            piece
        };
        self.pending.extend_from_slice(piece);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let (whole, rest) = self.pending.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    let Some(broken) = error.error_len() else {
                        // The beginning of a character whose other bytes are in the next token.
                        self.pending = rest.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending = rest[broken..].to_vec();
                }
            }
        }
    }

    /// What is left at the end of an answer: half a character at most.
    pub(crate) fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}
