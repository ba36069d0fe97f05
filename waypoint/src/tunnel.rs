//! Both sides of the waypoint over HBONE: `mesh_net` does TLS and HTTP/2, this module says what a
//! waypoint asks and answers.

pub mod client;
pub mod server;
mod stream;
