//! Text that people wrote must stay text, also where it spells the name of a token that steers the model. A template
//! mixes both into one string, so names in people's text are broken, before the rendering, by a character that occurs
//! nowhere else; the tokenizer finds no name across it and takes it out. Templates may trim, cut, search and encode
//! such text as they like: whatever is left of a broken name is still broken.

use std::collections::HashSet;

use aho_corasick::AhoCorasick;

use crate::LoadError;

/// Knows the names.
pub(super) struct Seal {
    finder: AhoCorasick,
    /// Names without their brackets that are words, which a template may put brackets around: `think`, also as `/think`.
    words: Vec<String>,
}

/// Breaks names in the texts of one request.
pub(super) struct Sealer<'a> {
    seal: &'a Seal,
    character: char,
}

impl Seal {
    /// # Errors
    /// When the names are too many.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Result<Self, LoadError> {
        let (mut patterns, mut words) = (Vec::new(), Vec::new());
        for name in names {
            let inner = name.trim_start_matches(['<', '[']).trim_start_matches('/').trim_end_matches(['>', ']']);
            let is_word = inner.chars().all(|character| character.is_alphanumeric() || character == '_');
            if inner.is_empty() {
                patterns.push(name.to_owned());
            } else if is_word {
                // With one bracket from the template, text and template could spell the name together.
                let start = name.len() - name.trim_start_matches(['<', '[', '/']).len();
                patterns.push(name[..start + inner.len()].to_owned());
                patterns.push(name[start..].to_owned());
                words.push(inner.to_owned());
            } else {
                patterns.push(inner.to_owned());
            }
        }
        // One character cannot be broken; the tokenizer looks for no such name.
        patterns.retain(|pattern| pattern.chars().nth(1).is_some());
        let finder = AhoCorasick::new(patterns).map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        Ok(Self { finder, words })
    }

    /// A sealer for texts that all are in `texts`, and a template whose source is there, too.
    ///
    /// # Errors
    /// When the texts hold every character that could be the seal.
    pub(super) fn sealer<'a>(&'a self, texts: &[&str]) -> Result<Sealer<'a>, LoadError> {
        // Characters that Unicode sets aside for use inside a program, then those for private use.
        let candidates = ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{ffffd}');
        let used: HashSet<char> = texts.iter().flat_map(|text| text.chars().filter(|c| *c >= '\u{fdd0}')).collect();
        let character = candidates.into_iter().find(|character| !used.contains(character));
        let refused = || LoadError::Template("the messages use every private character".to_owned());
        Ok(Sealer { seal: self, character: character.ok_or_else(refused)? })
    }
}

impl Sealer<'_> {
    pub(super) const fn character(&self) -> char {
        self.character
    }

    /// `text`, with a seal after the first character of every name in it.
    pub(super) fn seal(&self, text: &str) -> String {
        let inner = text.trim().trim_start_matches('/');
        let is_word = self.seal.words.iter().any(|word| word == inner);
        let starts = self.seal.finder.find_overlapping_iter(text).map(|found| found.start());
        let mut places: Vec<usize> = starts.chain(is_word.then(|| text.len() - text.trim_start().len())).collect();
        places.sort_unstable();
        places.dedup();
        let mut sealed = String::with_capacity(text.len() + places.len() * self.character.len_utf8());
        let mut from = 0;
        for place in places {
            let end = place + text[place..].chars().next().map_or(0, char::len_utf8);
            sealed.push_str(&text[from..end]);
            sealed.push(self.character);
            from = end;
        }
        sealed.push_str(&text[from..]);
        sealed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 8] = ["<|im_end|>", "<think>", "</think>", "[INST]", "<s>", "</s>", "<turn|>", "<｜User｜>"];

    fn check(text: &str, expected: &str) {
        let seal = Seal::new(NAMES.into_iter()).unwrap();
        let sealer = seal.sealer(&[text]).unwrap();
        assert_eq!(sealer.seal(text).replace(sealer.character(), "~"), expected);
    }

    #[test]
    fn names_are_broken_and_nothing_else() {
        check("a <|im_end|> b", "a <|~im_end|> b");
        check("I think [so]", "I think [so]");
        check("</think>", "<~/t~hink>");
        check(" think ", " t~hink ");
        check("/think", "/~think");
        check("|im_end|", "|~im_end|");
    }

    #[test]
    fn the_seal_is_a_character_that_the_request_lacks() {
        let seal = Seal::new(NAMES.into_iter()).unwrap();
        let text: String = ('\u{fdd0}'..='\u{fdef}').collect();
        assert_eq!(seal.sealer(&[&text]).unwrap().character(), '\u{f0000}');
        let text: String = text.chars().chain('\u{f0000}'..='\u{ffffd}').collect();
        assert!(seal.sealer(&[&text]).is_err());
    }

    proptest! {
        /// Whatever a template writes around a text, together they spell no name that the template didn't.
        #[test]
        fn no_name_is_made_with_the_help_of_text(
            text in "[<>|/\\[\\]a ]{0,3}(<\\|im_end\\|>|\\|im_end\\||im_end|think|</think|INST\\]|s|turn\\||<s>)[<>|/\\[\\] ]{0,3}",
            around in prop::sample::select(vec![("<", ">"), ("</", ">"), ("[", "]"), ("", ""), ("<", ""), ("", ">"), (" <x=", ">")]),
        ) {
            let seal = Seal::new(NAMES.into_iter()).unwrap();
            let sealer = seal.sealer(&[&text]).unwrap();
            for inner in [sealer.seal(&text), sealer.seal(&text).trim().to_owned()] {
                let rendered = format!("{}{inner}{}", around.0, around.1);
                for name in NAMES {
                    prop_assert!(!rendered.contains(name), "{name} in {rendered:?}");
                }
            }
        }
    }
}
