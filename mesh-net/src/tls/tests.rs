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
