//! Through a waypoint: every program of ours, real nginx behind it, configuration from YAML.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, process::Command};

use anyhow::Context;
use harness::{
    load,
    mesh::{LIMIT, MESHED, Mesh, agent},
    peer::Peer,
    require, runner, wait,
    world::Pod,
};

const VIP: &str = "10.96.8.1";
const WAYPOINT: &str = "shop/waypoint-0-0";
const WAYPOINT_LOG: &str = "shop.waypoint-0-0";

struct Stage {
    mesh: Mesh,
    client: Peer,
    other: Peer,
}

/// Two versions of a page behind one service that does not declare its protocol.
fn application() -> String {
    let version = |name: &str, node: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web-{name}, namespace: {MESHED}}}\n\
             spec:\n  template:\n    metadata: {{labels: {{app: web, version: {name}}}}}\n    spec:\n      \
             nodeName: {node}\n      serviceAccountName: web-{name}\n      containers:\n        \
             - {{name: nginx, image: nginx, command: [sh, -c], \
             args: [\"echo page-{name} > /usr/share/nginx/html/index.html; exec nginx -g 'daemon off;'\"]}}\n\
             ---\n"
        )
    };
    version("v1", "node-a")
        + &version("v2", "node-b")
        + &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {MESHED}}}\n\
             spec: {{clusterIP: {VIP}, selector: {{app: web}}, ports: [{{port: 80}}]}}\n"
        )
}

/// Subsets by version, and the routes given.
fn routing(routes: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: web, namespace: {MESHED}}}\nspec:\n  host: web\n  subsets:\n    \
         - {{name: v1, labels: {{version: v1}}}}\n    - {{name: v2, labels: {{version: v2}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: web, namespace: {MESHED}}}\nspec:\n  hosts: [web]\n  http:\n{routes}"
    )
}

fn to(subset: &str) -> String {
    format!("      route: [{{destination: {{host: web, subset: {subset}}}}}]\n")
}

fn everything_to(subset: &str) -> String {
    routing(&format!("    - name: all\n{}", to(subset)))
}

fn policy(name: &str, rule: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {MESHED}}}\nspec:\n  \
         targetRefs: [{{kind: Service, group: \"\", name: web}}]\n  action: DENY\n  rules: [{rule}]\n"
    )
}

fn stage(name: &str) -> Option<Stage> {
    if !require::root(name) {
        return None;
    }
    let mut mesh = Mesh::start().unwrap();
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let other = mesh.pod(MESHED, "other", 0).unwrap();
    fs::write(mesh.world.root.join("web.yaml"), application()).unwrap();
    mesh.world.apply(&mesh.world.root.join("web.yaml")).unwrap();
    runner::reconcile(&mut mesh.world).unwrap();
    mesh.enrolled(&[&client, &other]).unwrap();
    for name in ["web-v1-0-0", "web-v2-0-0"] {
        mesh.workload(name, |found| found["tunnel"] == "Hbone" && found["health"] == "Healthy").unwrap();
    }
    let stage = Stage { mesh, client, other };
    stage.until("nginx to answer", |stage| stage.page(&[]).starts_with("200 page-"));
    Some(stage)
}

/// What came of one request.
struct Got {
    status: String,
    head: String,
    body: String,
}

impl Stage {
    /// Asks with curl from a pod; status `000` when nothing answered.
    fn get(&self, from: &Pod, url: &str, words: &[&str]) -> Got {
        let mut line = vec!["curl", "-s", "-i", "--max-time", "8"];
        line.extend(words);
        line.push(url);
        let text = from.exec(&line).unwrap_or_default();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split_whitespace().nth(1).unwrap_or("000").to_string();
        Got { status, head: head.to_string(), body: body.trim().to_string() }
    }

    /// Status and page of the service for the client.
    fn page(&self, words: &[&str]) -> String {
        let got = self.get(&self.client.pod, &format!("http://{VIP}/"), words);
        format!("{} {}", got.status, got.body)
    }

    fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        wait::until(LIMIT, what, || is_so(self).then_some(()))
            .with_context(|| format!("{}\n{}", self.mesh.logs(), self.mesh.world.tail(WAYPOINT_LOG)))
            .unwrap();
    }

    /// Starts the waypoint that the control plane asks for.
    fn waypoint_comes(&mut self) {
        let world = &mut self.mesh.world;
        wait::until(LIMIT, "the control plane to ask for a waypoint", || {
            runner::reconcile(world).unwrap().iter().any(|pod| pod == WAYPOINT).then_some(())
        })
        .unwrap();
        let ready = |found: &serde_json::Value| found["health"] == "Healthy";
        self.mesh.workload("waypoint-0-0", ready).unwrap();
    }

    fn routed(&mut self, yaml: &str) {
        self.mesh.apply(yaml).unwrap();
        self.waypoint_comes();
        self.until("requests to go through the waypoint", |stage| {
            stage.page(&[]).starts_with("200") && stage.mesh.log(WAYPOINT_LOG).contains("request complete")
        });
    }

    fn pod(&self, name: &str) -> Pod {
        self.mesh.world.pods[name].clone()
    }

    /// Lines of both nginx that contain a text.
    fn served(&self, text: &str) -> usize {
        let pods = ["shop/web-v1-0-0", "shop/web-v2-0-0"].map(|name| self.pod(name));
        let logs = pods.map(|pod| runner::access_log(&self.mesh.world, &pod));
        logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains(text)).count()
    }

    /// What the `culvert` command says, and its exit status.
    fn culvert(&self, words: &[&str]) -> (i32, String) {
        let mut command = Command::new(self.mesh.world.programs.join("culvert"));
        let out = command.args(words).args(["--world", &self.mesh.world.id]).output().unwrap();
        let text = [out.stdout, out.stderr].concat();
        (out.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
    }
}

