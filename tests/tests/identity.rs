//! Who is at the other end of a tunnel: peers with certificates that are expired, not trusted or
//! somebody else's, peers that do not speak HBONE, and certificates that rotate under load.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    rc::Rc,
    thread,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use harness::{
    authority::Authority,
    echo::{Echo, ask, say},
    manifest,
    mesh::{LIMIT, MESHED, Mesh, PLAIN, agent},
    peer::{FAMILIES, Family, Peer},
    require, wait,
    world::World,
};
use http::{Method, Request, Version};
use mesh_core::identity::Identity;
use mesh_net::{
    ca::Issued,
    hbone::{client::Client, client::Head, server},
    tls::{self, WorkloadTls},
};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::task::LocalSet;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

struct Stage {
    mesh: Mesh,
    client: Peer,
    stranger: Peer,
    web: Peer,
    _server: Echo,
}

fn stage(name: &str, words: &[&str]) -> Option<Stage> {
    if !require::root(name) {
        return None;
    }
    let mut mesh = Mesh::without_agents().unwrap();
    mesh.world.agent_words = words.iter().map(|word| word.to_string()).collect();
    mesh.world.start_control().unwrap();
    mesh.world.start_agent(0).unwrap();
    mesh.world.start_agent(1).unwrap();
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let stranger = mesh.pod(PLAIN, "stranger", 0).unwrap();
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let server = Echo::serve(&web, 80, "web").unwrap();
    mesh.enrolled(&[&client, &web]).unwrap();
    Some(Stage { mesh, client, stranger, web, _server: server })
}

fn account(name: &str) -> Identity {
    Identity::new("cluster.local", MESHED, name)
}

/// Runs what needs a thread of its own.
fn local<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, work)
}

fn tokio_stream(stream: TcpStream) -> tokio::net::TcpStream {
    stream.set_nonblocking(true).unwrap();
    tokio::net::TcpStream::from_std(stream).unwrap()
}

impl Stage {
    fn hbone(&self) -> SocketAddr {
        self.web.at(Family::V4, 15008)
    }

    /// TLS to the server's agent with a certificate of the test's making.
    async fn tls(&self, issued: &Issued) -> TlsStream<tokio::net::TcpStream> {
        let connector = WorkloadTls::new(issued).unwrap().connector(&[account("web")]).unwrap();
        let tcp = tokio_stream(self.stranger.connect(self.hbone()).unwrap());
        let name = ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into());
        connector.connect(name, tcp).await.unwrap()
    }

    /// What CONNECT to `authority` with a certificate leads to.
    fn tunnel(&self, issued: &Issued, authority: SocketAddr) -> Result<(), String> {
        local(async {
            let connector = WorkloadTls::new(issued).unwrap().connector(&[account("web")]).unwrap();
            let tcp = tokio_stream(self.stranger.connect(self.hbone()).unwrap());
            let client = Client::handshake(tcp, self.hbone(), &connector).await.map_err(|e| e.to_string())?;
            let authority = authority.to_string().parse().unwrap();
            client.open(&authority, Head::default()).await.map(drop).map_err(|e| e.to_string())
        })
    }
}

#[test]
fn a_client_with_an_expired_or_untrusted_certificate_is_rejected_and_one_of_the_mesh_is_let_in() {
    let name = "a_client_with_an_expired_or_untrusted_certificate_is_rejected_and_one_of_the_mesh_is_let_in";
    let Some(stage) = stage(name, &[]) else { return };
    let (ours, theirs) =
        (Authority::of(&stage.mesh.world).unwrap(), Authority::stranger(&stage.mesh.world).unwrap());
    let me = account("client");
    let page = stage.web.at(Family::V4, 80);
    stage.tunnel(&ours.issue(&me).unwrap(), page).unwrap();
    let hour = Duration::from_secs(3600);
    let elsewhere = Identity::new("another.domain", MESHED, "client");
    let bad = [
        ("untrusted", theirs.issue(&me).unwrap()),
        ("expired", ours.issue_until(&me, SystemTime::now() - hour).unwrap()),
        ("not valid yet", ours.issue_until(&me, SystemTime::now() + 10 * hour).unwrap()),
        ("of another trust domain", ours.issue(&elsewhere).unwrap()),
    ];
    for (what, issued) in bad {
        let mark = stage.mesh.mark(agent(1));
        let refused = stage.tunnel(&issued, page);
        assert!(refused.is_err(), "{what} was let in");
        let line = stage.mesh.logged(&mark, &["reason=\"peer_identity_rejected\""]);
        println!("{what}: {}", line.unwrap_or_else(|error| panic!("{what}: {error:#}")));
    }
    let counted = stage.mesh.metric(1, &["culvert_connections_failed_total", "peer_identity_rejected"]);
    assert!((counted - 4.0).abs() < 0.1, "each is counted: {counted}");
    stage.mesh.reaches(&stage.client, page).unwrap();
}

