//! Who may talk to whom: PeerAuthentication and AuthorizationPolicy at the destination's agent, each
//! refusal with its reason and each with its negative twin.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{ErrorKind, Read},
    net::TcpStream,
    time::{Duration, Instant},
};

use harness::{
    echo::{Echo, say},
    mesh::{LIMIT, MESHED, Mesh, PLAIN, agent},
    peer::{FAMILIES, Peer},
    require, wait,
};
use serde_json::Value;

/// Two enrolled clients and one that is not, on the first node; a server with two ports on the second.
struct Stage {
    mesh: Mesh,
    client: Peer,
    other: Peer,
    stranger: Peer,
    web: Peer,
    _ports: Vec<Echo>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum Who {
    Client,
    Other,
    Stranger,
}
use Who::{Client, Other, Stranger};

/// A configuration with what it allows and what it refuses, why.
struct Case {
    name: &'static str,
    yaml: String,
    allowed: &'static [(Who, u16)],
    refused: &'static [(Who, u16, &'static str)],
}

impl Stage {
    fn set(name: &str) -> Option<Self> {
        if !require::root(name) {
            return None;
        }
        let mut mesh = Mesh::start().unwrap();
        let client = mesh.pod(MESHED, "client", 0).unwrap();
        let other = mesh.pod(MESHED, "other", 0).unwrap();
        let stranger = mesh.pod(PLAIN, "stranger", 0).unwrap();
        let web = mesh.pod(MESHED, "web", 1).unwrap();
        let ports = [80, 81].map(|port| Echo::serve(&web, port, "web").unwrap()).into();
        mesh.enrolled(&[&client, &other, &web]).unwrap();
        Some(Self { mesh, client, other, stranger, web, _ports: ports })
    }

    fn peer(&self, who: Who) -> &Peer {
        match who {
            Client => &self.client,
            Other => &self.other,
            Stranger => &self.stranger,
        }
    }

    /// Tries a case with both families; every miss is reported, not only the first.
    fn holds(&self, case: &Case) -> Vec<String> {
        if let Err(error) = self.mesh.apply(&case.yaml) {
            return vec![format!("{}: {error:#}", case.name)];
        }
        let mut wrong = Vec::new();
        for family in FAMILIES {
            for (who, port) in case.allowed {
                let tried = self.mesh.reaches(self.peer(*who), self.web.at(family, *port));
                wrong.extend(tried.err().map(|e| format!("{}, {who:?} to {port}: {e:#}", case.name)));
            }
            for (who, port, reason) in case.refused {
                let to = self.web.at(family, *port);
                let tried = self.mesh.refused(self.peer(*who), to, agent(1), reason);
                wrong.extend(tried.err().map(|e| format!("{}, {who:?} to {port}: {e:#}", case.name)));
            }
        }
        wrong
    }

    fn all_hold(&self, cases: &[Case]) {
        let wrong: Vec<String> = cases.iter().flat_map(|case| self.holds(case)).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    }
}

fn peer_authentication(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: mtls, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {MESHED}}}\nspec: {spec}\n---\n"
    )
}

fn case(
    name: &'static str,
    yaml: String,
    allowed: &'static [(Who, u16)],
    refused: &'static [(Who, u16, &'static str)],
) -> Case {
    Case { name, yaml, allowed, refused }
}

const STRICT: &str = "{mtls: {mode: STRICT}}";
const PERMISSIVE: &str = "{mtls: {mode: PERMISSIVE}}";
const PLAINTEXT_REFUSED: &[(Who, u16, &str)] = &[(Stranger, 80, "mtls_required")];

