//! Istio's request metrics as a waypoint reports them, and the access log.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use mesh_core::{
    http::ResponseFlag,
    identity::Identity,
    model::{Service, Tunnel, Workload},
    outcome::Reason,
};
use mesh_net::telemetry::{
    sets::{OTHER, Sets},
    tcp,
};
use prometheus::{
    CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    core::{AtomicF64, GenericCounter},
};

use crate::peer::Peer;

/// Labels of the `istio_requests_total` family, in this order.
pub const LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];
/// Label sets of the process, each some 20 KiB in all families; what comes beyond it is counted with
/// [`OTHER`] in place of everything that names a workload, service or identity.
const SETS: usize = 2048;
/// The highest status that gRPC has; an upstream may send any number.
const GRPC_STATUSES: u16 = 16;
/// Label sets that one worker keeps handles for; beyond it the cache starts anew.
const HANDLES: usize = 4096;

/// The metric families, shared by all workers.
#[derive(Clone)]
pub struct Families {
    requests: CounterVec,
    duration: HistogramVec,
    request_bytes: HistogramVec,
    response_bytes: HistogramVec,
    refusals: IntCounterVec,
    sets: Arc<Sets>,
    /// `istio_tcp_*`.
    pub tcp: tcp::Families,
    /// Requests that are being answered.
    pub active: IntGauge,
    /// Connections that were taken for TCP because the client stayed silent.
    pub silent: IntCounter,
    /// Route resources that were refused.
    pub rejected: IntCounter,
}

impl Families {
    /// Creates and registers the families.
    ///
    /// # Errors
    /// A family of the same name is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let sizes = || prometheus::exponential_buckets(64.0, 8.0, 8);
        let millis =
            vec![0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0];
        let histogram = |name: &str, help: &str, buckets| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &LABELS)
        };
        let families = Self {
            requests: CounterVec::new(Opts::new("istio_requests_total", "Requests."), &LABELS)?,
            duration: histogram("istio_request_duration_milliseconds", "Duration of requests.", millis)?,
            request_bytes: histogram("istio_request_bytes", "Size of request bodies.", sizes()?)?,
            response_bytes: histogram("istio_response_bytes", "Size of response bodies.", sizes()?)?,
            refusals: IntCounterVec::new(
                Opts::new(
                    "culvert_waypoint_refusals_total",
                    "Requests and connections that the waypoint did not carry, by reason.",
                ),
                &["reason"],
            )?,
            sets: Arc::default(),
            tcp: tcp::Families::register(registry)?,
            active: IntGauge::new("culvert_waypoint_active_requests", "Requests being answered.")?,
            silent: IntCounter::new(
                "culvert_waypoint_sniff_timeouts_total",
                "Connections taken for TCP because the client sent nothing.",
            )?,
            rejected: IntCounter::new(
                "culvert_waypoint_rejected_routes_total",
                "Route resources refused because they do not compile.",
            )?,
        };
        registry.register(Box::new(families.requests.clone()))?;
        registry.register(Box::new(families.duration.clone()))?;
        registry.register(Box::new(families.request_bytes.clone()))?;
        registry.register(Box::new(families.response_bytes.clone()))?;
        registry.register(Box::new(families.refusals.clone()))?;
        registry.register(Box::new(families.active.clone()))?;
        registry.register(Box::new(families.silent.clone()))?;
        registry.register(Box::new(families.rejected.clone()))?;
        for reason in Reason::ALL {
            families.refusals.with_label_values(&[reason.as_str()]);
        }
        Ok(families)
    }

    /// Counts something not carried.
    pub fn refused(&self, reason: Reason) {
        self.refusals.with_label_values(&[reason.as_str()]).inc();
    }
}

/// One worker's view of the families, with the handles of recent label sets.
pub struct Telemetry {
    /// The shared families.
    pub families: Families,
    /// Handles of TCP connections.
    pub tcp: tcp::Handles,
    handles: RefCell<HashMap<Key, Rc<Handles>>>,
}

#[derive(PartialEq, Eq, Hash, Clone, Copy)]
struct Key {
    client: usize,
    service: usize,
    destination: usize,
    code: u16,
    flag: ResponseFlag,
    grpc: Option<u16>,
    is_grpc: bool,
}

struct Handles {
    requests: GenericCounter<AtomicF64>,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    // The key holds addresses of these: they stay alive as long as the entry.
    _alive: (Rc<Peer>, Option<Arc<Service>>, Option<Arc<Workload>>),
}

impl Telemetry {
    /// For one worker.
    pub fn new(families: Families) -> Self {
        let tcp = tcp::Handles::new(families.tcp.clone());
        Self { families, tcp, handles: RefCell::new(HashMap::new()) }
    }

