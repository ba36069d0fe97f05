//! Waiting for observed state, with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::istiod;

/// How often state is looked at.
const INTERVAL: Duration = Duration::from_millis(25);

/// How many times longer everything takes under istiod, to which each object comes by way of a mirror and an
/// API server. What tests say about time they measure themselves.
const BY_MIRROR: u32 = 3;

/// A limit as it is for the control plane that tests run with.
pub fn scaled(limit: Duration) -> Duration {
    if istiod::is_asked_for() { limit * BY_MIRROR } else { limit }
}

/// Looks until `observe` returns a value; after `limit` fails naming `what` was awaited.
pub fn until<T>(limit: Duration, what: &str, mut observe: impl FnMut() -> Option<T>) -> Result<T> {
    let (start, limit) = (Instant::now(), scaled(limit));
    loop {
        if let Some(value) = observe() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        thread::sleep(INTERVAL);
    }
}
