//! How long to wait before the API server is asked again.

use std::time::Duration;

use rand::Rng;

/// After the first failure.
const FIRST: Duration = Duration::from_millis(100);
/// At most: an API server that is back is noticed this late.
const MOST: Duration = Duration::from_secs(10);

/// Doubles from 100 ms to 10 s; each wait is between half of that and all of it, so that many replicas and
/// kinds do not ask at once.
#[derive(Debug)]
pub struct Backoff {
    current: Duration,
}

impl Backoff {
    /// At its shortest.
    pub fn new() -> Self {
        Self { current: FIRST }
    }

    /// The next wait.
    pub fn next(&mut self) -> Duration {
        let whole = self.current;
        self.current = (whole * 2).min(MOST);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// After a success.
    pub fn reset(&mut self) {
        *self = Self::new();
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new();
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2);
        assert!(waits.iter().all(|wait| *wait <= MOST), "{waits:?}");
        assert!(waits[19] >= MOST / 2);
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
