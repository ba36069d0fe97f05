//! What is said of a flow: metrics and one access-log line.

use std::rc::Rc;

use mesh_core::outcome::{Path, Stage};
use mesh_net::telemetry::{access, tcp};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use super::{Direction, Failure, Flow};

/// Metrics that all threads share.
#[derive(Clone)]
pub struct Families {
    open: IntGaugeVec,
    carried: IntCounterVec,
    refused: IntCounterVec,
    tcp: tcp::Families,
}

impl Families {
    /// Registers the metrics.
    ///
    /// # Errors
    /// A name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            prometheus::Result::Ok(family)
        };
        let open = IntGaugeVec::new(
            Opts::new("culvert_connections_open", "Connections being carried"),
            &["direction"],
        )?;
        registry.register(Box::new(open.clone()))?;
        let carried = counter(
            "culvert_connections_total",
            "Connections that were carried, by the way of their bytes",
            &["direction", "path"],
        )?;
        let refused = counter(
            "culvert_connections_failed_total",
            "Connections that were refused or did not end in order, by reason",
            &["direction", "stage", "reason"],
        )?;
        Ok(Self { open, carried, refused, tcp: tcp::Families::register(registry)? })
    }
}

/// Counts and logs the flows of one thread.
pub struct Recorder {
    families: Families,
    handles: tcp::Handles,
}

impl Recorder {
    /// A recorder for one thread.
    pub fn new(families: Families) -> Self {
        let handles = tcp::Handles::new(families.tcp.clone());
        Self { families, handles }
    }

    /// A flow is carried, or known to fail.
    pub fn opened(&self, flow: &Flow) {
        self.families.open.with_label_values(&[flow.direction.as_str()]).inc();
        self.handle(flow).open();
    }

    /// Counts the bytes that a flow moved since the last call.
    pub fn moved(&self, flow: &Flow) {
        let ((sent, received), (told_sent, told_received)) = (flow.bytes(), flow.told.get());
        if (sent, received) == (told_sent, told_received) {
            return;
        }
        flow.told.set((sent, received));
        // Istio's names are the server's: it receives what the client sent.
        let handle = self.handle(flow);
        handle.received.inc_by(sent - told_sent);
        handle.sent.inc_by(received - told_received);
    }

    /// A flow has ended.
    pub fn closed(&self, flow: &Flow, outcome: &Result<(), Failure>) {
        self.moved(flow);
        let direction = flow.direction.as_str();
        self.families.open.with_label_values(&[direction]).dec();
        let path = flow.ends.borrow().path.map_or("none", Path::as_str);
        match outcome {
            Ok(()) => self.families.carried.with_label_values(&[direction, path]).inc(),
            Err(failure) => {
                let reason = failure.refusal.reason.as_str();
                self.families.refused.with_label_values(&[direction, stage(failure.stage), reason]).inc();
            }
        }
        self.handle(flow).close(outcome.as_ref().err().map(|failure| failure.refusal.reason));
        log(flow, outcome);
    }

    /// The counters of a flow as it is known when it is carried.
    fn handle<'a>(&self, flow: &'a Flow) -> &'a tcp::Handle {
        flow.handle.get_or_init(|| self.resolve(flow))
    }

    fn resolve(&self, flow: &Flow) -> Rc<tcp::Handle> {
        let ends = flow.ends.borrow();
        let reporter = match flow.direction {
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
        };
        self.handles.of(&tcp::Ends {
            reporter,
            source: ends.source.as_ref(),
            destination: ends.destination.as_ref(),
            service: ends.service.as_ref(),
            source_identity: ends.source_identity.as_ref(),
            mutual_tls: ends.source_identity.is_some(),
            path: ends.path.map_or("none", Path::as_str),
        })
    }
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Accept => "accept",
        Stage::Plan => "plan",
        Stage::Dial => "dial",
        Stage::Relay => "relay",
    }
}

fn log(flow: &Flow, outcome: &Result<(), Failure>) {
    let ends = flow.ends.borrow();
    let (to_server, to_client) = flow.bytes();
    let (sent, received) = match flow.direction {
        Direction::Outbound => (to_server, to_client),
        Direction::Inbound => (to_client, to_server),
    };
    let line = access::Flow {
        direction: flow.direction.as_str(),
        source_address: flow.client,
        source: ends.source.as_deref(),
        source_identity: ends.source_identity.as_ref(),
        destination_address: ends.upstream.or(ends.original),
        authority: ends.authority.as_ref(),
        service: ends.service.as_deref(),
        destination: ends.destination.as_deref(),
        destination_identity: ends.destination_identity.as_ref(),
        path: ends.path,
        bytes_sent: sent,
        bytes_received: received,
        duration: flow.opened.elapsed(),
        snapshot: ends.snapshot,
        failure: outcome.as_ref().err().map(|failure| (failure.stage, &failure.refusal)),
    };
    line.complete();
}
