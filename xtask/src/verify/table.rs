//! The results as a table and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    budget::Budget,
    outcome::{Outcome, Verified},
};

/// A row per step, a column per kernel; a loaded program with the instructions verified and their budget.
pub fn render(kernels: &[Verified], budget: &Budget) -> String {
    let mut text = String::new();
    row(&mut text, "step", kernels.iter().map(|kernel| kernel.series.clone()));
    for name in step_names(kernels) {
        row(&mut text, &name, kernels.iter().map(|kernel| cell(kernel, &name, budget)));
    }
    row(&mut text, "seconds", kernels.iter().map(|kernel| format!("{:.1}", kernel.seconds)));
    row(&mut text, "outcome", kernels.iter().map(|kernel| kernel.outcome.name().to_string()));
    for kernel in kernels {
        let why = if kernel.outcome == Outcome::Passed { "" } else { ": " };
        let _ = writeln!(text, "{} {}{why}{}", kernel.series, kernel.package, kernel.outcome.why());
    }
    text.trim_end().to_string()
}

fn row(text: &mut String, name: &str, cells: impl Iterator<Item = String>) {
    let _ = write!(text, "{name:34}");
    for cell in cells {
        let _ = write!(text, "{cell:>18}");
    }
    text.push('\n');
}

/// Every step that any kernel reported, in order of its first appearance.
fn step_names(kernels: &[Verified]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for step in kernels.iter().flat_map(|kernel| &kernel.results) {
        if !names.contains(&step.name) && step.name != "all" {
            names.push(step.name.clone());
        }
    }
    names
}

fn cell(kernel: &Verified, name: &str, budget: &Budget) -> String {
    let Some(step) = kernel.results.iter().find(|step| step.name == name) else { return "-".to_string() };
    let Some(count) = step.instructions() else { return step.verdict.clone() };
    let program = name.strip_prefix("load.").unwrap_or(name);
    let limit =
        budget.limit(&kernel.series, program).map_or_else(|| "?".to_string(), |limit| limit.to_string());
    format!("{} {count}/{limit}", step.verdict)
}

/// Everything that is known.
pub fn json(kernels: &[Verified]) -> Value {
    let list: Vec<Value> = kernels.iter().map(kernel_json).collect();
    let ok = !kernels.is_empty() && kernels.iter().all(|kernel| kernel.outcome == Outcome::Passed);
    json!({"ok": ok, "kernels": list})
}

fn kernel_json(kernel: &Verified) -> Value {
    let steps: Vec<Value> = kernel
        .results
        .iter()
        .map(|step| json!({"step": step.name, "verdict": step.verdict, "detail": step.detail}))
        .collect();
    json!({
        "kernel": kernel.series,
        "package": kernel.package,
        "outcome": kernel.outcome.name().to_lowercase(),
        "why": kernel.outcome.why(),
        "seconds": kernel.seconds,
        "steps": steps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_could_not_be_tried_is_never_ok_in_table_and_json() {
        let kernels = [Verified::not_verified("6.1", &anyhow::anyhow!("no package"))];
        let text = render(&kernels, &Budget::parse("").unwrap());
        assert!(text.contains("NOT VERIFIED") && text.contains("no package"), "{text}");
        assert_eq!(json(&kernels)["ok"], false);
        assert_eq!(json(&[])["ok"], false);
        assert_eq!(json(&kernels)["kernels"][0]["outcome"], "not verified");
    }
}
