//! Answers of reviews, kept in bounds.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::answer::{Refusal, Reviewed};
use crate::auth::Caller;

/// An answer is used this long without asking again; so long may a token be used after its pod is gone.
pub(super) const FRESH: Duration = Duration::from_secs(60);
/// A refusal is kept this long: a client that tries again at once costs no review.
pub(super) const REFUSED: Duration = Duration::from_secs(5);
/// While nobody can be asked an accepted token is used until this long after its review (decision 0038).
pub(super) const STALE: Duration = Duration::from_secs(15 * 60);
/// Answers that are kept, of each kind. Refusals are kept apart, so that they push no caller out.
pub(super) const ENTRIES: usize = 4096;

struct Accepted {
    caller: Caller,
    at: Instant,
    ends: Instant,
}

/// What was answered lately.
#[derive(Default)]
pub(super) struct Kept {
    inner: Mutex<Answers>,
}

#[derive(Default)]
struct Answers {
    accepted: HashMap<String, Accepted>,
    refused: HashMap<String, (Refusal, Instant)>,
}

impl Kept {
    /// An answer that needs no review.
    pub(super) fn fresh(&self, token: &str, now: Instant) -> Option<Reviewed> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = inner.accepted.get(token) {
            return (now < known.at + FRESH && now < known.ends).then(|| Ok(known.caller.clone()));
        }
        let (refusal, at) = inner.refused.get(token)?;
        (now < *at + REFUSED).then(|| Err(refusal.clone()))
    }

    /// A caller whose token was accepted not too long ago and has not ended.
    pub(super) fn stale(&self, token: &str, now: Instant) -> Option<Caller> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let known = inner.accepted.get(token)?;
        (now < known.at + STALE && now < known.ends).then(|| known.caller.clone())
    }

    /// Keeps an answer. A token that is refused now is forgotten as an accepted one.
    pub(super) fn keep(&self, token: &str, answer: Reviewed, left: Duration, now: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.accepted.remove(token);
        inner.refused.remove(token);
        match answer {
            Ok(caller) => {
                if inner.accepted.len() >= ENTRIES {
                    inner.accepted.retain(|_, known| now < known.at + STALE && now < known.ends);
                }
                if inner.accepted.len() >= ENTRIES {
                    let oldest = inner.accepted.iter().min_by_key(|(_, known)| known.at);
                    let oldest = oldest.map(|(token, _)| token.clone());
                    oldest.map(|token| inner.accepted.remove(&token));
                }
                let ends = now + left.min(STALE);
                inner.accepted.insert(token.into(), Accepted { caller, at: now, ends });
            }
            Err(refusal) => {
                if inner.refused.len() >= ENTRIES {
                    inner.refused.clear();
                }
                inner.refused.insert(token.into(), (refusal, now));
            }
        }
    }
}