    fn handles(&self, record: &Record) -> Rc<Handles> {
        let address = |w: &Option<Arc<Workload>>| w.as_ref().map_or(0, |w| Arc::as_ptr(w).addr());
        let key = Key {
            client: Rc::as_ptr(&record.client).addr(),
            service: record.service.as_ref().map_or(0, |s| Arc::as_ptr(s).addr()),
            destination: address(&record.destination),
            code: record.code,
            flag: record.flag,
            grpc: record.grpc_status,
            is_grpc: record.is_grpc,
        };
        if let Some(found) = self.handles.borrow().get(&key) {
            return found.clone();
        }
        let fresh = Rc::new(self.resolve(record));
        let mut handles = self.handles.borrow_mut();
        if handles.len() >= HANDLES {
            handles.clear();
        }
        handles.insert(key, fresh.clone());
        fresh
    }

    fn resolve(&self, record: &Record) -> Handles {
        let values = self.families.sets.bounded(labels(record), SETS, kept);
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        Handles {
            requests: self.families.requests.with_label_values(&values),
            duration: self.families.duration.with_label_values(&values),
            request_bytes: self.families.request_bytes.with_label_values(&values),
            response_bytes: self.families.response_bytes.with_label_values(&values),
            _alive: (record.client.clone(), record.service.clone(), record.destination.clone()),
        }
    }
}

/// Labels that stay when there are too many sets.
fn kept(at: usize) -> bool {
    let names = ["reporter", "request_protocol", "response_code", "grpc_response_status", "response_flags"];
    names.contains(&LABELS[at]) || LABELS[at] == "connection_security_policy"
}

fn labels(record: &Record) -> Vec<String> {
    let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
    let of = |w: Option<&Workload>, field: fn(&Workload) -> &str| known(w.map_or("", field));
    let source = record.client.workload.as_deref();
    let destination = record.destination.as_deref();
    let service = record.service.as_deref();
    let principal = destination.map_or_else(|| known(""), |w| w.identity().to_string());
    let grpc = record.grpc_status.map(|s| if s > GRPC_STATUSES { OTHER.to_owned() } else { s.to_string() });
    vec![
        "waypoint".to_owned(),
        of(source, |w| &w.workload_name),
        of(source, |w| &w.canonical_name),
        of(source, |w| &w.canonical_revision),
        known(&record.client.identity.namespace),
        record.client.identity.to_string(),
        of(source, |w| &w.canonical_name),
        of(source, |w| &w.canonical_revision),
        of(source, |w| &w.cluster),
        of(destination, |w| &w.workload_name),
        of(destination, |w| &w.namespace),
        principal,
        of(destination, |w| &w.canonical_name),
        of(destination, |w| &w.canonical_revision),
        known(service.map_or("", |s| &s.key.hostname)),
        known(service.map_or("", |s| &s.name)),
        known(service.map_or("", |s| &s.key.namespace)),
        of(destination, |w| &w.canonical_name),
        of(destination, |w| &w.canonical_revision),
        of(destination, |w| &w.cluster),
        if record.is_grpc { "grpc" } else { "http" }.to_owned(),
        record.code.to_string(),
        grpc.unwrap_or_default(),
        record.flag.as_str().to_owned(),
        "mutual_tls".to_owned(),
    ]
}

/// The identity that an endpoint had to prove, as logs say it; none for one outside the mesh.
pub fn destination_identity(endpoint: Option<&Workload>) -> Option<tracing::field::DisplayValue<Identity>> {
    let proven = endpoint.filter(|workload| workload.tunnel == Tunnel::Hbone)?;
    Some(tracing::field::display(proven.identity()))
}

/// One request from its head to the last byte of its answer. Recorded when dropped, hence exactly
/// once (invariant I-4); a request whose client vanishes before an answer exists counts as that.
pub struct Record {
    telemetry: Rc<Telemetry>,
    start: Instant,
    client: Rc<Peer>,
    method: http::Method,
    path: String,
    /// Request body bytes so far.
    pub received: Rc<Cell<u64>>,
    /// Response body bytes so far.
    pub sent: u64,
    /// The service that was asked for.
    pub service: Option<Arc<Service>>,
    /// The endpoint that answered.
    pub destination: Option<Arc<Workload>>,
    /// Status; 0 until there is one.
    pub code: u16,
    /// Response flag.
    pub flag: ResponseFlag,
    /// Reason of a refusal or early end, with the object that decided.
    pub reason: Option<(Reason, String)>,
    /// Route name.
    pub route: Arc<str>,
    /// Tries.
    pub attempts: u32,
    /// gRPC status from head or trailers.
    pub grpc_status: Option<u16>,
    /// Whether the request is gRPC.
    pub is_grpc: bool,
    /// Version of the snapshot that decided.
    pub snapshot: u64,
}