#[test]
fn plaintext_is_refused_where_peer_authentication_is_strict_and_let_in_where_it_is_permissive() {
    let name = "plaintext_is_refused_where_peer_authentication_is_strict_and_let_in_where_it_is_permissive";
    let Some(stage) = Stage::set(name) else { return };
    let web = "selector: {matchLabels: {app: web}}";
    let not_web = "selector: {matchLabels: {app: client}}";
    stage.all_hold(&[
        case("nothing said", String::new(), &[(Client, 80), (Stranger, 80)], &[]),
        case("mesh strict", peer_authentication("istio-system", STRICT), &[(Client, 80)], PLAINTEXT_REFUSED),
        case(
            "mesh permissive",
            peer_authentication("istio-system", PERMISSIVE),
            &[(Client, 80), (Stranger, 80)],
            &[],
        ),
        case("namespace strict", peer_authentication(MESHED, STRICT), &[(Client, 80)], PLAINTEXT_REFUSED),
        case("another namespace strict", peer_authentication(PLAIN, STRICT), &[(Stranger, 80)], &[]),
        case(
            "namespace permissive in a strict mesh",
            peer_authentication("istio-system", STRICT) + &peer_authentication(MESHED, PERMISSIVE),
            &[(Client, 80), (Stranger, 80)],
            &[],
        ),
        case(
            "workload strict",
            peer_authentication(MESHED, &format!("{{{web}, mtls: {{mode: STRICT}}}}")),
            &[(Client, 80)],
            PLAINTEXT_REFUSED,
        ),
        case(
            "another workload strict",
            peer_authentication(MESHED, &format!("{{{not_web}, mtls: {{mode: STRICT}}}}")),
            &[(Stranger, 80)],
            &[],
        ),
        case(
            "workload permissive in a strict mesh",
            peer_authentication("istio-system", STRICT)
                + &peer_authentication(MESHED, &format!("{{{web}, mtls: {{mode: PERMISSIVE}}}}")),
            &[(Stranger, 80)],
            &[],
        ),
        case(
            "one port permissive, the rest strict",
            peer_authentication(
                MESHED,
                &format!("{{{web}, mtls: {{mode: STRICT}}, portLevelMtls: {{81: {{mode: PERMISSIVE}}}}}}"),
            ),
            &[(Stranger, 81), (Client, 80), (Client, 81)],
            PLAINTEXT_REFUSED,
        ),
        case(
            "one port strict, the rest permissive",
            peer_authentication(
                MESHED,
                &format!("{{{web}, mtls: {{mode: PERMISSIVE}}, portLevelMtls: {{80: {{mode: STRICT}}}}}}"),
            ),
            &[(Stranger, 81), (Client, 80), (Client, 81)],
            PLAINTEXT_REFUSED,
        ),
    ]);
}

const CLIENT: &str = "cluster.local/ns/shop/sa/client";

fn deny(source: &str) -> String {
    policy("deny", &format!("{{action: DENY, rules: [{{from: [{{source: {{{source}}}}}]}}]}}"))
}

fn allow(source: &str) -> String {
    policy("allow", &format!("{{action: ALLOW, rules: [{{from: [{{source: {{{source}}}}}]}}]}}"))
}

fn ports(action: &str, operation: &str) -> String {
    policy("ports", &format!("{{action: {action}, rules: [{{to: [{{operation: {{{operation}}}}}]}}]}}"))
}

#[test]
fn a_deny_policy_refuses_exactly_the_principals_namespaces_addresses_and_ports_that_it_names() {
    let name = "a_deny_policy_refuses_exactly_the_principals_namespaces_addresses_and_ports_that_it_names";
    let Some(stage) = Stage::set(name) else { return };
    let here = |peer: &Peer| format!("\"{}\", \"{}\"", peer.pod.ip, peer.pod.ip6);
    let client = here(&stage.client);
    stage.all_hold(&[
        case(
            "principal",
            deny(&format!("principals: [{CLIENT}]")),
            &[(Other, 80), (Stranger, 80)],
            &[(Client, 80, "policy_denied")],
        ),
        // Istio's meaning: plaintext has no principal, so it is none of the listed ones.
        case(
            "not principal",
            deny(&format!("notPrincipals: [{CLIENT}]")),
            &[(Client, 80)],
            &[(Other, 80, "policy_denied"), (Stranger, 80, "policy_denied")],
        ),
        case(
            "namespace",
            deny(&format!("namespaces: [{MESHED}]")),
            &[(Stranger, 80)],
            &[(Client, 80, "policy_denied"), (Other, 80, "policy_denied")],
        ),
        case(
            "not namespace",
            deny(&format!("notNamespaces: [{MESHED}]")),
            &[(Client, 80)],
            &[(Stranger, 80, "policy_denied")],
        ),
        case(
            "address",
            deny(&format!("ipBlocks: [{client}]")),
            &[(Other, 80), (Stranger, 80)],
            &[(Client, 80, "policy_denied")],
        ),
        case(
            "not address",
            deny(&format!("notIpBlocks: [{client}]")),
            &[(Client, 80)],
            &[(Other, 80, "policy_denied"), (Stranger, 80, "policy_denied")],
        ),
        case(
            "port",
            ports("DENY", "ports: [\"81\"]"),
            &[(Client, 80), (Stranger, 80)],
            &[(Client, 81, "policy_denied"), (Stranger, 81, "policy_denied")],
        ),
        case(
            "not port",
            ports("DENY", "notPorts: [\"81\"]"),
            &[(Client, 81)],
            &[(Client, 80, "policy_denied")],
        ),
        case("taken away", String::new(), &[(Client, 80), (Other, 81), (Stranger, 80)], &[]),
    ]);
}

