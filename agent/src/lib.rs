//! The node agent's library: redirection and the kernel tables behind it.

pub mod admin;
pub mod app;
pub mod bpf;
pub mod cgroup;
pub mod cni;
pub mod config;
pub mod flow;
pub mod inbound;
pub mod kernel_events;
pub mod listeners;
pub mod member;
pub mod mesh_sync;
pub mod netns;
pub mod outbound;
pub mod pods;
pub mod redirect;
pub mod registry;
pub mod routing;
pub mod sandbox;
pub mod serve;
pub mod supervisor;
mod sysctl;
pub mod tunnels;
pub mod worker;
