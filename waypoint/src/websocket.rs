//! What goes on after a request has switched to WebSocket: bytes both ways, under the policies that
//! admitted the request, until its record ends with the streams.

use std::{cell::Cell, rc::Rc};

use http::{HeaderMap, Version, request::Parts};
use mesh_core::{
    http::{RequestFacts, ResponseFlag, authorise},
    outcome::{Reason, Refusal},
};
use tokio::io::AsyncWriteExt;

use crate::{
    flow::Flow,
    headers::{View, wants_websocket},
    io::Prefixed,
    tcp::{Counted, copy},
    telemetry::Record,
    upstream::Switched,
    worker::Worker,
    world::World,
};

/// Where a protocol switch leaves what goes on for the connection that asked.
pub type SwitchSlot = Rc<Cell<Option<Upgraded>>>;

/// The request as policy sees it, kept as long as its streams live.
pub struct Asked {
    method: String,
    authority: String,
    path: String,
    query: String,
    headers: HeaderMap,
}

impl Asked {
    /// The request, if it asks for a switch to WebSocket.
    pub fn of(parts: &Parts, facts: &RequestFacts<'_>) -> Option<Self> {
        (parts.version < Version::HTTP_2 && wants_websocket(&parts.headers)).then(|| Self {
            method: facts.method.to_owned(),
            authority: facts.authority.to_owned(),
            path: facts.path.to_owned(),
            query: facts.query.to_owned(),
            headers: parts.headers.clone(),
        })
    }

    fn authorised(&self, world: &World, flow: &Flow) -> Result<(), Refusal> {
        let facts = RequestFacts {
            client: flow.peer.facts(),
            method: &self.method,
            scheme: "http",
            authority: &self.authority,
            path: &self.path,
            query: &self.query,
            headers: &View(&self.headers),
            destination_ip: flow.ip,
            port: flow.port,
        };
        let service = flow.service.as_ref().map(|s| &s.key);
        authorise(world.policies(service).iter().map(|p| &**p), &facts).map(drop)
    }
}

/// A connection that has switched.
pub struct Upgraded {
    /// The upstream's stream.
    pub upstream: Switched,
    /// What was asked for.
    pub asked: Asked,
    /// Recorded when the streams have ended.
    pub record: Record,
    /// Load and limit guards.
    pub _hold: Box<dyn std::any::Any>,
}

impl Upgraded {
    /// Carries bytes to the end.
    pub async fn relay(mut self, worker: &Worker, flow: &Flow, client: Prefixed) {
        let mut client = Counted::new(client, None);
        let ended = self.carry(worker, flow, &mut client).await;
        self.record.received.set(client.received);
        self.record.sent = client.sent;
        if let Err(refusal) = ended {
            self.record.flag = ResponseFlag::of(refusal.reason);
            self.record.reason = Some((refusal.reason, refusal.detail));
        }
    }

    async fn carry(&mut self, worker: &Worker, flow: &Flow, client: &mut Counted) -> Result<(), Refusal> {
        // Before the look at policy, so that no change in between is missed.
        let changes = worker.changes();
        let changed = |refusal: Refusal| Refusal::new(Reason::PolicyChanged, refusal.detail);
        self.asked.authorised(&worker.world(), flow).map_err(changed)?;
        let gone = |_| Refusal::new(Reason::UpstreamReset, "gone after the switch");
        let (mut upstream, beyond) = (&mut self.upstream).await.map_err(gone)?;
        let lost = |error: std::io::Error| Refusal::new(Reason::ClientReset, error.to_string());
        client.write_all(&beyond).await.map_err(lost)?;
        copy(worker, client, &mut upstream, changes, |world| self.asked.authorised(world, flow)).await
    }
}
