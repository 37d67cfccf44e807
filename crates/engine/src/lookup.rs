//! Guesses tokens from what the prompt and the answer say already (prompt lookup decoding,
//! <https://github.com/apoorvumang/prompt-lookup-decoding>): who edits code or quotes a text writes much of it again. A guess
//! is checked in the pass that makes the next token anyway, and costs little there; it never changes what is written.

use std::collections::HashMap;

use crate::models::TokenId;

/// Tokens that must have come before for what followed them to be a guess.
const ALIKE: usize = 3;
/// The most that are guessed at once: with these a pass takes about twice as long as for one token.
const MOST: usize = 7;
/// The most times that a guess is let go by after others were wrong.
const LONGEST_REST: u32 = 32;

/// The tokens of one sequence, and what followed any [`ALIKE`] of them.
pub(crate) struct Lookup {
    tokens: Vec<TokenId>,
    /// Where the token after these is; the last time, where they came more than once.
    followers: HashMap<[TokenId; ALIKE], usize>,
    /// Tokens that are guessed at once: more while guesses are right.
    reach: usize,
    /// Guesses in a row of which nothing was right.
    misses: u32,
    /// Guesses that are let go by.
    rest: u32,
}

impl Lookup {
    pub(crate) fn new(tokens: &[TokenId]) -> Self {
        let mut lookup = Self { tokens: Vec::new(), followers: HashMap::new(), reach: 2, misses: 0, rest: 0 };
        tokens.iter().for_each(|token| lookup.push(*token));
        lookup
    }

    pub(crate) fn push(&mut self, token: TokenId) {
        if let Some(before) = self.tokens.last_chunk::<ALIKE>() {
            self.followers.insert(*before, self.tokens.len());
        }
        self.tokens.push(token);
    }

    /// The whole sequence.
    pub(crate) fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// At most `most` tokens that may come next; then comes [`Self::judge`].
    pub(crate) fn guess(&mut self, most: usize) -> &[TokenId] {
        let Some(at) = self.tokens.last_chunk::<ALIKE>().and_then(|last| self.followers.get(last)).copied() else {
            return &[];
        };
        if self.rest > 0 {
            self.rest -= 1;
            return &[];
        }
        let end = (at + self.reach.min(most)).min(self.tokens.len());
        &self.tokens[at..end]
    }

    /// So many of the tokens that were guessed were right.
    pub(crate) fn judge(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        if right == guessed {
            self.reach = (self.reach * 2).min(MOST);
        } else if right * 2 < guessed {
            self.reach = (self.reach / 2).max(1);
        }
        self.misses = if right == 0 { self.misses + 1 } else { 0 };
        // The first one wrong is no reason yet.
        self.rest = if self.misses < 2 { 0 } else { 1 << self.misses.min(LONGEST_REST.ilog2()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_same_tokens_last_is_guessed() {
        let mut lookup = Lookup::new(&[1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 7, 1, 2]);
        assert_eq!(lookup.guess(7), [] as [TokenId; 0], "only two of three have come");
        lookup.push(3);
        assert_eq!(lookup.guess(7), [5, 6]);
        assert_eq!(lookup.guess(1), [5]);
        assert_eq!(lookup.guess(0), [] as [TokenId; 0]);
        assert_eq!(lookup.tokens().len(), 14);
    }

    #[test]
    fn right_guesses_grow_and_wrong_ones_become_rare() {
        let text: Vec<TokenId> = (0..40).chain(0..3).collect();
        let mut lookup = Lookup::new(&text);
        let mut lengths = Vec::new();
        for _ in 0..3 {
            let guess = lookup.guess(MOST).to_vec();
            lengths.push(guess.len());
            guess.iter().for_each(|token| lookup.push(*token));
            lookup.judge(guess.len(), guess.len());
        }
        assert_eq!(lengths, [2, 4, 7]);
        let tries = (0..200).filter(|_| {
            let guessed = lookup.guess(MOST).len();
            lookup.judge(guessed, 0);
            guessed > 0
        });
        assert!(tries.count() < 20, "a sequence of which nothing comes again is hardly slowed down");
        while lookup.guess(MOST).is_empty() {}
        lookup.judge(1, 1);
        assert_eq!((lookup.rest, lookup.reach), (0, 2));
    }

    #[test]
    fn what_is_short_or_repeats_itself_is_no_trouble() {
        for tokens in [&[][..], &[1], &[1, 1], &[1, 1, 1], &[1, 1, 1, 1, 1]] {
            let mut lookup = Lookup::new(tokens);
            let guess = lookup.guess(MOST).to_vec();
            assert!(guess.iter().all(|token| *token == 1) && guess.len() <= 1, "{guess:?}");
        }
    }
}
