//! Whether guesses pay, from what was measured while answers were written: a pass over the weights with them, a token of
//! the draft, and how many of its guesses were right. Nothing here changes what is written, only how soon it is.

/// Tokens of all answers that are run in one pass while they are written, guesses among them.
pub(crate) const MOST_DECODED: usize = 8;
/// Weight of the newest measurement in a mean.
const NEWEST: f64 = 0.15;
/// The same of whether a guess was right, which differs much from one to the next.
const NEWEST_GUESS: f64 = 0.06;
/// The part of a draft's guesses that is taken to be right until it was tried.
const HOPED: f64 = 0.75;
/// What a draft may lose before it rests, in passes.
const MOST_LOST: f64 = 16.0;
/// The part of the time that prompts take which the draft may spend on reading them too.
const READING_SHARE: f64 = 0.1;
/// A draft that lost rests so many times what it lost, then twice as long, and so on.
const FIRST_REST: f64 = 20.0;

/// What was measured of one model and its draft; all times are in seconds.
pub(crate) struct Gain {
    /// Of a pass with so many tokens of all answers; `None` where there was none yet.
    passes: [Option<f64>; MOST_DECODED + 1],
    /// Of one token of the draft.
    draft: Option<f64>,
    /// The part of the draft's guesses that was right.
    right: f64,
    /// What the draft took beyond what it saved, since it was tried last; below 0, what it saved.
    lost: f64,
    /// For which the draft rests now, and how many times what it lost the next rest is.
    rest: f64,
    next_rest: f64,
}

impl Gain {
    pub(crate) const fn new() -> Self {
        let passes = [None; MOST_DECODED + 1];
        Self { passes, draft: None, right: HOPED, lost: 0.0, rest: 0.0, next_rest: FIRST_REST }
    }

    /// A pass with so many tokens of answers and none of prompts took `time`.
    pub(crate) fn note_pass(&mut self, tokens: usize, time: f64) {
        if let Some(pass) = self.passes.get_mut(tokens) {
            mean(pass, time);
        }
        self.rest = (self.rest - time).max(0.0);
    }

    /// Prompts were read for so long.
    pub(crate) const fn note_prefill(&mut self, time: f64) {
        self.lost -= READING_SHARE * time;
    }

    /// The draft took `time` for one token of as many answers as there are.
    pub(crate) fn note_draft(&mut self, time: f64) {
        mean(&mut self.draft, time);
    }

    /// The draft took `time` in all to make `guessed` guesses for `answers` answers, of which `right` were right and the
    /// others were not, or were not looked at.
    pub(crate) fn note_drafted(&mut self, answers: usize, time: f64, guessed: usize, right: usize, wrong: usize) {
        let weight = NEWEST_GUESS / answers.max(1) as f64;
        for is_right in std::iter::repeat_n(1.0, right).chain(std::iter::repeat_n(0.0, wrong)) {
            self.right += weight * (is_right - self.right);
        }
        let alone = self.pass(answers);
        let saved = alone * right as f64 / answers.max(1) as f64;
        self.lost += time + self.pass(answers + guessed) - alone - saved;
        // What was saved long ago is no reason to go on.
        self.lost = self.lost.max(-MOST_LOST * alone);
        if self.lost > MOST_LOST * alone {
            self.let_rest();
        } else if self.lost < -MOST_LOST * alone / 2.0 {
            self.next_rest = FIRST_REST;
        }
    }

    /// Whether the draft is to guess now.
    pub(crate) fn tries_draft(&mut self, answers: usize) -> bool {
        if self.rest > 0.0 {
            return false;
        }
        if !self.is_worth(answers, answers, 1.0) {
            self.let_rest();
        }
        self.rest == 0.0
    }

    /// Whether one more guess of the draft is worth its time, in a pass that has so many tokens without it: `chance` is
    /// that of all before it to be right.
    pub(crate) fn is_worth(&self, answers: usize, tokens: usize, chance: f64) -> bool {
        let saved = chance * self.right * self.pass(answers) / answers.max(1) as f64;
        tokens < MOST_DECODED && saved >= self.draft.unwrap_or(0.0) + self.pass(tokens + 1) - self.pass(tokens)
    }

    /// How many of the guesses with these chances to be right, all before them included, a pass that has so many tokens
    /// without them is to have: where it saves most.
    pub(crate) fn best(&self, answers: usize, tokens: usize, chances: &[f64]) -> usize {
        let each = self.pass(answers) / answers.max(1) as f64;
        let (mut best, mut most, mut saved) = (0, 0.0, 0.0);
        for (index, chance) in chances.iter().enumerate() {
            saved += chance * each;
            let gain = saved - (self.pass(tokens + index + 1) - self.pass(tokens));
            if gain >= most {
                (best, most) = (index + 1, gain);
            }
        }
        best
    }

    fn let_rest(&mut self) {
        let lost = self.lost.max(self.pass(1));
        (self.rest, self.next_rest) = (self.next_rest * lost, 2.0 * self.next_rest);
        (self.lost, self.right) = (0.0, HOPED);
    }

    /// Of a pass with so many tokens: as long as one with the most below it that were measured, at least.
    fn pass(&self, tokens: usize) -> f64 {
        let measured = self.passes[..=tokens.min(MOST_DECODED)].iter().flatten();
        measured.copied().fold(0.0, f64::max)
    }
}

fn mean(of: &mut Option<f64>, newest: f64) {
    *of = Some(of.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
}
