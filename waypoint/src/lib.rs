//! Culvert's waypoint: HTTP routing, policy and telemetry between the agents of clients and servers.
//!
//! `accept HBONE → flow → sniff → engine (phases) → attempt → upstream`. Decisions are
//! `mesh_core::http`; this crate executes them on single-threaded workers.

pub mod attempt;
pub mod body;
pub mod config;
pub mod endpoints;
pub mod engine;
pub mod flow;
pub mod headers;
pub mod io;
pub mod limits;
pub mod peer;
pub mod respond;
pub mod run;
pub mod serve;
pub mod sniff;
pub mod target;
pub mod tcp;
pub mod telemetry;
pub mod tunnel;
pub mod upstream;
pub mod websocket;
pub mod worker;
pub mod world;
