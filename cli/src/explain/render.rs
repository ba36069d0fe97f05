//! An explanation as text.

use std::fmt::Write;

use mesh_core::{
    outcome::Refusal,
    trace::{Step, StepKind},
};

use super::{AgentView, Disagreement, Told};
use crate::{style::Style, table::Table};

/// The decisions in order, the kernel's entries, and whether the agent agrees.
pub fn render(told: &Told, style: Style) -> String {
    let mut out = String::new();
    let title = format!("{} → {}", told.source, told.destination);
    let by = format!("by {}, snapshot {}", told.by, told.explanation.snapshot);
    let _ = writeln!(out, "{}  {}", style.bold(&title), style.faint(&by));
    for note in &told.notes {
        let _ = writeln!(out, "{} {note}", style.doubtful("note:"));
    }
    out.push('\n');
    for (number, step) in told.explanation.steps.iter().enumerate() {
        let _ = writeln!(out, "{:>2}. {}", number + 1, shown(step, told.explanation.carried, style));
    }
    if let Some(refusal) = &told.explanation.refusal {
        let _ = writeln!(out, "\n{}", meaning(refusal));
    }
    told.agent.iter().for_each(|agent| kernel(&mut out, agent, style));
    told.disagreement.iter().for_each(|d| loudly(&mut out, d, style));
    out
}

fn shown(step: &Step, carried: bool, style: Style) -> String {
    let line = step.to_string();
    match (step.kind, carried) {
        (StepKind::Verdict, true) => style.good(&line),
        (StepKind::Verdict, false) => style.bad(&line),
        _ => line,
    }
}

fn meaning(refusal: &Refusal) -> String {
    format!("{} means: {}", refusal.reason, refusal.reason.explanation().trim())
}

fn kernel(out: &mut String, agent: &AgentView, style: Style) {
    let _ = writeln!(out, "\n{}", style.bold(&format!("kernel of node {}", agent.node)));
    let mut table = Table::new(&["TABLE", "ENTRY", "DETAIL"]);
    for entry in &agent.kernel {
        table.row([entry.table.clone(), entry.entry.clone(), entry.detail.clone()]);
    }
    match table.is_empty() {
        true => out.push_str("  no entry\n"),
        false => table.lines().iter().for_each(|line| {
            let _ = writeln!(out, "{line}");
        }),
    }
}

fn loudly(out: &mut String, d: &Disagreement, style: Style) {
    let warning = "WARNING: the agent decides otherwise than the control plane";
    let _ = writeln!(out, "\n{}", style.bad(warning));
    let _ = writeln!(out, "  agent          snapshot {:>6}  {}", d.agent_snapshot, d.agent);
    let _ = writeln!(out, "  control plane  snapshot {:>6}  {}", d.control_snapshot, d.control);
    out.push_str("  The agent has not got the newest configuration, and its verdict is in force\n  (snapshots are counted by each program for itself).\n");
    out.push_str("  next: culvert status shows whether it is connected and what it refused\n");
}
