use std::time::{Duration, SystemTime};

use super::{testing::*, *};

/// Both ends of one handshake: what the client says, then what the server says.
async fn shake(client: &Issued, server: &Issued, expected: &[Identity]) -> (io::Result<()>, io::Result<()>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let connector = WorkloadTls::new(client).unwrap().connector(expected).unwrap();
    let acceptor = WorkloadTls::new(server).unwrap().acceptor();
    let (client, server) = tokio::join!(connector.connect(no_name(), near), acceptor.accept(far));
    (client.map(drop), server.map(drop))
}

#[tokio::test]
async fn the_expected_identity_is_accepted_and_any_other_is_refused() {
    let ca = Authority::new();
    let (client, server) = (ca.issue(&id("client")), ca.issue(&id("server")));
    let (near, far) = shake(&client, &server, &[id("server")]).await;
    assert!(near.is_ok() && far.is_ok(), "{near:?} {far:?}");
    let error = shake(&client, &server, &[id("other")]).await.0.unwrap_err();
    assert_eq!(handshake_reason(&error), Reason::PeerIdentityRejected);
    assert!(error.to_string().contains("sa/other"), "{error}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = Authority::new();
    let server = ca.issue_until(&id("server"), SystemTime::now() - Duration::from_secs(60));
    let error = shake(&ca.issue(&id("client")), &server, &[id("server")]).await.0.unwrap_err();
    assert_eq!(handshake_reason(&error), Reason::PeerIdentityRejected);
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test]
async fn a_client_of_another_root_or_trust_domain_is_refused() {
    let (ca, stranger) = (Authority::new(), Authority::new());
    let server = ca.issue(&id("server"));
    let mut client = stranger.issue(&id("client"));
    client.roots = server.roots.clone();
    assert!(shake(&client, &server, &[id("server")]).await.1.is_err());
    let foreign = ca.issue(&Identity::new("elsewhere", "default", "client"));
    let error = shake(&foreign, &server, &[id("server")]).await.1.unwrap_err();
    assert_eq!(handshake_reason(&error), Reason::PeerIdentityRejected);
}

/// A peer that is not ours: what it offers.
#[derive(Clone, Copy)]
struct Offer {
    version: &'static rustls::SupportedProtocolVersion,
    alpn: &'static [u8],
    certificate: bool,
}

const OURS: Offer = Offer { version: &rustls::version::TLS13, alpn: b"h2", certificate: true };

impl Offer {
    fn client(self, ours: &WorkloadTls) -> TlsConnector {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let servers = verify::Servers::new(&ours.roots, &provider, &[id("server")]);
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[self.version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(servers));
        let mut config = match self.certificate {
            true => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(ours.key.clone()))),
            false => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![self.alpn.to_vec()];
        Arc::new(config).into()
    }

    fn server(self, ours: &WorkloadTls) -> TlsAcceptor {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let clients = verify::Clients::new(&ours.roots, &provider, &ours.identity).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(ours.key.clone())));
        config.alpn_protocols = vec![self.alpn.to_vec()];
        Arc::new(config).into()
    }
}

/// What our server says to a client that offers something, and our client to a server that does.
async fn meets(offer: Offer) -> (io::Result<()>, io::Result<()>) {
    let ca = Authority::new();
    let [client, server] = ["client", "server"].map(|name| WorkloadTls::new(&ca.issue(&id(name))).unwrap());
    let (near, far) = tokio::io::duplex(64 << 10);
    let (connector, acceptor) = (offer.client(&client), server.acceptor());
    let (_, by_server) = tokio::join!(connector.connect(no_name(), near), acceptor.accept(far));
    let (near, far) = tokio::io::duplex(64 << 10);
    let (connector, acceptor) = (client.connector(&[id("server")]).unwrap(), offer.server(&server));
    let (by_client, _) = tokio::join!(connector.connect(no_name(), near), acceptor.accept(far));
    (by_server.map(drop), by_client.map(drop))
}

#[tokio::test]
async fn a_peer_that_offers_less_than_tls_1_3_is_refused_by_either_side() {
    let (by_server, by_client) = meets(OURS).await;
    assert!(by_server.is_ok() && by_client.is_ok(), "the twin: {by_server:?} {by_client:?}");
    let (by_server, by_client) = meets(Offer { version: &rustls::version::TLS12, ..OURS }).await;
    for error in [by_server.unwrap_err(), by_client.unwrap_err()] {
        assert_eq!(handshake_reason(&error), Reason::TlsFailed, "{error}");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let error = meets(Offer { certificate: false, ..OURS }).await.0.unwrap_err();
    assert_eq!(handshake_reason(&error), Reason::PeerIdentityRejected, "{error}");
}

#[tokio::test]
async fn a_peer_that_speaks_another_protocol_than_h2_is_refused_by_either_side() {
    let (by_server, by_client) = meets(Offer { alpn: b"http/1.1", ..OURS }).await;
    for error in [by_server.unwrap_err(), by_client.unwrap_err()] {
        assert_eq!(handshake_reason(&error), Reason::TlsFailed, "{error}");
    }
}
