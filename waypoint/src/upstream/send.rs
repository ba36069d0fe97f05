//! Sending one try of a request.

use std::rc::Rc;

use http::{Request, Response};
use hyper::body::Incoming;
use mesh_core::{
    balance::Endpoint,
    http::Failure,
    outcome::{Reason, Refusal},
};

use super::{SendError, Switched, To, Upstreams};
use crate::{
    body::Outgoing,
    target::{Many, One},
};

impl Upstreams {
    /// Sends a request over HTTP/1. A kept connection that turns out to be closed before anything was
    /// sent is replaced without counting as a try.
    ///
    /// # Errors
    /// How the try ended, with the body when it was not touched.
    pub async fn send1(
        &self,
        to: To<'_>,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, SendError> {
        loop {
            let mut one = match self.one(to).await {
                Ok(one) => one,
                Err(refusal) => return Err(unconnected(refusal, request)),
            };
            let fresh = one.served == 0;
            match one.send.try_send_request(request).await {
                Ok(response) => {
                    to.give_back(one);
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    Some(back) if !fresh => request = back,
                    _ => return Err(broken(&error.into_error(), to.endpoint())),
                },
            }
        }
    }

    /// Sends a request that asks for a protocol switch, on a connection of its own.
    ///
    /// # Errors
    /// As [`Upstreams::send1`].
    pub async fn switch(
        &self,
        to: To<'_>,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Switched), SendError> {
        let connected = match self.open(to).await {
            Ok((io, permit)) => self.start1(to, io, permit).await,
            Err(refusal) => Err(refusal),
        };
        let (mut one, switched) = match connected {
            Ok(connected) => connected,
            Err(refusal) => return Err(unconnected(refusal, request)),
        };
        let response = one.send.send_request(request).await.map_err(|error| broken(&error, to.endpoint()))?;
        Ok((response, switched))
    }

    /// Sends a request over HTTP/2.
    ///
    /// # Errors
    /// As [`Upstreams::send1`].
    pub async fn send2(
        &self,
        to: To<'_>,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, SendError> {
        let mut many = match self.many(to).await {
            Ok(many) => many,
            Err(refusal) => return Err(unconnected(refusal, request)),
        };
        to.count(&many);
        match many.send.try_send_request(request).await {
            Ok(response) => Ok(response),
            Err(mut error) => {
                let back = error.take_message().map(Request::into_body);
                let mut failed = broken(&error.into_error(), to.endpoint());
                if back.is_some() {
                    failed.failure = Failure::RefusedStream;
                }
                failed.body = back;
                Err(failed)
            }
        }
    }
}

impl To<'_> {
    /// Keeps a connection for the next request unless it has served its share
    /// (`maxRequestsPerConnection`): then it closes after this answer.
    fn give_back(&self, mut one: One) {
        one.served += 1;
        if self.set.policy.max_requests_per_connection.is_some_and(|most| one.served >= most) {
            return;
        }
        let target = self.target().clone();
        if self.set.policy.max_connections.is_none() {
            return target.keep(one);
        }
        // Requests may be waiting for it: they are told when it is free.
        tokio::task::spawn_local(async move {
            if one.send.ready().await.is_ok() {
                target.keep(one);
            }
        });
    }

    /// Counts a request on a shared connection; after its share no other one joins it.
    fn count(&self, many: &Many) {
        many.served.set(many.served.get() + 1);
        if self.set.policy.max_requests_per_connection.is_some_and(|most| many.served.get() >= most) {
            let mut kept = self.target().many.borrow_mut();
            if kept.as_ref().is_some_and(|k| Rc::ptr_eq(&k.served, &many.served)) {
                *kept = None;
            }
        }
    }
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
