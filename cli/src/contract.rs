//! What the admin endpoints of agents and the control plane answer. Fields that this version does not
//! know are ignored; what an older program does not say is empty.

use std::collections::BTreeMap;

use mesh_core::explain::Explanation;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `GET /debug/explain?source=…&destination=…`, status 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The decisions.
    pub explanation: Explanation,
    /// What the kernel holds for it; nothing from the control plane.
    #[serde(default)]
    pub kernel: Option<Vec<KernelEntry>>,
    /// Who answers.
    #[serde(default)]
    pub node: Option<String>,
}

/// One entry of a kernel table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelEntry {
    /// Table.
    pub table: String,
    /// Key.
    pub entry: String,
    /// What it says.
    #[serde(default)]
    pub detail: String,
}

/// The body of a refusal (status 404 and others).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub error: String,
}

/// `GET /debug/config` of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentConfig {
    /// Node.
    pub node: String,
    /// Version of the program.
    #[serde(default)]
    pub version: String,
    /// Whether it serves.
    pub ready: bool,
    /// What it waits for.
    #[serde(default)]
    pub awaiting: Vec<String>,
    /// What it knows.
    pub snapshot: SnapshotSize,
    /// Its pods.
    #[serde(default)]
    pub pods: Vec<PodState>,
    /// Kernel tables, as the agent tells them.
    #[serde(default)]
    pub kernel: Value,
}

/// The size of an agent's snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSize {
    /// Batches applied; each program counts its own.
    pub version: u64,
    /// Workloads.
    #[serde(default)]
    pub workloads: u64,
    /// Services.
    #[serde(default)]
    pub services: u64,
    /// L4 policies.
    #[serde(default)]
    pub policies: u64,
}

/// A pod of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// `namespace/name`.
    pub pod: String,
    /// Uid of the pod.
    #[serde(default)]
    pub uid: String,
    /// Enrolment state (`mesh_core::enrol::State`), or a state of the agent's own.
    pub state: String,
    /// Why it is in it, when that is not as it should be.
    #[serde(default)]
    pub reason: Option<String>,
    /// Addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Seconds in this state.
    #[serde(default)]
    pub since_seconds: u64,
}

/// `GET /debug/objects` of the control plane.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Objects {
    /// Objects of the folder.
    #[serde(default)]
    pub objects: Vec<Value>,
    /// Findings.
    #[serde(default)]
    pub findings: Vec<Found>,
}

/// The part of a finding that `status` counts and shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// `error`, `warning` or `info`.
    pub severity: String,
    /// File.
    #[serde(default)]
    pub file: String,
    /// Line, from 1.
    #[serde(default)]
    pub line: usize,
    /// Object.
    #[serde(default)]
    pub object: String,
    /// What is wrong.
    #[serde(default)]
    pub reason: String,
}

/// One entry of `GET /debug/clients` of the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Who it proved to be.
    pub name: String,
    /// Node id that it says.
    #[serde(default)]
    pub node: String,
    /// Responses sent.
    #[serde(default)]
    pub sent: u64,
    /// Responses accepted.
    #[serde(default)]
    pub acks: u64,
    /// Responses refused.
    #[serde(default)]
    pub nacks: u64,
    /// Reason of the last refusal per type, until the next acceptance.
    #[serde(default)]
    pub refused: BTreeMap<String, String>,
}
