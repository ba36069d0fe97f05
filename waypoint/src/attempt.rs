//! Sending a request to its destination: limits, endpoint, tries, answer.

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{
    HeaderValue, Request, Response, StatusCode, Uri, Version, header::HOST, request::Parts, uri::PathAndQuery,
};
use hyper::body::Incoming;
use mesh_core::{
    entropy::SplitMix64,
    http::{Failure, ResponseFlag, Retry, RetryStep},
    model::{
        AppProtocol,
        l7::{HttpRoute, WeightedDestination},
    },
    outcome::{Reason, Refusal},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    body::{Answer, Kept, Outgoing, grpc_status},
    endpoints::EndpointSet,
    flow::Flow,
    headers::{apply, authority, forwarded, forwarded_for, strip_hop},
    limits::Counted,
    respond,
    telemetry::Record,
    upstream::{SendError, Switched, To},
    websocket::{Asked, SwitchSlot, Upgraded},
    worker::Worker,
    world::World,
};

/// What the route decided.
pub struct Plan<'a> {
    /// The route.
    pub route: &'a HttpRoute,
    /// The destination that was drawn.
    pub destination: &'a WeightedDestination,
    /// Path to send.
    pub path: String,
    /// Host to send, when rewritten.
    pub authority: Option<Arc<str>>,
    /// What was asked for, when it is a switch to WebSocket.
    pub asked: Option<Asked>,
}

/// The head of the request as every try sends it.
struct Head {
    parts: Parts,
    path: PathAndQuery,
    host: HeaderValue,
    http2: bool,
    upgrade: bool,
}

/// One try's result.
enum Tried {
    Answer(Response<Incoming>, Option<Switched>),
    Failed(Failure, Refusal),
}

/// Sends the request and answers it.
#[allow(clippy::too_many_arguments, reason = "the phases' results, each used once")]
pub async fn forward(
    worker: &Rc<Worker>,
    world: &World,
    flow: &Flow,
    slot: &SwitchSlot,
    plan: Plan<'_>,
    parts: Parts,
    body: Incoming,
    mut record: Record,
    mut entropy: SplitMix64,
) -> Response<Answer> {
    let set = match destination(world, flow, &plan) {
        Ok(set) => set,
        Err(refusal) => return respond::refusal(refusal, false, record),
    };
    let Some(permit) = set.limits.take(Counted::Requests, set.policy.max_requests) else {
        let detail = format!("DestinationRule of {}: http2MaxRequests", plan.destination.service.hostname);
        return respond::refusal(Refusal::new(Reason::LimitReached, detail), false, record);
    };
    let head = match Head::build(world, flow, &plan, parts, &mut entropy) {
        Ok(head) => head,
        Err(refusal) => return respond::refusal(refusal, false, record),
    };
    let deadline = plan.route.timeout.map(|limit| Instant::now() + limit);
    let mut retry = Retry::new(&plan.route.retries);
    let mut kept = match Kept::take(body, retry.is_enabled(), &record.received).await {
        Ok(kept) => kept,
        Err(error) => {
            return respond::refusal(Refusal::new(Reason::ClientReset, error.to_string()), false, record);
        }
    };
    let mut last = None;
    let mut retry_permit = None;
    loop {
        record.attempts = retry.attempt();
        let Some(index) = set.pick(last, &mut entropy) else {
            let refusal = Refusal::new(Reason::NoHealthyEndpoint, plan.destination.service.to_string());
            return respond::refusal(refusal, false, record);
        };
        last = Some(index);
        record.destination = Some(set.endpoints[index].workload.clone());
        let load = set.targets[index].enter();
        let per_try = plan.route.retries.per_try_timeout;
        let tried = attempt(
            worker,
            To { set: &set, index, client: &flow.peer },
            &head,
            &mut kept,
            &record,
            Limit { per_try, deadline },
        )
        .await;
        let (failure, refusal, answer) = match tried {
            Tried::Answer(response, switched) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let hold = Box::new((permit, load, retry_permit));
                return switch(response, switched, slot, plan, record, hold);
            }
            Tried::Answer(response, _) => match failing(&response) {
                None => {
                    return answer(response, &plan, deadline, record, Box::new((permit, load, retry_permit)));
                }
                Some(failure) => (failure, None, Some(response)),
            },
            Tried::Failed(failure, refusal) => (failure, Some(refusal), None),
        };
        // Neither the route's own end nor a limit is the upstream's failure.
        let settled = refusal.as_ref().is_some_and(|r| match r.reason {
            Reason::RouteTimeout => failure != Failure::TryTimeout,
            reason => reason == Reason::LimitReached,
        });
        let until = deadline.map(Instant::into_std);
        let step = match settled {
            true => RetryStep::GiveUp { exhausted: false },
            false => {
                retry.after(failure, kept.is_replayable(), std::time::Instant::now(), until, &mut entropy)
            }
        };
        let over = |taken: &Option<_>| taken.is_none() && set.policy.max_retries.is_some();
        match step {
            RetryStep::WaitUntil(at) => {
                if retry_permit.is_none() {
                    retry_permit = set.limits.take(Counted::Retries, set.policy.max_retries);
                }
                if !over(&retry_permit) {
                    tokio::time::sleep_until(at.into()).await;
                    continue;
                }
                record.flag = ResponseFlag::UpstreamOverflow;
            }
            RetryStep::GiveUp { exhausted: true } => record.flag = ResponseFlag::RetryLimitExceeded,
            RetryStep::GiveUp { exhausted: false } => {}
        }
        let exhausted = record.flag == ResponseFlag::RetryLimitExceeded;
        return match (answer, refusal) {
            (Some(response), _) => {
                self::answer(response, &plan, deadline, record, Box::new((permit, load, retry_permit)))
            }
            (None, Some(refusal)) => respond::refusal(refusal, exhausted, record),
            (None, None) => {
                respond::refusal(Refusal::new(Reason::Internal, "try without result"), false, record)
            }
        };
    }
}

