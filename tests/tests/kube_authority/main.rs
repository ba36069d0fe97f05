//! The control plane on a real API server: who may ask, one root for all replicas, what only the lease holder
//! writes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod replicas;

use harness::{cluster::crds::Crds, require};
use serde_json::{Value, json};

use replicas::{AGENT, Asked, Replicas, SYSTEM, WAIT, cert_of, certificates, pem_secret};

fn code(asked: &Asked) -> &str {
    match asked {
        Asked::Issued(_) => "issued",
        Asked::Refused(reason) => reason.split(':').next().unwrap_or_default(),
        Asked::Away(reason) if reason.is_empty() => "no reason",
        Asked::Away(_) => "away",
    }
}

#[test]
fn tokens_of_another_audience_or_account_and_other_nodes_pods_get_nothing() {
    if !require::cluster("tokens_of_another_audience_or_account_and_other_nodes_pods_get_nothing") {
        return;
    }
    let mut at = Replicas::new(&[]);
    at.pod(SYSTEM, "agent-1", "node-1", AGENT);
    at.pod("shop", "web-1", "node-1", "web");
    at.pod("shop", "db-1", "node-2", "db");
    at.start(0);
    let agent = at.bound_token(SYSTEM, AGENT, "istio-ca", Some("agent-1"));
    // Control has to have seen the pod first.
    at.until_issued(&agent, "shop", "web");
    let ask = |at: &Replicas, token: &str, account: &str| at.ask(0, token, Some(("shop", account)));
    let other = ask(&at, &agent, "db");
    assert_eq!(code(&other), "PermissionDenied", "another node's pod: {other:?}");
    let vault =
        at.bound_token(SYSTEM, AGENT, "https://kubernetes.default.svc.cluster.local", Some("agent-1"));
    let other = ask(&at, &vault, "web");
    assert_eq!(code(&other), "Unauthenticated", "another audience: {other:?}");
    let free = at.bound_token(SYSTEM, AGENT, "istio-ca", None);
    let other = ask(&at, &free, "web");
    assert_eq!(code(&other), "PermissionDenied", "bound to no pod: {other:?}");
    let web = at.bound_token("shop", "web", "istio-ca", Some("web-1"));
    let other = ask(&at, &web, "db");
    assert_eq!(code(&other), "PermissionDenied", "a workload is no agent: {other:?}");
    let own = ask(&at, &web, "web");
    assert_eq!(code(&own), "issued", "but itself: {own:?}");
    let junk = ask(&at, "e30.e30.junk", "web");
    assert_eq!(code(&junk), "Unauthenticated", "{junk:?}");

    // While the API server is away the one that was reviewed is still known, and others are not refused for good.
    let late = at.bound_token("shop", "db", "istio-ca", Some("db-1"));
    at.cluster.kill_api_server();
    assert_eq!(code(&ask(&at, &agent, "web")), "issued");
    let unknown = ask(&at, &late, "db");
    assert_eq!(code(&unknown), "away", "{unknown:?}");
    at.cluster.start_api_server().unwrap();
    at.until_issued(&late, "shop", "db");
}