#[test]
fn an_allow_policy_admits_exactly_what_it_names_and_a_deny_policy_comes_before_it() {
    let name = "an_allow_policy_admits_exactly_what_it_names_and_a_deny_policy_comes_before_it";
    let Some(stage) = Stage::set(name) else { return };
    let client = format!("\"{}\", \"{}\"", stage.client.pod.ip, stage.client.pod.ip6);
    stage.all_hold(&[
        case(
            "principal",
            allow(&format!("principals: [{CLIENT}]")),
            &[(Client, 80)],
            &[(Other, 80, "no_allow_matched"), (Stranger, 80, "no_allow_matched")],
        ),
        case(
            "not principal",
            allow(&format!("notPrincipals: [{CLIENT}]")),
            &[(Other, 80)],
            &[(Client, 80, "no_allow_matched")],
        ),
        case(
            "namespace",
            allow(&format!("namespaces: [{MESHED}]")),
            &[(Client, 80), (Other, 80)],
            &[(Stranger, 80, "no_allow_matched")],
        ),
        case(
            "not namespace",
            allow(&format!("notNamespaces: [{MESHED}]")),
            &[],
            &[(Client, 80, "no_allow_matched")],
        ),
        case(
            "address",
            allow(&format!("ipBlocks: [{client}]")),
            &[(Client, 80)],
            &[(Other, 80, "no_allow_matched"), (Stranger, 80, "no_allow_matched")],
        ),
        case(
            "port",
            ports("ALLOW", "ports: [\"81\"]"),
            &[(Client, 81), (Stranger, 81)],
            &[(Client, 80, "no_allow_matched"), (Stranger, 80, "no_allow_matched")],
        ),
        case(
            "nothing is allowed",
            policy("allow-nothing", "{}"),
            &[],
            &[(Client, 80, "no_allow_matched"), (Stranger, 80, "no_allow_matched")],
        ),
        case(
            "of another workload",
            policy("elsewhere", "{selector: {matchLabels: {app: client}}, action: ALLOW}"),
            &[(Client, 80), (Stranger, 80)],
            &[],
        ),
        case(
            "deny comes before allow",
            allow(&format!("namespaces: [{MESHED}]")) + &deny(&format!("principals: [{CLIENT}]")),
            &[(Other, 80)],
            &[(Client, 80, "policy_denied"), (Stranger, 80, "no_allow_matched")],
        ),
    ]);
}

#[test]
fn an_open_flow_is_closed_within_a_second_when_a_policy_forbids_it_and_others_go_on() {
    let name = "an_open_flow_is_closed_within_a_second_when_a_policy_forbids_it_and_others_go_on";
    let Some(stage) = Stage::set(name) else { return };
    for family in FAMILIES {
        stage.mesh.apply("").unwrap();
        let open = |who| stage.peer(who).connect(stage.web.at(family, 80)).unwrap();
        let (forbidden, stays, plain) = (open(Client), open(Other), open(Stranger));
        for stream in [&forbidden, &stays, &plain] {
            say(stream).unwrap();
        }
        let mark = stage.mesh.mark(agent(1));
        stage.mesh.write(&deny(&format!("principals: [{CLIENT}]"))).unwrap();
        let started = known(&stage, "shop/deny");
        let closed = reset(&forbidden).duration_since(started);
        assert!(closed < Duration::from_secs(1), "closed after {closed:?}");
        stage.mesh.logged(&mark, &["reason=\"policy_changed\"", "shop/deny"]).unwrap();
        for stream in [&stays, &plain] {
            say(stream).unwrap();
        }
        assert!(say(&forbidden).is_err());
    }
    let counted = stage.mesh.metric(1, &["culvert_connections_failed_total", "policy_changed"]);
    assert!((counted - 2.0).abs() < 0.1, "each closed flow is counted once: {counted}");
}