/// Terminates HBONE in a pod with a certificate of the test's making; notes who came and refuses them.
fn rogue(listener: std::net::TcpListener, issued: &Issued) -> Vec<Identity> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let acceptor = WorkloadTls::new(issued).unwrap().acceptor();
    let (tcp, peer) = listener.accept().unwrap();
    let noted = seen.clone();
    // The error of a client that turns away is what the test is about; the client's agent tells it.
    let _ = local(async {
        let handle = move |connect: server::Connect| {
            noted.borrow_mut().push((*connect.identity).clone());
            connect.refuse(503);
            std::future::ready(())
        };
        server::serve(tokio_stream(tcp), peer, &acceptor, CancellationToken::new(), handle).await
    });
    seen.take()
}

#[test]
fn a_server_that_is_not_who_it_should_be_gets_no_request_and_the_client_is_refused_with_the_reason() {
    let name =
        "a_server_that_is_not_who_it_should_be_gets_no_request_and_the_client_is_refused_with_the_reason";
    let Some(mut stage) = stage(name, &[]) else { return };
    let (ours, theirs) =
        (Authority::of(&stage.mesh.world).unwrap(), Authority::stranger(&stage.mesh.world).unwrap());
    let hour = Duration::from_secs(3600);
    let me = |n: usize| Identity::new("cluster.local", PLAIN, format!("rogue-{n}"));
    let cases = [
        ("itself", ours.issue(&me(0)).unwrap(), "tunnel_refused"),
        ("somebody else", ours.issue(&account("web")).unwrap(), "peer_identity_rejected"),
        ("untrusted", theirs.issue(&me(2)).unwrap(), "peer_identity_rejected"),
        ("expired", ours.issue_until(&me(3), SystemTime::now() - hour).unwrap(), "peer_identity_rejected"),
    ];
    for (number, (what, issued, reason)) in cases.into_iter().enumerate() {
        let server = stage.mesh.pod(PLAIN, &format!("rogue-{number}"), 1).unwrap();
        announce(&stage.mesh, &server);
        let listener = server.listen(15008).unwrap();
        let serving = thread::spawn(move || rogue(listener, &issued));
        let line = stage.mesh.refused(&stage.client, server.at(Family::V4, 80), agent(0), reason);
        let line = line.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        println!("{what}: {line}");
        // The tunnel of the one that was itself is kept; without the client it ends.
        if number == 0 {
            continue;
        }
        assert_eq!(serving.join().unwrap(), [], "{what}: no request reaches it");
    }
}

/// Lets a pod without an agent claim that it speaks HBONE.
fn announce(mesh: &Mesh, peer: &Peer) {
    let mut object = manifest::pod(&peer.pod, None, &json!({"name": "a", "image": "test"}), true);
    object["metadata"]["annotations"]["ambient.istio.io/redirection"] = json!("enabled");
    mesh.world.write(&World::pod_file(&peer.pod), &object).unwrap();
    mesh.workload(&peer.pod.name, |w| w["tunnel"] == "Hbone").unwrap();
}

