//! When to try again: a state machine that is told how a try ended and says what to do next.

use std::time::{Duration, Instant};

use crate::{
    entropy::Entropy,
    model::l7::{RetryCondition, RetryPolicy},
};

/// How a try ended that may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection: nothing of the request reached the upstream.
    Connect,
    /// The upstream refused the stream unprocessed (HTTP/2 REFUSED_STREAM, GOAWAY).
    RefusedStream,
    /// The exchange broke; whether any of the request had been sent.
    Reset {
        /// The request's head went out.
        sent: bool,
    },
    /// `perTryTimeout` passed.
    TryTimeout,
    /// An answer with this status.
    Status(u16),
    /// An answer with this gRPC status in its head ("trailers only").
    Grpc(u32),
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryStep {
    /// Try again at this time.
    WaitUntil(Instant),
    /// Pass on what there is; `exhausted` when only the number of tries stands against another.
    GiveUp {
        /// All tries are used up.
        exhausted: bool,
    },
}

/// The tries of one request.
#[derive(Debug, Clone)]
pub struct Retry<'a> {
    policy: &'a RetryPolicy,
    retried: u32,
}

impl<'a> Retry<'a> {
    /// Before the first try.
    pub fn new(policy: &'a RetryPolicy) -> Self {
        Self { policy, retried: 0 }
    }

    /// Tries so far, the running one included.
    pub fn attempt(&self) -> u32 {
        self.retried + 1
    }

    /// Whether any failure of this request could be repeated at all; if not, its body need not be kept.
    pub fn is_enabled(&self) -> bool {
        self.policy.attempts > 0 && !self.policy.retry_on.is_empty()
    }

    /// Decides after a failed try. `replayable`: the body is still whole. `deadline`: end of the
    /// route's timeout. The back-off is random below `backoff × 2ⁿ`, at most ten times `backoff`.
    pub fn after(
        &mut self,
        failure: Failure,
        replayable: bool,
        now: Instant,
        deadline: Option<Instant>,
        entropy: &mut impl Entropy,
    ) -> RetryStep {
        let wanted = self.policy.retry_on.iter().any(|condition| covers(*condition, failure));
        if !wanted || !replayable || self.policy.attempts == 0 {
            return RetryStep::GiveUp { exhausted: false };
        }
        if self.retried >= self.policy.attempts {
            return RetryStep::GiveUp { exhausted: true };
        }
        let base = self.policy.backoff;
        let ceiling = base.saturating_mul(1 << self.retried.min(4)).min(base.saturating_mul(10));
        self.retried += 1;
        let micros = u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX);
        let at = now + Duration::from_micros(entropy.below(micros));
        match deadline {
            Some(deadline) if at >= deadline => RetryStep::GiveUp { exhausted: false },
            _ => RetryStep::WaitUntil(at),
        }
    }
}

/// Whether a `retryOn` condition covers a failure (Envoy's `x-envoy-retry-on` semantics).
fn covers(condition: RetryCondition, failure: Failure) -> bool {
    use RetryCondition as C;
    match failure {
        Failure::Connect => matches!(
            condition,
            C::ConnectFailure | C::Status5xx | C::GatewayError | C::Reset | C::ResetBeforeRequest
        ),
        Failure::RefusedStream => {
            matches!(condition, C::RefusedStream | C::Status5xx | C::Reset | C::ResetBeforeRequest)
        }
        Failure::Reset { sent } => {
            matches!(condition, C::Reset | C::Status5xx | C::GatewayError)
                || (!sent && condition == C::ResetBeforeRequest)
        }
        Failure::TryTimeout => {
            matches!(condition, C::Status5xx | C::GatewayError | C::Reset | C::Status(504))
        }
        Failure::Status(code) => match condition {
            C::Status5xx => (500..600).contains(&code),
            C::GatewayError => (502..=504).contains(&code),
            C::Retriable4xx => code == 409,
            C::Status(wanted) => wanted == code,
            _ => false,
        },
        Failure::Grpc(code) => {
            let wanted = match condition {
                C::GrpcCancelled => 1,
                C::GrpcDeadlineExceeded => 4,
                C::GrpcResourceExhausted => 8,
                C::GrpcInternal => 13,
                C::GrpcUnavailable => 14,
                _ => return false,
            };
            wanted == code
        }
    }
}
