//! What the kernel says of closed connections, as metrics that nobody else has: round-trip time,
//! retransmits and connect time from the TCP stack, for proxied and bypassed flows.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

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
/// Label sets of the process; what comes beyond is counted with [`OTHER`] in place of the workloads.
const SETS: usize = 4096;
const OTHER: &str = "other";
const UNKNOWN: &str = "unknown";

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

/// Where events come from, and what names the pods in them.
pub struct Watcher {
    /// The kernel side.
    pub bpf: Arc<Bpf>,
    /// The metrics.
    pub families: Families,
    /// Pods of this node.
    pub registry: Registry,
    /// Configuration.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Network of this node.
    pub network: Arc<str>,
}

impl Watcher {
    /// Empties the ring buffers, of events and of the programs' log, until the agent ends.
    pub async fn run(self) {
        let (mut sets, mut log) = (Sets::default(), self.bpf.kernel_log());
        loop {
            tokio::time::sleep(EVERY).await;
            if let Some(log) = &mut log {
                log.flush();
            }
            let events = match self.bpf.maps.take_events() {
                Ok(events) if events.is_empty() => continue,
                Ok(events) => events,
                Err(error) => return tracing::error!(%error, "flow events cannot be read"),
            };
            let pods = self.pods();
            let snapshot = self.snapshots.borrow().clone();
            for event in &events {
                let own = pods.get(&event.netns).copied();
                let labels = labels_of(event, own, &snapshot, &self.network);
                let labels = sets.bounded(labels, SETS);
                self.families.observe(event, &labels.each_ref().map(|label| &**label));
            }
        }
    }

    /// An address of each pod of this node, by cookie.
    fn pods(&self) -> HashMap<u64, IpAddr> {
        let pods = self.registry.all().into_values();
        pods.filter_map(|status| Some((status.cookie?, *status.addresses.first()?))).collect()
    }
}

type Labels = [Arc<str>; LABELS.len()];

/// The values of [`LABELS`] for an event of the pod that has the address `own`.
fn labels_of(event: &FlowEvent, own: Option<IpAddr>, snapshot: &Snapshot, network: &Arc<str>) -> Labels {
    let name = |workload: Option<&Arc<Workload>>| match workload {
        Some(workload) => [workload.workload_name.clone(), workload.namespace.clone()],
        None => [UNKNOWN.into(), UNKNOWN.into()],
    };
    let [workload, namespace] = name(own.and_then(|ip| snapshot.workload_at(network, ip)));
    let [peer, peer_namespace] = name(snapshot.workload_at(network, ip_of(event.remote)));
    [leg(event.leg).into(), workload, namespace, peer, peer_namespace]
}

/// Label sets that exist.
#[derive(Default)]
struct Sets(HashSet<Labels>);

impl Sets {
    /// The labels to use: these, or those of all others when there are too many.
    fn bounded(&mut self, labels: Labels, most: usize) -> Labels {
        if self.0.contains(&labels) || self.0.len() < most {
            self.0.insert(labels.clone());
            return labels;
        }
        let [leg, ..] = labels;
        [leg, OTHER.into(), OTHER.into(), OTHER.into(), OTHER.into()]
    }
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

#[cfg(test)]
mod tests {
    use agent_common::addr::IpKey;
    use mesh_core::{delta::Change, model::WorkloadUid, snapshot::Snapshot};

    use super::*;
    use crate::bpf::key_of;

    fn workload(name: &str, network: &str, ip: &str) -> Change {
        let mut workload = Workload::new(WorkloadUid::pod("c", "shop", name), "shop", name);
        workload.workload_name = name.into();
        workload.network = network.into();
        workload.addresses = vec![ip.parse().unwrap()];
        Change::Workload(Arc::new(workload))
    }

    fn event(leg: u32, remote: &str) -> FlowEvent {
        FlowEvent {
            netns: 1,
            bytes_sent: 0,
            bytes_received: 0,
            local: IpKey::UNSPECIFIED,
            remote: key_of(remote.parse().unwrap()),
            local_port: 0,
            remote_port: 0,
            srtt_us: 0,
            retransmits: 0,
            connect_us: 0,
            leg,
            pad: 0,
        }
    }

    #[test]
    fn flows_are_named_after_the_workloads_of_the_agents_own_network() {
        let snapshot = Snapshot::of(vec![
            workload("client", "blue", "10.0.0.1"),
            workload("web", "blue", "10.0.0.2"),
            workload("stranger", "red", "10.0.0.3"),
        ]);
        let own = "10.0.0.1".parse().ok();
        let labels =
            |leg, remote, network: &str| labels_of(&event(leg, remote), own, &snapshot, &network.into());
        let names = |labels: Labels| labels.map(|label| label.to_string());
        assert_eq!(
            names(labels(LEG_CAPTURED, "10.0.0.2", "blue")),
            ["captured", "client", "shop", "web", "shop"]
        );
        assert_eq!(
            names(labels(LEG_BYPASS, "10.0.0.3", "blue")),
            ["bypass", "client", "shop", UNKNOWN, UNKNOWN],
            "the same address in another network is another pod"
        );
        assert_eq!(names(labels(LEG_AGENT, "10.0.0.3", "red"))[3], "stranger");
    }

    #[test]
    fn label_sets_beyond_the_bound_keep_only_the_leg() {
        let mut sets = Sets::default();
        let labels = |name: &str| [leg(LEG_AGENT), name, "shop", "web", "shop"].map(Arc::<str>::from);
        assert_eq!(sets.bounded(labels("one"), 1), labels("one"));
        assert_eq!(sets.bounded(labels("two"), 1), ["agent", OTHER, OTHER, OTHER, OTHER].map(Arc::from));
        assert_eq!(sets.bounded(labels("one"), 1), labels("one"), "what exists goes on");
    }
}
