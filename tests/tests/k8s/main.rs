//! `cargo xtask test k8s [CASE] [--keep]`: a cluster of the real programs on two nodes with Culvert
//! installed, and cases that run on it one after another. Prints what libtest prints, so that
//! `cargo xtask test` counts these cases too.

mod cases;
mod load;
mod report;
mod shop;
mod stage;

use std::process::ExitCode;

use harness::{guard, require};

use report::Report;
use stage::Stage;

/// A case: its name, and what it does.
type Case = (&'static str, fn(&mut Stage) -> anyhow::Result<()>);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| words.iter().any(|word| word == flag);
    let filter = words.iter().find(|word| !word.starts_with('-')).cloned().unwrap_or_default();
    let chosen: Vec<&Case> = cases::ALL.iter().filter(|(name, _)| name.contains(&filter)).collect();
    if has("--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut report = Report::start(chosen.len());
    if chosen.is_empty() {
        return report.end();
    }
    if !has(guard::SUPERVISED) {
        if !require::cluster("k8s") {
            chosen.iter().for_each(|(name, _)| report.skipped(name, require::cluster_excuse()));
            return report.end();
        }
        return guard::supervise().unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        });
    }
    let mut stage = match Stage::set() {
        Ok(stage) => stage,
        Err(error) => {
            chosen.iter().for_each(|(name, _)| report.failed(name, &format!("no cluster: {error:#}")));
            return report.end();
        }
    };
    for (name, case) in chosen {
        stage.say(&format!("case {name}"));
        let outcome = case(&mut stage);
        report.take(name, outcome, &stage);
        stage.clear();
    }
    if has("--keep") {
        stage.keep();
    }
    report.end()
}
