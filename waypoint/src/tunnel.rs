//! HBONE on both sides of the waypoint: CONNECT streams of HTTP/2 over mutual TLS 1.3.

pub mod client;
pub mod server;
mod stream;
pub mod tls;

pub use stream::TunnelIo;
