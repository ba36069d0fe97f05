//! The real server with the real clients of agents, over TLS.
#![allow(clippy::unwrap_used, reason = "a test panics, so that the line number survives")]

mod support;

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{
    identity::Identity,
    model::{PolicyName, Tunnel, WorkloadUid},
    snapshot::Snapshot,
};
use mesh_net::{
    ca::{IstioCa, SignError, Signer},
    store::SnapshotStore,
    task::Ready,
    wire,
    xds::{self},
};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use support::{POD, Running};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};
use tokio_util::sync::CancellationToken;

async fn certificate(
    running: &Running,
    token: &str,
    account: &str,
    impersonate: bool,
) -> Result<(), SignError> {
    let ca = IstioCa { endpoint: running.endpoint(token), validity_seconds: 3600, impersonate };
    ca.sign(&Identity::new("cluster.local", "default", account)).await.map(drop)
}

#[tokio::test]
async fn a_node_gets_certificates_for_its_own_pods_only() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    certificate(&running, "one", "client", true).await.unwrap();
    for (token, account, impersonate, reason) in [
        ("two", "client", true, "PermissionDenied: node node-2 has no pod of"),
        ("one", "other", true, "PermissionDenied: node node-1 has no pod of"),
        ("one", "client", false, "PermissionDenied: node node-1 names no identity"),
        ("way", "client", true, "PermissionDenied: waypoint default/waypoint may not ask for"),
        ("nobody", "client", true, "Unauthenticated: the token is not known"),
    ] {
        let error = certificate(&running, token, account, impersonate).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    certificate(&running, "way", "waypoint", false).await.unwrap();
}

#[tokio::test]
async fn an_agent_follows_the_folder_over_tls() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    let store = Arc::new(SnapshotStore::new(Snapshot::default()));
    let ready = Ready::new();
    let config = xds::XdsConfig {
        endpoint: running.endpoint("one"),
        node_id: "ztunnel~10.0.0.9~agent.culvert~culvert.svc.cluster.local".into(),
        metadata: BTreeMap::new(),
        types: vec![wire::ADDRESS_TYPE, wire::AUTHORIZATION_TYPE],
    };
    let (status, _) = watch::channel(xds::XdsStatus::default());
    let cancel = CancellationToken::new();
    let session = xds::Session::default();
    let task = xds::run(config, store.clone(), session, status, ready.awaits("xds"), cancel.clone());
    let task = tokio::spawn(task);
    let mut snapshots = store.subscribe();
    let uid = WorkloadUid::pod("Kubernetes", "default", "client-1");
    snapshots.wait_for(|s| s.is_complete() && s.workload(&uid).is_some()).await.unwrap();
    assert_eq!(store.current().workload(&uid).unwrap().tunnel, Tunnel::None);

    let pod = running.folder.path().join("cluster/pod.yaml");
    let marked = "  annotations: {ambient.istio.io/redirection: enabled}\nspec: {nodeName";
    std::fs::write(&pod, POD.replace("spec: {nodeName", marked)).unwrap();
    snapshots.wait_for(|s| s.workload(&uid).is_some_and(|w| w.tunnel == Tunnel::Hbone)).await.unwrap();

    let policy = running.folder.path().join("cluster/deny.yaml");
    let deny = "kind: AuthorizationPolicy\nmetadata: {name: deny, namespace: default}\nspec:\n  action: DENY\n  \
                rules:\n    - from:\n        - source: {principals: [x]}\n";
    std::fs::write(&policy, deny).unwrap();
    let name = PolicyName::new("default", "deny");
    snapshots.wait_for(|s| s.policy(&name).is_some()).await.unwrap();
    std::fs::remove_file(&policy).unwrap();
    std::fs::remove_file(&pod).unwrap();
    snapshots.wait_for(|s| s.policy(&name).is_none() && s.workload_count() == 0).await.unwrap();
    cancel.cancel();
    task.await.unwrap();
}

/// What the API server does: HTTP/1.1 over TLS, whatever else the port speaks.
async fn ask_webhook(running: &Running, body: &str) -> String {
    let endpoint = running.endpoint("one");
    let pem = std::fs::read(endpoint.roots.unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&pem) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(endpoint.url.strip_prefix("https://").unwrap()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let head = format!(
        "POST /validate HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    tls.write_all((head + body).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn the_api_server_may_ask_for_a_review_over_http_1_and_odd_questions_harm_nothing() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    let object = r#"{"kind":"Gateway","apiVersion":"gateway.networking.k8s.io/v1","metadata":{"name":"a"}}"#;
    let asked = format!(r#"{{"request":{{"uid":"1","operation":"CREATE","object":{object}}}}}"#);
    let answer = ask_webhook(&running, &asked).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""allowed":false"#), "{answer}");
    assert!(answer.contains("spec is missing"), "{answer}");
    for odd in ["", "{", "[1]", &"[".repeat(100_000)] {
        let answer = ask_webhook(&running, odd).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{odd:.20}: {answer}");
    }
    certificate(&running, "one", "client", true).await.unwrap();
    let (_, metrics) = running.get("/metrics").await;
    assert!(metrics.contains(r#"culvert_control_validations_total{result="unreadable"} 4"#), "{metrics}");
}
