//! How long to wait before the next stream.

use std::time::Duration;

use tonic::Code;

const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(15);
/// A server that does not know us is asked this seldom at first, and at last.
const UNWELCOME: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// A stream that served this long was good: the next failure is a new one.
const GOOD: Duration = Duration::from_secs(10);

/// Failures in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after a stream that ended with `code` (none when it was no answer of the server) and had
    /// served for `good`. `jitter` from 0 to 1 spreads clients over the second half of the pause.
    pub(super) fn after(&mut self, code: Option<Code>, good: Duration, jitter: f64) -> Duration {
        if good >= GOOD {
            self.failures = 0;
        }
        let (first, last) = match code {
            Some(Code::Unauthenticated | Code::PermissionDenied) => UNWELCOME,
            _ => (FIRST, LAST),
        };
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(last);
        self.failures += 1;
        pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(backoff: &mut Backoff, code: Option<Code>, good: u64) -> f64 {
        backoff.after(code, Duration::from_secs(good), 1.0).as_secs_f64()
    }

    #[test]
    fn pauses_double_to_a_limit_and_start_anew_after_a_good_stream() {
        let mut backoff = Backoff::default();
        let pauses: Vec<f64> = (0..12).map(|_| seconds(&mut backoff, Some(Code::Unavailable), 0)).collect();
        assert_eq!((pauses[0], pauses[1], pauses[11]), (0.05, 0.1, 15.0));
        assert_eq!(seconds(&mut backoff, None, 9), 15.0, "too short to be good");
        assert_eq!(seconds(&mut backoff, None, 10), 0.05);
        assert_eq!(backoff.after(None, GOOD, 0.0), FIRST / 2);
    }

    #[test]
    fn a_server_that_refuses_us_is_asked_less_often() {
        let mut backoff = Backoff::default();
        assert_eq!(seconds(&mut backoff, Some(Code::Unauthenticated), 0), 5.0);
        assert_eq!(seconds(&mut backoff, Some(Code::PermissionDenied), 0), 10.0);
        assert!((0..9).all(|_| seconds(&mut backoff, Some(Code::PermissionDenied), 0) <= 60.0));
    }
}
