//! How many connections to 15008 a worker keeps, and for how long without a use.

use std::{cell::Cell, rc::Rc, time::Duration};

use mesh_core::outcome::{Reason, Refusal};
use tokio::time::{Instant, sleep};

/// A connection without a stream is closed after this time. Longer than clients keep theirs: who closes
/// first loses no request.
const IDLE: Duration = Duration::from_secs(300);

/// The connections of one worker, those whose handshake is under way included: a peer that proves
/// nothing holds memory and a descriptor too.
#[derive(Debug)]
pub struct Tunnels {
    open: Cell<usize>,
    limit: usize,
}

impl Tunnels {
    /// At most `limit` at a time.
    pub fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self { open: Cell::new(0), limit })
    }

    /// Takes a place until the tunnel is dropped.
    ///
    /// # Errors
    /// `LimitReached`.
    pub fn enter(self: &Rc<Self>) -> Result<Tunnel, Refusal> {
        if self.open.get() >= self.limit {
            let text = format!("{} tunnels are open on this worker (--max-tunnels)", self.limit);
            return Err(Refusal::new(Reason::LimitReached, text));
        }
        self.open.set(self.open.get() + 1);
        Ok(Tunnel { all: self.clone(), streams: Rc::default() })
    }
}

/// One connection.
#[derive(Debug)]
pub struct Tunnel {
    all: Rc<Tunnels>,
    streams: Rc<Streams>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.all.open.set(self.all.open.get() - 1);
    }
}

impl Tunnel {
    /// Counts a stream until the guard is dropped.
    pub fn stream(&self) -> Stream {
        self.streams.open.set(self.streams.open.get() + 1);
        Stream(self.streams.clone())
    }

    /// Completes when there was no stream for [`IDLE`].
    pub async fn unused(&self) {
        let streams = &self.streams;
        loop {
            let quiet = match streams.open.get() {
                0 => streams.last.get().elapsed(),
                _ => Duration::ZERO,
            };
            if quiet >= IDLE {
                return;
            }
            sleep(IDLE - quiet).await;
        }
    }
}

#[derive(Debug)]
struct Streams {
    open: Cell<usize>,
    last: Cell<Instant>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { open: Cell::new(0), last: Cell::new(Instant::now()) }
    }
}

/// A stream of a tunnel.
#[derive(Debug)]
pub struct Stream(Rc<Streams>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.last.set(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_keeps_so_many_tunnels_and_takes_another_when_one_has_ended() {
        let tunnels = Tunnels::new(2);
        let first = tunnels.enter().unwrap();
        let _second = tunnels.enter().unwrap();
        assert_eq!(tunnels.enter().unwrap_err().reason, Reason::LimitReached);
        drop(first);
        tunnels.enter().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_without_streams_ends_after_a_while_and_one_with_streams_never() {
        let tunnel = Tunnels::new(1).enter().unwrap();
        let start = Instant::now();
        tunnel.unused().await;
        assert_eq!(start.elapsed(), IDLE);
        let stream = tunnel.stream();
        assert!(tokio::time::timeout(IDLE * 10, tunnel.unused()).await.is_err());
        let ended = Instant::now();
        drop(stream);
        tunnel.unused().await;
        assert!(ended.elapsed() >= IDLE);
    }
}
