//! The delta xDS server, talked to by hand.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use mesh_net::api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_net::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE, L7_POLICY_TYPE, LABELS_TYPE, ROUTES_TYPE};
use support::{POD, Running, names};
use tonic::{Code, Request};

const UID: &str = "Kubernetes//Pod/default/client-1";

#[tokio::test]
async fn an_unknown_type_is_answered_empty_and_odd_requests_end_nothing() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    let mut talk = running.stream("one").await;
    let unknown = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    let empty = talk.open(unknown, &[]).await;
    assert_eq!((empty.type_url.as_str(), empty.resources.len()), (unknown, 0));
    assert!(!empty.nonce.is_empty());
    talk.answer(&empty, None).await;
    talk.say(DeltaDiscoveryRequest::default()).await;
    talk.say(DeltaDiscoveryRequest { type_url: "not a url".repeat(1000), ..Default::default() }).await;
    assert!(talk.next().await.unwrap().unwrap().resources.is_empty());
    assert_eq!(names(&talk.open(ADDRESS_TYPE, &[]).await), [UID], "the stream goes on");
    talk.say(DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.into(),
        response_nonce: "never sent".into(),
        ..Default::default()
    })
    .await;
    let odd = "culvert_control_odd_requests_total{reason=\"unknown_nonce\"}";
    running.until("/metrics", |_, text| text.contains(&format!("{odd} 1"))).await;
    running.write("pod.yaml", &POD.replace("10.0.0.1", "10.0.0.2"));
    assert_eq!(names(&talk.next().await.unwrap().unwrap()), [UID], "and is pushed to");
}

#[tokio::test]
async fn a_client_that_resumes_gets_what_differs_and_what_went_while_it_was_away() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    let mut first = running.stream("one").await;
    let all = first.open(ADDRESS_TYPE, &[]).await;
    let version = all.resources[0].version.clone();
    drop(first);
    let gone = "Kubernetes//Pod/default/gone-1";
    let mut second = running.stream("one").await;
    let rest = second.open(ADDRESS_TYPE, &[(UID, &version), (gone, "7")]).await;
    assert!(rest.resources.is_empty(), "held already: {:?}", names(&rest));
    assert_eq!(rest.removed_resources, [gone]);
    let mut third = running.stream("one").await;
    let rest = third.open(ADDRESS_TYPE, &[(UID, "old")]).await;
    assert_eq!((names(&rest), rest.removed_resources.len()), (vec![UID], 0));
}

#[tokio::test]
async fn a_refusal_is_shown_with_its_reason_until_the_next_acceptance() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    let mut talk = running.stream("one").await;
    let first = talk.open(ADDRESS_TYPE, &[]).await;
    talk.answer(&first, Some("client-1: cannot be decoded")).await;
    running.until("/debug/clients", |_, text| text.contains("client-1: cannot be decoded")).await;
    let client = &running.json("/debug/clients").await[0];
    assert_eq!(
        (&client["kind"], &client["name"], &client["nacks"]),
        (&"agent".into(), &"node node-1".into(), &1.into())
    );
    assert!(client["accepted_version"].as_object().unwrap().is_empty());
    let refused = "culvert_control_responses_total{result=\"refused\",type=\"istio.workload.Address\"}";
    assert_eq!(running.metric(refused).await, Some(1.0));
    assert_eq!(running.metric("culvert_control_clients_refusing").await, Some(1.0));
    assert_eq!(running.metric("culvert_control_clients{kind=\"agent\"}").await, Some(1.0));

    running.write("pod.yaml", &POD.replace("10.0.0.1", "10.0.0.2"));
    let second = talk.next().await.unwrap().unwrap();
    talk.answer(&second, None).await;
    running
        .until("/debug/clients", |_, text| text.contains("\"acks\":1") && text.contains("\"refused\":{}"))
        .await;
    let client = &running.json("/debug/clients").await[0];
    assert_eq!(client["accepted_version"][ADDRESS_TYPE].to_string(), second.system_version_info);
    let answers = "culvert_control_push_seconds_count{type=\"istio.workload.Address\"}";
    assert_eq!(running.metric(answers).await, Some(2.0));
    drop(talk);
    running.until("/metrics", |_, text| text.contains("culvert_control_clients{kind=\"agent\"} 0")).await;
}

/// Not a request: its first field is a number where a message belongs.
#[derive(Clone, PartialEq, prost::Message)]
struct Malformed {
    #[prost(uint64, tag = "1")]
    node: u64,
}

#[tokio::test]
async fn a_request_that_cannot_be_decoded_ends_only_its_own_stream() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    let mut good = running.stream("two").await;
    good.open(ADDRESS_TYPE, &[]).await;
    let endpoint = running.endpoint("one");
    let mut grpc = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
    grpc.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::once(Malformed { node: 7 }));
    endpoint.authorize(&mut request).unwrap();
    let codec = tonic_prost::ProstCodec::<Malformed, DeltaDiscoveryResponse>::default();
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let answer = grpc.streaming(request, path.parse().unwrap(), codec).await;
    let ended = match answer {
        Ok(stream) => stream.into_inner().message().await.map(|m| m.is_none()),
        Err(status) => Err(status),
    };
    assert!(ended.as_ref().is_ok_and(|end| *end) || ended.is_err_and(|s| s.code() != Code::Ok));
    running.write("pod.yaml", &POD.replace("10.0.0.1", "10.0.0.2"));
    assert_eq!(names(&good.next().await.unwrap().unwrap()), [UID]);
}

