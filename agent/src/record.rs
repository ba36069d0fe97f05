//! What is said of a flow: metrics and one access-log line.

use std::sync::Arc;

use mesh_core::outcome::{Path, Reason};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::flow::{Failure, Flow};

/// Counts and logs flows. Cheap to clone.
#[derive(Clone)]
pub struct Recorder(Arc<Families>);

struct Families {
    open: IntGaugeVec,
    carried: IntCounterVec,
    refused: IntCounterVec,
}

impl Recorder {
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
        Ok(Self(Arc::new(Families { open, carried, refused })))
    }

    /// A flow is carried, or known to fail.
    pub fn opened(&self, flow: &Flow) {
        self.0.open.with_label_values(&[flow.direction.as_str()]).inc();
    }

    /// A flow has ended.
    pub fn closed(&self, flow: &Flow, outcome: &Result<(), Failure>) {
        let direction = flow.direction.as_str();
        self.0.open.with_label_values(&[direction]).dec();
        let path = flow.ends.borrow().path.map_or("none", Path::as_str);
        match outcome {
            Ok(()) => self.0.carried.with_label_values(&[direction, path]).inc(),
            Err(failure) => {
                let stage = format!("{:?}", failure.stage).to_lowercase();
                let reason = failure.refusal.reason.as_str();
                self.0.refused.with_label_values(&[direction, &stage, reason]).inc();
            }
        }
        log(flow, outcome);
    }
}

fn log(flow: &Flow, outcome: &Result<(), Failure>) {
    let ends = flow.ends.borrow();
    let (sent, received) = flow.bytes();
    let show = |address: Option<std::net::SocketAddr>| address.map(tracing::field::display);
    let failure = outcome.as_ref().err();
    let quiet = failure.is_none_or(|f| matches!(f.refusal.reason, Reason::ClientReset | Reason::UpstreamReset));
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: "access",
                direction = flow.direction.as_str(),
                pod = flow.member.info.name(),
                src.addr = %flow.client,
                src.workload = ends.source.as_ref().map(|w| &*w.name),
                src.namespace = ends.source.as_ref().map(|w| &*w.namespace),
                src.identity = ends.source_identity.as_ref().map(tracing::field::display),
                dst.addr = show(ends.original),
                dst.upstream = show(ends.upstream),
                dst.service = ends.service.as_ref().map(|s| &*s.key.hostname),
                dst.workload = ends.destination.as_ref().map(|w| &*w.name),
                dst.namespace = ends.destination.as_ref().map(|w| &*w.namespace),
                dst.identity = ends.destination_identity.as_ref().map(tracing::field::display),
                path = ends.path.map(Path::as_str),
                bytes_sent = sent,
                bytes_recv = received,
                duration_ms = flow.opened.elapsed().as_millis() as u64,
                reason = failure.map(|f| f.refusal.reason.as_str()),
                error = failure.map(|f| f.refusal.detail.as_str()),
                "connection complete"
            )
        };
    }
    if quiet { line!(info) } else { line!(warn) }
}
