//! The head of an HBONE request: authority, baggage, forwarded and traceparent, built and parsed
//! with limits. Peers are not trusted: nothing parsed here except the authority is used to authorise.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{entropy::Entropy, model::Workload, outcome::Reason};

/// Longest authority that is looked at: a DNS name (253), brackets and a port.
const MAX_AUTHORITY: usize = 270;
/// Longest baggage or forwarded header that is looked at.
const MAX_HEADER: usize = 8192;

/// The target of a CONNECT request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Authority {
    /// `ip:port`, IPv6 in brackets.
    Address(SocketAddr),
    /// `host:port`.
    Host(Arc<str>, u16),
}

/// An authority that is neither `ip:port` nor `host:port`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("authority is neither ip:port nor host:port")]
pub struct AuthorityError;

impl Authority {
    /// Its port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host(_, port) => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_AUTHORITY {
            return Err(AuthorityError);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err(AuthorityError),
                port => Ok(Self::Address(SocketAddr::new(address.ip().to_canonical(), port))),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError)?;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '*');
        if host.is_empty() || !host.chars().all(legal) || host.parse::<IpAddr>().is_ok() {
            return Err(AuthorityError);
        }
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match port.parse() {
            Ok(port) if digits && port != 0 => Ok(Self::Host(host.to_ascii_lowercase().into(), port)),
            _ => Err(AuthorityError),
        }
    }
}

/// What a peer says about its workload in `baggage`. For metrics and logs only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: Option<Arc<str>>,
    /// `k8s.namespace.name`.
    pub namespace: Option<Arc<str>>,
    /// `k8s.<type>.name`.
    pub workload_name: Option<Arc<str>>,
    /// `service.name`: the canonical service.
    pub service_name: Option<Arc<str>>,
    /// `service.version`: the canonical revision.
    pub revision: Option<Arc<str>>,
    /// `cloud.region`.
    pub region: Option<Arc<str>>,
    /// `cloud.availability_zone`.
    pub zone: Option<Arc<str>>,
}

impl Baggage {
    /// Parses one header value or several joined with commas. Unknown keys and empty values are
    /// skipped; what is too long or not ASCII is ignored as a whole.
    pub fn parse(text: &str) -> Self {
        let mut baggage = Self::default();
        if text.len() > MAX_HEADER || !text.is_ascii() {
            return baggage;
        }
        for (key, value) in text.split(',').filter_map(|part| part.trim().split_once('=')) {
            let value = value.split('=').next().filter(|v| !v.is_empty()).map(Arc::from);
            match key {
                "k8s.cluster.name" => baggage.cluster = value,
                "k8s.namespace.name" => baggage.namespace = value,
                "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.pod.name" | "k8s.job.name" => {
                    baggage.workload_name = value;
                }
                "service.name" => baggage.service_name = value,
                "service.version" => baggage.revision = value,
                "cloud.region" => baggage.region = value,
                "cloud.availability_zone" => baggage.zone = value,
                _ => {}
            }
        }
        baggage
    }
}

/// The `baggage` value that describes a workload: fixed order, empty values left out.
pub fn baggage(workload: &Workload) -> String {
    let type_key = format!("k8s.{}.name", workload.workload_type.as_str());
    let pairs = [
        ("k8s.cluster.name", &workload.cluster),
        ("k8s.namespace.name", &workload.namespace),
        (type_key.as_str(), &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let mut text = String::with_capacity(192);
    for (key, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    }
    text
}

/// The `forwarded` value: who the client is and, when known, which service it asked for.
pub fn forwarded(client: SocketAddr, service_host: Option<&str>) -> String {
    match service_host {
        Some(host) => format!("for=\"{client}\";host={host}"),
        None => format!("for=\"{client}\""),
    }
}

/// The `host=` part of a `forwarded` value.
pub fn forwarded_host(text: &str) -> Option<&str> {
    forwarded_part(text, "host")
}

/// The client address of a `forwarded` value; meaningful only from a trusted waypoint.
pub fn forwarded_for(text: &str) -> Option<SocketAddr> {
    forwarded_part(text, "for")?.parse().ok()
}

fn forwarded_part<'a>(text: &'a str, want: &str) -> Option<&'a str> {
    if text.len() > MAX_HEADER || !text.is_ascii() {
        return None;
    }
    text.split(';').filter_map(|part| part.trim().split_once('=')).find_map(|(key, value)| {
        let value = value.trim_matches('"');
        (key.eq_ignore_ascii_case(want) && !value.is_empty()).then_some(value)
    })
}

/// A W3C `traceparent` of version 00.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// Trace id, never 0.
    pub trace: u128,
    /// Span id, never 0.
    pub span: u64,
    /// Flags.
    pub flags: u8,
}

impl TraceParent {
    /// A fresh one, not sampled.
    pub fn random(entropy: &mut impl Entropy) -> Self {
        let trace = u128::from(entropy.next_u64()) << 64 | u128::from(entropy.next_u64());
        Self { trace: trace.max(1), span: entropy.next_u64().max(1), flags: 0 }
    }

    /// Parses a header value of exactly 55 characters; anything else is none.
    pub fn parse(text: &str) -> Option<Self> {
        let lower_hex = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let parts: Vec<&str> = if text.len() == 55 { text.split('-').collect() } else { return None };
        let ["00", trace, span, flags] = parts.as_slice() else { return None };
        if (trace.len(), span.len(), flags.len()) != (32, 16, 2)
            || ![*trace, *span, *flags].iter().all(|s| lower_hex(s))
        {
            return None;
        }
        let parsed = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            span: u64::from_str_radix(span, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (parsed.trace != 0 && parsed.span != 0).then_some(parsed)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// The status that an HBONE server answers a refused CONNECT with, as ztunnel does: 401 for policy,
/// 400 for requests that this pod can never serve, 503 for everything that may pass.
pub fn status(reason: Reason) -> u16 {
    match reason {
        Reason::PolicyDenied
        | Reason::NoAllowMatched
        | Reason::MtlsRequired
        | Reason::PolicyUnknown
        | Reason::WaypointBypassed => 401,
        Reason::BadRequest | Reason::WrongDestination => 400,
        _ => 503,
    }
}
