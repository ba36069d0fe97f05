//! What the kernel says of closed connections, as metrics that nobody else has: round-trip time,
//! retransmits and connect time from the TCP stack, for proxied and bypassed flows.

use std::{collections::HashMap, sync::Arc, time::Duration};

use agent_common::event::{FlowEvent, LEG_ACCEPTED, LEG_AGENT, LEG_BYPASS, LEG_CAPTURED};
use mesh_core::{model::Workload, snapshot::Snapshot};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry as Metrics};
use tokio::sync::watch;

use crate::{
    bpf::{Bpf, ip_of},
    registry::Registry,
};

/// The ring buffer is emptied at this interval; it holds many times what a node closes meanwhile.
const EVERY: Duration = Duration::from_millis(250);
const LABELS: &[&str] = &["leg", "workload", "namespace", "peer_workload", "peer_namespace"];

/// The metrics. Workloads are those of this node and their peers, by the name of their owner.
#[derive(Clone)]
pub struct Families {
    rtt: HistogramVec,
    connect: HistogramVec,
    sent: IntCounterVec,
    received: IntCounterVec,
    retransmits: IntCounterVec,
    flows: IntCounterVec,
}

impl Families {
    /// Registers them.
    ///
    /// # Errors
    /// A name is taken.
    pub fn register(metrics: &Metrics) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| {
            let family = IntCounterVec::new(Opts::new(name, help), LABELS)?;
            metrics.register(Box::new(family.clone()))?;
            prometheus::Result::Ok(family)
        };
        let histogram = |name: &str, help: &str| {
            let buckets = vec![0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5];
            let family = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), LABELS)?;
            metrics.register(Box::new(family.clone()))?;
            prometheus::Result::Ok(family)
        };
        Ok(Self {
            rtt: histogram(
                "culvert_tcp_rtt_seconds",
                "Smoothed round-trip time of a connection when it closed",
            )?,
            connect: histogram("culvert_tcp_connect_seconds", "Time that connecting took")?,
            sent: counter("culvert_tcp_sent_bytes_total", "Bytes that the peer acknowledged")?,
            received: counter("culvert_tcp_received_bytes_total", "Bytes received")?,
            retransmits: counter("culvert_tcp_retransmits_total", "Segments sent again")?,
            flows: counter("culvert_tcp_flows_total", "Connections closed, as the kernel saw them")?,
        })
    }

    fn observe(&self, event: &FlowEvent, labels: &[&str]) {
        self.flows.with_label_values(labels).inc();
        self.sent.with_label_values(labels).inc_by(event.bytes_sent);
        self.received.with_label_values(labels).inc_by(event.bytes_received);
        self.retransmits.with_label_values(labels).inc_by(event.retransmits.into());
        if event.srtt_us > 0 {
            self.rtt.with_label_values(labels).observe(f64::from(event.srtt_us) / 1e6);
        }
        if event.connect_us > 0 {
            self.connect.with_label_values(labels).observe(f64::from(event.connect_us) / 1e6);
        }
    }
}

/// Empties the ring buffers, of events and of the programs' log, until the agent ends.
pub async fn run(
    bpf: Arc<Bpf>,
    families: Families,
    registry: Registry,
    snapshots: watch::Receiver<Arc<Snapshot>>,
) {
    let mut log = bpf.kernel_log();
    loop {
        tokio::time::sleep(EVERY).await;
        if let Some(log) = &mut log {
            log.flush();
        }
        let events = match bpf.maps.take_events() {
            Ok(events) if events.is_empty() => continue,
            Ok(events) => events,
            Err(error) => return tracing::error!(%error, "flow events cannot be read"),
        };
        let pods: HashMap<u64, _> = registry
            .all()
            .into_values()
            .filter_map(|status| Some((status.cookie?, *status.addresses.first()?)))
            .collect();
        let snapshot = snapshots.borrow().clone();
        for event in &events {
            let own = pods.get(&event.netns).and_then(|ip| snapshot.workload_at(&"".into(), *ip));
            let peer = snapshot.workload_at(&"".into(), ip_of(event.remote));
            let ((workload, namespace), (peer, peer_namespace)) = (name(own), name(peer));
            families.observe(event, &[leg(event.leg), workload, namespace, peer, peer_namespace]);
        }
    }
}

fn name(workload: Option<&Arc<Workload>>) -> (&str, &str) {
    workload.map_or(("unknown", "unknown"), |w| (&*w.workload_name, &*w.namespace))
}

fn leg(leg: u32) -> &'static str {
    match leg {
        LEG_CAPTURED => "captured",
        LEG_BYPASS => "bypass",
        LEG_AGENT => "agent",
        LEG_ACCEPTED => "accepted",
        _ => "unknown",
    }
}
