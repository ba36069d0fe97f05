//! One line of the access log per L4 flow, with ztunnel's field names: target `access`.
//!
//! Bytes are the local pod's: `bytes_sent` is what it sent, whoever opened the flow.

use std::{net::SocketAddr, time::Duration};

use mesh_core::{
    hbone::Authority,
    identity::Identity,
    model::{Service, Workload},
    outcome::{Path, Reason, Refusal, Stage},
};

/// A flow that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// `outbound` or `inbound`.
    pub direction: &'static str,
    /// The client.
    pub source_address: SocketAddr,
    /// The client's workload.
    pub source: Option<&'a Workload>,
    /// The client's identity, when mutual TLS proved it.
    pub source_identity: Option<&'a Identity>,
    /// Next hop: the tunnel's far end, or where the bytes go.
    pub destination_address: Option<SocketAddr>,
    /// The authority of the tunnel's CONNECT request.
    pub authority: Option<&'a Authority>,
    /// The service that was addressed.
    pub service: Option<&'a Service>,
    /// The server's workload.
    pub destination: Option<&'a Workload>,
    /// The server's identity, when mutual TLS proved it.
    pub destination_identity: Option<&'a Identity>,
    /// The way of the bytes.
    pub path: Option<Path>,
    /// Bytes that the local pod sent.
    pub bytes_sent: u64,
    /// Bytes that the local pod received.
    pub bytes_received: u64,
    /// From accept to end.
    pub duration: Duration,
    /// Version of the snapshot that decided.
    pub snapshot: Option<u64>,
    /// Why it did not end in order.
    pub failure: Option<(Stage, &'a Refusal)>,
}

impl Flow<'_> {
    /// Writes the line: a warning when the mesh refused the flow or failed it, else information (also
    /// when an end reset it, which is the application's affair).
    pub fn complete(&self) {
        let reset = |(_, refusal): (Stage, &Refusal)| {
            matches!(refusal.reason, Reason::ClientReset | Reason::UpstreamReset)
        };
        macro_rules! line {
            ($level:ident) => {
                tracing::event!(
                    target: "access",
                    tracing::Level::$level,
                    src.addr = %self.source_address,
                    src.workload = self.source.map(|w| &*w.name),
                    src.namespace = self.source.map(|w| &*w.namespace),
                    src.identity = self.source_identity.map(tracing::field::display),
                    src.cluster = self.source.map(|w| &*w.cluster),
                    dst.addr = self.destination_address.map(tracing::field::display),
                    dst.hbone_addr = self.authority.map(tracing::field::display),
                    dst.service = self.service.map(|s| &*s.key.hostname),
                    dst.workload = self.destination.map(|w| &*w.name),
                    dst.namespace = self.destination.map(|w| &*w.namespace),
                    dst.identity = self.destination_identity.map(tracing::field::display),
                    dst.cluster = self.destination.map(|w| &*w.cluster),
                    direction = self.direction,
                    path = self.path.map(Path::as_str),
                    bytes_sent = self.bytes_sent,
                    bytes_recv = self.bytes_received,
                    duration = format_args!("{}ms", self.duration.as_millis()),
                    snapshot = self.snapshot,
                    verdict = if self.failure.is_some() { "failed" } else { "carried" },
                    stage = self.failure.map(|(stage, _)| stage_text(stage)),
                    reason = self.failure.map(|(_, refusal)| refusal.reason.as_str()),
                    error = self.failure.map(|(_, refusal)| tracing::field::display(error(refusal))),
                    "connection complete"
                )
            };
        }
        if self.failure.is_none_or(reset) { line!(INFO) } else { line!(WARN) }
    }
}

fn stage_text(stage: Stage) -> &'static str {
    match stage {
        Stage::Accept => "accept",
        Stage::Plan => "plan",
        Stage::Dial => "dial",
        Stage::Relay => "relay",
    }
}

/// The text of `error`: what ztunnel's operators grep for where there is such a text, and the detail.
pub fn error(refusal: &Refusal) -> String {
    match ztunnel_text(refusal.reason) {
        Some(text) => format!("{text}: {}", refusal.detail),
        None => refusal.detail.clone(),
    }
}

/// ztunnel's message for a reason.
pub fn ztunnel_text(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::PolicyDenied => "connection closed due to policy rejection: explicitly denied by",
        Reason::NoAllowMatched => {
            "connection closed due to policy rejection: allow policies exist, but none allowed"
        }
        Reason::MtlsRequired | Reason::PolicyUnknown | Reason::WaypointBypassed => {
            "connection closed due to policy rejection"
        }
        Reason::PolicyChanged => "connection closed due to policy change",
        Reason::DrainDeadline => "connection closed due to connection drain",
        Reason::IllegalPort => "attempted recursive call to ourselves",
        Reason::NoHealthyEndpoint => "no healthy upstream",
        Reason::WaypointUnavailable => "unknown waypoint",
        Reason::GatewayUnavailable => "unknown network gateway",
        Reason::TunnelRefused => "http status",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use mesh_core::model::WorkloadUid;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(flow: &Flow<'_>) -> serde_json::Value {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || flow.complete());
        serde_json::from_slice(&log.0.lock().unwrap()).unwrap()
    }

    #[test]
    fn a_flow_is_told_with_ztunnels_fields_and_a_refused_one_with_its_reason() {
        let client = Workload::new(WorkloadUid::pod("c", "default", "client"), "default", "client");
        let identity = client.identity();
        let authority = "10.0.0.2:80".parse().unwrap();
        let flow = Flow {
            direction: "outbound",
            source_address: ([10, 0, 0, 1], 4000).into(),
            source: Some(&client),
            source_identity: Some(&identity),
            destination_address: Some(([10, 0, 0, 2], 15008).into()),
            authority: Some(&authority),
            service: None,
            destination: None,
            destination_identity: None,
            path: Some(Path::Tunnel),
            bytes_sent: 5,
            bytes_received: 7,
            duration: Duration::from_millis(12),
            snapshot: Some(3),
            failure: None,
        };
        let line = logged(&flow);
        assert_eq!((line["target"].as_str(), line["level"].as_str()), (Some("access"), Some("INFO")));
        let field = |line: &serde_json::Value, name: &str| line["fields"][name].clone();
        assert_eq!(field(&line, "src.addr"), "10.0.0.1:4000");
        assert_eq!(field(&line, "src.identity"), identity.to_string());
        assert_eq!(field(&line, "dst.hbone_addr"), "10.0.0.2:80");
        assert_eq!(field(&line, "duration"), "12ms");
        assert_eq!(field(&line, "bytes_recv"), 7);
        assert!(field(&line, "error").is_null() && field(&line, "dst.service").is_null());

        let refusal = Refusal::new(Reason::PolicyDenied, "default/no-entry");
        let line = logged(&Flow { failure: Some((Stage::Plan, &refusal)), ..flow });
        assert_eq!((line["level"].as_str(), field(&line, "reason")), (Some("WARN"), "policy_denied".into()));
        let error = "connection closed due to policy rejection: explicitly denied by: default/no-entry";
        assert_eq!((field(&line, "error"), field(&line, "stage")), (error.into(), "plan".into()));
    }
}