impl Record {
    /// Starts with the request's head.
    pub fn start(telemetry: &Rc<Telemetry>, client: &Rc<Peer>, method: &http::Method, path: &str) -> Self {
        telemetry.families.active.inc();
        Self {
            telemetry: telemetry.clone(),
            start: Instant::now(),
            client: client.clone(),
            method: method.clone(),
            path: path.to_owned(),
            received: Rc::default(),
            sent: 0,
            service: None,
            destination: None,
            code: 0,
            flag: ResponseFlag::None,
            reason: None,
            route: Arc::from("-"),
            attempts: 0,
            grpc_status: None,
            is_grpc: false,
            snapshot: 0,
        }
    }

    /// One that could not be read as HTTP and was answered so.
    pub fn malformed(telemetry: &Rc<Telemetry>, client: &Rc<Peer>, why: String) -> Self {
        let mut record = Self::start(telemetry, client, &http::Method::default(), "-");
        record.code = http::StatusCode::BAD_REQUEST.as_u16();
        record.flag = ResponseFlag::DownstreamProtocolError;
        record.reason = Some((Reason::BadRequest, why));
        record
    }

    fn log(&self) {
        tracing::event!(
            target: "access",
            tracing::Level::INFO,
            src.addr = %self.client.address,
            src.identity = %self.client.identity,
            src.workload = self.client.workload.as_deref().map_or("-", |w| &*w.name),
            dst.service = self.service.as_deref().map_or("-", |s| &*s.key.hostname),
            dst.workload = self.destination.as_deref().map_or("-", |w| &*w.name),
            dst.namespace = self.destination.as_deref().map_or("-", |w| &*w.namespace),
            dst.identity = destination_identity(self.destination.as_deref()),
            method = %self.method,
            path = %self.path,
            status = self.code,
            grpc_status = self.grpc_status,
            flags = self.flag.as_str(),
            reason = self.reason.as_ref().map_or("-", |(r, _)| r.as_str()),
            detail = self.reason.as_ref().map_or("", |(_, d)| d.as_str()),
            route = &*self.route,
            attempts = self.attempts,
            bytes_recv = self.received.get(),
            bytes_sent = self.sent,
            duration_ms = self.start.elapsed().as_secs_f64() * 1000.0,
            snapshot = self.snapshot,
            "request complete"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let families = &self.telemetry.families;
        families.active.dec();
        if self.code == 0 {
            self.flag = ResponseFlag::DownstreamTermination;
            self.reason.get_or_insert((Reason::ClientReset, String::new()));
        }
        if let Some((reason, _)) = &self.reason {
            families.refused(*reason);
        }
        let handles = self.telemetry.handles(self);
        handles.requests.inc();
        handles.duration.observe(self.start.elapsed().as_secs_f64() * 1000.0);
        #[allow(clippy::cast_precision_loss, reason = "sizes in a histogram")]
        {
            handles.request_bytes.observe(self.received.get() as f64);
            handles.response_bytes.observe(self.sent as f64);
        }
        self.log();
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{identity::Identity, snapshot::Snapshot};

    use super::*;

    fn record(client: &str) -> Record {
        let families = Families::register(&Registry::new()).unwrap();
        let identity = Identity::new("cluster.local", "default", client);
        let peer = Peer::new("10.0.0.9:4000".parse().unwrap(), identity, &Snapshot::default());
        let mut record =
            Record::start(&Rc::new(Telemetry::new(families)), &Rc::new(peer), &http::Method::GET, "/");
        record.code = 503;
        record
    }

    #[test]
    fn requests_beyond_the_bound_are_counted_as_others_with_their_codes() {
        let sets = Sets::default();
        let first = sets.bounded(labels(&record("first")), 1, kept);
        assert_eq!(first, labels(&record("first")));
        let other = sets.bounded(labels(&record("second")), 1, kept);
        for (name, value) in LABELS.iter().zip(&other) {
            let wanted = match *name {
                "reporter" => "waypoint",
                "request_protocol" => "http",
                "response_code" => "503",
                "grpc_response_status" => "",
                "response_flags" => "-",
                "connection_security_policy" => "mutual_tls",
                _ => OTHER,
            };
            assert_eq!(value, wanted, "{name}");
        }
        assert_eq!(sets.bounded(first.clone(), 1, kept), first, "what exists goes on");
    }

    #[test]
    fn a_grpc_status_that_grpc_does_not_have_is_one_of_the_others() {
        for (status, wanted) in [(Some(16), "16"), (Some(17), OTHER), (Some(65_535), OTHER), (None, "")] {
            let mut record = record("client");
            record.grpc_status = status;
            assert_eq!(labels(&record)[22], wanted);
        }
        assert_eq!(LABELS[22], "grpc_response_status");
    }
}
