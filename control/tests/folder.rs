//! The folder under the running control plane: bursts, and being away.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/bad.rs"]
mod bad;
mod support;

use std::time::Instant;

use mesh_net::wire::ADDRESS_TYPE;
use support::{POD, Running, names};

const COMPILATIONS: &str = "culvert_control_compilations_total";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_two_hundred_edits_causes_few_compilations() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    running.until("/metrics", |_, text| text.contains("culvert_control_folder_readable 1")).await;
    let before = running.metric(COMPILATIONS).await.unwrap();
    let start = Instant::now();
    for index in 0..200 {
        running.write(&format!("{index}.yaml"), &POD.replace("client-1", &format!("pod-{index}")));
    }
    running.until("/debug/config", |_, text| text.matches("\"uid\"").count() >= 201).await;
    let rounds = running.metric(COMPILATIONS).await.unwrap() - before;
    // One per 20 ms at the very most, however slow the machine is; normally two or three in all.
    let most = 3.0 + start.elapsed().as_secs_f64() / 0.020;
    assert!(rounds <= most.min(40.0), "{rounds} compilations in {:?}", start.elapsed());
    println!("200 edits: {rounds} compilations in {:?}", start.elapsed());
}

#[tokio::test]
async fn a_folder_that_vanishes_keeps_the_last_good_state_and_is_followed_when_it_is_back() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    let mut talk = running.stream("one").await;
    talk.open(ADDRESS_TYPE, &[]).await;
    let aside = running.folder.path().join("aside");
    std::fs::rename(running.cluster(), &aside).unwrap();
    running.until("/debug/objects", |_, text| text.contains("\"code\":\"unreadable\"")).await;
    assert_eq!(running.json("/debug/config").await["workloads"].as_array().unwrap().len(), 1);
    assert_eq!(running.metric("culvert_control_folder_readable").await, Some(0.0));
    assert_eq!(running.get("/readyz").await.0, 200, "what is served is still good");
    assert!(!running.cluster().exists(), "nothing is written where the folder was");
    std::fs::rename(&aside, running.cluster()).unwrap();
    running.until("/debug/objects", |_, text| !text.contains("unreadable")).await;
    running.write("pod.yaml", &POD.replace("10.0.0.1", "10.0.0.2"));
    let pushed = talk.next().await.unwrap().unwrap();
    assert_eq!((names(&pushed).len(), pushed.removed_resources.len()), (1, 0), "the first push since");
}

#[tokio::test]
async fn nobody_is_served_before_the_folder_could_be_read_once() {
    let running = Running::start_in(tempfile::tempdir().unwrap()).await;
    let (status, why) = running.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(why.contains("first reading of the folder") && why.contains("cannot be read"), "{why}");
    let endpoint = running.endpoint("one");
    let ca = mesh_net::ca::IstioCa { endpoint, validity_seconds: 3600, impersonate: true };
    let identity = mesh_core::identity::Identity::new("cluster.local", "default", "client");
    let refused = mesh_net::ca::Signer::sign(&ca, &identity).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("nothing was read yet"), "{refused}");
    let mut talk = running.stream("one").await;
    let opened = talk.open(ADDRESS_TYPE, &[("Kubernetes//Pod/default/client-1", "held")]);
    let filled = async {
        std::fs::create_dir(running.folder.path().join("new")).unwrap();
        std::fs::write(running.folder.path().join("new/pod.yaml"), POD).unwrap();
        std::fs::rename(running.folder.path().join("new"), running.cluster()).unwrap();
    };
    let (first, ()) = tokio::join!(opened, filled);
    assert_eq!((names(&first).len(), first.removed_resources.len()), (1, 0), "nothing was said to be gone");
    running.until("/readyz", |status, _| status == 200).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_keeps_its_objects_and_harms_no_other() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    std::fs::write(running.cluster().join("pod.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    running.write("other.yaml", &POD.replace("client-1", "other-1"));
    running.until("/debug/config", |_, text| text.contains("other-1")).await;
    running.until("/debug/objects", |_, text| text.contains("unreadable")).await;
    assert_eq!(running.json("/debug/config").await["workloads"].as_array().unwrap().len(), 2);
    let errors = "culvert_control_findings{code=\"unreadable\",kind=\"other\",severity=\"error\"}";
    assert_eq!(running.metric(errors).await, Some(1.0));
}

/// A namespace of its own, with a pod, a service, routes and a policy.
const SHOP: &str = r#"
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: node-1, serviceAccountName: web}
status: {podIP: 10.0.0.7, conditions: [{type: Ready, status: "True"}]}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIP: 10.96.0.77, ports: [{name: http, port: 80}]}
---
kind: VirtualService
metadata: {name: vs, namespace: shop}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}
---
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}
"#;

/// What a control plane tells about one namespace.
async fn told(running: &Running, namespace: &str) -> Vec<String> {
    let config = running.json("/debug/config").await;
    let lists = ["workloads", "services", "policies", "routes", "l7_policies", "labels"];
    let all = lists.iter().flat_map(|list| config[*list].as_array().unwrap());
    let text = all.map(ToString::to_string);
    text.filter(|text| text.contains(&format!("{namespace}/")) || text.contains(&format!("\"{namespace}\"")))
        .collect()
}