/// Waits for the end of a connection that nobody writes to: it must be a reset, because an end of data
/// would tell the application that it has everything.
fn reset(mut stream: &TcpStream) -> Instant {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let read = stream.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(read, Err(ErrorKind::ConnectionReset));
    Instant::now()
}

#[test]
fn plaintext_that_is_open_is_reset_when_mutual_tls_becomes_strict_and_tunnels_go_on() {
    let name = "plaintext_that_is_open_is_reset_when_mutual_tls_becomes_strict_and_tunnels_go_on";
    let Some(stage) = Stage::set(name) else { return };
    for family in FAMILIES {
        stage.mesh.apply(&peer_authentication(MESHED, PERMISSIVE)).unwrap();
        let open = |who| stage.peer(who).connect(stage.web.at(family, 80)).unwrap();
        let (plain, tunnel) = (open(Stranger), open(Client));
        for stream in [&plain, &tunnel] {
            say(stream).unwrap();
        }
        let mark = stage.mesh.mark(agent(1));
        stage.mesh.write(&peer_authentication(MESHED, STRICT)).unwrap();
        // istiod tells of this policy while there is any PeerAuthentication: what counts is who has it.
        let started = when(&stage, |snapshot| {
            let workloads = snapshot["workloads"].as_array().into_iter().flatten();
            let mut web = workloads.filter(|workload| workload["name"] == "web");
            web.any(|web| web.to_string().contains("istio_converted_static_strict"))
        });
        let closed = reset(&plain).duration_since(started);
        assert!(closed < Duration::from_secs(1), "closed after {closed:?}");
        stage.mesh.logged(&mark, &["reason=\"policy_changed\"", "mtls_required"]).unwrap();
        say(&tunnel).unwrap();
    }
}

#[test]
fn a_flow_is_reset_when_the_allow_that_let_it_in_is_gone_and_stays_when_another_still_does() {
    let name = "a_flow_is_reset_when_the_allow_that_let_it_in_is_gone_and_stays_when_another_still_does";
    let Some(stage) = Stage::set(name) else { return };
    let allowing = |name: &str, who: &str| {
        let source = format!("principals: [cluster.local/ns/shop/sa/{who}]");
        policy(name, &format!("{{action: ALLOW, rules: [{{from: [{{source: {{{source}}}}}]}}]}}"))
    };
    let rest = allowing("others", "other");
    for family in FAMILIES {
        stage.mesh.apply(&(rest.clone() + &allowing("clients", "client"))).unwrap();
        let open = |who| stage.peer(who).connect(stage.web.at(family, 80)).unwrap();
        let (loses, stays) = (open(Client), open(Other));
        for stream in [&loses, &stays] {
            say(stream).unwrap();
        }
        let mark = stage.mesh.mark(agent(1));
        stage.mesh.write(&rest).unwrap();
        reset(&loses);
        stage.mesh.logged(&mark, &["reason=\"policy_changed\"", "no_allow_matched"]).unwrap();
        stage.mesh.apply("").unwrap();
        say(&stays).unwrap();
    }
}

/// When the destination's agent had a policy.
fn known(stage: &Stage, policy: &str) -> Instant {
    when(stage, |snapshot| snapshot["policies"].to_string().contains(policy))
}

/// When the destination's agent had what is looked for.
fn when(stage: &Stage, is_so: impl Fn(&Value) -> bool) -> Instant {
    wait::until(LIMIT, "the policy at the agent", || {
        let text = stage.mesh.world.agent_get(1, "/debug/snapshot").ok()?;
        is_so(&serde_json::from_str(&text).ok()?).then(Instant::now)
    })
    .unwrap()
}

#[test]
fn plaintext_from_the_mesh_to_a_pod_that_is_not_enrolled_is_carried_and_is_not_refused() {
    let name = "plaintext_from_the_mesh_to_a_pod_that_is_not_enrolled_is_carried_and_is_not_refused";
    let Some(stage) = Stage::set(name) else { return };
    let _page = Echo::serve(&stage.stranger, 90, "stranger").unwrap();
    stage.mesh.apply(&peer_authentication("istio-system", STRICT)).unwrap();
    for family in FAMILIES {
        let mark = stage.mesh.mark(agent(0));
        let answer = stage.mesh.reaches(&stage.client, stage.stranger.at(family, 90)).unwrap();
        assert_eq!(answer.server, "stranger");
        stage.mesh.logged(&mark, &["direction=\"outbound\"", "path=\"passthrough\""]).unwrap();
    }
}
