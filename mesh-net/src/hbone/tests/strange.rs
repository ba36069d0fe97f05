//! Peers that end, misbehave, or are not who they should be.

use std::time::SystemTime;

use http::{Method, Request, StatusCode, Version};
use tokio::io::duplex;

use super::*;
use crate::ca::Issued;

#[tokio::test]
async fn a_draining_server_finishes_its_streams_and_new_ones_go_to_a_new_connection() {
    let work = async {
        let (fixture, pool, target) = (Fixture::new(echo).await, Pool::default(), target());
        let open = || pool.open(fixture.key("a"), &target, Head::default(), || fixture.dial());
        let mut old = open().await.unwrap();
        fixture.drain();
        // Some of these may reach the old connection before its GOAWAY reaches us: none may fail.
        let many: Vec<_> = futures_util::future::join_all((0..50).map(|_| open())).await;
        assert!(many.iter().all(Result::is_ok));
        // Once the old connection says that it ends, the pool leaves it.
        while fixture.accepted.get() < 2 {
            open().await.unwrap();
        }
        old.write_all(b"still here").await.unwrap();
        old.shutdown().await.unwrap();
        let mut text = String::new();
        old.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "still here");
    };
    LocalSet::new().run_until(Box::pin(work)).await;
}

fn request(method: Method, uri: &str, filler: usize) -> Request<()> {
    let mut request = Request::builder().method(method).uri(uri).version(Version::HTTP_2);
    if filler > 0 {
        request = request.header("filler", "x".repeat(filler));
    }
    request.body(()).unwrap()
}

#[tokio::test]
async fn a_malformed_request_is_refused_alone_and_the_connection_goes_on() {
    let work = async {
        let fixture = Fixture::new(echo).await;
        let tcp = TcpStream::connect(fixture.address).await.unwrap();
        let tls = fixture.client.connector(&[id("server")]).unwrap();
        let tls = tls.connect(crate::tls::no_name(), tcp).await.unwrap();
        let (mut send, connection) = h2::client::handshake(tls).await.unwrap();
        spawn_local(connection);
        let cases = [
            (request(Method::GET, "http://10.0.0.1:80/", 0), StatusCode::BAD_REQUEST),
            (request(Method::CONNECT, "no-port", 0), StatusCode::BAD_REQUEST),
            (request(Method::CONNECT, "10.0.0.1:80", 80 << 10), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            (request(Method::CONNECT, "10.0.0.1:80", 0), StatusCode::OK),
        ];
        for (request, status) in cases {
            send = send.ready().await.unwrap();
            let (response, _body) = send.send_request(request, false).unwrap();
            assert_eq!(response.await.unwrap().status(), status);
        }
    };
    LocalSet::new().run_until(Box::pin(work)).await;
}

/// What each side says of a handshake between these two.
async fn met(client: &Issued, server: &Issued) -> (Result<Client, Refusal>, Result<(), server::ServeError>) {
    let (near, far) = duplex(64 << 10);
    let acceptor = WorkloadTls::new(server).unwrap().acceptor();
    let connector = WorkloadTls::new(client).unwrap().connector(&[id("server")]).unwrap();
    let address = ([10, 0, 0, 1], 15008).into();
    let client = async {
        let client = Client::handshake(near, address, &connector).await;
        // TLS 1.3 tells a client only later that its certificate was refused.
        if let Ok(client) = &client {
            let _ = client.open(&target(), Head::default()).await;
        }
        client
    };
    let drain = CancellationToken::new();
    let server = serve(far, address, &acceptor, drain.clone(), |connect: Connect| async move {
        connect.refuse(503);
    });
    let client = async {
        let client = client.await;
        drain.cancel();
        client
    };
    tokio::join!(client, server)
}

#[tokio::test]
async fn expired_untrusted_and_wrong_certificates_are_refused_with_their_reason() {
    let work = async {
        let (ca, stranger) = (testing::Authority::new(), testing::Authority::new());
        let past = SystemTime::now() - Duration::from_secs(60);
        let untrusted = |name: &str| {
            let mut issued = stranger.issue(&id(name));
            issued.roots = ca.issue(&id(name)).roots;
            issued
        };
        let (client, server) = (ca.issue(&id("client")), ca.issue(&id("server")));
        let (good, served) = met(&client, &server).await;
        assert!(good.is_ok() && served.is_ok(), "{good:?} {served:?}");

        let servers = [
            (ca.issue_until(&id("server"), past), "expired"),
            (untrusted("server"), "BadSignature"),
            (ca.issue(&id("somebody")), "sa/somebody"),
        ];
        for (server, word) in servers {
            let refusal = met(&client, &server).await.0.unwrap_err();
            assert_eq!(refusal.reason, Reason::PeerIdentityRejected, "{refusal}");
            assert!(refusal.detail.contains(word), "{refusal}");
        }
        let elsewhere = mesh_core::identity::Identity::new("elsewhere", "default", "client");
        let clients = [
            (ca.issue_until(&id("client"), past), "expired"),
            (untrusted("client"), "BadSignature"),
            (ca.issue(&elsewhere), "trust domain cluster.local"),
        ];
        for (client, word) in clients {
            let error = met(&client, &server).await.1.unwrap_err();
            assert_eq!(error.reason(), Reason::PeerIdentityRejected, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    };
    LocalSet::new().run_until(Box::pin(work)).await;
}
