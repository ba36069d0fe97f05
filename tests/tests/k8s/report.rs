//! One line per case, in libtest's words.

use std::{process::ExitCode, time::Instant};

use crate::stage::Stage;

/// What came of the cases so far.
pub struct Report {
    passed: usize,
    skips: Vec<(String, String)>,
    failures: Vec<(String, String)>,
    started: Instant,
}

impl Report {
    /// Says how many cases there will be.
    pub fn start(cases: usize) -> Self {
        println!("\nrunning {cases} {}", if cases == 1 { "test" } else { "tests" });
        Self { passed: 0, skips: Vec::new(), failures: Vec::new(), started: Instant::now() }
    }

    /// Takes a case's outcome; why it failed is told with the state of our own pods.
    pub fn take(&mut self, name: &str, outcome: anyhow::Result<()>, stage: &Stage) {
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok");
            }
            Err(error) => self.failed(name, &format!("{error:#}\n{}", stage.trouble())),
        }
    }

    /// A case that failed.
    pub fn failed(&mut self, name: &str, why: &str) {
        println!("test {name} ... FAILED");
        eprintln!("{name}: {why}");
        self.failures.push((name.to_string(), why.to_string()));
    }

    /// A case that cannot run here.
    pub fn skipped(&mut self, name: &str, why: &str) {
        println!("test {name} ... ok");
        self.passed += 1;
        self.skips.push((name.to_string(), why.to_string()));
    }

    /// Prints the sums.
    pub fn end(self) -> ExitCode {
        if !self.skips.is_empty() {
            println!("\nsuccesses:\n");
            for (name, why) in &self.skips {
                println!("---- {name} stdout ----\nSKIP {name}: {why}\n");
            }
        }
        if !self.failures.is_empty() {
            println!("\nfailures:\n");
            for (name, why) in &self.failures {
                println!("---- {name} stdout ----\n{why}\n");
            }
        }
        let ok = self.failures.is_empty();
        println!(
            "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
            if ok { "ok" } else { "FAILED" },
            self.passed,
            self.failures.len(),
            self.started.elapsed().as_secs_f64()
        );
        if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
