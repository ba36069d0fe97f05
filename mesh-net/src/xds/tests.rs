use std::pin::Pin;

use mesh_core::model::{Workload, WorkloadUid};
use prost::Message;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
use tonic::{Response, Streaming, transport::Server};

use super::*;
use crate::{
    api::envoy::service::discovery::v3::{
        DeltaDiscoveryResponse, Resource,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    task::Ready,
    wire,
};

type Item = Result<DeltaDiscoveryResponse, Status>;

/// One stream as the test sees it: what the client said, and a way to answer.
struct Conversation {
    requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Item>,
    token: Option<String>,
}

struct FakeControl(mpsc::Sender<Conversation>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for FakeControl {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Item> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let token = request.metadata().get("authorization").and_then(|v| v.to_str().ok()).map(Into::into);
        let mut incoming = request.into_inner();
        let (say, requests) = mpsc::channel(16);
        let (responses, outgoing) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(Ok(request)) = incoming.next().await {
                if say.send(request).await.is_err() {
                    return;
                }
            }
        });
        self.0.send(Conversation { requests, responses, token }).await.ok();
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

struct World {
    store: Arc<SnapshotStore>,
    status: watch::Receiver<XdsStatus>,
    ready: Ready,
    conversations: mpsc::Receiver<Conversation>,
    _stop: tokio_util::sync::DropGuard,
    _dir: tempfile::TempDir,
}

async fn world() -> World {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (say, conversations) = mpsc::channel(4);
    let service = AggregatedDiscoveryServiceServer::new(FakeControl(say));
    tokio::spawn(
        Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "secret\n").unwrap();
    let config = XdsConfig {
        endpoint: ControlEndpoint {
            url,
            roots: None,
            server_name: None,
            token: Some(token),
            cluster: "c".into(),
        },
        node_id: "ztunnel~10.0.0.1~agent.culvert-system~culvert-system.svc.cluster.local".into(),
        metadata: BTreeMap::from([("NODE_NAME".into(), "node-a".into())]),
        types: vec![wire::ADDRESS_TYPE],
    };
    let (store, ready, cancel) = (Arc::new(SnapshotStore::default()), Ready::new(), CancellationToken::new());
    let (publish, status) = watch::channel(XdsStatus::default());
    let synced = ready.awaits("state manager");
    tokio::spawn(run(config, store.clone(), Session::default(), publish, synced, cancel.clone()));
    World { store, status, ready, conversations, _stop: cancel.drop_guard(), _dir: dir }
}

fn pod(name: &str) -> Workload {
    Workload::new(WorkloadUid::pod("c", "default", name), "default", name)
}

fn resource(workload: &Workload, version: &str) -> Resource {
    let value = wire::workload::workload_address(workload).encode_to_vec();
    Resource {
        name: workload.uid.to_string(),
        version: version.into(),
        resource: Some(prost_types::Any { type_url: wire::ADDRESS_TYPE.into(), value }),
        aliases: vec![],
    }
}

fn response(resources: Vec<Resource>, removed: &[&Workload], nonce: &str) -> Item {
    Ok(DeltaDiscoveryResponse {
        resources,
        removed_resources: removed.iter().map(|w| w.uid.to_string()).collect(),
        nonce: nonce.into(),
        type_url: wire::ADDRESS_TYPE.into(),
        ..DeltaDiscoveryResponse::default()
    })
}

#[tokio::test]
async fn the_first_response_fills_the_world_and_makes_the_program_ready() {
    let mut world = world().await;
    let mut talk = world.conversations.recv().await.unwrap();
    let open = talk.requests.recv().await.unwrap();
    assert_eq!((open.type_url.as_str(), open.resource_names_subscribe.len()), (wire::ADDRESS_TYPE, 0));
    assert_eq!(talk.token.as_deref(), Some("Bearer secret"));
    assert!(open.node.unwrap().id.starts_with("ztunnel~"));
    assert_eq!(world.ready.pending(), ["state manager"]);
    talk.responses.send(response(vec![resource(&pod("a"), "1")], &[], "n1")).await.unwrap();
    let ack = talk.requests.recv().await.unwrap();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n1", None));
    assert!(world.store.current().workload(&pod("a").uid).is_some());
    assert!(world.store.current().is_complete() && world.ready.pending().is_empty());
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_the_good_one_beside_it_is_applied() {
    let mut world = world().await;
    let mut talk = world.conversations.recv().await.unwrap();
    talk.requests.recv().await.unwrap();
    let mut bad = resource(&pod("bad"), "1");
    bad.resource.as_mut().unwrap().value = vec![0xff; 3];
    let bad_name = bad.name.clone();
    talk.responses.send(response(vec![bad, resource(&pod("good"), "1")], &[], "n1")).await.unwrap();
    let nack = talk.requests.recv().await.unwrap();
    let message = nack.error_detail.unwrap().message;
    assert!(message.starts_with(&format!("{bad_name}: cannot be decoded")), "{message}");
    assert!(world.store.current().workload(&pod("good").uid).is_some());
    world.status.wait_for(|status| status.refused.contains_key(&bad_name)).await.unwrap();
    talk.responses.send(response(vec![resource(&pod("bad"), "2")], &[], "n2")).await.unwrap();
    assert_eq!(talk.requests.recv().await.unwrap().error_detail, None);
    world.status.wait_for(|status| status.refused.is_empty()).await.unwrap();
}

#[tokio::test]
async fn a_new_stream_resumes_with_what_is_held_and_the_world_stays_meanwhile() {
    let mut world = world().await;
    let mut talk = world.conversations.recv().await.unwrap();
    talk.requests.recv().await.unwrap();
    talk.responses
        .send(response(vec![resource(&pod("a"), "1"), resource(&pod("b"), "7")], &[], "n1"))
        .await
        .unwrap();
    talk.requests.recv().await.unwrap();
    talk.responses.send(response(vec![], &[&pod("a")], "n2")).await.unwrap();
    talk.requests.recv().await.unwrap();
    assert!(world.store.current().workload(&pod("a").uid).is_none());
    talk.responses.send(Err(Status::unavailable("restart"))).await.unwrap();
    drop(talk);
    let mut talk = world.conversations.recv().await.unwrap();
    assert!(world.store.current().workload(&pod("b").uid).is_some(), "kept while disconnected");
    let open = talk.requests.recv().await.unwrap();
    let held: Vec<_> = open.initial_resource_versions.into_iter().collect();
    assert_eq!(held, [(pod("b").uid.to_string(), "7".to_string())]);
}

fn delta(resources: Vec<Resource>, removed: &[&str], type_url: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        type_url: type_url.into(),
        nonce: "n".into(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn broken(name: &str) -> Resource {
    let mut bad = resource(&pod(name), "1");
    bad.resource.as_mut().unwrap().value = vec![0xff; 3];
    bad
}

#[test]
fn a_refused_first_response_does_not_complete_a_session() {
    let mut session = Session::default();
    let snapshot = mesh_core::snapshot::Snapshot::new();
    let response = delta(vec![broken("a"), resource(&pod("b"), "1")], &[], wire::ADDRESS_TYPE);
    let (changes, nack, _) = session.take(response, &snapshot);
    assert!(nack.error_detail.is_some() && !session.complete(&[wire::ADDRESS_TYPE]));
    assert_eq!(changes.len(), 1, "what was good is applied");
    session.take(delta(vec![resource(&pod("a"), "2")], &[], wire::ADDRESS_TYPE), &snapshot);
    assert!(session.complete(&[wire::ADDRESS_TYPE]));
}

#[test]
fn unknown_types_and_impossible_removals_are_acknowledged_and_change_nothing() {
    let mut session = Session::default();
    let snapshot = mesh_core::snapshot::Snapshot::new();
    let (changes, ack, _) = session.take(delta(vec![broken("a")], &["x"], "type.example/Other"), &snapshot);
    assert_eq!((changes.len(), ack.error_detail, ack.response_nonce.as_str()), (0, None, "n"));
    assert!(session.versions().is_empty());
    let (changes, ack, _) =
        session.take(delta(vec![], &["no-namespace"], wire::AUTHORIZATION_TYPE), &snapshot);
    assert_eq!((changes.len(), ack.error_detail), (0, None));
}

#[test]
fn one_response_hands_an_address_from_the_removed_pod_to_the_new_one() {
    let mut session = Session::default();
    let at = |name: &str| {
        let mut pod = pod(name);
        pod.addresses = vec![[10, 0, 0, 7].into()];
        pod
    };
    let store = SnapshotStore::default();
    let feed = |session: &mut Session, response| {
        store.update(|snapshot| (session.take(response, snapshot).0, session.shared()));
    };
    feed(&mut session, delta(vec![resource(&at("old"), "1")], &[], wire::ADDRESS_TYPE));
    let gone = at("old").uid.to_string();
    feed(&mut session, delta(vec![resource(&at("new"), "1")], &[&gone], wire::ADDRESS_TYPE));
    let world = store.current();
    assert!(world.workload(&at("old").uid).is_none());
    let found = world.workload_at(&"".into(), [10, 0, 0, 7].into()).map(|w| w.uid.clone());
    assert_eq!(found, Some(at("new").uid));
}

#[test]
fn a_long_refusal_names_a_hundred_and_counts_the_rest() {
    let many = (0..150).map(|n| broken(&format!("p{n}"))).collect();
    let snapshot = mesh_core::snapshot::Snapshot::new();
    let (_, nack, refused) = Session::default().take(delta(many, &[], wire::ADDRESS_TYPE), &snapshot);
    assert_eq!(refused.refused.len(), 150);
    assert!(nack.error_detail.unwrap().message.ends_with("; and 50 more"));
}

#[tokio::test]
async fn what_is_held_on_disk_resumes_in_the_next_process() {
    let mut world = world().await;
    let mut talk = world.conversations.recv().await.unwrap();
    talk.requests.recv().await.unwrap();
    talk.responses.send(response(vec![resource(&pod("a"), "3")], &[], "n1")).await.unwrap();
    talk.requests.recv().await.unwrap();
    let path = world._dir.path().join("snapshot");
    let (snapshot, versions) = world.store.held().unwrap();
    crate::store::save(&path, &snapshot, &versions).unwrap();
    let (snapshot, versions) = crate::store::Cache::new(&path).load().unwrap();
    assert!(snapshot.is_complete() && snapshot.workload(&pod("a").uid).is_some());
    let open = Session::resume(versions).open(wire::ADDRESS_TYPE, Node::default());
    assert_eq!(open.initial_resource_versions.get(&pod("a").uid.to_string()).unwrap(), "3");
}

#[test]
fn routes_whose_expression_waypoints_cannot_compile_are_refused_by_name_and_others_are_not() {
    use mesh_core::model::{
        ServiceName,
        l7::{HttpMatch, RouteMatch},
    };
    let routes = |name: &str, regex: &str| {
        let service = ServiceName::new("default", name);
        let compiled = mesh_core::http::CompiledRoutes::default_for(service.clone());
        let mut routes = (*compiled.source).clone();
        let mut route = compiled.http()[0].route.clone();
        let uri = Some(RouteMatch::Regex(regex.into()));
        route.matches = vec![HttpMatch { uri, ..HttpMatch::default() }];
        routes.http = vec![route];
        let value = wire::l7::to_routes(&routes).encode_to_vec();
        let body = prost_types::Any { type_url: wire::ROUTES_TYPE.into(), value };
        Resource {
            name: service.to_string(),
            version: "1".into(),
            resource: Some(body),
            ..Resource::default()
        }
    };
    let response = delta(vec![routes("bad", "("), routes("good", "*")], &[], wire::ROUTES_TYPE);
    let (changes, nack, refused) = Session::default().take(response, &mesh_core::snapshot::Snapshot::new());
    assert_eq!((changes.len(), refused.refused.len()), (1, 1));
    let message = nack.error_detail.unwrap().message;
    assert!(
        message.starts_with("default/bad: ") && message.contains("match.uri: bad regular expression"),
        "{message}"
    );
}
