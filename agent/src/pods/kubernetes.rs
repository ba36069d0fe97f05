//! Pods of this node from the API server, and the mark that says that they are enrolled.

mod client;
mod cluster;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::watcher::{self, Event},
};
use mesh_core::eligibility::REDIRECTION_ANNOTATION;
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

pub use self::{
    client::{ClientError, connect},
    cluster::Cluster,
};
use super::{AnnounceError, Later, PodEvent, PodInfo, PodSource, difference::difference, object::NodeFacts};
use crate::{
    cni::{
        message::Question,
        server::{Decide, Decision},
    },
    netns::Place,
    sandbox::{Found, Sandboxes, Wanted},
};

/// Longest time that a patch of a pod may take; it is repeated.
const PATCH_LIMIT: Duration = Duration::from_secs(10);
/// Longest time that one look at a pod may take while the CNI plugin waits.
const GET_LIMIT: Duration = Duration::from_secs(2);
/// A namespace that was not found is looked for again after this time, then after twice of it, and so on.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// When the API server has not told of all pods by then, those that were known before count.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// Longest time between two looks.
const LAST_LOOK: Duration = Duration::from_secs(5);

type Watched<K> = Result<Event<K>, watcher::Error>;

/// See the module's description.
pub struct Kubernetes {
    client: Client,
    node: NodeFacts,
    sandboxes: Arc<Sandboxes>,
    cluster: watch::Sender<Cluster>,
}

impl Kubernetes {
    /// A node as the API server knows it.
    pub fn new(client: Client, node: NodeFacts, sandboxes: Arc<Sandboxes>) -> Self {
        Self { client, node, sandboxes, cluster: watch::channel(Cluster::default()).0 }
    }

    /// Begins with what an earlier agent knew: it counts when the API server does not answer in time.
    pub fn remember(&self, before: Cluster) {
        self.cluster.send_replace(before);
    }

    /// What is known of the cluster, for the CNI plugin's questions.
    pub fn cluster(&self) -> watch::Receiver<Cluster> {
        self.cluster.subscribe()
    }

    async fn follow(
        &self,
        pods: impl Stream<Item = Watched<DynamicObject>>,
        namespaces: impl Stream<Item = Watched<PartialObjectMeta<Namespace>>>,
        events: mpsc::Sender<PodEvent>,
    ) {
        let (mut pods, mut namespaces) = (std::pin::pin!(pods), std::pin::pin!(namespaces));
        let (mut known, mut said) = (HashMap::new(), Said::default());
        let mut look = FIRST_LOOK;
        let late = Instant::now() + ANSWER_LIMIT;
        let mut alone = false;
        loop {
            let mut changed = tokio::select! {
                event = pods.next() => match event {
                    Some(event) => self.cluster.send_if_modified(|cluster| cluster.pod(event)),
                    None => return,
                },
                event = namespaces.next() => match event {
                    Some(event) => self.cluster.send_if_modified(|cluster| cluster.namespace(event)),
                    None => return,
                },
                () = tokio::time::sleep(look), if said.lacking => {
                    look = (look * 2).min(LAST_LOOK);
                    true
                }
                () = self.sandboxes.changed() => true,
                () = sleep_until(late), if !alone => {
                    alone = true;
                    true
                }
                () = events.closed() => return,
            };
            // What has come meanwhile is taken together.
            while let Some(Some(event)) = pods.next().now_or_never() {
                changed |= self.cluster.send_if_modified(|cluster| cluster.pod(event));
            }
            let listed = self.cluster.borrow().is_listed();
            // Pods that are captured must not wait for an API server that is away.
            if !changed || !(listed || (alone && !self.cluster.borrow().is_empty())) {
                continue;
            }
            let now = self.pods().await;
            // One without an address has no network yet: the API server or the plugin tells when it has.
            let lacks = |pod: &PodInfo| pod.netns.is_none() && !pod.addresses.is_empty();
            let lacking = now.iter().any(|pod| pod.eligibility.is_eligible() && lacks(pod));
            if !lacking {
                look = FIRST_LOOK;
            }
            let mut news = difference(&mut known, now);
            said.lacking = lacking;
            if listed {
                news.extend(said.after(self.cluster.borrow().is_understood()));
            }
            for event in news {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }

    /// The node's pods, with the namespaces of those that belong into the mesh.
    async fn pods(&self) -> Vec<PodInfo> {
        let (mut pods, wanted, uids) = {
            let cluster = self.cluster.borrow();
            (cluster.pods(&self.node), cluster.wanted(&self.node), cluster.uids())
        };
        let sandboxes = self.sandboxes.clone();
        let look = move || {
            sandboxes.keep_only(&uids);
            let questions: Vec<Wanted> = wanted.iter().map(|(_, wanted)| wanted.clone()).collect();
            let answers = sandboxes.find(&questions);
            wanted.into_iter().map(|(uid, _)| uid).zip(answers).collect::<HashMap<Arc<str>, Found>>()
        };
        let mut found = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        for pod in &mut pods {
            match found.remove(&pod.uid) {
                Some(Ok(network)) => {
                    pod.netns = Some(Place::Open(network.netns));
                    pod.addresses = network.addresses;
                }
                Some(Err(why)) => pod.lack = Some(why),
                None => {}
            }
        }
        pods
    }

    /// Only the pod with this uid: another one of the same name answers 409.
    async fn mark(&self, pod: &PodInfo, enrolled: bool) -> Result<(), AnnounceError> {
        let value = if enrolled { json!("enabled") } else { json!(null) };
        let patch = json!({"metadata": {"uid": pod.uid, "annotations": {REDIRECTION_ANNOTATION: value}}});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.pod.namespace);
        let params = PatchParams::default();
        let patched = async { api.patch_status(&pod.pod.name, &params, &Patch::Merge(&patch)).await };
        let failed = |source| AnnounceError::Api { pod: pod.name(), source };
        match timeout(PATCH_LIMIT, patched).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) if [404, 409].contains(&status.code) => {
                Err(AnnounceError::NoObject(pod.name()))
            }
            Ok(Err(error)) => Err(failed(error.into())),
            Err(late) => Err(failed(late.into())),
        }
    }
}

