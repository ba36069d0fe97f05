//! `getpeername`: the application sees the address that it asked for.

use agent_common::{addr::BePort, maps::Destination};
use aya_ebpf::{helpers::bpf_get_socket_cookie, programs::SockAddrContext};

use crate::{context::set_words, maps::ORIG};

const ALLOW: i32 = 1;

#[inline(always)]
fn original(ctx: &SockAddrContext) -> Option<Destination> {
    // SAFETY: helper call and map look-up that the verifier checks.
    unsafe {
        let cookie = bpf_get_socket_cookie(ctx.sock_addr.cast());
        ORIG.get(&cookie).copied()
    }
}

#[inline(always)]
pub fn v4(ctx: &SockAddrContext) -> i32 {
    if let Some(original) = original(ctx) {
        // SAFETY: context stores that the verifier checks.
        unsafe {
            (*ctx.sock_addr).user_ip4 = original.addr.to_be32();
            (*ctx.sock_addr).user_port = u32::from(BePort::from_host(original.port).0);
        }
    }
    ALLOW
}

#[inline(always)]
pub fn v6(ctx: &SockAddrContext) -> i32 {
    if let Some(original) = original(ctx) {
        let port = original.port;
        let original = original.addr.to_be128();
        // SAFETY: context stores that the verifier checks, one word at a time.
        unsafe {
            set_words(&raw mut (*ctx.sock_addr).user_ip6, original);
            (*ctx.sock_addr).user_port = u32::from(BePort::from_host(port).0);
        }
    }
    ALLOW
}
