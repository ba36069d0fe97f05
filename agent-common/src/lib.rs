//! The ABI between the kernel programs and the agent: every map key, value, event and constant that
//! both compilers read, and the functions that both sides must agree on.
//!
//! Types are `repr(C)`, integers and byte arrays only, with explicit padding; sizes and offsets are
//! asserted at compile time. A change of any of them raises [`ABI_VERSION`], which is part of the
//! pin path, so that an agent never reinterprets another version's maps.
#![no_std]

#[macro_use]
mod layout;

pub mod addr;
pub mod event;
pub mod maps;
pub mod verdict;

/// Version of everything in this crate that a pinned map may hold.
pub const ABI_VERSION: u32 = 2;

/// Port of the outbound listener in each pod.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port of the plaintext inbound listener in each pod.
pub const PLAINTEXT_PORT: u16 = 15006;
/// Port of the HBONE listener in each pod.
pub const HBONE_PORT: u16 = 15008;
