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
use support::{POD, Running};
use tokio::sync::watch;
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
