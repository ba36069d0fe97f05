//! Inbound capture in a pod's namespace: what comes from outside goes to the agent's listeners.

use agent_common::{
    HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT,
    addr::{BePort, IpKey},
    event::{COUNT_INBOUND, COUNT_INBOUND_DROPPED, COUNT_PROBE},
    maps::{LISTENER_HBONE, LISTENER_PLAINTEXT, ListenerKey, ProbeKey, STATE_ACTIVE},
};
use aya_ebpf::{bindings::bpf_sk_lookup, programs::SkLookupContext};
use aya_log_ebpf::debug;

use crate::{
    context::words,
    count,
    maps::{LISTENERS, PODS, PROBES},
};

const PASS: u32 = 1;
const DROP: u32 = 0;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
/// The loopback device has this index in every network namespace.
const LOOPBACK: u32 = 1;

/// The pod that this copy of the program serves; set when it is loaded, because the namespace's
/// cookie cannot be asked for here.
#[unsafe(no_mangle)]
static POD_COOKIE: u64 = 0;

#[inline(always)]
pub fn select(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the loader wrote the constant before the program was verified.
    let netns = unsafe { core::ptr::read_volatile(&raw const POD_COOKIE) };
    let lookup = ctx.lookup;
    // SAFETY: context reads and map look-ups that the verifier checks.
    unsafe {
        if (*lookup).protocol != IPPROTO_TCP || (*lookup).ingress_ifindex == LOOPBACK {
            return PASS;
        }
        let Some(pod) = PODS.get(&netns) else { return PASS };
        let port = (*lookup).local_port as u16;
        let key = probe_key(lookup, port);
        // IPv6 gives a packet to the pod's own address the index of the interface that owns the
        // address, not of loopback. A forged source of that kind never completes a handshake: the
        // answer stays inside the pod.
        if key.src == pod.v4 || key.src == pod.v6 {
            return PASS;
        }
        if PROBES.get(&key).is_some() {
            debug!(
                ctx,
                "inbound {:i} to port {}: of the node or the agent, to the application", key.src.0, port
            );
            count::add(COUNT_PROBE);
            return PASS;
        }
        let kind = match port {
            _ if pod.state != STATE_ACTIVE => 0,
            OUTBOUND_PORT | PLAINTEXT_PORT => 0,
            HBONE_PORT => LISTENER_HBONE,
            _ => LISTENER_PLAINTEXT,
        };
        if kind != 0
            && LISTENERS.redirect_sk_lookup(ctx_of(lookup), ListenerKey { netns, kind, pad: 0 }, 0).is_ok()
        {
            debug!(ctx, "inbound {:i} to port {}: to the agent", key.src.0, port);
            count::add(COUNT_INBOUND);
            return PASS;
        }
    }
    debug!(ctx, "inbound to the pod: refused, it is not ready or the port is the agent's own");
    count::add(COUNT_INBOUND_DROPPED);
    DROP
}

#[inline(always)]
fn ctx_of(lookup: *mut bpf_sk_lookup) -> SkLookupContext {
    SkLookupContext::new(lookup)
}

#[inline(always)]
unsafe fn probe_key(lookup: *mut bpf_sk_lookup, port: u16) -> ProbeKey {
    // SAFETY: context reads that the verifier checks, one word at a time.
    unsafe {
        let v4 = (*lookup).family == AF_INET;
        let remote4 = (&raw const (*lookup).remote_ip4).read_volatile();
        let local4 = (&raw const (*lookup).local_ip4).read_volatile();
        let remote6 = words(&raw const (*lookup).remote_ip6);
        let local6 = words(&raw const (*lookup).local_ip6);
        let src = IpKey::of_family(v4, remote4, remote6);
        let dst = IpKey::of_family(v4, local4, local6);
        ProbeKey { src, dst, src_port: BePort((*lookup).remote_port).host(), dst_port: port }
    }
}
