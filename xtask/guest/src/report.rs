//! Result lines: the only thing that the host believes.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use crate::features;

/// Counts what was reported.
#[derive(Debug, Default)]
pub struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    /// Runs a step and prints its result. A kernel that the table of features calls too old skips it.
    pub fn step(&mut self, name: &str, check: impl FnOnce() -> Result<Value>) {
        self.step_with(name, || check().map(|detail| ((), detail)));
    }

    /// A step whose product later steps need; `None` when it failed or was skipped.
    pub fn step_with<T>(&mut self, name: &str, check: impl FnOnce() -> Result<(T, Value)>) -> Option<T> {
        if let Some(minimum) = features::too_old_for(name) {
            self.skipped += 1;
            line(name, "SKIP", &json!({ "needs": minimum }));
            return None;
        }
        match check() {
            Ok((product, detail)) => {
                self.passed += 1;
                line(name, "OK", &detail);
                Some(product)
            }
            Err(error) => {
                self.failed += 1;
                line(name, "FAIL", &json!({ "error": format!("{error:#}") }));
                None
            }
        }
    }

    /// The closing line, without which nothing counts.
    pub fn finish(self) -> ExitCode {
        let verdict = if self.failed == 0 { "OK" } else { "FAIL" };
        let counts = json!({"passed": self.passed, "failed": self.failed, "skipped": self.skipped});
        line("all", verdict, &counts);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn line(step: &str, verdict: &str, detail: &Value) {
    println!("RESULT {step} {verdict} {detail}");
}
