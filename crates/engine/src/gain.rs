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
/// Guesses are counted by how probable the draft took them to be: up to each of these, and above.
const SURE: [f64; 3] = [0.3, 0.6, 0.9];
/// What a draft may lose before it rests, in passes.
const MOST_LOST: f64 = 8.0;
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
    /// The part of the draft's guesses that was right, and of those that it was so sure of. What it isn't sure of may be
    /// right as well: it draws by the same seed.
    right: f64,
    right_by_sure: [f64; SURE.len() + 1],
    /// What the draft took beyond what it saved, since it was tried last; below 0, what it saved.
    lost: f64,
    /// For which the draft rests now, and how many times what it lost the next rest is.
    rest: f64,
    next_rest: f64,
}

impl Gain {
    pub(crate) const fn new() -> Self {
        let passes = [None; MOST_DECODED + 1];
        let right_by_sure = [HOPED; SURE.len() + 1];
        Self { passes, draft: None, right: HOPED, right_by_sure, lost: 0.0, rest: 0.0, next_rest: FIRST_REST }
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

    /// Of guesses that the draft was so `sure` of, the first `right` were right, and the next one was not; those after it
    /// were not looked at.
    pub(crate) fn note_guesses(&mut self, sure: &[f64], right: usize) {
        for (index, sure) in sure.iter().enumerate().take(right + 1) {
            let is_right = f64::from(u8::from(index < right));
            for mean in [&mut self.right, &mut self.right_by_sure[class(*sure)]] {
                *mean += NEWEST_GUESS * (is_right - *mean);
            }
        }
    }

    /// That a guess is right which the draft is so `sure` of.
    pub(crate) fn chance(&self, sure: f64) -> f64 {
        self.right_by_sure[class(sure)]
    }

    /// The draft took `time` in all to make `guessed` guesses for `answers` answers, of which `right` were right.
    pub(crate) fn note_drafted(&mut self, answers: usize, time: f64, guessed: usize, right: usize) {
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
        (self.lost, self.right, self.right_by_sure) = (0.0, HOPED, [HOPED; SURE.len() + 1]);
    }

    /// Of a pass with so many tokens: as long as one with the most below it that were measured, at least.
    fn pass(&self, tokens: usize) -> f64 {
        let measured = self.passes[..=tokens.min(MOST_DECODED)].iter().flatten();
        measured.copied().fold(0.0, f64::max)
    }
}

fn class(sure: f64) -> usize {
    SURE.iter().filter(|bound| sure > **bound).count()
}

fn mean(of: &mut Option<f64>, newest: f64) {
    *of = Some(of.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes so many tokens, each pass taking 1 and `more` for each token beyond the first, with a draft that takes `draft`
    /// for a token and is right in `right` of all cases. Gives the time for each token, and the part of passes with guesses.
    fn write(gain: &mut Gain, tokens: usize, draft: f64, more: f64, right: f64) -> (f64, f64) {
        let (mut written, mut time, mut passes, mut drafted) = (0, 0.0, 0.0, 0.0);
        let mut seed = 1_u32;
        while written < tokens {
            let (mut guessed, mut drafting, mut chances) = (0, 0.0, Vec::new());
            if gain.tries_draft(1) {
                let mut chance = 1.0;
                while guessed < MOST_DECODED - 1 && (guessed == 0 || gain.is_worth(1, 1 + guessed, chance)) {
                    gain.note_draft(draft);
                    drafting += draft;
                    chance *= gain.chance(0.8);
                    chances.push(chance);
                    guessed += 1;
                }
                guessed = gain.best(1, 1, &chances);
            }
            let was_right = (0..guessed).take_while(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(seed >> 8) / f64::from(1 << 24) < right
            });
            let was_right = was_right.count();
            let pass = 1.0 + more * guessed as f64;
            gain.note_pass(1 + guessed, pass);
            if drafting > 0.0 {
                gain.note_guesses(&vec![0.8; guessed], was_right);
                gain.note_drafted(1, drafting, guessed, was_right);
                drafted += 1.0;
            }
            (written, time, passes) = (written + 1 + was_right, time + drafting + pass, passes + 1.0);
        }
        (time / written as f64, drafted / passes)
    }

    #[test]
    fn a_draft_that_pays_is_used_and_another_costs_little() {
        for (draft, more, right, most_time) in [
            (0.05, 0.05, 0.9, 0.40),
            (0.1, 0.1, 0.7, 0.75),
            // A third of the model's time, and hardly a gain at best.
            (0.33, 0.15, 0.7, 1.04),
            (0.33, 0.15, 0.5, 1.04),
            (0.1, 0.1, 0.0, 1.04),
            (2.0, 0.1, 1.0, 1.04),
        ] {
            let (time, _) = write(&mut Gain::new(), 2000, draft, more, right);
            assert!(time < most_time, "{time:.2} at draft {draft}, {more} for each token more, {right} right");
        }
    }

    #[test]
    fn a_draft_rests_longer_each_time_and_comes_back_when_it_pays() {
        let mut gain = Gain::new();
        let parts = [200, 2000, 8000].map(|tokens| write(&mut gain, tokens, 0.2, 0.1, 0.1).1);
        assert!(parts[2] < parts[1] && parts[1] < parts[0] && parts[2] < 0.02, "{parts:?}");
        write(&mut gain, 40_000, 0.05, 0.05, 0.9);
        assert!(write(&mut gain, 500, 0.05, 0.05, 0.9).1 > 0.9);
    }

    #[test]
    fn a_pass_has_no_more_tokens_than_is_worth_it() {
        let mut gain = Gain::new();
        assert_eq!(gain.best(1, 1, &[0.9; 7]), 7, "nothing is known to cost anything");
        for tokens in 1..=MOST_DECODED {
            gain.note_pass(tokens, if tokens <= 4 { 1.0 } else { 2.0 });
        }
        assert_eq!(gain.best(1, 1, &[0.9, 0.8, 0.7, 0.2, 0.1, 0.1, 0.1]), 3);
        assert_eq!(gain.best(1, 1, &[0.9; 7]), 7);
        assert_eq!(gain.best(4, 4, &[0.9]), 0);
        assert!(!gain.is_worth(1, MOST_DECODED, 1.0));
    }
}