#[test]
fn a_virtual_service_brings_a_waypoint_that_routes_and_goes_when_nothing_needs_it() {
    let name = "a_virtual_service_brings_a_waypoint_that_routes_and_goes_when_nothing_needs_it";
    let Some(mut stage) = stage(name) else { return };
    assert!(!stage.mesh.world.pods.contains_key(WAYPOINT), "nothing needs a waypoint yet");
    let on = |name: &str, what: &str, subset: &str| format!("    - name: {name}\n{what}{}", to(subset));
    stage.routed(&routing(
        &(on("beta", "      match: [{headers: {x-beta: {exact: \"yes\"}}}]\n", "v2")
            + &on("old", "      match: [{uri: {prefix: /old/}}]\n      rewrite: {uri: /}\n", "v1")
            + &on(
                "faulty",
                "      match: [{uri: {exact: /faulty}}]\n      rewrite: {uri: /}\n      \
                 fault: {abort: {percentage: {value: 50}, httpStatus: 418}}\n",
                "v1",
            )
            + &on("rest", "", "v1")),
    ));
    for _ in 0..10 {
        assert_eq!(stage.page(&[]), "200 page-v1");
        assert_eq!(stage.page(&["-H", "x-beta: yes"]), "200 page-v2");
        assert_eq!(stage.page(&["-H", "x-beta: no"]), "200 page-v1");
    }
    let got = stage.get(&stage.client.pod, &format!("http://{VIP}/old/index.html"), &[]);
    assert_eq!((got.status.as_str(), got.body.as_str()), ("200", "page-v1"));
    assert_eq!((stage.served("GET /index.html"), stage.served("/old/")), (1, 0), "nginx saw it rewritten");
    let url = format!("http://{VIP}/faulty?[1-200]");
    let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}\n", &url];
    let text = stage.client.pod.exec(&words).unwrap();
    let (aborted, served) = (text.matches("418").count(), text.matches("200").count());
    // Five deviations around the half of 200.
    assert!(aborted + served == 200 && (65..=135).contains(&aborted), "{aborted} of 200 aborted");

    // The waypoint knows the client by its certificate; the endpoint knows the waypoint.
    let log = stage.mesh.log(WAYPOINT_LOG);
    let account = |name: &str| format!("spiffe://cluster.local/ns/shop/sa/{name}");
    let line = log.lines().find(|line| line.contains("request complete")).unwrap();
    assert!(line.contains(&format!("src.identity={}", account("client"))), "{line}");
    assert!(line.contains(&format!("dst.identity={}", account("web-v"))), "{line}");
    let from = format!("source_principal=\"{}\"", account("waypoint"));
    let words = ["istio_tcp_connections_opened_total", "reporter=\"destination\"", &from];
    assert!(stage.mesh.metric(1, &words) > 0.0, "the endpoint's agent met the waypoint's identity");

    stage.mesh.apply("").unwrap();
    let world = &mut stage.mesh.world;
    wait::until(LIMIT, "the waypoint to be removed", || {
        runner::reconcile(world).unwrap();
        (!world.pods.contains_key(WAYPOINT)).then_some(())
    })
    .unwrap();
    let mark = stage.mesh.mark(agent(0));
    stage.until("requests to go directly", |stage| {
        stage.page(&[]).starts_with("200") && stage.mesh.logged(&mark, &["path=\"tunnel\""]).is_ok()
    });
}