const MESH: &str = r#"
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
kind: Pod
metadata: {name: web-1, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: node-1, serviceAccountName: web}
status: {podIP: 10.0.0.7, conditions: [{type: Ready, status: "True"}]}
---
kind: VirtualService
metadata: {name: vs}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}
---
kind: AuthorizationPolicy
metadata: {name: p}
spec: {targetRefs: [{kind: Service, name: web}], rules: [{to: [{operation: {methods: [GET]}}]}]}
"#;

#[tokio::test]
async fn an_agent_is_given_no_l7_resources_and_a_waypoint_is() {
    let running = Running::start(&[("mesh.yaml", MESH)]).await;
    let (mut agent, mut waypoint) = (running.stream("one").await, running.stream("way").await);
    for (type_url, count) in [(LABELS_TYPE, 1), (ROUTES_TYPE, 1), (L7_POLICY_TYPE, 1)] {
        assert!(agent.open(type_url, &[]).await.resources.is_empty(), "{type_url}");
        assert_eq!(waypoint.open(type_url, &[]).await.resources.len(), count, "{type_url}");
    }
    assert!(agent.open(AUTHORIZATION_TYPE, &[]).await.resources.len() == 1, "the way around is closed");
}

#[tokio::test]
async fn a_waypoint_learns_policies_before_what_they_protect_and_forgets_them_after() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    let mut talk = running.stream("way").await;
    for type_url in [ADDRESS_TYPE, LABELS_TYPE, ROUTES_TYPE, L7_POLICY_TYPE] {
        talk.open(type_url, &[]).await;
    }
    running.write("mesh.yaml", MESH);
    let mut order = Vec::new();
    while !order.contains(&ROUTES_TYPE.to_string()) {
        order.push(talk.next().await.unwrap().unwrap().type_url);
    }
    assert_eq!(order, [L7_POLICY_TYPE, ADDRESS_TYPE, LABELS_TYPE, ROUTES_TYPE]);
    std::fs::remove_file(running.cluster().join("mesh.yaml")).unwrap();
    let mut removed = Vec::new();
    while removed.last().is_none_or(|(type_url, _)| type_url != L7_POLICY_TYPE) {
        let response = talk.next().await.unwrap().unwrap();
        removed.push((response.type_url, response.removed_resources));
    }
    assert_eq!(removed.first().unwrap().0, ADDRESS_TYPE);
    assert_eq!(removed.last().unwrap().1, ["default/p"]);
}

#[tokio::test]
async fn an_agent_learns_a_policy_before_the_workload_that_names_it() {
    let running = Running::start(&[]).await;
    let mut talk = running.stream("one").await;
    talk.open(ADDRESS_TYPE, &[]).await;
    talk.open(AUTHORIZATION_TYPE, &[]).await;
    let policy =
        "kind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {selector: {matchLabels: {app: web}}}\n";
    running.write("mesh.yaml", &[MESH.split("---").nth(1).unwrap(), policy].join("\n---\n"));
    let came = [talk.next().await.unwrap().unwrap(), talk.next().await.unwrap().unwrap()];
    assert_eq!([names(&came[0]), names(&came[1])], [["default/p"], ["Kubernetes//Pod/default/web-1"]]);
    std::fs::remove_file(running.cluster().join("mesh.yaml")).unwrap();
    let went = [talk.next().await.unwrap().unwrap(), talk.next().await.unwrap().unwrap()];
    assert_eq!(went[0].removed_resources, ["Kubernetes//Pod/default/web-1"]);
    assert_eq!(went[1].removed_resources, ["default/p"]);
}

#[tokio::test]
async fn a_stream_without_a_known_token_is_refused_and_told_nothing() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    for (token, reason) in [
        (None, "there is no bearer token"),
        (Some("nobody"), "the token is not known"),
        (Some(""), "the token is not known"),
    ] {
        let refused = running.try_stream(token).await.map(drop).unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, reason), "{token:?}");
    }
    assert_eq!(running.json("/debug/clients").await.as_array().unwrap().len(), 0, "nobody is connected");
    assert_eq!(
        names(&running.stream("one").await.open(ADDRESS_TYPE, &[]).await),
        [UID],
        "a known one is told"
    );
    std::fs::remove_file(running.folder.path().join("tokens.yaml")).unwrap();
    let refused = running.try_stream(Some("one")).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "without the tokens file nobody is known");
}

#[tokio::test]
async fn a_name_that_a_client_demands_is_sent_or_said_to_be_gone() {
    let running = Running::start(&[("pod.yaml", POD)]).await;
    let mut talk = running.stream("one").await;
    let demand = |names: &[&str], nonce: &str| DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.into(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.into(),
        ..Default::default()
    };
    talk.say(demand(&["*"], "")).await;
    let first = talk.next().await.unwrap().unwrap();
    assert_eq!(
        (names(&first), first.removed_resources.len()),
        (vec![UID], 0),
        "everything, and nothing twice"
    );
    talk.say(demand(&["/10.0.0.1", "/10.9.9.9", "default/none.example.com"], &first.nonce)).await;
    let answer = talk.next().await.unwrap().unwrap();
    assert_eq!(names(&answer), [UID], "by its address");
    assert_eq!(answer.removed_resources, ["/10.9.9.9", "default/none.example.com"]);
    running.until("/debug/clients", |_, text| text.contains("\"acks\":1")).await;
    let mut later = running.stream("one").await;
    later.say(demand(&["nowhere"], "")).await;
    let both = [later.next().await.unwrap().unwrap(), later.next().await.unwrap().unwrap()];
    assert_eq!((names(&both[0]), &both[1].removed_resources[..]), (vec![UID], &["nowhere".to_string()][..]));
}
