//! What agents tell of flows: one line of the access log at each end, `/debug/connections` while they
//! are open, and `/debug/config`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use harness::{
    echo::{Echo, ask, say},
    mesh::{LIMIT, MESHED, Mesh, PLAIN, agent},
    peer::{FAMILIES, Peer},
    require, wait,
};
use serde_json::{Value, json};

struct Stage {
    mesh: Mesh,
    client: Peer,
    stranger: Peer,
    web: Peer,
    outsider: Peer,
    _servers: Vec<Echo>,
}

fn stage(name: &str) -> Option<Stage> {
    if !require::root(name) {
        return None;
    }
    let mut mesh = Mesh::start().unwrap();
    let client = mesh.pod(MESHED, "client", 0).unwrap();
    let stranger = mesh.pod(PLAIN, "stranger", 0).unwrap();
    let web = mesh.pod(MESHED, "web", 1).unwrap();
    let outsider = mesh.outsider("outsider", 1).unwrap();
    let servers = [(&web, 80), (&web, 81), (&outsider, 80)];
    let servers = servers.map(|(peer, port)| Echo::serve(peer, port, &peer.pod.name).unwrap()).into();
    mesh.enrolled(&[&client, &web]).unwrap();
    Some(Stage { mesh, client, stranger, web, outsider, _servers: servers })
}

/// Of the agent's log: lines about flows that have ended.
fn lines(mesh: &Mesh, node: u8) -> usize {
    mesh.log(agent(node)).matches("connection complete").count()
}

const CLIENT: &str = "src.identity=spiffe://cluster.local/ns/shop/sa/client";
const WEB: &str = "dst.identity=spiffe://cluster.local/ns/shop/sa/web";

#[test]
fn every_flow_is_told_once_at_each_end_with_its_bytes_duration_and_proven_identities() {
    let name = "every_flow_is_told_once_at_each_end_with_its_bytes_duration_and_proven_identities";
    let Some(Stage { mesh, client, stranger, web, outsider, .. }) = &stage(name) else { return };
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: no-81, namespace: shop}\n\
         spec: {action: DENY, rules: [{to: [{operation: {ports: ['81']}}]}]}\n",
    )
    .unwrap();
    for family in FAMILIES {
        let (near, far) = (mesh.mark(agent(0)), mesh.mark(agent(1)));
        mesh.reaches(client, web.at(family, 80)).unwrap();
        // "who\n", and "web <address>\n".
        let (asked, answered) = (4, 5 + client.ip(family).to_string().len());
        let (out, back) = (format!("bytes_sent={asked}"), format!("bytes_recv={answered}"));
        let (authority, tunnel) = (format!("dst.hbone_addr={}", web.at(family, 80)), "path=\"tunnel\"");
        let both = ["src.workload=\"client\"", "dst.workload=\"web\"", CLIENT, WEB, tunnel, "duration="];
        let ok = ["verdict=\"carried\"", &authority];
        let own = ["direction=\"outbound\"", &out, &back];
        let line = mesh.logged(&near, &[&both[..], &ok, &own].concat()).unwrap();
        assert!(!line.contains("reason="), "{line}");
        let (out, back) = (format!("bytes_sent={answered}"), format!("bytes_recv={asked}"));
        mesh.logged(&far, &[&both[..], &ok, &["direction=\"inbound\"", &out, &back]].concat()).unwrap();

        assert!(ask(client, web.at(family, 81)).is_err());
        let refused = ["direction=\"inbound\"", "verdict=\"failed\"", "stage=\"plan\"", "shop/no-81"];
        let none = ["bytes_sent=0", "bytes_recv=0"];
        let reason = ["reason=\"policy_denied\"", CLIENT, WEB];
        mesh.logged(&far, &[&refused[..], &reason, &none].concat()).unwrap();
        let refused = ["direction=\"outbound\"", "stage=\"dial\"", "reason=\"tunnel_refused\"", CLIENT];
        mesh.logged(&near, &[&refused[..], &none].concat()).unwrap();

        let (near, far) = (mesh.mark(agent(0)), mesh.mark(agent(1)));
        mesh.reaches(stranger, web.at(family, 80)).unwrap();
        let line = mesh.logged(&far, &["direction=\"inbound\"", "path=\"plaintext\"", &back]).unwrap();
        assert!(!line.contains("identity") && line.contains("src.workload=\"stranger\""), "{line}");
        mesh.reaches(client, outsider.at(family, 80)).unwrap();
        let passed = ["direction=\"outbound\"", "path=\"passthrough\"", "bytes_sent=4"];
        let line = mesh.logged(&near, &passed).unwrap();
        assert!(!line.contains("identity"), "nobody proved anything: {line}");
    }
    // Carried, refused, and to the outsider; carried, refused, and from the stranger.
    assert_eq!([0, 1].map(|node| lines(mesh, node)), [6, 6]);
}

