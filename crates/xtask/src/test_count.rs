//! How many tests ran, read from what the runners print at their end.

use std::fmt;

/// Tests of one step, summed over all the runners that reported in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TestCount {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl fmt::Display for TestCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed", self.passed)?;
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Reads the closing lines of cargo test, vitest, node's runner, and plain "N passed, N failed".
pub(crate) fn count_tests(output: &str) -> TestCount {
    let mut count = TestCount::default();
    for line in output.lines().map(str::trim) {
        let plain = || {
            let mut words = line.split_whitespace();
            words.next().is_some_and(|word| word.parse::<u64>().is_ok()) && words.next() == Some("passed,")
        };
        if line.starts_with("test result:") || line.starts_with("Tests ") || plain() {
            count.passed += before(line, "passed");
            count.failed += before(line, "failed");
            count.skipped += before(line, "ignored") + before(line, "skipped");
        } else if let Some(rest) = line.strip_prefix("# ").or_else(|| line.strip_prefix("ℹ ")) {
            count.passed += after(rest, "pass");
            count.failed += after(rest, "fail");
            count.skipped += after(rest, "skipped");
        }
    }
    count
}

/// The number that stands before `word`.
fn before(line: &str, word: &str) -> u64 {
    let words: Vec<&str> = line.split([' ', ';', ',']).filter(|word| !word.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

/// The number that makes up the line together with `word`.
fn after(line: &str, word: &str) -> u64 {
    line.strip_prefix(word).and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(output: &str, passed: u64, failed: u64, skipped: u64) {
        assert_eq!(count_tests(output), TestCount { passed, failed, skipped }, "{output}");
    }

    #[test]
    fn every_runner_is_understood() {
        check(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            12,
            0,
            1,
        );
        check(" Test Files  2 passed (2)\n      Tests  1 failed | 11 passed (12)", 11, 1, 0);
        check("# tests 3\n# pass 2\n# fail 1\n# skipped 0", 2, 1, 0);
        check("ℹ pass 4\nℹ fail 0", 4, 0, 0);
        check("5 passed, 0 failed", 5, 0, 0);
    }

    #[test]
    fn runners_add_up_and_other_lines_do_not_count() {
        check("test result: ok. 1 passed; 0 failed\nrunning 3 tests\ntest result: FAILED. 2 passed; 1 failed", 3, 1, 0);
        check("12 passed the gate\nTests are fun\n# passage 3", 0, 0, 0);
    }
}
