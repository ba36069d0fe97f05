//! What a connect does, as one plain function that the kernel runs and the host tests.

use crate::{
    OUTBOUND_PORT,
    addr::IpKey,
    maps::{PodEntry, STATE_ACTIVE},
};

/// What to do with a TCP connect of an enrolled pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Do nothing: it stays inside the pod, or it is the agent's own.
    Leave,
    /// Leave it alone, but count it: its destination is proven outside the mesh.
    Bypass,
    /// Rewrite the destination to this address and [`OUTBOUND_PORT`].
    Capture(IpKey),
    /// As `Capture`, for a pod that is not ready: while nobody listens there, the application sees a
    /// refusal; once the listener is bound, the connection waits until the pod is active.
    Blocked(IpKey),
    /// Refuse: the pod has no address of that family to rewrite to.
    NoFamily,
}

/// Decides a connect. Fails closed: any state but active refuses, and a destination bypasses only if
/// it is proven outside (`ranges_complete` and not `in_mesh`).
#[inline(always)]
pub fn connect(
    pod: &PodEntry,
    dst: IpKey,
    own_socket: bool,
    ranges_complete: bool,
    in_mesh: bool,
) -> Verdict {
    if own_socket || dst.is_local() || dst == pod.v4 || dst == pod.v6 {
        return Verdict::Leave;
    }
    let target = if dst.is_v4() { pod.v4 } else { pod.v6 };
    if target == IpKey::UNSPECIFIED {
        return Verdict::NoFamily;
    }
    if pod.state != STATE_ACTIVE {
        return Verdict::Blocked(target);
    }
    if ranges_complete && !in_mesh {
        return Verdict::Bypass;
    }
    Verdict::Capture(target)
}

/// Port that captured connections are rewritten to.
pub const CAPTURE_PORT: u16 = OUTBOUND_PORT;

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;

    use super::*;
    use crate::maps::STATE_BLOCKED;

    fn pod(state: u32) -> PodEntry {
        PodEntry { v4: IpKey::from_v4([10, 0, 0, 1]), v6: IpKey::UNSPECIFIED, state, epoch: 1 }
    }

    #[test]
    fn own_sockets_loopback_and_own_address_are_left_alone() {
        let remote = IpKey::from_v4([10, 0, 0, 9]);
        assert_eq!(connect(&pod(STATE_BLOCKED), remote, true, false, true), Verdict::Leave);
        for local in [[127, 0, 0, 1], [127, 9, 9, 9], [0, 0, 0, 0], [10, 0, 0, 1]] {
            assert_eq!(
                connect(&pod(STATE_ACTIVE), IpKey::from_v4(local), false, false, true),
                Verdict::Leave
            );
        }
        let mut one = [0; 16];
        one[15] = 1;
        assert_eq!(connect(&pod(STATE_ACTIVE), IpKey(one), false, false, true), Verdict::Leave);
    }

    #[test]
    fn bypass_needs_complete_ranges_and_a_destination_outside() {
        let remote = IpKey::from_v4([192, 0, 2, 9]);
        assert_eq!(connect(&pod(STATE_ACTIVE), remote, false, true, false), Verdict::Bypass);
        assert_eq!(connect(&pod(STATE_ACTIVE), remote, false, false, false), Verdict::Capture(pod(0).v4));
        assert_eq!(connect(&pod(STATE_ACTIVE), remote, false, true, true), Verdict::Capture(pod(0).v4));
    }

    #[test]
    fn a_family_that_the_pod_lacks_is_refused() {
        let v6 = IpKey([0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(connect(&pod(STATE_ACTIVE), v6, false, false, true), Verdict::NoFamily);
    }

    proptest! {
        #[test]
        fn a_pod_that_is_not_active_reaches_nothing_outside_itself(dst in any::<[u8; 16]>(), state in any::<u32>(), complete in any::<bool>(), in_mesh in any::<bool>()) {
            prop_assume!(state != STATE_ACTIVE);
            let verdict = connect(&pod(state), IpKey(dst), false, complete, in_mesh);
            let stays_inside = IpKey(dst).is_local() || IpKey(dst) == pod(0).v4 || IpKey(dst) == pod(0).v6;
            prop_assert!(stays_inside == (verdict == Verdict::Leave));
            prop_assert!(verdict != Verdict::Bypass);
        }

        #[test]
        fn addresses_survive_their_word_form(bytes in any::<[u8; 16]>()) {
            prop_assert_eq!(IpKey::from_be128(IpKey(bytes).to_be128()), IpKey(bytes));
        }
    }
}
