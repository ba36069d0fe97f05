//! Istio's metrics of TCP connections, as ztunnel reports them: `istio_tcp_*`.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use mesh_core::{
    identity::Identity,
    model::{Service, Workload},
    outcome::Reason,
};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::sets::Sets;

/// Labels in this order. `unknown` stands for what is not known.
const LABELS: [&str; 28] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
    // Ours: tunnel, waypoint, passthrough, plaintext.
    "path",
];
/// Label sets that one thread keeps handles for; beyond it the cache starts anew.
const HANDLES: usize = 4096;
/// Label sets of the process, each some 15 KiB in all families; what comes beyond it is counted with
/// [`other`](super::sets::OTHER) in place of everything that names a workload, service or identity.
const SETS: usize = 4096;
const UNKNOWN: &str = "unknown";

/// The families, shared by all threads.
#[derive(Clone)]
pub struct Families {
    opened: IntCounterVec,
    closed: IntCounterVec,
    failed: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    sets: Arc<Sets>,
}

/// Labels that stay when there are too many sets.
fn kept(at: usize) -> bool {
    matches!(LABELS[at], "reporter" | "request_protocol" | "connection_security_policy" | "path")
        || at == FLAGS
}

impl Families {
    /// Creates and registers them.
    ///
    /// # Errors
    /// A name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let family = |name: &str, help: &str| {
            let family = IntCounterVec::new(Opts::new(name, help), &LABELS)?;
            registry.register(Box::new(family.clone()))?;
            prometheus::Result::Ok(family)
        };
        Ok(Self {
            opened: family("istio_tcp_connections_opened_total", "Connections opened")?,
            closed: family("istio_tcp_connections_closed_total", "Connections closed, failed ones included")?,
            failed: family("istio_tcp_connections_failed_total", "Connections that were refused or failed")?,
            received: family("istio_tcp_received_bytes_total", "Bytes from clients to servers")?,
            sent: family("istio_tcp_sent_bytes_total", "Bytes from servers to clients")?,
            sets: Arc::default(),
        })
    }
}

/// What describes a connection.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// `source` or `destination`.
    pub reporter: &'static str,
    /// The client's workload.
    pub source: Option<&'a Arc<Workload>>,
    /// The server's workload.
    pub destination: Option<&'a Arc<Workload>>,
    /// The service that was addressed.
    pub service: Option<&'a Arc<Service>>,
    /// The client's identity, when mutual TLS proved it.
    pub source_identity: Option<&'a Identity>,
    /// Whether mutual TLS protects it.
    pub mutual_tls: bool,
    /// The way of the bytes.
    pub path: &'static str,
}

/// The counters of one label set.
pub struct Handle {
    /// Bytes from the client.
    pub received: IntCounter,
    /// Bytes to the client.
    pub sent: IntCounter,
    opened: IntCounter,
    closed: IntCounter,
    families: Families,
    labels: Vec<String>,
}

impl Handle {
    /// A connection is opened.
    pub fn open(&self) {
        self.opened.inc();
    }

    /// It is closed: in order, or for a reason.
    pub fn close(&self, failure: Option<Reason>) {
        let Some(reason) = failure else { return self.closed.inc() };
        let mut labels = self.labels.clone();
        labels[FLAGS] = response_flag(reason).to_owned();
        let labels = self.families.sets.bounded(labels, SETS, kept);
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        self.families.closed.with_label_values(&labels).inc();
        self.families.failed.with_label_values(&labels).inc();
    }
}

/// Index of `response_flags`.
const FLAGS: usize = 21;

/// Istio's flag for a reason, as ztunnel uses them.
pub fn response_flag(reason: Reason) -> &'static str {
    match reason {
        Reason::PolicyDenied
        | Reason::NoAllowMatched
        | Reason::MtlsRequired
        | Reason::PolicyUnknown
        | Reason::PolicyChanged
        | Reason::WaypointBypassed => "DENY",
        Reason::TlsFailed => "TLS_FAILURE",
        Reason::TunnelBroken => "H2_HANDSHAKE_FAILURE",
        Reason::PeerIdentityRejected | Reason::IdentityMismatch | Reason::CertificateUnavailable => {
            "IDENTITY_ERROR"
        }
        _ => "CONNECT",
    }
}

/// The objects that a label set is made from, by address; kept alive with it, so that an address
/// stands for one object only.
type Key = (&'static str, &'static str, usize, usize, usize, Option<Identity>, bool);
type Kept = (Rc<Handle>, Option<Arc<Workload>>, Option<Arc<Workload>>, Option<Arc<Service>>);

/// One thread's handles.
pub struct Handles {
    families: Families,
    kept: RefCell<HashMap<Key, Kept>>,
}

impl Handles {
    /// Starts empty.
    pub fn new(families: Families) -> Self {
        Self { families, kept: RefCell::default() }
    }

    /// The counters of a connection.
    pub fn of(&self, ends: &Ends<'_>) -> Rc<Handle> {
        let address = |w: Option<&Arc<Workload>>| w.map_or(0, |w| Arc::as_ptr(w) as usize);
        let key = (
            ends.reporter,
            ends.path,
            address(ends.source),
            address(ends.destination),
            ends.service.map_or(0, |s| Arc::as_ptr(s) as usize),
            ends.source_identity.cloned(),
            ends.mutual_tls,
        );
        let mut kept = self.kept.borrow_mut();
        if let Some((handle, ..)) = kept.get(&key) {
            return handle.clone();
        }
        if kept.len() >= HANDLES {
            kept.clear();
        }
        let handle = Rc::new(self.resolve(ends));
        let objects = (ends.source.cloned(), ends.destination.cloned(), ends.service.cloned());
        kept.insert(key, (handle.clone(), objects.0, objects.1, objects.2));
        handle
    }

