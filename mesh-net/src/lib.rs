//! Culvert: mesh-net.