impl Kubernetes {
    /// The pod and its namespace's labels as the API server has them now.
    async fn get(&self, asked: &Question) -> Result<Option<PodInfo>, kube::Error> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &asked.namespace, &ApiResource::erase::<Pod>(&()));
        let Some(pod) = api.get_opt(&asked.name).await? else { return Ok(None) };
        let mut cluster = Cluster::default();
        cluster.pod(Ok(Event::Apply(pod)));
        let labels = self.cluster.borrow().namespaces().remove(&asked.namespace);
        let Some(labels) = labels else { return Ok(None) };
        cluster.label(&asked.namespace, labels);
        Ok(cluster.find(&asked.namespace, &asked.name, &asked.uid, &self.node))
    }
}

impl Decide for Kubernetes {
    fn decide<'a>(&'a self, asked: &'a Question) -> Later<'a, Decision> {
        Box::pin(async move {
            let known = self.cluster.borrow().decide(asked, &self.node);
            let info = match known {
                Some(info) => Some(info),
                // The kubelet may know a pod before the watch tells of it.
                None => match timeout(GET_LIMIT, self.get(asked)).await {
                    Ok(Ok(info)) => info,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "a pod that the CNI plugin asks about is not known");
                        None
                    }
                    Err(_) => None,
                },
            };
            match info {
                Some(info) if info.eligibility.is_eligible() => Decision::In,
                Some(info) => Decision::Out(info.eligibility.to_string()),
                None => Decision::Unknown,
            }
        })
    }
}

impl PodSource for Kubernetes {
    fn watch(&self, events: mpsc::Sender<PodEvent>) -> Later<'_, ()> {
        // Not typed: one pod that this version does not understand must not hide the others.
        let pods: Api<DynamicObject> = Api::all_with(self.client.clone(), &ApiResource::erase::<Pod>(&()));
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let of_node = client::watch().fields(&format!("spec.nodeName={}", self.node.node));
        Box::pin(self.follow(
            client::follow(pods, of_node),
            client::follow(namespaces, client::watch()),
            events,
        ))
    }

    fn announce<'a>(&'a self, pod: &'a PodInfo, enrolled: bool) -> Later<'a, Result<(), AnnounceError>> {
        Box::pin(self.mark(pod, enrolled))
    }
}

/// What was said once.
#[derive(Default)]
struct Said {
    synced: bool,
    complete: bool,
    /// A pod that belongs into the mesh has no namespace yet.
    lacking: bool,
}

impl Said {
    fn after(&mut self, understood: bool) -> Vec<PodEvent> {
        let mut events = Vec::new();
        if !std::mem::replace(&mut self.synced, true) {
            events.push(PodEvent::Synced);
        }
        // Whose namespace is not found yet may be captured from before under no name.
        if understood && !self.lacking && !std::mem::replace(&mut self.complete, true) {
            events.push(PodEvent::Complete);
        }
        events
    }
}
