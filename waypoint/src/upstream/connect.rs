//! Making HTTP connections within `maxConnections` and `http1MaxPendingRequests`.

use std::{cell::Cell, rc::Rc};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::{
    balance::Endpoint,
    outcome::{Reason, Refusal},
};
use tokio::sync::oneshot;

use super::{Switched, To, Upstreams};
use crate::{
    io::{BoxIo, LocalExecutor},
    limits::{Counted, Permit},
    target::{Many, One, Target},
};

/// A connection's place in the limits of its destination.
pub(super) struct Place {
    target: Rc<Target>,
    _permit: Permit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.target.open.set(self.target.open.get() - 1);
        self.target.freed.notify_one();
    }
}

impl To<'_> {
    /// A place for a new connection. As in Envoy an endpoint without any gets one whatever the limit
    /// says: its requests would wait for something that never comes.
    pub(super) fn place(&self) -> Option<Place> {
        let target = self.target();
        let limit = self.set.policy.max_connections.filter(|_| target.open.get() > 0);
        let permit = self.set.limits.take(Counted::Connections, limit)?;
        target.open.set(target.open.get() + 1);
        Some(Place { target: target.clone(), _permit: permit })
    }

    /// Counts a request that has no connection yet.
    pub(super) fn pend(&self) -> Result<Permit, Refusal> {
        let limit = self.set.policy.max_pending_requests;
        self.set.limits.take(Counted::Pending, limit).ok_or_else(|| self.over("http1MaxPendingRequests"))
    }
}

impl Upstreams {
    /// A free HTTP/1 connection: kept, new, or the next one that becomes free.
    pub(super) async fn one(&self, to: To<'_>) -> Result<One, Refusal> {
        if let Some(kept) = to.target().idle() {
            return Ok(kept);
        }
        let _pending = to.pend()?;
        loop {
            let freed = to.target().freed.notified();
            if let Some(kept) = to.target().idle() {
                return Ok(kept);
            }
            match to.place() {
                Some(place) => return Ok(self.connect1(to, place).await?.0),
                None => freed.await,
            }
        }
    }

    /// The endpoint's HTTP/2 connection; concurrent first requests share its handshake.
    pub(super) async fn many(&self, to: To<'_>) -> Result<Many, Refusal> {
        let target = to.target();
        if let Some(kept) = kept(target) {
            return Ok(kept);
        }
        let _pending = to.pend()?;
        let _one = target.connecting.lock().await;
        if let Some(kept) = kept(target) {
            return Ok(kept);
        }
        let place = loop {
            let freed = target.freed.notified();
            match to.place() {
                Some(place) => break place,
                None => freed.await,
            }
        };
        let many = self.connect2(to, place).await?;
        *target.many.borrow_mut() = Some(many.clone());
        Ok(many)
    }

    pub(super) async fn connect1(&self, to: To<'_>, place: Place) -> Result<(One, Switched), Refusal> {
        let io = self.dial(to).await?;
        self.start1(to, io, place).await
    }

    pub(super) async fn start1(
        &self,
        to: To<'_>,
        io: BoxIo,
        place: impl Sized + 'static,
    ) -> Result<(One, Switched), Refusal> {
        let (send, mut connection) = http1::Builder::new()
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| handshake(&error, to.endpoint()))?;
        let (give, switched) = oneshot::channel();
        tokio::task::spawn_local(async move {
            if let Err(error) = (&mut connection).await {
                tracing::debug!(%error, "upstream connection ended");
            }
            let parts = connection.into_parts();
            // The place goes with the raw stream when the protocol was switched.
            let _ = give.send((parts.io.into_inner(), parts.read_buf));
            drop(place);
        });
        Ok((One { send, served: 0 }, switched))
    }

    async fn connect2(&self, to: To<'_>, place: Place) -> Result<Many, Refusal> {
        let io = self.dial(to).await?;
        let (send, connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| handshake(&error, to.endpoint()))?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream connection ended");
            }
            drop(place);
        });
        Ok(Many { send, served: Rc::new(Cell::new(0)) })
    }
}

fn kept(target: &Target) -> Option<Many> {
    target.many.borrow().as_ref().filter(|kept| !kept.send.is_closed()).cloned()
}

fn handshake(error: &hyper::Error, endpoint: &Endpoint) -> Refusal {
    Refusal::new(Reason::ConnectFailed, format!("{}:{}: {error}", endpoint.workload.uid, endpoint.port))
}
