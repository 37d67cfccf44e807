use std::sync::OnceLock;

use chat::OutputConstraint;

use super::{sections, texts};
use crate::models::TokenId;
use crate::sampling::{Constraint, ConstraintVocabulary};

/// Tokens of one answer.
const LONGEST_ANSWER: usize = 100;

/// Sections: `schema` or `grammar`; its source; a byte for each token of the answer, which chooses among what is allowed.
///
/// Compiles the source and writes an answer within it.
pub fn constraint(data: &[u8]) {
    static VOCABULARY: OnceLock<(ConstraintVocabulary, usize)> = OnceLock::new();
    let (vocabulary, count) = VOCABULARY.get_or_init(vocabulary);
    let end = (*count - 1) as TokenId;
    let texts = texts(data);
    let [kind, source, ..] = texts.as_slice() else { return };
    let output = match kind.as_str() {
        "schema" => OutputConstraint::JsonSchema(source.clone()),
        "grammar" => OutputConstraint::Grammar(source.clone()),
        _ => return,
    };
    let Ok(mut constraint) = Constraint::new(vocabulary, &output) else { return };
    let choices = sections(data).get(2).copied().unwrap_or_default();
    for choice in choices.iter().take(LONGEST_ANSWER) {
        let mut logits = vec![0.0; *count];
        // It may cost too much.
        if constraint.mask(&mut logits).is_err() {
            return;
        }
        let allowed: Vec<usize> = (0..*count).filter(|token| logits[*token] == 0.0).collect();
        let token = allowed[usize::from(*choice) % allowed.len()] as TokenId;
        if token == end || constraint.accept(token).is_err() || constraint.is_complete() {
            return;
        }
    }
}

/// Every byte, some longer tokens and an end.
fn vocabulary() -> (ConstraintVocabulary, usize) {
    let mut pieces: Vec<Vec<u8>> = (0..=255_u8).map(|byte| vec![byte]).collect();
    let longer = ["{\"", "\":", "\",", "\"}", "[]", "{}", "true", "fal", "null", " \n", "12", "日本", "name", "-1"];
    pieces.extend(longer.iter().map(|piece| piece.as_bytes().to_vec()));
    pieces.push(Vec::new());
    let count = pieces.len();
    let vocabulary = ConstraintVocabulary::new(pieces, &[(count - 1) as TokenId]);
    (vocabulary.expect("it has an end and few tokens"), count)
}
