//! Every decision of the mesh, pure and synchronous: no I/O, no clock, no randomness of its own.
//!
//! A decision takes one immutable [`snapshot::Snapshot`] and plain facts, and returns a plan or a
//! refusal with a [`outcome::Reason`]. The same functions run in the agent, the waypoint, the
//! control plane's `explain` and the tests (invariants I-3 and S-1).
#![forbid(unsafe_code)]

pub mod authz;
pub mod balance;
pub mod delta;
pub mod eligibility;
pub mod enrol;
pub mod entropy;
pub mod error;
pub mod explain;
pub mod fixtures;
pub mod hbone;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod model;
pub mod outbound;
pub mod outcome;
pub mod projection;
pub mod snapshot;
pub mod trace;
