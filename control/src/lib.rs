//! Control plane: a folder of YAML → objects → what agents and waypoints are told, pushed over delta
//! xDS; and the certificate authority. [`analyze`] and [`compile_folder`] work without a network.

pub mod admin;
pub mod auth;
pub mod ca;
pub mod compile;
pub mod disk;
pub mod finding;
pub mod follow;
pub mod kube;
mod lines;
pub mod memory;
pub mod metrics;
pub mod object;
pub mod provision;
pub mod publish;
pub mod push;
pub mod reader;
pub mod server;
pub mod shelf;
pub mod source;
pub mod status;
pub mod validate;
pub mod vips;

use std::path::Path;

use finding::{Finding, Severity};
use source::Store;

/// What is wrong with a folder.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Report {
    /// Findings by file and line.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether any document is refused.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|f| f.severity == Severity::Error)
    }
}

/// Default range of virtual addresses.
pub const SERVICE_CIDR: ipnet::Ipv4Net =
    ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16);

/// Every finding of a folder, those of single documents and those of objects together.
pub fn analyze(folder: &Path) -> Report {
    compile_folder(folder).1
}

/// Compiles a folder without a network or remembered state.
pub fn compile_folder(folder: &Path) -> (compile::Compiled, Report) {
    let mut store = Store::default();
    store.load(folder);
    let mut memory = memory::Memory::new(SERVICE_CIDR, None);
    let compiled = compile::compile(&store, &compile::Options::default(), &mut memory);
    let report = Report { findings: all_findings(&store, &compiled) };
    (compiled, report)
}

/// Findings of documents and of compilation, by file and line.
pub fn all_findings(store: &Store, compiled: &compile::Compiled) -> Vec<Finding> {
    let notes = compiled.notes.iter().filter_map(|(key, problem)| {
        let stored = store.objects.get(key)?;
        Some(stored.finding(key, problem.clone()))
    });
    let mut findings: Vec<Finding> = store.all_findings().chain(notes).collect();
    findings.sort_by(|a, b| (&a.file, a.line, &a.field).cmp(&(&b.file, b.line, &b.field)));
    findings
}