fn get(mesh: &Mesh, node: u8, path: &str) -> Value {
    serde_json::from_str(&mesh.world.agent_get(node, path).unwrap()).unwrap()
}

#[test]
fn an_open_connection_is_shown_with_both_ends_and_its_bytes_until_it_ends() {
    let name = "an_open_connection_is_shown_with_both_ends_and_its_bytes_until_it_ends";
    let Some(Stage { mesh, client, web, .. }) = &stage(name) else { return };
    for family in FAMILIES {
        let stream = client.connect(web.at(family, 80)).unwrap();
        say(&stream).unwrap();
        let answered = 5 + client.ip(family).to_string().len();
        for (node, direction, pod) in [(0, "outbound", "shop/client"), (1, "inbound", "shop/web")] {
            let shown = get(mesh, node, "/debug/connections");
            assert_eq!((&shown["open"], shown["connections"].as_array().unwrap().len()), (&json!(1), 1));
            let flow = &shown["connections"][0];
            assert_eq!((&flow["direction"], &flow["pod"]), (&json!(direction), &json!(pod)));
            assert_eq!((&flow["bytes_sent"], &flow["bytes_received"]), (&json!(4), &json!(answered)));
            assert_eq!(flow["path"], "tunnel");
            assert_eq!(flow["destination"], json!(web.at(family, 80)));
            assert_eq!(flow["source_workload"], "Kubernetes//Pod/shop/client");
            assert_eq!(flow["destination_workload"], "Kubernetes//Pod/shop/web");
            assert_eq!(flow["source_identity"], "spiffe://cluster.local/ns/shop/sa/client");
            assert_eq!(flow["destination_identity"], "spiffe://cluster.local/ns/shop/sa/web");
            assert!(flow["seconds"].as_f64().unwrap() > 0.0, "{flow}");
        }
        drop(stream);
        for node in [0, 1] {
            let gone = || (get(mesh, node, "/debug/connections")["open"] == 0).then_some(());
            wait::until(LIMIT, "the connection to be gone", gone).unwrap();
        }
    }
}

#[test]
fn the_configuration_that_an_agent_works_with_is_shown_with_its_objects_and_the_kernels_tables() {
    let name = "the_configuration_that_an_agent_works_with_is_shown_with_its_objects_and_the_kernels_tables";
    let Some(Stage { mesh, web, .. }) = &stage(name) else { return };
    let config = get(mesh, 1, "/debug/config");
    assert_eq!((&config["node"], &config["ready"]), (&json!("node-b"), &json!(true)), "{config}");
    assert_eq!((&config["awaiting"], &config["control"]["connected"]), (&json!([]), &json!(true)));
    let snapshot = get(mesh, 1, config["snapshot"]["objects"].as_str().unwrap());
    let workloads = snapshot["workloads"].as_array().unwrap();
    assert_eq!(config["snapshot"]["workloads"], json!(workloads.len()));
    assert!(workloads.iter().any(|w| w["name"] == "web"), "{snapshot}");

    let kernel = &config["kernel"];
    let pod = &kernel["pods"][0];
    assert_eq!((&pod["v4"], &pod["v6"]), (&json!(web.pod.ip), &json!(web.pod.ip6)), "{kernel}");
    let (entries, netns) = (&kernel["entries"], &pod["netns"]);
    for address in [&web.pod.ip, &web.pod.ip6] {
        let owner = json!({"address": address, "netns": netns});
        assert!(entries["POD_IPS"].as_array().unwrap().contains(&owner), "{entries}");
    }
    for kind in ["hbone", "plaintext"] {
        let listener = json!({"netns": netns, "kind": kind});
        assert!(entries["LISTENERS"].as_array().unwrap().contains(&listener), "{entries}");
    }
    assert_eq!(entries["CONFIG"]["ranges_complete"], false, "no ranges were given");
    assert!(entries["MESH"].is_array() && kernel["counters"].is_object(), "{kernel}");
    assert!(kernel["tables"].as_array().unwrap().iter().any(|t| t["map"] == "PODS"), "{kernel}");
}