fn destination(world: &World, flow: &Flow, plan: &Plan<'_>) -> Result<Rc<EndpointSet>, Refusal> {
    match &flow.workload {
        Some(workload) => Ok(world.only(workload, flow.port)),
        None => {
            let WeightedDestination { service, subset, port, .. } = plan.destination;
            Ok(world.endpoints(service, subset.as_ref(), port.unwrap_or(flow.port))?)
        }
    }
}

struct Limit {
    per_try: Option<Duration>,
    deadline: Option<Instant>,
}

#[allow(clippy::too_many_arguments, reason = "one try needs what the loop holds")]
async fn attempt(
    worker: &Worker,
    to: To<'_>,
    head: &Head,
    kept: &mut Kept,
    record: &Record,
    limit: Limit,
) -> Tried {
    let body = kept.for_try(&record.received);
    let request = head.request(body);
    let send = async {
        let upstreams = &worker.upstreams;
        match (head.upgrade, head.http2) {
            (true, _) => {
                upstreams.switch(to, request).await.map(|(response, switched)| (response, Some(switched)))
            }
            (false, true) => upstreams.send2(to, request).await.map(|response| (response, None)),
            (false, false) => upstreams.send1(to, request).await.map(|response| (response, None)),
        }
    };
    let try_end = limit.per_try.map(|t| Instant::now() + t);
    let end = match (try_end, limit.deadline) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let result: Result<_, SendError> = match end {
        None => send.await,
        Some(end) => match timeout_at(end, send).await {
            Ok(result) => result,
            Err(_) => {
                let refusal =
                    Refusal::new(Reason::RouteTimeout, to.set.endpoints[to.index].workload.uid.to_string());
                let whole = limit.deadline == Some(end);
                return Tried::Failed(
                    if whole { Failure::Reset { sent: true } } else { Failure::TryTimeout },
                    refusal,
                );
            }
        },
    };
    match result {
        Ok((response, switched)) => Tried::Answer(response, switched),
        Err(SendError { failure, refusal, body }) => {
            if let Some(body) = body {
                kept.restore(body);
            }
            Tried::Failed(failure, refusal)
        }
    }
}

/// The failure that an answer stands for, if a retry could be about it.
fn failing(response: &Response<Incoming>) -> Option<Failure> {
    match (response.status().as_u16(), grpc_status(response.headers())) {
        (_, Some(code)) if code != 0 => Some(Failure::Grpc(u32::from(code))),
        (code, _) if code >= 400 => Some(Failure::Status(code)),
        _ => None,
    }
}

fn answer(
    response: Response<Incoming>,
    plan: &Plan<'_>,
    deadline: Option<Instant>,
    mut record: Record,
    hold: Box<dyn std::any::Any>,
) -> Response<Answer> {
    record.code = response.status().as_u16();
    record.grpc_status = grpc_status(response.headers());
    with_head(response, plan, |body| Answer::upstream(body, deadline, record, hold))
}