/// `GET /admin` as nginx understands it, and the plain form.
const DISGUISES: [&str; 3] = ["GET /admin", "\\r\\nGET /admin", "GET  /admin"];

#[test]
fn an_l7_policy_denies_with_its_reason_and_cannot_be_gone_around() {
    let name = "an_l7_policy_denies_with_its_reason_and_cannot_be_gone_around";
    let Some(mut stage) = stage(name) else { return };
    let raw = |stage: &Stage, start: &str| {
        let script = format!(
            "exec 3<>/dev/tcp/{VIP}/80; \
             printf '{start} HTTP/1.1\\r\\nhost: web\\r\\nconnection: close\\r\\n\\r\\n' >&3; timeout 5 cat <&3"
        );
        stage.client.pod.exec(&["bash", "-c", &script]).unwrap_or_default()
    };
    for start in DISGUISES {
        let answer = raw(&stage, start);
        assert!(answer.contains("404 Not Found"), "nginx understands {start:?}: {answer}");
    }
    let direct = |stage: &Stage| {
        let url = format!("http://{}/", stage.pod("shop/web-v2-0-0").ip);
        stage.get(&stage.client.pod, &url, &[]).status
    };
    assert_eq!((stage.served("/admin"), direct(&stage).as_str()), (3, "200"), "before any policy");

    let other = "from: [{source: {principals: [cluster.local/ns/shop/sa/other]}}]";
    let admin = "to: [{operation: {paths: [/admin*]}}]";
    let both = [policy("deny-admin", &format!("{{{admin}}}")), policy("deny-other", &format!("{{{other}}}"))]
        .join("---\n");
    stage.routed(&both);
    let url = |path: &str| format!("http://{VIP}{path}");
    for (pod, path, policy) in
        [(&stage.client.pod, "/admin", "shop/deny-admin"), (&stage.other.pod, "/", "shop/deny-other")]
    {
        let mark = stage.mesh.mark(WAYPOINT_LOG);
        let got = stage.get(pod, &url(path), &[]);
        assert_eq!((got.status.as_str(), got.body.as_str()), ("403", "RBAC: access denied"), "{policy}");
        assert!(got.head.contains("x-culvert-reason: policy_denied"), "{}", got.head);
        stage.mesh.logged(&mark, &["reason=\"policy_denied\"", policy, "status=403"]).unwrap();
    }
    assert!(stage.page(&[]).starts_with("200"), "the rest is served");
    for start in DISGUISES {
        let answer = raw(&stage, start);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 40"), "{start:?}: {answer}");
        assert!(!answer.contains("nginx"), "{start:?} reached nginx: {answer}");
    }
    assert_eq!(stage.served("/admin"), 3, "nginx saw none of them");

    let mark = stage.mesh.mark(agent(1));
    assert_eq!(direct(&stage), "000");
    let words = ["reason=\"policy_denied\"", "culvert_require_waypoint_web"];
    stage.mesh.logged(&mark, &words).unwrap();
    stage.mesh.apply("").unwrap();
    stage.until("the endpoint to be open again", |stage| direct(stage) == "200");
}