#[test]
fn replicas_share_one_root_follow_cacerts_and_rotate_without_a_client_that_is_refused() {
    let name = "replicas_share_one_root_follow_cacerts_and_rotate_without_a_client_that_is_refused";
    if !require::cluster(name) {
        return;
    }
    let mut at = Replicas::new(&[]);
    at.pod("shop", "web-1", "node-1", "web");
    at.flags = vec!["--root-overlap=4".into()];
    // Both find no Secret and create it at the same time.
    at.start(0);
    at.start(1);
    let token = at.bound_token("shop", "web", "istio-ca", Some("web-1"));
    let roots = |replica| match at.ask(replica, &token, None) {
        Asked::Issued(issued) => issued.roots,
        other => panic!("replica {replica}: {other:?}"),
    };
    at.ready(0);
    at.ready(1);
    let first = roots(0);
    assert_eq!((first.len(), &first), (1, &roots(1)), "one root");
    let bundle = at.bundle("shop");
    assert_eq!(certificates(&bundle), first);

    // Rotation: with the bundle as it was read a moment ago every replica is always accepted.
    at.cluster.kubectl(&["-n", SYSTEM, "annotate", "secret", "culvert-ca", "culvert.dev/rotate=1"]).unwrap();
    let mut seen = vec![first.clone()];
    harness::wait::until(WAIT, "the rotation to end", || {
        at.write_roots();
        for replica in [0, 1] {
            let Asked::Issued(issued) = at.ask(replica, &token, None) else {
                panic!("replica {replica} is refused during rotation: {seen:?}");
            };
            if seen.last() != Some(&issued.roots) && !seen.contains(&issued.roots) {
                seen.push(issued.roots);
            }
        }
        (seen.len() == 4).then_some(())
    })
    .unwrap();
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 2, 1], "adding, removing, done");
    assert_eq!(seen[1][0], first[0], "the old root comes first while it signs");
    assert_eq!(seen[2][0], seen[3][0], "then the new one");
    assert_ne!(seen[3], first);

    // A bad cacerts changes nothing; a good one is taken over by both; the last good one stays then.
    let (cert, key) = cert_of("given");
    let (other, _) = cert_of("other");
    at.cluster.apply_object(&pem_secret("cacerts", &cert, &key, &other)).unwrap();
    at.log_says(0, "Secret cacerts is refused");
    assert_eq!(roots(0), seen[3]);
    at.cluster.apply_object(&pem_secret("cacerts", &cert, &key, &cert)).unwrap();
    let given = certificates(&cert);
    for replica in [0, 1] {
        harness::wait::until(WAIT, "cacerts to sign", || {
            at.write_roots();
            matches!(at.ask(replica, &token, None), Asked::Issued(issued) if issued.roots.starts_with(&given))
                .then_some(())
        })
        .unwrap();
    }
    at.cluster.apply_object(&pem_secret("cacerts", "no certificate", &key, &cert)).unwrap();
    at.log_says(1, "Secret cacerts");
    assert!(roots(1).starts_with(&given), "the last good one stays");
    assert!(roots(1).contains(&seen[3][0]), "and what was accepted before");
}

#[test]
fn the_bundle_is_in_every_namespace_repaired_and_written_by_another_replica_when_the_first_is_gone() {
    let name =
        "the_bundle_is_in_every_namespace_repaired_and_written_by_another_replica_when_the_first_is_gone";
    if !require::cluster(name) {
        return;
    }
    let mut at = Replicas::new(&[]);
    at.start(0);
    let bundle = at.bundle(SYSTEM);
    assert!(bundle.contains("BEGIN CERTIFICATE"));
    let holder = at.holder();
    assert!(holder.starts_with("control-0_"), "{holder}");
    at.start(1);
    at.ready(1);
    let came = std::time::Instant::now();
    at.cluster.kubectl(&["create", "namespace", "new"]).unwrap();
    assert_eq!(at.bundle("new"), bundle);
    println!("bundle in a new namespace after {:?}, kubectl included", came.elapsed());
    let map = ["-n", "new", "configmap", "culvert-ca-root-cert"];
    let edit = r#"{"data": {"root-cert.pem": "mine"}}"#;
    at.cluster.kubectl(&["-n", "new", "patch", "configmap", map[3], "--type=merge", "-p", edit]).unwrap();
    let repaired = |object: &Value| (object["data"]["root-cert.pem"] == bundle.as_str()).then_some(());
    at.cluster.wait_for(WAIT, "the bundle to be repaired", &map, repaired).unwrap();
    at.cluster.kubectl(&["-n", "new", "delete", "configmap", map[3]]).unwrap();
    at.cluster.wait_for(WAIT, "the bundle to come back", &map, repaired).unwrap();

    // A regular end gives the lease back: the other one writes at once.
    at.stop(0);
    let given = std::time::Instant::now();
    at.cluster.kubectl(&["create", "namespace", "later"]).unwrap();
    assert_eq!(at.bundle("later"), bundle);
    println!("the other replica wrote {:?} after the first ended", given.elapsed());
    assert!(at.holder().starts_with("control-1_"));
    // A killed holder's lease runs out.
    at.start(0);
    at.ready(0);
    at.kill(1);
    at.cluster.kubectl(&["create", "namespace", "last"]).unwrap();
    assert_eq!(at.bundle("last"), bundle);
}

