//! Figures of the control plane. Labels come from closed sets only.

use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Upper bounds of latencies, seconds.
const BOUNDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// All families; the registry belongs to this value, so that two control planes share a process.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Objects by kind; kinds that the mesh does not read are `other`.
    pub objects: IntGaugeVec,
    /// Findings by kind of object, severity and code.
    pub findings: IntGaugeVec,
    /// Connected clients by kind.
    pub clients: IntGaugeVec,
    /// Connected clients that refuse something.
    pub clients_refusing: IntGauge,
    /// Responses by type and result: sent, accepted, refused.
    pub responses: IntCounterVec,
    /// Seconds from the end of a compilation to a client's answer, by type.
    pub push: HistogramVec,
    /// Requests that were not understood, by why.
    pub odd_requests: IntCounterVec,
    /// Compilations.
    pub compilations: IntCounter,
    /// Seconds of a compilation, reading and encoding included.
    pub compilation: Histogram,
    /// Version of the configuration: compilations that changed it, since start.
    pub version: IntGauge,
    /// 1 when the folder could be read the last time.
    pub folder_readable: IntGauge,
    /// Certificates issued and refused.
    pub certificates: IntCounterVec,
    /// Reviews of objects that the API server asked for, by result.
    pub validations: IntCounterVec,
    /// Watches of the API server.
    pub watch: Watching,
}

/// Figures of the watches of the API server.
#[derive(Debug, Clone)]
pub struct Watching {
    /// Lists read to their end, by kind: one at the start, each other one restarts a watch.
    pub lists: IntCounterVec,
    /// Failures by kind and what failed.
    pub errors: IntCounterVec,
    /// Seconds since the last event of a kind.
    pub silence: IntGaugeVec,
}

impl Metrics {
    /// Registers every family.
    ///
    /// # Errors
    /// A name is not valid or there twice: a mistake in this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("culvert_control".into()), None)?;
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let family = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone())).map(|()| family)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone())).map(|()| family)
        };
        let gauge = |name: &str, help: &str| {
            let family = IntGauge::new(name, help)?;
            registry.register(Box::new(family.clone())).map(|()| family)
        };
        let compilations = IntCounter::new("compilations_total", "Compilations of the folder.")?;
        registry.register(Box::new(compilations.clone()))?;
        let opts = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(BOUNDS.to_vec());
        let compilation = Histogram::with_opts(opts("compilation_seconds", "Reading, compiling, encoding."))?;
        registry.register(Box::new(compilation.clone()))?;
        let push = opts("push_seconds", "From the end of a compilation to a client's answer.");
        let push = HistogramVec::new(push, &["type"])?;
        registry.register(Box::new(push.clone()))?;
        let all = Self {
            objects: gauges("objects", "Objects in effect.", &["kind"])?,
            findings: gauges("findings", "Findings about objects.", &["kind", "severity", "code"])?,
            clients: gauges("clients", "Connected clients.", &["kind"])?,
            clients_refusing: gauge("clients_refusing", "Connected clients that refuse something.")?,
            responses: counters("responses_total", "Responses to clients.", &["type", "result"])?,
            push,
            odd_requests: counters("odd_requests_total", "Requests not understood.", &["reason"])?,
            compilations,
            compilation,
            version: gauge("config_version", "Compilations that changed something, since start.")?,
            folder_readable: gauge("folder_readable", "1 when the folder could be read the last time.")?,
            validations: counters("validations_total", "Objects reviewed for the API server.", &["result"])?,
            certificates: counters("certificates_total", "Certificate requests.", &["result"])?,
            watch: Watching {
                lists: counters(
                    "watch_lists_total",
                    "Lists of the API server read to their end.",
                    &["kind"],
                )?,
                errors: counters("watch_errors_total", "Failures of watches.", &["kind", "reason"])?,
                silence: gauges("watch_silence_seconds", "Seconds since the last event.", &["kind"])?,
            },
            registry,
        };
        // There from the start, so that a rate over them is right from the first event on.
        for kind in ["agent", "waypoint"] {
            all.clients.with_label_values(&[kind]).set(0);
        }
        for result in ["issued", "refused"] {
            all.certificates.with_label_values(&[result]).reset();
        }
        Ok(all)
    }

    /// Counts a compilation.
    pub fn compiled(&self, took: Duration) {
        self.compilations.inc();
        self.compilation.observe(took.as_secs_f64());
    }

    /// The text format of Prometheus.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8(out).unwrap_or_default()
    }
}
