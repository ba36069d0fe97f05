//! When a candidate may take the lease and when it must stop (pure). The algorithm of Kubernetes' own
//! components: what counts is how long *we* have seen the record unchanged, by our own clock, so that clocks
//! of different machines need not agree.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

/// What a Lease object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Who holds it; empty when nobody does.
    pub(super) holder: Arc<str>,
    /// Version of the object: changes with every renewal.
    pub(super) version: Arc<str>,
    /// How long the holder asks others to wait.
    pub(super) duration: Option<Duration>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Make the object.
    Create,
    /// Become the holder.
    Take,
    /// Stay the holder.
    Renew,
    /// Another holds it.
    Wait,
}

/// One candidate's memory.
#[derive(Debug)]
pub(super) struct Election {
    me: Arc<str>,
    duration: Duration,
    deadline: Duration,
    /// What was last seen, and when it was first seen so.
    last: Option<(Seen, Instant)>,
    /// When the renewal that succeeded last was sent.
    renewed: Option<Instant>,
}

impl Election {
    /// `deadline` must be shorter than `duration`: the old holder stops before a new one starts.
    pub(super) fn new(me: Arc<str>, duration: Duration, deadline: Duration) -> Self {
        Self { me, duration, deadline, last: None, renewed: None }
    }

    pub(super) fn me(&self) -> &str {
        &self.me
    }

    /// Takes in what is there now.
    pub(super) fn step(&mut self, found: Option<&Seen>, now: Instant) -> Step {
        let Some(found) = found else {
            // Whoever held it may still believe so; a deleted lease is nobody's, as everywhere in Kubernetes.
            self.last = None;
            self.renewed = None;
            return Step::Create;
        };
        if found.holder == self.me {
            return Step::Renew;
        }
        self.renewed = None;
        let since = match &self.last {
            Some((last, since)) if last == found => *since,
            _ => now,
        };
        self.last = Some((found.clone(), since));
        // A holder that asks for longer gets it, but not for ever.
        let patience = found.duration.unwrap_or(self.duration).min(self.duration * 4);
        if found.holder.is_empty() || now >= since + patience { Step::Take } else { Step::Wait }
    }

    /// A renewal sent at this time succeeded.
    pub(super) fn renewed(&mut self, sent: Instant) {
        self.renewed = Some(sent);
    }

    /// When this candidate must stop unless it renews.
    pub(super) fn ends(&self) -> Option<Instant> {
        self.renewed.map(|at| at + self.deadline)
    }

    /// Whether this candidate may write.
    pub(super) fn holds(&self, now: Instant) -> bool {
        self.ends().is_some_and(|end| now < end)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);
    const DEADLINE: Duration = Duration::from_secs(10);

    fn election() -> Election {
        Election::new("me".into(), DURATION, DEADLINE)
    }

    fn seen(holder: &str, version: &str) -> Seen {
        Seen { holder: holder.into(), version: version.into(), duration: Some(DURATION) }
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_of_nobody_is_taken_and_one_of_another_only_when_it_stood_still_for_its_duration() {
        let (mut e, start) = (election(), Instant::now());
        assert_eq!(e.step(None, start), Step::Create);
        assert_eq!(e.step(Some(&seen("", "1")), start), Step::Take);
        let other = seen("other", "2");
        assert_eq!(e.step(Some(&other), start), Step::Wait);
        assert_eq!(e.step(Some(&other), at(start, 14)), Step::Wait);
        assert_eq!(e.step(Some(&seen("other", "3")), at(start, 15)), Step::Wait, "it was renewed");
        assert_eq!(e.step(Some(&seen("other", "3")), at(start, 29)), Step::Wait);
        assert_eq!(e.step(Some(&seen("other", "3")), at(start, 30)), Step::Take);
    }

    #[test]
    fn a_holder_that_cannot_renew_stops_before_another_may_start() {
        let (mut mine, mut theirs, start) =
            (election(), Election::new("b".into(), DURATION, DEADLINE), Instant::now());
        assert!(!mine.holds(start));
        mine.renewed(start);
        assert!(mine.holds(at(start, 9)));
        assert!(!mine.holds(at(start, 10)));
        let record = seen("me", "1");
        // The other sees the renewal at the earliest when it was sent.
        assert_eq!(theirs.step(Some(&record), start), Step::Wait);
        let first = (0..60).find(|s| theirs.step(Some(&record), at(start, *s)) == Step::Take).unwrap();
        assert!(!mine.holds(at(start, first)), "taken after {first} s");
    }

    #[test]
    fn whoever_sees_another_holder_or_no_lease_at_all_stops_at_once() {
        let (mut e, start) = (election(), Instant::now());
        for found in [Some(seen("other", "7")), None] {
            e.renewed(start);
            e.step(found.as_ref(), at(start, 1));
            assert!(!e.holds(at(start, 1)));
        }
    }

    #[test]
    fn a_lease_that_asks_for_ever_is_taken_all_the_same() {
        let (mut e, start) = (election(), Instant::now());
        let greedy = Seen { duration: Some(Duration::from_secs(1 << 30)), ..seen("other", "1") };
        e.step(Some(&greedy), start);
        assert_eq!(e.step(Some(&greedy), start + DURATION * 4), Step::Take);
    }
}