#[test]
fn peers_that_do_not_speak_hbone_harm_nobody_and_requests_for_other_pods_are_bad_requests() {
    let name = "peers_that_do_not_speak_hbone_harm_nobody_and_requests_for_other_pods_are_bad_requests";
    let Some(stage) = stage(name, &[]) else { return };
    let open = stage.client.connect(stage.web.at(Family::V4, 80)).unwrap();
    say(&open).unwrap();
    let issued = Authority::of(&stage.mesh.world).unwrap().issue(&account("client")).unwrap();
    // Bytes that are no TLS, with and without an end.
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0x16, 3, 1, 0xff, 0xff, 1]] {
        let mark = stage.mesh.mark(agent(1));
        let mut tcp = stage.stranger.connect(stage.hbone()).unwrap();
        tcp.write_all(garbage).unwrap();
        tcp.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = tcp.read_to_end(&mut Vec::new());
        stage.mesh.logged(&mark, &["reason=\"tls_failed\""]).unwrap();
    }
    local(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        // HTTP/1 inside TLS is no HTTP/2: the connection is closed.
        let mut stream = stage.tls(&issued).await;
        stream.write_all(b"CONNECT 10.0.0.1:80 HTTP/1.1\r\nHost: 10.0.0.1:80\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        // Requests that are not what HBONE asks for.
        let (send, connection) = h2::client::handshake(stage.tls(&issued).await).await.unwrap();
        tokio::task::spawn_local(connection);
        for (method, uri) in [(Method::GET, "https://web/"), (Method::CONNECT, "no-port")] {
            let mut request = Request::new(());
            (*request.method_mut(), *request.uri_mut()) = (method.clone(), uri.parse().unwrap());
            *request.version_mut() = Version::HTTP_2;
            let mut ready = send.clone().ready().await.unwrap();
            let (response, _body): (_, h2::SendStream<Bytes>) = ready.send_request(request, false).unwrap();
            let status = response.await.unwrap().status();
            assert_eq!(status, 400, "{method} {uri}");
        }
        // CONNECT without an authority, which the library does not let us send.
        let mut stream = stage.tls(&issued).await;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        stream.write_all(b"\0\0\x09\x01\x05\0\0\0\x01\x02\x07CONNECT").await.unwrap();
        let (mut head, headers, reset) = ([0; 9], 1, 3);
        loop {
            stream.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            stream.read_exact(&mut payload).await.unwrap();
            // 0x88 is `:status: 200` in HPACK.
            assert!(head[3] != headers || payload.first() != Some(&0x88), "it was accepted");
            if [headers, reset].contains(&head[3]) {
                break;
            }
        }
    });
    // Another pod's address, a port of the mesh itself.
    let mark = stage.mesh.mark(agent(1));
    let refused = stage.tunnel(&issued, stage.client.at(Family::V4, 80)).unwrap_err();
    assert!(refused.contains("400"), "{refused}");
    stage.mesh.logged(&mark, &["reason=\"wrong_destination\""]).unwrap();
    let mark = stage.mesh.mark(agent(1));
    let refused = stage.tunnel(&issued, stage.web.at(Family::V4, 15001)).unwrap_err();
    println!("port of the mesh: {refused}");
    stage.mesh.logged(&mark, &["reason=\"illegal_port\""]).unwrap();
    say(&open).unwrap();
    for family in FAMILIES {
        stage.mesh.reaches(&stage.client, stage.web.at(family, 80)).unwrap();
    }
}

#[test]
fn certificates_rotate_under_load_without_a_failed_request_and_new_connections_show_the_new_one() {
    let name = "certificates_rotate_under_load_without_a_failed_request_and_new_connections_show_the_new_one";
    // Certificates begin two minutes in the past; of these 130 s half are over some seconds after issue.
    let Some(stage) = stage(name, &["--certificate-seconds", "130"]) else { return };
    let issued = Authority::of(&stage.mesh.world).unwrap().issue(&account("client")).unwrap();
    let shown = || -> CertificateDer<'static> {
        local(async { stage.tls(&issued).await.get_ref().1.peer_certificates().unwrap()[0].clone() })
    };
    let page = stage.web.at(Family::V4, 80);
    let open = stage.client.connect(page).unwrap();
    let mut seen = vec![shown()];
    assert_eq!(tls::identities(&seen[0]), [account("web")]);
    let mut asked = 0;
    wait::until(LIMIT * 3, "three certificates", || {
        for _ in 0..20 {
            ask(&stage.client, page).unwrap();
            asked += 1;
        }
        say(&open).unwrap();
        let now = shown();
        if seen.last() != Some(&now) {
            assert!(!seen.contains(&now));
            seen.push(now);
        }
        (seen.len() == 3).then_some(())
    })
    .unwrap();
    println!("{asked} requests over three certificates");
    let mark = stage.mesh.mark(agent(0));
    drop(open);
    let line = stage.mesh.logged(&mark, &["direction=\"outbound\""]).unwrap();
    assert!(!line.contains("reason="), "the old connection ended in order: {line}");
}