/// The answer with its head as the client gets it.
fn with_head(
    response: Response<Incoming>,
    plan: &Plan<'_>,
    body: impl FnOnce(Incoming) -> Answer,
) -> Response<Answer> {
    let (mut parts, upstream) = response.into_parts();
    strip_hop(&mut parts.headers, parts.status == StatusCode::SWITCHING_PROTOCOLS);
    apply(&plan.destination.response_headers, &mut parts.headers);
    apply(&plan.route.response_headers, &mut parts.headers);
    Response::from_parts(parts, body(upstream))
}

/// Hands the streams to the connection that asked, and the record with them.
fn switch(
    response: Response<Incoming>,
    switched: Option<Switched>,
    slot: &SwitchSlot,
    mut plan: Plan<'_>,
    mut record: Record,
    hold: Box<dyn std::any::Any>,
) -> Response<Answer> {
    let (Some(upstream), Some(asked)) = (switched, plan.asked.take()) else {
        let detail = "the upstream switched protocols, which nobody asked for";
        return respond::refusal(Refusal::new(Reason::UpstreamReset, detail), false, record);
    };
    record.code = response.status().as_u16();
    slot.set(Some(Upgraded { upstream, asked, record, _hold: hold }));
    with_head(response, &plan, |_| Answer::switched())
}

impl Head {
    fn build(
        world: &World,
        flow: &Flow,
        plan: &Plan<'_>,
        mut parts: Parts,
        entropy: &mut SplitMix64,
    ) -> Result<Self, Refusal> {
        let bad = |what: &str| Refusal::new(Reason::BadRequest, what.to_owned());
        let path = match parts.uri.query() {
            Some(query) => PathAndQuery::try_from(format!("{}?{query}", plan.path)),
            None => PathAndQuery::try_from(plan.path.as_str()),
        };
        let path = path.map_err(|_| bad("path is not legal after the rewrite"))?;
        let sent = plan.authority.as_deref().unwrap_or_else(|| authority(&parts));
        let mut host = HeaderValue::from_str(sent).map_err(|_| bad("host is not legal"))?;
        let upgrade = plan.asked.is_some();
        strip_hop(&mut parts.headers, upgrade);
        let headers = &mut parts.headers;
        let renamed = apply(&plan.destination.request_headers, headers);
        let renamed = apply(&plan.route.request_headers, headers).or(renamed);
        host = renamed.unwrap_or(host);
        forwarded(headers, || request_id(entropy));
        forwarded_for(headers, &flow.peer.forwarded_for);
        let http2 = !upgrade && speaks_http2(world, flow, plan, &parts);
        Ok(Self { parts, path, host, http2, upgrade })
    }

    fn request(&self, body: Outgoing) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.headers_mut() = self.parts.headers.clone();
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = Some(self.path.clone());
        if self.http2 {
            request.headers_mut().remove(HOST);
            *request.version_mut() = Version::HTTP_2;
            uri.scheme = Some(http::uri::Scheme::HTTP);
            uri.authority = self.host.to_str().ok().and_then(|h| h.parse().ok());
            if uri.authority.is_none() {
                uri.scheme = None;
            }
        } else {
            request.headers_mut().insert(HOST, self.host.clone());
        }
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        request
    }
}

/// HTTP/2 towards endpoints that declare it and for gRPC; where nothing is declared, what the client
/// speaks.
fn speaks_http2(world: &World, flow: &Flow, plan: &Plan<'_>, parts: &Parts) -> bool {
    let port = plan.destination.port.unwrap_or(flow.port);
    let service = world.snapshot.service(&plan.destination.service);
    let declared =
        service.and_then(|s| s.ports.iter().find(|p| p.service_port == port)).map(|p| p.app_protocol);
    match declared.unwrap_or_default() {
        AppProtocol::Http2 | AppProtocol::Grpc => true,
        AppProtocol::Http11 => crate::headers::is_grpc(&parts.headers),
        _ => parts.version == Version::HTTP_2,
    }
}

fn request_id(entropy: &mut SplitMix64) -> String {
    use mesh_core::entropy::Entropy;
    let (a, b) = (entropy.next_u64(), entropy.next_u64());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        0x8000 | ((b >> 48) & 0x3fff),
        b & 0xffff_ffff_ffff
    )
}
