//! The node agent's library: redirection and the kernel tables behind it.

pub mod bpf;
pub mod cgroup;
pub mod netns;