#[test]
fn a_waypoint_that_is_gone_is_not_gone_around_and_a_new_one_heals() {
    let name = "a_waypoint_that_is_gone_is_not_gone_around_and_a_new_one_heals";
    let Some(mut stage) = stage(name) else { return };
    stage.routed(&everything_to("v1"));
    let served = stage.served("GET / ");
    stage.mesh.world.running.remove(WAYPOINT).unwrap();
    let mark = stage.mesh.mark(agent(0));
    assert_eq!(stage.page(&[]), "000 ");
    stage.mesh.logged(&mark, &["path=\"waypoint\"", "reason=\"connect_failed\""]).unwrap();
    stage.mesh.world.delete_pod("shop", "waypoint-0-0").unwrap();
    let mark = stage.mesh.mark(agent(0));
    stage.until("the agent to know that there is none", |stage| {
        assert_eq!(stage.page(&[]), "000 ", "never around it");
        stage.mesh.log(agent(0))[mark.offset()..].contains("reason=\"waypoint_unavailable\"")
    });
    assert_eq!(stage.served("GET / "), served, "nginx saw nothing");
    stage.waypoint_comes();
    stage.until("requests to be served again", |stage| stage.page(&[]) == "200 page-v1");
}

#[test]
fn configuration_changes_under_load_fail_no_request_through_a_waypoint() {
    let name = "configuration_changes_under_load_fail_no_request_through_a_waypoint";
    let Some(mut stage) = stage(name) else { return };
    stage.routed(&everything_to("v1"));
    let client = stage.client.pod.clone();
    let url = format!("http://{VIP}/");
    let figures = std::thread::scope(|scope| {
        let load = scope.spawn(|| load::http(&client, &url, 8, 6, load::Mode::KeepAlive));
        let mut changes = 0;
        while !load.is_finished() {
            let subset = if changes % 2 == 0 { "v2" } else { "v1" };
            stage.mesh.apply(&everything_to(subset)).unwrap();
            let page = format!("200 page-{subset}");
            wait::until(LIMIT, &page, || (stage.page(&[]) == page).then_some(())).unwrap();
            changes += 1;
        }
        assert!(changes >= 3, "{changes} changes while the load ran");
        load.join().unwrap().unwrap()
    });
    println!("{figures:?}");
    assert_eq!(figures.errors, 0);
    assert!(figures.rate > 50.0, "requests were under way: {figures:?}");
}

#[test]
fn culvert_names_what_a_connection_through_a_waypoint_meets() {
    let name = "culvert_names_what_a_connection_through_a_waypoint_meets";
    let Some(mut stage) = stage(name) else { return };
    let asked = ["explain", "shop/client", "web.shop:80"];
    let (status, told) = stage.culvert(&asked);
    assert!(status == 0 && !told.contains("aypoint"), "nothing is in between yet: {status}\n{told}");
    stage.routed(&everything_to("v1"));
    let (status, told) = stage.culvert(&asked);
    assert_eq!(status, 0, "{told}");
    for part in ["shop/waypoint", "VirtualService shop/web", "web-v1-0-0", "HBONE", "PODS"] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
    assert!(!told.contains("WARNING"), "{told}");
    let admin = policy("deny-admin", "{to: [{operation: {paths: [/admin*]}}]}");
    stage.mesh.apply(&format!("{}---\n{admin}", everything_to("v1"))).unwrap();
    let (status, told) = stage.culvert(&asked);
    assert!(status == 0 && told.contains("shop/deny-admin") && !told.contains("WARNING"), "{status}\n{told}");
    let endpoint = format!("{}:80", stage.pod("shop/web-v2-0-0").ip);
    let (status, told) = stage.culvert(&["explain", "shop/client", &endpoint]);
    assert!(status == 1 && told.contains("culvert_require_waypoint_web"), "{status}\n{told}");
    let other = policy("deny-other", "{from: [{source: {principals: [cluster.local/ns/shop/sa/other]}}]}");
    stage.mesh.apply(&format!("{}---\n{other}", everything_to("v1"))).unwrap();
    let (status, told) = stage.culvert(&["explain", "shop/other", "web.shop:80"]);
    assert!(status == 1 && told.contains("shop/deny-other") && !told.contains("WARNING"), "{status}\n{told}");
    let (status, told) = stage.culvert(&asked);
    assert!(status == 0 && !told.contains("WARNING"), "{status}\n{told}");
    let (status, told) = stage.culvert(&["status"]);
    assert_eq!(status, 0, "{told}");
    for part in ["control", "node-a", "node-b", "waypoint"] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
    stage.mesh.world.kill_agent(1);
    let (status, told) = stage.culvert(&["status"]);
    assert!(status == 1 && told.contains("node-b"), "{status}\n{told}");
}
