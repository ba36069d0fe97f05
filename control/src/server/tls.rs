//! TLS of the configuration server. Its certificate is made anew long before it ends, and when another CA
//! takes over; connections that exist keep theirs.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::ca::{Authority, Ca};

/// A certificate is used this long; it lasts twice as long.
const RENEW: Duration = Duration::from_secs(12 * 3600);
/// Handshakes at one time; more clients wait to be accepted.
const HANDSHAKES: usize = 256;
/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted, for example without free descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// The certificate that is presented now.
pub(super) struct Renewing {
    ca: Authority,
    names: Vec<String>,
    after: Duration,
    current: Mutex<Presented>,
}

struct Presented {
    made: SystemTime,
    by: Arc<Ca>,
    key: Arc<CertifiedKey>,
}

impl std::fmt::Debug for Renewing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewing").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Renewing {
    /// Waits for the CA and makes the first certificate for these names.
    ///
    /// # Errors
    /// A name cannot be in a certificate.
    pub(super) async fn new(mut ca: Authority, names: Vec<String>) -> Result<Self> {
        let first = make(ca.there().await, &names)?;
        Ok(Self { ca, names, after: RENEW, current: Mutex::new(first) })
    }

    fn certificate(&self) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let by = self.ca.current().unwrap_or_else(|| current.by.clone());
        // A clock that was set back makes a new one too.
        let over = current.made.elapsed().map_or(true, |age| age >= self.after);
        if over || !Arc::ptr_eq(&by, &current.by) {
            match make(by, &self.names) {
                Ok(next) => *current = next,
                Err(error) => tracing::error!(%error, "the server's certificate cannot be made anew"),
            }
        }
        current.key.clone()
    }
}

impl ResolvesServerCert for Renewing {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certificate())
    }
}

fn make(ca: Arc<Ca>, names: &[String]) -> Result<Presented> {
    let (chain, key) = ca.server(names.to_vec())?;
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>();
    let chain = chain.context("the server's certificate cannot be read")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the server's key cannot be read")?;
    let signing = aws_lc_rs::default_provider().key_provider.load_private_key(key)?;
    let key = Arc::new(CertifiedKey::new(chain, signing));
    Ok(Presented { made: SystemTime::now(), by: ca, key })
}

/// Accepts connections, from when there is a CA, and hands them on after their handshake; never ends.
pub(super) async fn accept(
    listener: TcpListener,
    ca: Authority,
    names: Vec<String>,
    out: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) -> Result<()> {
    let certificate = Renewing::new(ca, names).await?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificate));
    // The API server asks its webhooks over HTTP/1.1 only.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if handshakes.len() < HANDSHAKES => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    handshakes.spawn(timeout(HANDSHAKE, acceptor.accept(stream)));
                }
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    sleep(PAUSE).await;
                }
            },
            Some(done) = handshakes.join_next() => match done {
                Ok(Ok(Ok(stream))) => out.send(Ok(stream)).await.context("the server ended")?,
                Ok(Ok(Err(error))) => tracing::debug!(%error, "handshake failed"),
                Ok(Err(_)) => tracing::debug!("handshake took too long"),
                Err(error) => tracing::error!(%error, "handshake panicked"),
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_servers_certificate_is_made_anew_when_its_time_comes_and_kept_before() {
        let state = tempfile::tempdir().unwrap();
        let open = |name: &str| Ca::open(&state.path().join(name), None, "cluster.local").unwrap();
        let (next, ca) = Authority::awaited();
        next.send_replace(Some(Arc::new(open("one"))));
        let mut server = Renewing::new(ca, vec!["localhost".into()]).await.unwrap();
        let first = server.certificate();
        assert!(Arc::ptr_eq(&first, &server.certificate()), "kept");
        server.after = Duration::ZERO;
        let second = server.certificate();
        assert_ne!(first.cert, second.cert, "made anew");
        server.after = RENEW;
        next.send_replace(Some(Arc::new(open("two"))));
        let third = server.certificate();
        assert_ne!(second.cert, third.cert, "another CA took over");
        assert!(Arc::ptr_eq(&third, &server.certificate()), "kept");
    }
}
