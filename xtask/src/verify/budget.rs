//! How much work the verifier may have with each program, per kernel: `xtask/verify/budget.txt`.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

use super::results::Step;

/// The checked-in file.
const FILE: &str = "xtask/verify/budget.txt";

/// Limits by kernel series and program.
#[derive(Debug)]
pub struct Budget(BTreeMap<(String, String), u64>);

/// Reads the checked-in budget.
pub fn read(root: &Path) -> Result<Budget> {
    Budget::parse(&fs::read_to_string(root.join(FILE)).with_context(|| format!("cannot read {FILE}"))?)
}

impl Budget {
    /// Lines `<series> <program> <instructions>`; `#` starts a comment.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entries = lines.map(|line| {
            let mut words = line.split_whitespace();
            let entry = (words.next(), words.next(), words.next().and_then(|limit| limit.parse().ok()));
            let (Some(series), Some(program), Some(limit)) = entry else {
                anyhow::bail!("{FILE}: not \"<series> <program> <instructions>\": {line}")
            };
            Ok(((series.to_string(), program.to_string()), limit))
        });
        entries.collect::<Result<_>>().map(Self)
    }

    /// The limit of a program on a kernel.
    pub fn limit(&self, series: &str, program: &str) -> Option<u64> {
        self.0.get(&(series.to_string(), program.to_string())).copied()
    }

    /// What is over its limit, or has none. A kernel without any line is not under budget: it was
    /// asked for by hand, outside the supported matrix.
    pub fn exceeded(&self, series: &str, steps: &[Step]) -> Vec<String> {
        if !self.0.keys().any(|(known, _)| known == series) {
            return Vec::new();
        }
        steps.iter().filter_map(|step| self.over(series, step)).collect()
    }

    fn over(&self, series: &str, step: &Step) -> Option<String> {
        let program = step.name.strip_prefix("load.").filter(|_| step.verdict == "OK")?;
        let Some(limit) = self.limit(series, program) else {
            return Some(format!("{program} has no budget for {series}: add it to {FILE}"));
        };
        let Some(count) = step.instructions() else {
            return Some(format!("{program}: the kernel does not say how much it verified"));
        };
        let over =
            format!("{program}: {count} verified instructions, budget {limit}; if that is meant: {FILE}");
        (count > limit).then_some(over)
    }
}
