//! A mesh as tables.

use std::fmt::Write;

use super::{Control, Mesh, judge::settled};
use crate::{style::Style, table::Table};

/// Control plane, agents, pods, and what to do.
pub fn render(mesh: &Mesh, style: Style) -> String {
    let mut out = String::new();
    if let Some(world) = &mesh.world {
        let _ = writeln!(out, "{}", style.bold(&format!("mesh {world}")));
    }
    mesh.control.iter().for_each(|control| of_control(&mut out, control, style));
    put(&mut out, "agents", &agents(mesh), style);
    put(&mut out, "pods", &pods(mesh), style);
    let verdict = if mesh.ready { style.good("all ready") } else { style.bad("not ready") };
    let _ = writeln!(out, "\n{verdict}");
    for step in &mesh.next {
        let _ = writeln!(out, "  next: {step}");
    }
    out
}

fn put(out: &mut String, title: &str, table: &Table, style: Style) {
    if table.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{}", style.bold(title));
    for line in table.lines() {
        let _ = writeln!(out, "{line}");
    }
}

fn of_control(out: &mut String, control: &Control, style: Style) {
    let count =
        |severity: &str| control.findings.iter().filter(|f| f.severity == severity).count().to_string();
    let mut table = Table::new(&["READY", "OBJECTS", "ERRORS", "WARNINGS", "CLIENTS", "ENDPOINT"]);
    table.row([
        yes(control.ready),
        control.objects.to_string(),
        count("error"),
        count("warning"),
        control.clients.len().to_string(),
        control.endpoint.to_string(),
    ]);
    put(out, "control plane", &table, style);
    let mut table = Table::new(&["CLIENT", "SENT", "ACCEPTED", "REFUSED", "NODE ID"]);
    for client in &control.clients {
        let numbers = [client.sent, client.acks, client.nacks].map(|n| n.to_string());
        table.row([client.name.clone()].into_iter().chain(numbers).chain([client.node.clone()]));
    }
    put(out, "clients", &table, style);
}

fn agents(mesh: &Mesh) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "READY",
        "VERSION",
        "SNAPSHOT",
        "WORKLOADS",
        "SERVICES",
        "POLICIES",
        "PODS",
        "ENDPOINT",
    ]);
    for agent in &mesh.agents {
        let mut cells = vec![agent.node.clone(), yes(agent.ready)];
        match &agent.config {
            Some(c) => {
                let size = c.snapshot;
                cells.push(c.version.clone());
                cells.extend(
                    [size.version, size.workloads, size.services, size.policies].map(|n| n.to_string()),
                );
                cells.push(c.pods.len().to_string());
            }
            None => cells.extend([const { String::new() }; 6]),
        }
        cells.push(agent.endpoint.to_string());
        table.row(cells);
    }
    table
}

fn pods(mesh: &Mesh) -> Table {
    let mut table = Table::new(&["POD", "NODE", "STATE", "SINCE", "ADDRESSES", "REASON"]);
    for agent in &mesh.agents {
        for pod in agent.config.iter().flat_map(|c| &c.pods) {
            let mark = if settled(pod) { "" } else { " !" };
            table.row([
                pod.pod.clone(),
                agent.node.clone(),
                format!("{}{mark}", pod.state),
                since(pod.since_seconds),
                pod.addresses.join(","),
                pod.reason.clone().unwrap_or_default(),
            ]);
        }
    }
    table
}

fn yes(ready: bool) -> String {
    if ready { "yes" } else { "NO" }.to_owned()
}

/// A duration at a glance: the largest unit that is at least one.
fn since(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
