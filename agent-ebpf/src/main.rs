//! Culvert's kernel programs. Entry points only; what they do is in the modules, by role.
//!
//! Rules: the first thing every hook does is look the network namespace up in `PODS`; a miss means
//! "not ours, leave it alone" (I-9). For an enrolled pod every error path refuses (S-4).
#![no_std]
#![no_main]
#![allow(missing_docs, reason = "macros generate items without documentation")]

mod connect;
mod context;
mod count;
mod inbound;
mod maps;
mod origdst;
mod sockets;

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, sk_lookup, sock_ops},
    programs::{SkLookupContext, SockAddrContext, SockContext, SockOpsContext},
};

#[cgroup_sock_addr(connect4)]
pub fn culvert_connect4(ctx: SockAddrContext) -> i32 {
    connect::v4(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn culvert_connect6(ctx: SockAddrContext) -> i32 {
    connect::v6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn culvert_peer4(ctx: SockAddrContext) -> i32 {
    origdst::v4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn culvert_peer6(ctx: SockAddrContext) -> i32 {
    origdst::v6(&ctx)
}

#[sock_ops]
pub fn culvert_sockets(ctx: SockOpsContext) -> u32 {
    sockets::on(&ctx)
}

#[cgroup_sock(sock_release)]
pub fn culvert_release(ctx: SockContext) -> i32 {
    sockets::released(&ctx)
}

#[sk_lookup]
pub fn culvert_inbound(ctx: SkLookupContext) -> u32 {
    inbound::select(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// What the kernel is told: of the two licences of this crate, the one that its helpers ask for.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 7] = *b"GPL v2\0";
