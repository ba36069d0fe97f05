//! The CNI plugin and the agent's part of it (decision 41): a pod that belongs into the mesh starts blocked
//! and never unmeshed, with the agent up, starting or away.

pub mod conflist;
pub mod install;
pub mod known;
pub mod message;
pub mod plugin;
pub mod report;
pub mod request;
pub mod server;

/// Name of the plugin's program, and its `type` in a list of plugins.
pub const PLUGIN: &str = "culvert-cni";
/// Where the plugin finds the agent, when its configuration does not say.
pub const SOCKET: &str = "/run/culvert/cni.sock";
/// File of what the agent last knew, below its state folder.
pub const KNOWN: &str = "known.json";
/// Folder of the sandboxes' records, below the agent's state folder.
pub const RECORDS: &str = "sandboxes";
