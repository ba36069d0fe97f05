//! HTTP connections to endpoints, kept per worker, endpoint, port and HTTP version. The tunnel below
//! carries the waypoint's identity, so connections serve every client.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::{
    balance::Endpoint,
    http::Failure,
    model::WorkloadUid,
    outcome::{Reason, Refusal},
};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    body::Outgoing,
    io::{BoxIo, LocalExecutor},
    peer::Peer,
    world::{Counted, EndpointSet, Permit},
};

/// Idle HTTP/1 connections kept per endpoint and port.
const IDLE: usize = 64;
/// Time for connecting when the destination does not say (Istio's default).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a connection goes and on whose behalf.
#[derive(Clone, Copy)]
pub struct Hop<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The client, described to the other side. An HTTP connection is shared by clients that come
    /// after it: for them the HTTP headers speak.
    pub client: &'a Peer,
    /// Host name of the service that the endpoint stands for.
    pub service: Option<&'a str>,
}

/// Opens byte streams to endpoints.
pub trait Dial {
    /// Connects to an endpoint, over HBONE when it is in the mesh.
    fn dial<'a>(&'a self, hop: Hop<'a>) -> LocalBoxFuture<'a, Result<BoxIo, Refusal>>;

    /// Forgets what is kept for endpoints that are gone.
    fn retain(&self, _known: &dyn Fn(&WorkloadUid) -> bool) {}

    /// Closes what is kept and not used.
    fn release_idle(&self) {}
}

/// The address of an endpoint.
///
/// # Errors
/// It has none.
pub fn address(endpoint: &Endpoint) -> Result<SocketAddr, Refusal> {
    let ip = endpoint.workload.addresses.first().ok_or_else(|| {
        Refusal::new(Reason::NoHealthyEndpoint, format!("workload {} has no address", endpoint.workload.uid))
    })?;
    Ok(SocketAddr::new(*ip, endpoint.port))
}

/// A try that failed.
pub struct SendError {
    /// How, for retries.
    pub failure: Failure,
    /// Why, for logs and the answer.
    pub refusal: Refusal,
    /// The body, when nothing of it was sent.
    pub body: Option<Outgoing>,
}

/// The raw stream of a connection after a protocol switch, with what was read beyond it.
pub type Switched = oneshot::Receiver<(BoxIo, Bytes)>;

/// Where a protocol switch leaves the upstream's raw stream for the connection that asked.
pub type SwitchSlot = Rc<Cell<Option<Switched>>>;

type Key = (WorkloadUid, u16);
type Sender1 = http1::SendRequest<Outgoing>;
type Sender2 = http2::SendRequest<Outgoing>;

/// The connections of one worker.
pub struct Upstreams {
    dial: Rc<dyn Dial>,
    one: RefCell<HashMap<Key, VecDeque<Sender1>>>,
    two: RefCell<HashMap<Key, Sender2>>,
}

impl Upstreams {
    /// No connections yet.
    pub fn new(dial: Rc<dyn Dial>) -> Self {
        Self { dial, one: RefCell::default(), two: RefCell::default() }
    }

    /// Drops idle connections to endpoints that are gone.
    pub fn retain(&self, known: impl Fn(&WorkloadUid) -> bool) {
        self.one.borrow_mut().retain(|(uid, _), list| known(uid) && !list.is_empty());
        self.two.borrow_mut().retain(|(uid, _), sender| known(uid) && !sender.is_closed());
        self.dial.retain(&known);
    }

    /// Closes tunnels that nothing goes through. Called at intervals by the worker.
    pub fn release_idle(&self) {
        self.dial.release_idle();
    }

    /// Opens a byte stream within the destination's limits.
    ///
    /// # Errors
    /// A limit, the time limit, or whatever dialling met.
    pub async fn open(
        &self,
        set: &EndpointSet,
        endpoint: &Endpoint,
        client: &Peer,
    ) -> Result<(BoxIo, Permit), Refusal> {
        let permit = set.limits.take(Counted::Connections, set.policy.max_connections).ok_or_else(|| {
            Refusal::new(
                Reason::LimitReached,
                format!("maxConnections of the destination of {}", endpoint.workload.uid),
            )
        })?;
        let limit = set.policy.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let hop = Hop { endpoint, client, service: set.service.as_deref() };
        match timeout(limit, self.dial.dial(hop)).await {
            Ok(result) => Ok((result?, permit)),
            Err(_) => Err(Refusal::new(
                Reason::ConnectTimeout,
                format!("{}:{} within {limit:?}", endpoint.workload.uid, endpoint.port),
            )),
        }
    }