#[test]
fn waypoints_are_made_as_their_gateway_or_routes_ask_kept_as_users_scale_them_and_removed() {
    let name = "waypoints_are_made_as_their_gateway_or_routes_ask_kept_as_users_scale_them_and_removed";
    if !require::cluster(name) {
        return;
    }
    let mut at = Replicas::new(&Crds::ALL);
    at.start(0);
    at.ready(0);
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "way", "namespace": "shop"},
        "spec": {"gatewayClassName": "culvert-waypoint",
                 "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]}});
    // Somebody else's object of that name: nothing of the waypoint is made.
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "way", "namespace": "shop"},
        "spec": {"ports": [{"port": 80}]}});
    at.cluster.apply_object(&service).unwrap();
    at.cluster.apply_object(&gateway).unwrap();
    let words = ["-n", "shop", "gateway.gateway.networking.k8s.io", "way"];
    let says = |object: &Value| object["status"].to_string().contains("not ours").then_some(());
    at.cluster.wait_for(WAIT, "the status to say so", &words, says).unwrap();
    let kinds = ["serviceaccount", "service", "poddisruptionbudget", "deployment"];
    let there = |at: &Replicas, kind: &str, name: &str| at.cluster.get(&["-n", "shop", kind, name]);
    for kind in ["serviceaccount", "poddisruptionbudget", "deployment"] {
        assert!(there(&at, kind, "way").is_err(), "{kind}");
    }
    assert_eq!(there(&at, "service", "way").unwrap()["spec"]["ports"][0]["port"], 80, "untouched");
    at.cluster.delete(&service.to_string()).unwrap();
    let uid = at.cluster.get(&["-n", "shop", "gateway.gateway.networking.k8s.io", "way"]).unwrap();
    let uid = uid["metadata"]["uid"].clone();
    for kind in kinds {
        let object =
            at.cluster.wait_for(WAIT, kind, &["-n", "shop", kind, "way"], |o| Some(o.clone())).unwrap();
        assert_eq!(object["metadata"]["labels"]["culvert.dev/managed-by"], "control", "{kind}");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], uid, "{kind}");
    }
    // A user's scale stays, an edit of what is ours does not.
    at.cluster.kubectl(&["-n", "shop", "scale", "deployment", "way", "--replicas=3"]).unwrap();
    let edit = r#"{"spec": {"template": {"spec": {"serviceAccountName": "default"}}}}"#;
    at.cluster.kubectl(&["-n", "shop", "patch", "deployment", "way", "--type=merge", "-p", edit]).unwrap();
    at.cluster
        .wait_for(WAIT, "the edit to be undone", &["-n", "shop", "deployment", "way"], |o| {
            (o["spec"]["template"]["spec"]["serviceAccountName"] == "way").then_some(())
        })
        .unwrap();
    assert_eq!(there(&at, "deployment", "way").unwrap()["spec"]["replicas"], 3);
    at.cluster.kubectl(&["-n", "shop", "delete", "deployment", "way"]).unwrap();
    at.cluster.wait_for(WAIT, "it to come back", &["-n", "shop", "deployment", "way"], |_| Some(())).unwrap();

    // Routes bring one by themselves, and foreign objects of other names never matter.
    at.meshed_pod("shop", "web-1", "node-1", "web");
    at.cluster.apply(ROUTED).unwrap();
    at.cluster
        .wait_for(WAIT, "the waypoint", &["-n", "shop", "deployment", "waypoint"], |_| Some(()))
        .unwrap();
    at.cluster.kubectl(&["-n", "shop", "create", "serviceaccount", "bystander"]).unwrap();
    at.cluster.kubectl(&["-n", "shop", "delete", "virtualservice", "web"]).unwrap();
    at.cluster.delete(&gateway.to_string()).unwrap();
    for name in ["way", "waypoint"] {
        for kind in kinds {
            at.until_gone("shop", kind, name);
        }
    }
    there(&at, "serviceaccount", "bystander").unwrap();
}

const ROUTED: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}
"#;
