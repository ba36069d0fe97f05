//! The test world: nodes and pods as network namespaces with cgroups of their own, the real
//! programs in them, and a node runner that stands in for the kubelet.
//!
//! A world is one folder below [`janitor::WORLDS`]; everything it makes (namespaces, cgroups,
//! mounts, processes) carries its id, so that the next run can remove what a killed run left.
#![forbid(unsafe_code)]

pub mod authority;
pub mod capture;
pub mod cgroup;
pub mod cluster;
pub mod echo;
pub mod guard;
pub mod istiod;
pub mod janitor;
pub mod load;
pub mod manifest;
pub mod mesh;
pub mod net;
pub mod peer;
pub mod process;
pub mod require;
pub mod runner;
pub mod shell;
pub mod wait;
pub mod world;