    /// Sends a request over HTTP/1 on an idle or a new connection. A kept connection that turns out to
    /// be closed before anything was sent is replaced without counting as a try.
    ///
    /// # Errors
    /// How the try ended, with the body when it was not touched.
    pub async fn send1(
        &self,
        set: &EndpointSet,
        endpoint: &Endpoint,
        client: &Peer,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, SendError> {
        let key = (endpoint.workload.uid.clone(), endpoint.port);
        while let Some(mut sender) = self.idle(&key) {
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.keep(key, sender);
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    Some(back) => request = back,
                    None => return Err(broken(&error.into_error(), endpoint)),
                },
            }
        }
        let (mut sender, _) = match self.connect1(set, endpoint, client).await {
            Ok(connected) => connected,
            Err(refusal) => return Err(unconnected(refusal, request)),
        };
        match sender.try_send_request(request).await {
            Ok(response) => {
                self.keep(key, sender);
                Ok(response)
            }
            Err(error) => Err(broken(&error.into_error(), endpoint)),
        }
    }

    /// Sends a request that asks for a protocol switch, on a connection of its own.
    ///
    /// # Errors
    /// As [`Upstreams::send1`].
    pub async fn switch(
        &self,
        set: &EndpointSet,
        endpoint: &Endpoint,
        client: &Peer,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Switched), SendError> {
        let (mut sender, switched) = match self.connect1(set, endpoint, client).await {
            Ok(connected) => connected,
            Err(refusal) => return Err(unconnected(refusal, request)),
        };
        let response = sender.send_request(request).await.map_err(|error| broken(&error, endpoint))?;
        Ok((response, switched))
    }

    /// Sends a request over HTTP/2.
    ///
    /// # Errors
    /// As [`Upstreams::send1`].
    pub async fn send2(
        &self,
        set: &EndpointSet,
        endpoint: &Endpoint,
        client: &Peer,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, SendError> {
        let key = (endpoint.workload.uid.clone(), endpoint.port);
        let kept = self.two.borrow().get(&key).filter(|sender| !sender.is_closed()).cloned();
        let mut sender = match kept {
            Some(sender) => sender,
            None => match self.connect2(set, endpoint, client).await {
                Ok(sender) => {
                    self.two.borrow_mut().insert(key, sender.clone());
                    sender
                }
                Err(refusal) => return Err(unconnected(refusal, request)),
            },
        };
        match sender.try_send_request(request).await {
            Ok(response) => Ok(response),
            Err(mut error) => {
                let back = error.take_message().map(Request::into_body);
                let mut failed = broken(&error.into_error(), endpoint);
                if back.is_some() {
                    failed.failure = Failure::RefusedStream;
                }
                failed.body = back;
                Err(failed)
            }
        }
    }

    fn idle(&self, key: &Key) -> Option<Sender1> {
        let mut one = self.one.borrow_mut();
        let list = one.get_mut(key)?;
        list.retain(|sender| !sender.is_closed());
        let at = list.iter().position(|sender| sender.is_ready())?;
        list.remove(at)
    }

    fn keep(&self, key: Key, sender: Sender1) {
        let mut one = self.one.borrow_mut();
        let list = one.entry(key).or_default();
        list.push_back(sender);
        if list.len() > IDLE {
            list.pop_front();
        }
    }

    async fn connect1(
        &self,
        set: &EndpointSet,
        endpoint: &Endpoint,
        client: &Peer,
    ) -> Result<(Sender1, Switched), Refusal> {
        let (io, permit) = self.open(set, endpoint, client).await?;
        let (sender, mut connection) =
            http1::Builder::new().handshake(TokioIo::new(io)).await.map_err(|e| handshake(&e, endpoint))?;
        let (give, switched) = oneshot::channel();
        tokio::task::spawn_local(async move {
            if let Err(error) = (&mut connection).await {
                tracing::debug!(%error, "upstream connection ended");
            }
            let parts = connection.into_parts();
            let _ = give.send((parts.io.into_inner(), parts.read_buf));
            drop(permit);
        });
        Ok((sender, switched))
    }

    async fn connect2(
        &self,
        set: &EndpointSet,
        endpoint: &Endpoint,
        client: &Peer,
    ) -> Result<Sender2, Refusal> {
        let (io, permit) = self.open(set, endpoint, client).await?;
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| handshake(&e, endpoint))?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream connection ended");
            }
            drop(permit);
        });
        Ok(sender)
    }
}

fn handshake(error: &hyper::Error, endpoint: &Endpoint) -> Refusal {
    Refusal::new(Reason::ConnectFailed, format!("{}:{}: {error}", endpoint.workload.uid, endpoint.port))
}

fn unconnected(refusal: Refusal, request: Request<Outgoing>) -> SendError {
    SendError { failure: Failure::Connect, refusal, body: Some(request.into_body()) }
}

fn broken(error: &hyper::Error, endpoint: &Endpoint) -> SendError {
    let sent = !error.is_canceled();
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        text = format!("{text}: {cause}");
    }
    let refused = text.contains("refused stream");
    let failure = if refused { Failure::RefusedStream } else { Failure::Reset { sent } };
    let detail = format!("{}:{}: {text}", endpoint.workload.uid, endpoint.port);
    SendError { failure, refusal: Refusal::new(Reason::UpstreamReset, detail), body: None }
}
