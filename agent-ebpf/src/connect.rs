//! Outbound capture: a connect of an enrolled pod goes to the agent's listener in the same pod.

use agent_common::{
    addr::{BePort, IpKey},
    event::{
        COUNT_BLOCKED, COUNT_BYPASS, COUNT_CAPTURED, COUNT_NO_FAMILY, COUNT_ORIG_FULL, COUNT_SOCKS_FULL,
        LEG_AGENT, LEG_BYPASS, LEG_CAPTURED,
    },
    maps::{Destination, NodeConfig, PodEntry, SockState},
    verdict::{CAPTURE_PORT, Verdict, connect},
};
use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns},
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;

use crate::{
    context::{set_words, words},
    count,
    maps::{CONFIG, MESH, ORIG, OWN, PODS, SOCKS},
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const IPPROTO_TCP: u32 = 6;

#[inline(always)]
pub fn v4(ctx: &SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    let Some(pod) = pod_of(addr) else { return ALLOW };
    // SAFETY: the verifier checks these context accesses.
    let (dst, port) = unsafe { (IpKey::from_be32((*addr).user_ip4), BePort((*addr).user_port as u16)) };
    let Ok(target) = decide(addr, &pod, dst, port) else { return REFUSE };
    if let Some(target) = target {
        // SAFETY: as above.
        unsafe {
            (*addr).user_ip4 = target.to_be32();
            (*addr).user_port = u32::from(BePort::from_host(CAPTURE_PORT).0);
        }
    }
    ALLOW
}

#[inline(always)]
pub fn v6(ctx: &SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    let Some(pod) = pod_of(addr) else { return ALLOW };
    // SAFETY: the verifier checks these context accesses.
    let (dst, port) =
        unsafe { (IpKey::from_be128(words(&raw const (*addr).user_ip6)), BePort((*addr).user_port as u16)) };
    let Ok(target) = decide(addr, &pod, dst, port) else { return REFUSE };
    if let Some(target) = target {
        let target = target.to_be128();
        // SAFETY: as above; single words, because the verifier refuses wider context stores.
        unsafe {
            set_words(&raw mut (*addr).user_ip6, target);
            (*addr).user_port = u32::from(BePort::from_host(CAPTURE_PORT).0);
        }
    }
    ALLOW
}

/// The pod of this socket, if its namespace is enrolled and the protocol is TCP.
#[inline(always)]
fn pod_of(addr: *mut bpf_sock_addr) -> Option<PodEntry> {
    // SAFETY: helper calls and context reads that the verifier checks.
    unsafe {
        let netns = bpf_get_netns_cookie(addr.cast());
        let pod = *PODS.get(&netns)?;
        ((*addr).protocol == IPPROTO_TCP).then_some(pod)
    }
}

/// The address to rewrite to, none to leave the connect alone, or an error to refuse it.
#[inline(always)]
fn decide(addr: *mut bpf_sock_addr, pod: &PodEntry, dst: IpKey, port: BePort) -> Result<Option<IpKey>, ()> {
    // SAFETY: helper call that the verifier checks.
    let cookie = unsafe { bpf_get_socket_cookie(addr.cast()) };
    // SAFETY: map look-ups return pointers that are valid for this run of the program.
    let own = unsafe { OWN.get(&cookie).is_some() };
    let config = CONFIG.get(0).copied().unwrap_or(NodeConfig { host_netns: 0, ranges_complete: 0, epoch: 0 });
    let in_mesh = MESH.get(&Key::new(128, dst)).is_some();
    let asked = Destination { addr: dst, port: port.host(), pad: 0 };
    match connect(pod, dst, own, config.ranges_complete == 1, in_mesh) {
        Verdict::Leave => {
            // A socket may connect again after a failure: what it asked for first counts no longer.
            // The agent's port is what a program of an older object rewrote to a moment ago.
            if port.host() != CAPTURE_PORT {
                let _ = ORIG.remove(&cookie);
            }
            if own {
                watch(cookie, LEG_AGENT, asked);
            }
            Ok(None)
        }
        Verdict::Bypass => {
            debug!(addr, "connect {:i} port {}: outside the mesh, left alone", dst.0, port.host());
            let _ = ORIG.remove(&cookie);
            count::add(COUNT_BYPASS);
            watch(cookie, LEG_BYPASS, asked);
            Ok(None)
        }
        Verdict::Capture(target) => {
            debug!(addr, "connect {:i} port {}: to the agent", dst.0, port.host());
            capture(cookie, asked, target, COUNT_CAPTURED)
        }
        Verdict::Blocked(target) => {
            debug!(addr, "connect {:i} port {}: to the agent, the pod is not ready", dst.0, port.host());
            capture(cookie, asked, target, COUNT_BLOCKED)
        }
        Verdict::NoFamily => {
            debug!(addr, "connect {:i} port {}: refused, the pod has no such address", dst.0, port.host());
            count::add(COUNT_NO_FAMILY);
            Err(())
        }
    }
}

/// Sends a connect to the agent's port and remembers where it was going.
#[inline(always)]
fn capture(cookie: u64, asked: Destination, target: IpKey, site: u32) -> Result<Option<IpKey>, ()> {
    if ORIG.insert(&cookie, &asked, 0).is_err() {
        count::add(COUNT_ORIG_FULL);
        return Err(());
    }
    count::add(site);
    watch(cookie, LEG_CAPTURED, asked);
    Ok(Some(target))
}

/// Remembers a socket for its statistics; a full map costs only those.
#[inline(always)]
fn watch(cookie: u64, leg: u32, asked: Destination) {
    // SAFETY: helper call that the verifier checks.
    let start_ns = unsafe { bpf_ktime_get_ns() };
    if SOCKS.insert(&cookie, &SockState { start_ns, connect_us: 0, leg, asked, pad: 0 }, 0).is_err() {
        count::add(COUNT_SOCKS_FULL);
    }
}
