//! Whether a mesh is ready, and what to do if not.

use super::{Agent, Control, Mesh, Unanswered};
use crate::contract::PodState;

/// States of a pod that is where it belongs, or is leaving; every other one is not ready.
const SETTLED: [&str; 5] = ["active", "ignored", "withdrawing", "draining", "gone"];
/// Pods whose state is explained; the table has the others.
const EXPLAINED: usize = 5;

/// Fills in [`Mesh::ready`] and [`Mesh::next`].
pub fn judge(mut mesh: Mesh) -> Mesh {
    let mut problems = Vec::new();
    let found_by_sockets = mesh.world.is_some();
    match &mesh.control {
        Some(control) => of_control(control, &mut problems),
        None if found_by_sockets => {
            problems.push("there is no control.sock: is the control plane running?".to_owned());
        }
        None => {}
    }
    if mesh.agents.is_empty() && found_by_sockets {
        problems.push("there is no agent-<node>.sock: is an agent running?".to_owned());
    }
    mesh.agents.iter().for_each(|agent| of_agent(agent, &mut problems));
    mesh.ready = problems.is_empty();
    problems.extend(mesh.control.iter().filter_map(hint));
    mesh.next = problems;
    mesh
}

fn of_control(control: &Control, problems: &mut Vec<String>) {
    unanswered(&control.failures, problems);
    if !control.ready && !control.says.is_empty() {
        problems.push(format!("the control plane is not ready ({}): look at its log", control.says));
    }
    for client in &control.clients {
        for (kind, reason) in &client.refused {
            let kind = kind.rsplit('.').next().unwrap_or(kind);
            problems.push(format!(
                "{} refuses {kind}: {reason}; it works on with what it had: are both of the same version?",
                client.name
            ));
        }
    }
}

fn of_agent(agent: &Agent, problems: &mut Vec<String>) {
    unanswered(&agent.failures, problems);
    let node = &agent.node;
    let awaiting = agent.config.as_ref().map(|c| c.awaiting.join(", ")).unwrap_or_default();
    if !agent.ready && agent.failures.is_empty() {
        let why = if awaiting.is_empty() { agent.says.clone() } else { format!("awaiting {awaiting}") };
        problems.push(format!("the agent of {node} is not ready ({why}): look at its log"));
    }
    let pods: Vec<_> = agent.config.iter().flat_map(|c| &c.pods).filter(|pod| !settled(pod)).collect();
    for pod in pods.iter().take(EXPLAINED) {
        let why = pod.reason.as_deref().unwrap_or("no reason given");
        let for_ = pod.since_seconds;
        problems.push(format!("{} on {node} is {} for {for_} s: {why}", pod.pod, pod.state));
    }
    if pods.len() > EXPLAINED {
        problems.push(format!("{} more pods on {node} are not active", pods.len() - EXPLAINED));
    }
}

fn unanswered(failures: &[Unanswered], problems: &mut Vec<String>) {
    problems.extend(failures.iter().map(|f| format!("{}; {}", f.reason, f.next)));
}

/// Whether nothing is to be waited for. A pod that is active with a reason (a lost certificate) is not.
pub(super) fn settled(pod: &PodState) -> bool {
    SETTLED.contains(&pod.state.as_str()) && (pod.state != "active" || pod.reason.is_none())
}

/// Refused documents do not stop the mesh: what was there before them is in force.
fn hint(control: &Control) -> Option<String> {
    let refused: Vec<_> = control.findings.iter().filter(|f| f.severity == "error").collect();
    let first = refused.first()?;
    Some(format!(
        "{} errors in the configuration, first {}{}: {} {}; culvert analyze -f FOLDER has them all",
        refused.len(),
        first.file,
        if first.line > 0 { format!(":{}", first.line) } else { String::new() },
        first.object,
        first.reason
    ))
}
