//! How the control plane is reached: one gRPC endpoint with its roots and token.

use std::{path::PathBuf, time::Duration};

use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// Time for connecting, the TLS handshake included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How to reach a gRPC server of the control plane; also used for certificates.
#[derive(Debug, Clone)]
pub struct ControlEndpoint {
    /// `https://host:port`, or `http://` for a server without TLS on loopback.
    pub url: String,
    /// PEM file with the roots that its certificate must chain to; read at each connection.
    pub roots: Option<PathBuf>,
    /// Name to verify instead of the url's host.
    pub server_name: Option<String>,
    /// File with the bearer token; read for each call, because the kubelet rotates it.
    pub token: Option<PathBuf>,
    /// Cluster id, sent as `clusterid`.
    pub cluster: String,
}

/// Why the control plane cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// A file cannot be read.
    #[error("{what} {path} cannot be read")]
    File {
        /// Which.
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The url or its TLS settings are not usable, or the connection failed.
    #[error("control plane {url} cannot be reached")]
    Transport {
        /// Url.
        url: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// Connecting took too long.
    #[error("control plane {url} did not complete a connection within {CONNECT_LIMIT:?}")]
    Timeout {
        /// Url.
        url: String,
    },
    /// The token holds characters that no header can.
    #[error("token file {path} does not hold a token")]
    Token {
        /// Path.
        path: PathBuf,
    },
}

/// A control plane whose machine is gone is noticed after these. Istiod ends connections that ask more often
/// than every 15 seconds.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);

impl ControlEndpoint {
    /// Opens a channel.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub async fn connect(&self) -> Result<Channel, EndpointError> {
        let failed = |source| EndpointError::Transport { url: self.url.clone(), source };
        let mut endpoint = Endpoint::from_shared(self.url.clone())
            .map_err(failed)?
            .connect_timeout(Duration::from_secs(5))
            .tcp_keepalive(Some(Duration::from_secs(300)))
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_ANSWER);
        if let Some(roots) = &self.roots {
            let pem = read("root certificate", roots)?;
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            if let Some(name) = &self.server_name {
                tls = tls.domain_name(name);
            }
            endpoint = endpoint.tls_config(tls).map_err(failed)?;
        }
        let connecting = tokio::time::timeout(CONNECT_LIMIT, endpoint.connect());
        let timed_out = |_| EndpointError::Timeout { url: self.url.clone() };
        connecting.await.map_err(timed_out)?.map_err(failed)
    }

    /// Adds the credentials to a call.
    ///
    /// # Errors
    /// The token file cannot be read or does not hold a token.
    pub fn authorize<T>(&self, request: &mut Request<T>) -> Result<(), EndpointError> {
        if let Some(path) = &self.token {
            let token = read("token file", path)?;
            let value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
                .parse()
                .map_err(|_| EndpointError::Token { path: path.clone() })?;
            request.metadata_mut().insert("authorization", value);
        }
        if let Ok(cluster) = self.cluster.parse() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        Ok(())
    }
}

fn read(what: &'static str, path: &PathBuf) -> Result<String, EndpointError> {
    std::fs::read_to_string(path).map_err(|source| EndpointError::File { what, path: path.clone(), source })
}
