//! The guest's result lines, and what they are worth.

use serde_json::Value;

use super::{budget::Budget, machine::Console, outcome::Outcome};

/// Steps that may be skipped, with the kernel that each needs; the guest reads the same file.
const MINIMUM: &str = include_str!("../../verify/minimum-kernels.txt");
/// Steps without which a run proves nothing, whatever the guest says of itself.
const EXPECTED: [&str; 6] =
    ["kernel", "control.refused", "attach", "smoke.capture4", "smoke.inbound", "dmesg"];
/// Programs of the object: each must have been loaded.
const PROGRAMS: usize = 7;

/// One line `RESULT <step> OK|FAIL|SKIP <json>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// `OK`, `FAIL` or `SKIP`.
    pub verdict: String,
    /// Figures, or the error.
    pub detail: Value,
}

impl Step {
    /// Instructions that the verifier looked at, for a step that loaded a program.
    pub fn instructions(&self) -> Option<u64> {
        self.detail["verified_instructions"].as_u64()
    }
}

/// Finds the result lines. The firmware writes escape codes before the first one, so the prefix may
/// stand anywhere in a line; a line that does not parse is no result.
pub fn parse(console: &str) -> Vec<Step> {
    console.lines().filter_map(step).collect()
}

fn step(line: &str) -> Option<Step> {
    let (_, text) = line.split_once("RESULT ")?;
    let mut parts = text.trim().splitn(3, ' ');
    let (name, verdict, detail) = (parts.next()?, parts.next()?, parts.next()?);
    let detail = serde_json::from_str(detail).ok()?;
    ["OK", "FAIL", "SKIP"].contains(&verdict).then(|| Step {
        name: name.into(),
        verdict: verdict.into(),
        detail,
    })
}

/// The verdict on a run. Fails closed: no closing line, a missing step, a program without a budget or
/// a skip that the table does not allow are all failures.
pub fn judge(steps: &[Step], series: &str, budget: &Budget, console: &Console) -> Outcome {
    let mut problems = failures(steps);
    problems.extend(missing(steps));
    problems.extend(skips(steps, series));
    problems.extend(budget.exceeded(series, steps));
    if steps.last().is_none_or(|last| last.name != "all" || last.verdict != "OK") {
        problems.push(match console.timed_out {
            true => "the time limit ran out before the closing result line".to_string(),
            false => "the closing result line is missing or says FAIL".to_string(),
        });
    }
    if problems.is_empty() { Outcome::Passed } else { Outcome::Failed(problems.join("; ")) }
}

fn failures(steps: &[Step]) -> Vec<String> {
    let failed = steps.iter().filter(|step| step.verdict == "FAIL" && step.name != "all");
    failed.map(|step| format!("{}: {}", step.name, step.detail["error"].as_str().unwrap_or("?"))).collect()
}

fn missing(steps: &[Step]) -> Vec<String> {
    let has = |name: &str| steps.iter().any(|step| step.name == name);
    let mut missing: Vec<String> =
        EXPECTED.iter().filter(|name| !has(name)).map(|name| format!("no result for {name}")).collect();
    let programs = steps.iter().filter(|step| step.name.starts_with("load.")).count();
    if programs != PROGRAMS {
        missing.push(format!("{programs} programs were loaded, not {PROGRAMS}"));
    }
    missing
}

fn skips(steps: &[Step], series: &str) -> Vec<String> {
    let skipped = steps.iter().filter(|step| step.verdict == "SKIP");
    let illegal = skipped.filter(|step| !may_skip(&step.name, series));
    illegal.map(|step| format!("{} was skipped, but {series} can run it", step.name)).collect()
}

fn may_skip(step: &str, series: &str) -> bool {
    let minimum = MINIMUM.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == step);
    minimum.is_some_and(|(_, minimum)| numbers(series) < numbers(minimum))
}

/// `6.12` → (6, 12).
fn numbers(series: &str) -> (u32, u32) {
    let (major, minor) = series.trim().split_once('.').unwrap_or((series, "0"));
    (major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str) -> Console {
        Console { text: text.to_string(), seconds: 1.0, timed_out: false }
    }

    /// A run in which everything held.
    fn good() -> String {
        let mut text: String = EXPECTED.iter().map(|name| format!("RESULT {name} OK {{}}\n")).collect();
        for number in 0..PROGRAMS {
            text += &format!("RESULT load.p{number} OK {{\"verified_instructions\": 90}}\n");
        }
        text + "RESULT all OK {}\n"
    }

    fn budget() -> Budget {
        let lines: String = (0..PROGRAMS).map(|number| format!("6.1 p{number} 100\n")).collect();
        Budget::parse(&lines).unwrap()
    }

    fn verdict(text: &str) -> Outcome {
        judge(&parse(text), "6.1", &budget(), &console(text))
    }

    #[test]
    fn a_complete_run_passes_even_behind_the_firmwares_escape_codes() {
        assert_eq!(verdict(&format!("\u{1b}[2J\u{1b}c{}", good())), Outcome::Passed);
    }

    #[test]
    fn a_run_without_its_closing_line_or_with_a_broken_line_fails() {
        let text = good();
        let cut = text.replace("RESULT all OK {}\n", "");
        assert!(verdict(&cut).why().contains("closing result line"));
        assert!(verdict("").why().contains("closing result line"));
        let mixed = text.replace("RESULT attach OK {}", "RESULT attach [ 1.0] WARN OK {}");
        assert_eq!(verdict(&mixed).why(), "no result for attach");
    }

    #[test]
    fn a_failed_step_fails_the_kernel_whatever_the_closing_line_says() {
        let text = good().replace("RESULT attach OK {}", "RESULT attach FAIL {\"error\": \"no hook\"}");
        assert_eq!(verdict(&text).why(), "attach: no hook");
    }

    #[test]
    fn a_skip_that_no_table_allows_fails() {
        let text = good().replace("RESULT dmesg OK", "RESULT dmesg SKIP");
        assert_eq!(verdict(&text).why(), "dmesg was skipped, but 6.1 can run it");
        assert!(may_skip("load.culvert_inbound", "5.10") && !may_skip("load.culvert_inbound", "6.1"));
    }

    #[test]
    fn a_program_over_its_budget_or_without_one_fails() {
        let text = good().replace(
            "load.p3 OK {\"verified_instructions\": 90}",
            "load.p3 OK {\"verified_instructions\": 101}",
        );
        assert!(verdict(&text).why().starts_with("p3: 101 verified instructions, budget 100"));
        let text = good().replace("load.p4", "load.p9");
        assert!(verdict(&text).why().starts_with("p9 has no budget for 6.1"));
    }
}
