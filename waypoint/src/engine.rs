//! One request through its phases: identify → match route → authorise → fault → limit → rewrite →
//! pick upstream → attempt(s) → respond → record. The same engine for HTTP/1, HTTP/2, gRPC and
//! protocol switches; every decision is a function of `mesh_core::http`.

use std::rc::Rc;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use mesh_core::{
    http::{RequestFacts, RouteDecision, authorise, fault, location, normalise, rewrite, route},
    model::ServiceName,
    outcome::{Reason, Refusal},
};

use crate::{
    attempt::{Plan, forward},
    body::Answer,
    flow::Flow,
    headers::{View, authority, is_grpc},
    respond,
    telemetry::Record,
    websocket::{Asked, SwitchSlot},
    worker::Worker,
};

/// Answers one request.
pub async fn handle(
    worker: Rc<Worker>,
    flow: Rc<Flow>,
    slot: SwitchSlot,
    request: Request<Incoming>,
) -> Response<Answer> {
    let (parts, body) = request.into_parts();
    let world = worker.world();
    let mut record = Record::start(&worker.telemetry, &flow.peer, &parts.method, parts.uri.path());
    record.service = flow.service.clone();
    record.is_grpc = is_grpc(&parts.headers);
    record.snapshot = world.snapshot.version();
    let Some(path) = normalise(parts.uri.path()) else {
        return respond::refusal(Refusal::new(Reason::BadRequest, "path leaves its root"), false, record);
    };
    let view = View(&parts.headers);
    let facts = RequestFacts {
        client: flow.peer.facts(),
        method: parts.method.as_str(),
        scheme: "http",
        authority: authority(&parts),
        path: &path,
        query: parts.uri.query().unwrap_or(""),
        headers: &view,
        destination_ip: flow.ip,
        port: flow.port,
    };
    let service = flow.service.as_ref().map(|s| &s.key);
    let policies = world.policies(service);
    if let Err(refusal) = authorise(policies.iter().map(|p| &**p), &facts) {
        return respond::refusal(refusal, false, record);
    }
    let mut entropy = worker.entropy();
    let routes = world.routes(service.unwrap_or(&ServiceName::new("", "")));
    let decision = route(&routes, &facts, &mut entropy);
    let compiled = match decision {
        RouteDecision::NoRoute => {
            let detail = format!("{}: no route matches {}", routes.source.origin, facts.path);
            return respond::refusal(Refusal::new(Reason::NoRoute, detail), false, record);
        }
        RouteDecision::Forward(c, ..) | RouteDecision::Redirect(c, _) | RouteDecision::Direct(c, _) => c,
    };
    record.route = compiled.route.name.clone();
    let injected = fault(&compiled.route.fault, &mut entropy);
    if let Some(delay) = injected.delay {
        record.flag = mesh_core::http::ResponseFlag::DelayInjected;
        tokio::time::sleep(delay).await;
    }
    if let Some(status) = injected.abort {
        return respond::abort(status, record);
    }
    match decision {
        RouteDecision::NoRoute => respond::plain(StatusCode::NOT_FOUND, "no route matches", record),
        RouteDecision::Redirect(_, to) => respond::redirect(to.code, &location(to, &facts), record),
        RouteDecision::Direct(compiled, direct) => {
            let status = StatusCode::from_u16(direct.status).unwrap_or(StatusCode::OK);
            let mut response = respond::plain(status, &direct.body, record);
            crate::headers::apply(&compiled.route.response_headers, response.headers_mut());
            response
        }
        RouteDecision::Forward(compiled, destination, matched) => {
            let rewritten = rewrite(compiled, matched, &facts);
            let path = rewritten.path.unwrap_or_else(|| facts.path.to_owned());
            let asked = Asked::of(&parts, &facts);
            let authority = rewritten.authority;
            let plan = Plan { route: &compiled.route, destination, path, authority, asked };
            forward(&worker, &world, &flow, &slot, plan, parts, body, record, entropy).await
        }
    }
}