    fn resolve(&self, ends: &Ends<'_>) -> Handle {
        let labels = self.families.sets.bounded(labels(ends), SETS, kept);
        let values: Vec<&str> = labels.iter().map(String::as_str).collect();
        let families = self.families.clone();
        Handle {
            received: families.received.with_label_values(&values),
            sent: families.sent.with_label_values(&values),
            opened: families.opened.with_label_values(&values),
            closed: families.closed.with_label_values(&values),
            families,
            labels,
        }
    }
}

fn labels(ends: &Ends<'_>) -> Vec<String> {
    let known = |text: Option<&str>| text.filter(|t| !t.is_empty()).unwrap_or(UNKNOWN).to_owned();
    let (source, destination) = (ends.source.map(|w| &**w), ends.destination.map(|w| &**w));
    let service = ends.service.map(|s| &**s);
    let principal = |identity: Option<String>| identity.unwrap_or_else(|| UNKNOWN.to_owned());
    let region = |w: Option<&Workload>| known(w.map(|w| &*w.locality.region));
    let zone = |w: Option<&Workload>| known(w.map(|w| &*w.locality.zone));
    vec![
        ends.reporter.to_owned(),
        known(source.map(|w| &*w.workload_name)),
        known(source.map(|w| &*w.canonical_name)),
        known(source.map(|w| &*w.canonical_revision)),
        known(source.map(|w| &*w.namespace)),
        principal(ends.source_identity.map(ToString::to_string)),
        known(source.map(|w| &*w.canonical_name)),
        known(source.map(|w| &*w.canonical_revision)),
        known(source.map(|w| &*w.cluster)),
        known(service.map(|s| &*s.key.hostname)),
        known(service.map(|s| &*s.key.namespace)),
        known(service.map(|s| &*s.name)),
        known(destination.map(|w| &*w.workload_name)),
        known(destination.map(|w| &*w.canonical_name)),
        known(destination.map(|w| &*w.canonical_revision)),
        known(destination.map(|w| &*w.namespace)),
        principal(destination.map(|w| w.identity().to_string())),
        known(destination.map(|w| &*w.canonical_name)),
        known(destination.map(|w| &*w.canonical_revision)),
        known(destination.map(|w| &*w.cluster)),
        "tcp".to_owned(),
        "-".to_owned(),
        if ends.mutual_tls { "mutual_tls" } else { UNKNOWN }.to_owned(),
        region(source),
        zone(source),
        region(destination),
        zone(destination),
        ends.path.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use mesh_core::model::WorkloadUid;
    use prometheus::TextEncoder;

    use super::*;
    use crate::telemetry::sets::OTHER;

    fn workload(name: &str) -> Arc<Workload> {
        let mut workload = Workload::new(WorkloadUid::pod("c", "default", name), "default", name);
        workload.workload_name = name.into();
        Arc::new(workload)
    }

    #[test]
    fn a_connection_is_counted_with_istios_labels_and_a_failed_one_with_its_flag() {
        let registry = Registry::new();
        let handles = Handles::new(Families::register(&registry).unwrap());
        let (source, destination) = (workload("client"), workload("web"));
        let ends = Ends {
            reporter: "source",
            source: Some(&source),
            destination: Some(&destination),
            service: None,
            source_identity: Some(&source.identity()),
            mutual_tls: true,
            path: "tunnel",
        };
        let handle = handles.of(&ends);
        handle.open();
        handle.sent.inc_by(7);
        handle.close(Some(Reason::PolicyChanged));
        assert!(Rc::ptr_eq(&handle, &handles.of(&ends)));
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let line = |start: &str, part: &str| text.lines().any(|l| l.starts_with(start) && l.contains(part));
        assert!(line("istio_tcp_sent_bytes_total{", "source_workload=\"client\""), "{text}");
        assert!(line("istio_tcp_connections_closed_total{", "response_flags=\"DENY\""), "{text}");
        assert!(line("istio_tcp_connections_opened_total{", "connection_security_policy=\"mutual_tls\""));
        assert!(line("istio_tcp_connections_opened_total{", "destination_service=\"unknown\""));
    }
    #[test]
    fn labels_beyond_the_bound_are_counted_as_others() {
        let sets = Sets::default();
        let (source, identity) = (workload("client"), workload("client").identity());
        let ends = |path| Ends {
            reporter: "source",
            source: Some(&source),
            destination: None,
            service: None,
            source_identity: Some(&identity),
            mutual_tls: true,
            path,
        };
        let first = sets.bounded(labels(&ends("tunnel")), 1, kept);
        assert_eq!(first, labels(&ends("tunnel")));
        let other = sets.bounded(labels(&ends("waypoint")), 1, kept);
        assert_eq!((other[0].as_str(), other[1].as_str(), other[27].as_str()), ("source", OTHER, "waypoint"));
        assert_eq!((LABELS[5], other[5].as_str()), ("source_principal", OTHER));
        assert_eq!(sets.bounded(first.clone(), 1, kept), first, "what exists goes on");
    }

    #[test]
    fn the_build_is_told_as_istio_tells_it() {
        let registry = Registry::new();
        crate::telemetry::build(&registry, "ztunnel", "0.1.0").unwrap();
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("istio_build{component=\"ztunnel\",tag=\"0.1.0\"} 1"), "{text}");
    }
}
