//! What `cargo xtask verify` runs inside a virtual machine: a static program that puts the agent's own
//! loader and object through a kernel, and reports by lines on its standard output.
//!
//! The loader's modules are compiled from the agent's sources, not through its crate: what ships is what
//! is tested, and TLS, HTTP and Kubernetes stay out of a program that must link statically.

#[path = "../../../agent/src"]
pub mod agent {
    //! The agent's kernel side.
    pub mod bpf;
    pub mod cgroup;
    pub mod netns;
}
pub mod control;
pub mod features;
pub mod kernel_log;
pub mod load;
pub mod net;
pub mod report;
pub mod smoke;
pub mod world;

/// The object that ships, the same bytes that the loader embeds.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/culvert.o"));
