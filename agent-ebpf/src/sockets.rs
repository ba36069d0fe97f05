//! The life of a socket: original destinations for the agent, probes of the node, statistics, clean-up.

use agent_common::{
    OUTBOUND_PORT,
    addr::{BePort, IpKey},
    event::{
        COUNT_EVENT_LOST, COUNT_FLOW_DST_FULL, COUNT_PROBES_FULL, COUNT_SOCKS_FULL, FlowEvent, LEG_ACCEPTED,
        LEG_CAPTURED,
    },
    maps::{Destination, FlowKey, ProbeKey, SockState},
};
use aya_ebpf::{
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns},
    programs::{SockContext, SockOpsContext},
};

use crate::{
    context::words,
    count,
    maps::{CONFIG, EVENTS, FLOW_DST, ORIG, OWN, POD_IPS, PODS, PROBES, SOCKS},
};

const TCP_CONNECT: u32 = 3;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE_CHANGED: u32 = 10;
const STATE_CB_FLAG: i32 = 1 << 2;
const TCP_CLOSE: u32 = 7;
const TCP_SYN_SENT: u32 = 2;
const AF_INET: u32 = 2;

/// The four parts of a connection, host-order ports.
struct Tuple {
    local: IpKey,
    remote: IpKey,
    local_port: u16,
    remote_port: u16,
}

#[inline(always)]
fn tuple(ctx: &SockOpsContext) -> Tuple {
    let v4 = ctx.family() == AF_INET;
    // SAFETY: context reads that the verifier checks, one word at a time.
    let (local, remote) = unsafe {
        let ops = ctx.ops;
        let local4 = (&raw const (*ops).local_ip4).read_volatile();
        let remote4 = (&raw const (*ops).remote_ip4).read_volatile();
        let local6 = words(&raw const (*ops).local_ip6);
        let remote6 = words(&raw const (*ops).remote_ip6);
        (IpKey::of_family(v4, local4, local6), IpKey::of_family(v4, remote4, remote6))
    };
    let remote_port = BePort::from_sock_ops(ctx.remote_port()).host();
    Tuple { local, remote, local_port: ctx.local_port() as u16, remote_port }
}