#[tokio::test]
async fn a_folder_of_mistakes_beside_a_running_mesh_is_named_and_harms_nothing() {
    let running = Running::start(&[("shop.yaml", SHOP)]).await;
    // Its waypoint's objects are written and read a moment later.
    running.until("/debug/config", |_, text| text.contains("\"key\":\"shop/waypoint.shop")).await;
    let mut agent = running.stream("one").await;
    let first = agent.open(ADDRESS_TYPE, &[]).await;
    agent.answer(&first, None).await;
    let before = told(&running, "shop").await;
    assert!(before.len() >= 5, "{before:?}");
    std::fs::create_dir(running.folder.path().join("bad")).unwrap();
    for file in std::fs::read_dir(bad::folder()).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, running.folder.path().join("bad").join(file.file_name().unwrap())).unwrap();
    }
    std::fs::rename(running.folder.path().join("bad"), running.cluster().join("bad")).unwrap();
    running.until("/debug/objects", |_, text| text.contains("26-api-version.yaml")).await;
    let findings = running.json("/debug/objects").await["findings"].clone();
    for (file, line, object, field, code, reason) in bad::MISTAKES {
        let named = findings.as_array().unwrap().iter().any(|f| {
            (f["file"].as_str(), f["line"].as_u64()) == (Some(&format!("bad/{file}")), Some(line as u64))
                && [&f["object"], &f["field"], &f["code"]] == [object, field, code]
                && f["severity"] == "error"
                && f["reason"].as_str().unwrap().contains(reason)
        });
        assert!(named, "{file}: {findings}");
    }
    let metrics = running.get("/metrics").await.1;
    let errors = metrics
        .lines()
        .filter(|l| l.starts_with("culvert_control_findings{") && l.contains("severity=\"error\""));
    let count: f64 = errors.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
    assert_eq!(count, bad::MISTAKES.len() as f64);
    assert_eq!(told(&running, "shop").await, before, "the mesh is told the same");
    let pushed = agent.next().await.unwrap().unwrap();
    assert_eq!(
        names(&pushed),
        ["default/web.default.svc.cluster.local"],
        "only what is good in the folder came"
    );
    assert!(pushed.removed_resources.is_empty());
    assert_eq!(running.get("/readyz").await.0, 200);
    std::fs::remove_dir_all(running.cluster().join("bad")).unwrap();
    running.until("/debug/objects", |_, text| !text.contains("\"error\"")).await;
    assert_eq!(told(&running, "shop").await, before);
}

const ROUTES: &str = "kind: VirtualService\nmetadata: {name: vs}\nspec:\n  hosts: [web]\n  http: [{name: good, route: [{destination: {host: web}}]}]\n";
const WEB: &str = "kind: Service\nmetadata: {name: web}\nspec: {ports: [{name: http, port: 80}]}\n";

/// The name of web's first route.
async fn route_of_web(running: &Running) -> Option<String> {
    let routes = running.json("/debug/config").await["routes"].clone();
    routes[0]["http"][0]["name"].as_str().map(Into::into)
}

#[tokio::test]
async fn the_last_good_version_of_a_refused_object_survives_a_restart() {
    let bad = ROUTES.replace("http: [", "http: [{timeout: soon}, ");
    let running = Running::start(&[("web.yaml", WEB), ("vs.yaml", ROUTES)]).await;
    assert_eq!(route_of_web(&running).await.as_deref(), Some("good"));
    let folder = running.stop().await;
    std::fs::write(folder.path().join("cluster/vs.yaml"), &bad).unwrap();
    let running = Running::start_in(folder).await;
    assert_eq!(route_of_web(&running).await.as_deref(), Some("good"), "it turned bad while nobody looked");
    running.until("/debug/objects", |_, text| text.contains("last-good")).await;
    let folder = running.stop().await;
    std::fs::write(folder.path().join("cluster/vs.yaml"), "kind: [").unwrap();
    let running = Running::start_in(folder).await;
    assert_eq!(route_of_web(&running).await.as_deref(), Some("good"), "and is no YAML the next time");
    running.write("vs.yaml", &ROUTES.replace("good", "better"));
    running.until("/debug/config", |_, text| text.contains("better")).await;
    let folder = running.stop().await;
    std::fs::remove_file(folder.path().join("cluster/vs.yaml")).unwrap();
    let running = Running::start_in(folder).await;
    assert_eq!(route_of_web(&running).await, None, "what is deleted is gone");
    let folder = running.stop().await;
    std::fs::write(folder.path().join("cluster/vs.yaml"), &bad).unwrap();
    let running = Running::start_in(folder).await;
    assert_eq!(route_of_web(&running).await, None, "and what was gone has no good version");
}

#[tokio::test]
async fn of_a_list_each_object_has_its_own_last_good_version_after_a_restart() {
    let entry = |name: &str, port: &str| {
        format!(
            "- kind: Service\n  metadata: {{name: {name}}}\n  spec: {{clusterIP: None, ports: [{{port: {port}}}]}}\n"
        )
    };
    let list = |a: &str, b: &str| format!("kind: List\nitems:\n{}{}", entry("a", a), entry("b", b));
    let running = Running::start(&[("list.yaml", &list("81", "82"))]).await;
    running.write("list.yaml", &list("eighty", "83"));
    running.until("/debug/objects", |_, text| text.contains("last-good")).await;
    let running = Running::start_in(running.stop().await).await;
    let services = running.json("/debug/config").await["services"].clone();
    let ports: Vec<_> =
        services.as_array().unwrap().iter().map(|s| s["ports"][0]["service_port"].as_u64()).collect();
    assert_eq!(ports, [Some(81), Some(83)]);
}
