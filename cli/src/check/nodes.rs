//! Nodes by what they report.

use serde_json::Value;

use super::finding::Finding;
use crate::cluster::pod::{condition, text};

const AREA: &str = "nodes";
/// Oldest kernel whose verifier and helpers are known to take the programs.
pub(super) const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// Architectures with images.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// Nodes that are named in a line.
const NAMED: usize = 5;

/// What is wrong with nodes, each problem once with its nodes.
pub(super) fn judge(nodes: &[Value]) -> Vec<Finding> {
    let linux: Vec<_> = nodes.iter().filter(|node| info(node, "operatingSystem") == "linux").collect();
    if linux.is_empty() {
        return vec![Finding::error(
            AREA,
            "the cluster has no Linux node",
            "add one: agents run on Linux only",
        )];
    }
    let of = |wrong: &dyn Fn(&&&Value) -> bool| -> Vec<_> {
        linux.iter().filter(wrong).map(|node| text(node, "/metadata/name")).collect()
    };
    let old = of(&|node| too_old(info(node, "kernelVersion")));
    let strange = of(&|node| !ARCHITECTURES.contains(&info(node, "architecture")));
    let away = of(&|node| !condition(node, "Ready"));
    let mut findings = Vec::new();
    if !old.is_empty() {
        let (major, minor) = OLDEST_KERNEL;
        let next = format!(
            "give these nodes an image with Linux {major}.{minor} or newer, or keep agents off them with --set agent.nodeSelector={{…}}"
        );
        let kernels: Vec<_> =
            linux.iter().map(|node| info(node, "kernelVersion")).filter(|k| too_old(k)).collect();
        findings.push(Finding::error(
            AREA,
            format!("the kernel is too old ({}) on {}", kernels[0], list(&old)),
            next,
        ));
    }
    if !strange.is_empty() {
        let next = "keep agents off them with --set agent.nodeSelector={…}, or build images for them";
        findings.push(Finding::warning(
            AREA,
            format!("no image fits the processor of {}", list(&strange)),
            next,
        ));
    }
    if !away.is_empty() {
        let next = "kubectl describe node says why; agents start there when it is back";
        findings.push(Finding::warning(AREA, format!("not ready: {}", list(&away)), next));
    }
    if findings.is_empty() {
        let kernel = info(linux[0], "kernelVersion");
        findings.push(Finding::fine(
            AREA,
            format!(
                "{} nodes are ready, {} has Linux {kernel}",
                linux.len(),
                text(linux[0], "/metadata/name")
            ),
        ));
    }
    findings
}

fn info<'a>(node: &'a Value, field: &str) -> &'a str {
    text(node, &format!("/status/nodeInfo/{field}"))
}

/// Whether a kernel is older than [`OLDEST_KERNEL`]; one that cannot be read counts as too old.
pub(super) fn too_old(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < OLDEST_KERNEL,
        _ => true,
    }
}

fn list(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::finding::State;

    fn node(name: &str, os: &str, kernel: &str, arch: &str, ready: &str) -> Value {
        json!({"metadata": {"name": name}, "status": {
            "nodeInfo": {"operatingSystem": os, "kernelVersion": kernel, "architecture": arch},
            "conditions": [{"type": "Ready", "status": ready}],
        }})
    }

    #[test]
    fn kernels_are_compared_by_number() {
        assert!(
            too_old("5.15.0-1053-azure") && too_old("6.0.9") && too_old("5.14.0-427.el9") && too_old("odd")
        );
        assert!(!too_old("6.1.0") && !too_old("6.12.8+deb13") && !too_old("10.0"));
    }

    #[test]
    fn each_problem_of_nodes_is_named_once_with_its_nodes() {
        let good = node("a", "linux", "6.12.1", "amd64", "True");
        assert_eq!(judge(std::slice::from_ref(&good))[0].state, State::Fine);
        let nodes = [
            good,
            node("b", "linux", "5.15.1", "amd64", "True"),
            node("c", "linux", "6.1.0", "riscv64", "False"),
            node("w", "windows", "10", "amd64", "True"),
        ];
        let findings = judge(&nodes);
        let said: Vec<_> = findings.iter().map(|f| f.what.as_str()).collect();
        assert_eq!(
            said,
            ["the kernel is too old (5.15.1) on b", "no image fits the processor of c", "not ready: c"]
        );
        assert_eq!(judge(&nodes[3..])[0].what, "the cluster has no Linux node");
        let many: Vec<_> = (0..9).map(|n| node(&format!("n{n}"), "linux", "4.1", "amd64", "True")).collect();
        assert!(judge(&many)[0].what.ends_with("n4 and 4 more"));
    }
}
