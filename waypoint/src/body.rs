//! Bodies in both directions: streamed with back-pressure, counted, and kept only when small.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_core::{http::ResponseFlag, outcome::Reason};
use tokio::time::Sleep;

use crate::telemetry::Record;

/// Largest request body that is kept for a retry.
pub const REPLAY_LIMIT: u64 = 64 * 1024;

/// A request body on its way to the upstream.
pub enum Outgoing {
    /// Whole and repeatable; empty when there is none.
    Whole(Bytes),
    /// Straight from the client.
    Stream(Incoming, Rc<Cell<u64>>),
}

/// The body of a request as the engine keeps it between tries.
pub enum Kept {
    /// Repeatable.
    Whole(Bytes),
    /// Can be sent once.
    Stream(Incoming),
    /// Was sent.
    Spent,
}

impl Kept {
    /// Keeps a small body of known length when `replay` wants it; streams any other.
    ///
    /// # Errors
    /// The client broke off while sending it.
    pub async fn take(body: Incoming, replay: bool, count: &Cell<u64>) -> Result<Self, hyper::Error> {
        if body.is_end_stream() {
            return Ok(Self::Whole(Bytes::new()));
        }
        match body.size_hint().exact() {
            Some(length) if replay && length <= REPLAY_LIMIT => {
                let bytes = body.collect().await?.to_bytes();
                count.set(bytes.len() as u64);
                Ok(Self::Whole(bytes))
            }
            _ => Ok(Self::Stream(body)),
        }
    }

    /// Whether another try can send it.
    pub fn is_replayable(&self) -> bool {
        !matches!(self, Self::Spent)
    }

    /// The body for one try.
    pub fn for_try(&mut self, count: &Rc<Cell<u64>>) -> Outgoing {
        match self {
            Self::Whole(bytes) => Outgoing::Whole(bytes.clone()),
            Self::Stream(_) => match std::mem::replace(self, Self::Spent) {
                Self::Stream(body) => Outgoing::Stream(body, count.clone()),
                _ => Outgoing::Whole(Bytes::new()),
            },
            Self::Spent => Outgoing::Whole(Bytes::new()),
        }
    }

    /// Takes back a body of which nothing was sent.
    pub fn restore(&mut self, body: Outgoing) {
        if let Outgoing::Stream(body, _) = body {
            *self = Self::Stream(body);
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(body, count) => {
                let frame = Pin::new(body).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &frame {
                    let length = frame.data_ref().map_or(0, |d| d.len() as u64);
                    count.set(count.get() + length);
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body, _) => body.size_hint(),
        }
    }
}

/// Why an answer was cut off.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The upstream broke off.
    #[error("upstream broke off: {0}")]
    Upstream(#[from] hyper::Error),
    /// The route's timeout passed in the middle of the answer.
    #[error("route timeout")]
    Timeout,
}

enum Source {
    Local(Option<Bytes>),
    Upstream(Incoming),
}

/// The body of an answer; owns the request's record and whatever must last as long as the exchange.
pub struct Answer {
    source: Source,
    deadline: Option<Pin<Box<Sleep>>>,
    /// None after a protocol switch: the record goes on with the streams.
    record: Option<Record>,
    ended: bool,
    _hold: Option<Box<dyn std::any::Any>>,
}

impl Answer {
    /// A short answer of our own.
    pub fn local(body: Bytes, record: Record) -> Self {
        Self {
            source: Source::Local(Some(body)),
            deadline: None,
            record: Some(record),
            ended: false,
            _hold: None,
        }
    }

    /// Nothing: the protocol was switched.
    pub fn switched() -> Self {
        Self { source: Source::Local(None), deadline: None, record: None, ended: true, _hold: None }
    }

    /// The upstream's answer; `hold` (load and limit guards) is released at its end.
    pub fn upstream(
        body: Incoming,
        deadline: Option<tokio::time::Instant>,
        record: Record,
        hold: Box<dyn std::any::Any>,
    ) -> Self {
        let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        let record = Some(record);
        Self { source: Source::Upstream(body), deadline, record, ended: false, _hold: Some(hold) }
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        let Some(record) = &mut self.record else { return };
        if let Some(data) = frame.data_ref() {
            record.sent += data.len() as u64;
        }
        if let Some(trailers) = frame.trailers_ref() {
            record.grpc_status = grpc_status(trailers).or(record.grpc_status);
        }
    }

    /// Notes why it ended early, unless that is known.
    fn broken(&mut self, flag: ResponseFlag, reason: Reason, detail: String) {
        if let Some(record) = self.record.as_mut().filter(|record| record.reason.is_none()) {
            record.flag = flag;
            record.reason = Some((reason, detail));
        }
    }
}

/// `grpc-status` of a head or trailers.
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let this = self.get_mut();
        if this.deadline.as_mut().is_some_and(|d| d.as_mut().poll(cx).is_ready()) {
            let detail = "in the middle of the answer".to_owned();
            this.broken(ResponseFlag::UpstreamRequestTimeout, Reason::RouteTimeout, detail);
            this.ended = true;
            return Poll::Ready(Some(Err(AnswerError::Timeout)));
        }
        match &mut this.source {
            Source::Local(body) => {
                this.ended = true;
                let Some(bytes) = body.take().filter(|b| !b.is_empty()) else { return Poll::Ready(None) };
                let frame = Frame::data(bytes);
                this.note(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Source::Upstream(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(None) => {
                    this.ended = true;
                    Poll::Ready(None)
                }
                Poll::Ready(Some(Ok(frame))) => {
                    this.note(&frame);
                    Poll::Ready(Some(Ok(frame)))
                }
                Poll::Ready(Some(Err(error))) => {
                    this.ended = true;
                    let flag = ResponseFlag::UpstreamConnectionTermination;
                    this.broken(flag, Reason::UpstreamReset, error.to_string());
                    Poll::Ready(Some(Err(error.into())))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Local(body) => body.as_ref().is_none_or(Bytes::is_empty),
            Source::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Local(body) => SizeHint::with_exact(body.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Upstream(body) => body.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.ended && !self.is_end_stream() {
            let detail = "in the middle of the answer".to_owned();
            self.broken(ResponseFlag::DownstreamTermination, Reason::ClientReset, detail);
        }
    }
}
