//! Where an admin endpoint is.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Serialize, Serializer};

/// An admin endpoint: HTTP over TCP or over a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// `host:port`.
    Tcp(String),
    /// A socket's path.
    Unix(PathBuf),
    /// A port of a pod, through the API server.
    Pod(PodPort),
}

/// A port of a pod, and how its API server is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodPort {
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Port.
    pub port: u16,
    /// Kubeconfig file, when not the usual one.
    pub kubeconfig: Option<PathBuf>,
    /// Its context, when not the current one.
    pub context: Option<String>,
}

/// A text that is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// `https`.
    #[error("admin endpoints speak plain HTTP on the own machine: write http://HOST:PORT")]
    Https,
    /// A path after the port.
    #[error("an endpoint is http://HOST:PORT without a path")]
    Path,
    /// No port.
    #[error("the port is missing or no number from 1 to 65535: write http://HOST:PORT")]
    Port,
    /// `unix:` alone.
    #[error("the path of the socket is missing: write unix:/run/culvert/WORLD/control.sock")]
    Socket,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(EndpointError::Socket) } else { Ok(Self::Unix(path.into())) };
        }
        if text.starts_with("https://") {
            return Err(EndpointError::Https);
        }
        let authority = text.strip_prefix("http://").unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains('/') {
            return Err(EndpointError::Path);
        }
        let port = authority.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        match port.and_then(|port| port.parse::<u16>().ok()) {
            None | Some(0) => Err(EndpointError::Port),
            Some(_) => Ok(Self::Tcp(authority.to_owned())),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Pod(pod) => write!(f, "pod:{}/{}:{}", pod.namespace, pod.pod, pod.port),
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_people_write_them() {
        let parsed = |text: &str| text.parse::<Endpoint>().map(|e| e.to_string());
        assert_eq!(parsed("http://localhost:15000/").unwrap(), "http://localhost:15000");
        assert_eq!(parsed("[::1]:15000").unwrap(), "http://[::1]:15000");
        assert_eq!(parsed("unix:/run/a.sock").unwrap(), "unix:/run/a.sock");
        assert_eq!(parsed("unix:///run/a.sock").unwrap(), "unix:/run/a.sock");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_how_to_write_it() {
        let refused = |text: &str| text.parse::<Endpoint>().unwrap_err();
        assert_eq!(refused("https://localhost:1"), EndpointError::Https);
        assert_eq!(refused("http://localhost:1/debug"), EndpointError::Path);
        assert_eq!(refused("unix:"), EndpointError::Socket);
        for text in ["localhost", "localhost:0", "localhost:99999", ":15000", ""] {
            assert_eq!(refused(text), EndpointError::Port, "{text}");
        }
    }
}
