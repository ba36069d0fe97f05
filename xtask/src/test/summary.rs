//! Reads what the test programs print (libtest's human-readable form, with `--show-output`) and sums it.

use std::fmt;

/// A test that did not do its work, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Skip {
    /// Name of the test.
    pub name: String,
    /// What it printed.
    pub why: String,
}

/// Where in one test program's output we are.
#[derive(Debug, Default, PartialEq, Eq)]
enum Section {
    /// A line per test.
    #[default]
    Tests,
    /// Output of tests that passed; swallowed but for skips.
    Passed,
    /// Output of tests that failed.
    Failed,
}

/// Sums over all test programs.
#[derive(Debug, Default)]
pub struct Summary {
    /// Tests that did their work.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that said `SKIP`, or are ignored.
    pub skipped: Vec<Skip>,
    section: Section,
    /// Test whose output is being read.
    test: String,
    /// Passed tests of this program that said `SKIP`.
    said_so: usize,
    /// Whether this program has no test to run.
    empty: bool,
}

impl Summary {
    /// Takes one line; whether it is worth showing.
    pub fn take(&mut self, line: &str) -> bool {
        if let Some(tests) = line.strip_prefix("running ").filter(|rest| is_count(rest)) {
            // A program without a test of that name has nothing to say.
            self.empty = tests.starts_with("0 ");
            self.section = Section::Tests;
        } else if line == "successes:" {
            self.section = Section::Passed;
        } else if line == "failures:" {
            self.section = Section::Failed;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.add(result);
            self.section = Section::Tests;
            return !self.empty;
        }
        match self.section {
            Section::Tests => self.test_line(line),
            Section::Passed => self.passed_line(line),
            Section::Failed => true,
        }
    }

    fn test_line(&mut self, line: &str) -> bool {
        let ignored = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ignored"));
        if let Some((name, _)) = ignored {
            self.skipped.push(Skip { name: name.to_string(), why: "#[ignore]".to_string() });
        }
        !line.is_empty() && !self.empty
    }

    fn passed_line(&mut self, line: &str) -> bool {
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.test = name.to_string();
        }
        let Some(skip) = line.strip_prefix("SKIP ") else { return false };
        let why = skip.split_once(": ").map_or(skip, |(_, why)| why);
        // libtest calls it passed, once however often it said so.
        if self.skipped.last().is_none_or(|last| last.name != self.test) {
            self.said_so += 1;
        }
        self.skipped.push(Skip { name: self.test.clone(), why: why.to_string() });
        true
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; …`
    fn add(&mut self, result: &str) {
        let count = |what: &str| {
            let part = result.split(['.', ';']).find(|part| part.trim_end().ends_with(what));
            part.and_then(|part| part.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0)
        };
        self.passed += count(" passed").saturating_sub(std::mem::take(&mut self.said_so));
        self.failed += count(" failed");
    }
}

/// `3 tests` or `1 test`.
fn is_count(rest: &str) -> bool {
    let mut words = rest.split(' ');
    words.next().is_some_and(|count| count.parse::<usize>().is_ok())
        && words.next().is_some_and(|unit| unit == "test" || unit == "tests")
        && words.next().is_none()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<&str> = self.skipped.iter().map(|skip| skip.name.as_str()).collect();
        names.dedup();
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, names.len())?;
        if !names.is_empty() {
            write!(f, " ({})", names.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two programs: one with a skip, one with a failure and an ignored test; and an empty one.
    const OUTPUT: &str = "
running 2 tests
test capture ... ok
test mptcp ... ok

successes:

---- mptcp stdout ----
some noise
SKIP multipath over IPv6: no MPTCP in this kernel
SKIP multipath: no MPTCP in this kernel

successes:
    capture
    mptcp

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s

running 3 tests
test slow ... ignored, takes long
test wrong ... FAILED
test right ... ok

failures:

---- wrong stdout ----
assertion failed

failures:
    wrong

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn results_of_all_programs_are_summed_and_skips_are_named() {
        let mut summary = Summary::default();
        let shown: Vec<&str> = OUTPUT.lines().filter(|line| summary.take(line)).collect();
        assert_eq!(summary.to_string(), "2 passed, 1 failed, 2 skipped (mptcp, slow)");
        assert_eq!(summary.skipped[0].why, "no MPTCP in this kernel");
        assert!(shown.contains(&"assertion failed") && shown.contains(&"test capture ... ok"));
        assert!(!shown.contains(&"some noise") && !shown.contains(&"running 0 tests"), "{shown:?}");
    }
}
