//! Fault injection.

use std::time::Duration;

use crate::{
    entropy::Entropy,
    model::l7::{AbortStatus, Fault},
};

/// What is injected into one request; delay comes before abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultDecision {
    /// Wait this long first.
    pub delay: Option<Duration>,
    /// Answer this instead of the upstream.
    pub abort: Option<AbortStatus>,
}

/// Draws for delay and abort independently.
pub fn fault(rule: &Fault, entropy: &mut impl Entropy) -> FaultDecision {
    let mut hit = |share: u32| share > 0 && entropy.below(1_000_000) < u64::from(share);
    FaultDecision {
        delay: rule.delay.and_then(|(delay, share)| hit(share).then_some(delay)),
        abort: rule.abort.and_then(|(status, share)| hit(share).then_some(status)),
    }
}