#[inline(always)]
pub fn on(ctx: &SockOpsContext) -> u32 {
    match ctx.op() {
        TCP_CONNECT => connecting(ctx),
        ACTIVE_ESTABLISHED => connected(ctx),
        PASSIVE_ESTABLISHED => accepted(ctx),
        STATE_CHANGED if ctx.arg(1) == TCP_CLOSE => closed(ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    // SAFETY: helper calls and map look-ups that the verifier checks.
    let (netns, cookie) =
        unsafe { (bpf_get_netns_cookie(ctx.ops.cast()), bpf_get_socket_cookie(ctx.ops.cast())) };
    // SAFETY: as above.
    if let Some(pod) = unsafe { PODS.get(&netns) } {
        let _ = ctx.set_cb_flags(STATE_CB_FLAG);
        let own = tuple(ctx);
        // The agent dials the application with the client's address: inbound capture must let it pass.
        // SAFETY: as above.
        if (own.remote == pod.v4 || own.remote == pod.v6) && unsafe { OWN.get(&cookie).is_some() } {
            remember_probe(&own);
        }
        // SAFETY: as above.
        if let Some(original) = unsafe { ORIG.get(&cookie) } {
            let key = FlowKey { netns, addr: own.local, port: u32::from(own.local_port), pad: 0 };
            if FLOW_DST.insert(&key, original, 0).is_err() {
                count::add(COUNT_FLOW_DST_FULL);
            }
        }
        return;
    }
    let Some(config) = CONFIG.get(0) else { return };
    if config.host_netns == 0 || netns != config.host_netns {
        return;
    }
    let probe = tuple(ctx);
    // SAFETY: as above.
    if unsafe { POD_IPS.get(&probe.remote).is_some() } {
        let _ = ctx.set_cb_flags(STATE_CB_FLAG);
        remember_probe(&probe);
    }
}

#[inline(always)]
fn remember_probe(probe: &Tuple) {
    if PROBES.insert(&probe_key(probe), &1, 0).is_err() {
        count::add(COUNT_PROBES_FULL);
    }
}

#[inline(always)]
fn probe_key(t: &Tuple) -> ProbeKey {
    ProbeKey { src: t.local, dst: t.remote, src_port: t.local_port, dst_port: t.remote_port }
}

#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    // SAFETY: helper calls and map look-ups that the verifier checks; the entry is this socket's own.
    unsafe {
        let cookie = bpf_get_socket_cookie(ctx.ops.cast());
        if let Some(state) = SOCKS.get_ptr_mut(&cookie) {
            (*state).connect_us = ((bpf_ktime_get_ns() - (*state).start_ns) / 1000) as u32;
        }
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    // SAFETY: helper calls and map look-ups that the verifier checks.
    unsafe {
        let netns = bpf_get_netns_cookie(ctx.ops.cast());
        if PODS.get(&netns).is_none() {
            return;
        }
        let _ = ctx.set_cb_flags(STATE_CB_FLAG);
        let cookie = bpf_get_socket_cookie(ctx.ops.cast());
        let asked = Destination { addr: IpKey::UNSPECIFIED, port: 0, pad: 0 };
        let state =
            SockState { start_ns: bpf_ktime_get_ns(), connect_us: 0, leg: LEG_ACCEPTED, asked, pad: 0 };
        if SOCKS.insert(&cookie, &state, 0).is_err() {
            count::add(COUNT_SOCKS_FULL);
        }
    }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    // SAFETY: helper calls and map look-ups that the verifier checks.
    let (netns, cookie) =
        unsafe { (bpf_get_netns_cookie(ctx.ops.cast()), bpf_get_socket_cookie(ctx.ops.cast())) };
    let own = tuple(ctx);
    let _ = PROBES.remove(&probe_key(&own));
    // The subflow of an MPTCP socket is never released by the application: this is its only end.
    let captured = ORIG.remove(&cookie).is_ok() || is_captured(&own);
    // A client may write and close before the agent accepts: while there is a connection, the agent's
    // end of it decides. A socket that was not captured may share its port with one that was, and must
    // not forget that one's.
    let (addr, port) = match own.local_port {
        OUTBOUND_PORT => (own.remote, own.remote_port),
        _ => (own.local, own.local_port),
    };
    if own.local_port == OUTBOUND_PORT || (captured && ctx.arg(0) == TCP_SYN_SENT) {
        let _ = FLOW_DST.remove(&FlowKey { netns, addr, port: u32::from(port), pad: 0 });
    }
    // SAFETY: as above.
    if let Some(state) = unsafe { SOCKS.get(&cookie) } {
        report(ctx, netns, &own, state);
        let _ = SOCKS.remove(&cookie);
    }
}

/// Whether the connection was rewritten: it goes to the agent's port.
#[inline(always)]
fn is_captured(t: &Tuple) -> bool {
    t.remote_port == OUTBOUND_PORT
}

/// Writes the event where the ring buffer has room for it: kernel 6.1 refuses the program when an event
/// more lies on its stack.
#[inline(always)]
fn report(ctx: &SockOpsContext, netns: u64, own: &Tuple, state: &SockState) {
    let Some(mut slot) = EVENTS.reserve::<FlowEvent>(0) else {
        count::add(COUNT_EVENT_LOST);
        return;
    };
    let captured = state.leg == LEG_CAPTURED;
    let event = slot.as_mut_ptr();
    // SAFETY: context reads that the verifier checks, and every field of the reserved event;
    // srtt_us is kept eight times too large.
    unsafe {
        (&raw mut (*event).netns).write(netns);
        (&raw mut (*event).bytes_sent).write((*ctx.ops).bytes_acked);
        (&raw mut (*event).bytes_received).write((*ctx.ops).bytes_received);
        (&raw mut (*event).local).write(own.local);
        (&raw mut (*event).remote).write(if captured { state.asked.addr } else { own.remote });
        (&raw mut (*event).local_port).write(own.local_port);
        (&raw mut (*event).remote_port).write(if captured { state.asked.port } else { own.remote_port });
        (&raw mut (*event).srtt_us).write((*ctx.ops).srtt_us >> 3);
        (&raw mut (*event).retransmits).write((*ctx.ops).total_retrans);
        (&raw mut (*event).connect_us).write(state.connect_us);
        (&raw mut (*event).leg).write(state.leg);
        (&raw mut (*event).pad).write(0);
    }
    slot.submit(0);
}

/// The application closed the socket: nothing may stay behind, whatever state TCP is in.
#[inline(always)]
pub fn released(ctx: &SockContext) -> i32 {
    // SAFETY: helper call that the verifier checks.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock.cast()) };
    let _ = ORIG.remove(&cookie);
    let _ = OWN.remove(&cookie);
    // A connect that failed before its first packet was never told to report its end. Any other socket
    // that is closed by now has reported it, and one that is not will.
    // SAFETY: a context read that the verifier checks.
    if unsafe { (&raw const (*ctx.sock).state).read_volatile() } == TCP_CLOSE {
        let _ = SOCKS.remove(&cookie);
    }
    1
}
