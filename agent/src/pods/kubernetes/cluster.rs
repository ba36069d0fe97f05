//! What the watches have said: pods and namespaces' labels. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Pod, PodSpec, PodStatus};
use kube::{
    ResourceExt,
    core::{DynamicObject, PartialObjectMeta},
    runtime::watcher::{self, Event},
};
use mesh_core::eligibility::{Eligibility, REDIRECTION_ANNOTATION};
use serde::{Deserialize, Serialize};

use super::super::{
    PodInfo,
    object::{NodeFacts, pod_info},
};
use crate::{
    cni::{
        known::{self, Known, asks_itself},
        message::Question,
    },
    sandbox::Wanted,
};

/// Annotation that makes a pod a static pod's mirror.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Annotation of a static pod's mirror: the uid by which the kubelet knows it.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// Labels.
pub type Labels = BTreeMap<String, String>;

/// Namespace (empty for a namespace itself) and name.
type Key = (String, String);

/// See the module's description.
#[derive(Debug, Default)]
pub struct Cluster {
    pods: Listed<Pod>,
    namespaces: Listed<Labels>,
}

/// Objects of a kind. A list that is under way replaces them when it is whole.
#[derive(Debug)]
struct Listed<T> {
    now: BTreeMap<Key, T>,
    next: Option<BTreeMap<Key, T>>,
    /// There and not understood: what was known of them last stays.
    refused: BTreeSet<Key>,
    listed: bool,
    failing: bool,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { now: BTreeMap::new(), next: None, refused: BTreeSet::new(), listed: false, failing: false }
    }
}

impl<T: Clone> Listed<T> {
    /// Takes an event; says whether anything may be different now.
    fn take<K: ResourceExt>(
        &mut self,
        kind: &str,
        event: Result<Event<K>, watcher::Error>,
        decode: impl Fn(K) -> Result<T, String>,
    ) -> bool {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "watch of {kind} failed; it is tried again, and what is known stays");
                }
                return false;
            }
        };
        match event {
            Event::Init => {
                self.next = Some(BTreeMap::new());
                self.refused.clear();
                false
            }
            Event::InitApply(object) => {
                let key = key(&object);
                let decoded = self.decode(kind, &key, object, decode);
                if let (Some(value), Some(next)) = (decoded, &mut self.next) {
                    next.insert(key, value);
                }
                false
            }
            Event::InitDone => {
                self.now = self.next.take().unwrap_or_default();
                self.listed = true;
                self.works(kind);
                true
            }
            Event::Apply(object) => {
                let key = key(&object);
                self.refused.remove(&key);
                if let Some(value) = self.decode(kind, &key, object, decode) {
                    self.now.insert(key, value);
                }
                self.works(kind);
                true
            }
            Event::Delete(object) => {
                let key = key(&object);
                self.refused.remove(&key);
                self.now.remove(&key);
                self.works(kind);
                true
            }
        }
    }

    fn works(&mut self, kind: &str) {
        if std::mem::take(&mut self.failing) {
            tracing::info!("watch of {kind} works again");
        }
    }

    /// The object, or what was known of it when it cannot be understood.
    fn decode<K>(
        &mut self,
        kind: &str,
        key: &Key,
        object: K,
        decode: impl Fn(K) -> Result<T, String>,
    ) -> Option<T> {
        match decode(object) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(
                    namespace = key.0,
                    name = key.1,
                    error,
                    "an object of {kind} is not understood; what was known of it stays"
                );
                self.refused.insert(key.clone());
                self.now.get(key).cloned()
            }
        }
    }
}

fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

impl Cluster {
    /// Takes an event of the pods' watch; says whether anything may be different now.
    pub fn pod(&mut self, event: Result<Event<DynamicObject>, watcher::Error>) -> bool {
        let decode = |object: DynamicObject| match object.try_parse() {
            Ok(pod) => Ok(slim(pod)),
            Err(error) => Err(error.to_string()),
        };
        self.pods.take("pods", event, decode)
    }

    /// Takes an event of the namespaces' watch; says whether anything may be different now.
    pub fn namespace(&mut self, event: Result<Event<PartialObjectMeta<Namespace>>, watcher::Error>) -> bool {
        self.namespaces.take("namespaces", event, |object| Ok(object.metadata.labels.unwrap_or_default()))
    }

    /// Whether both kinds were listed once.
    pub fn is_listed(&self) -> bool {
        self.pods.listed && self.namespaces.listed
    }

    /// Whether all of it was understood.
    pub fn is_understood(&self) -> bool {
        self.is_listed() && self.pods.refused.is_empty() && self.namespaces.refused.is_empty()
    }

    /// What is known, for the next agent.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn save(&self) -> serde_json::Result<Vec<u8>> {
        let pods = self.pods.now.values().cloned().collect();
        serde_json::to_vec(&Saved { pods, namespaces: self.namespaces() })
    }

    /// What an earlier agent knew. It does not count as listed.
    pub fn restore(text: &[u8]) -> Option<Self> {
        let saved: Saved = serde_json::from_slice(text).ok()?;
        let mut cluster = Self::default();
        cluster.pods.now = saved.pods.into_iter().map(|pod| (key(&pod), pod)).collect();
        saved.namespaces.into_iter().for_each(|(name, labels)| cluster.label(&name, labels));
        Some(cluster)
    }

    /// Whether nothing at all is known.
    pub fn is_empty(&self) -> bool {
        self.pods.now.is_empty()
    }

    /// Labels by namespace.
    pub fn namespaces(&self) -> BTreeMap<String, Labels> {
        self.namespaces.now.iter().map(|((_, name), labels)| (name.clone(), labels.clone())).collect()
    }

    /// The pods of the node that have not ended.
    pub fn pods(&self, node: &NodeFacts) -> Vec<PodInfo> {
        let namespaces = self.namespaces();
        self.pods.now.values().filter_map(|pod| pod_info(pod, &namespaces, node)).collect()
    }

    /// A pod by what the kubelet gives the CNI plugin. Name and uid must both agree: the kubelet's uid of a
    /// static pod stands in an annotation, which anybody may write.
    pub fn find(&self, namespace: &str, name: &str, uid: &str, node: &NodeFacts) -> Option<PodInfo> {
        let pod = self.pods.now.get(&(namespace.to_owned(), name.to_owned()))?;
        let same = uids(pod).iter().any(|known| **known == *uid);
        same.then(|| pod_info(pod, &self.namespaces(), node)).flatten()
    }

    /// A pod that the CNI plugin asks about; none when the lists do not say.
    pub fn decide(&self, asked: &Question, node: &NodeFacts) -> Option<PodInfo> {
        let known =
            self.is_listed() && self.namespaces.now.contains_key(&(String::new(), asked.namespace.clone()));
        known.then(|| self.find(&asked.namespace, &asked.name, &asked.uid, node)).flatten()
    }

    /// Sets a namespace's labels.
    pub(super) fn label(&mut self, namespace: &str, labels: Labels) {
        self.namespaces.now.insert((String::new(), namespace.to_owned()), labels);
    }

    /// What is to be kept for the CNI plugin. `before` is what was kept: that a namespace had pods which ask
    /// for the mesh by themselves is not forgotten while it exists.
    pub fn known(&self, before: &Known) -> Known {
        let pods = self.pods.now.iter();
        let asking: BTreeSet<&str> = pods
            .filter(|(_, pod)| pod.metadata.labels.as_ref().is_some_and(asks_itself))
            .map(|((namespace, _), _)| namespace.as_str())
            .collect();
        let keep = |(name, labels): (String, Labels)| {
            let own_labels = asking.contains(name.as_str())
                || before.namespaces.get(&name).is_some_and(|before| before.own_labels);
            (name, known::Namespace { labels, own_labels })
        };
        Known { namespaces: self.namespaces().into_iter().map(keep).collect() }
    }

    /// Uids of all pods, the kubelet's own too.
    pub fn uids(&self) -> BTreeSet<Arc<str>> {
        self.pods.now.values().flat_map(uids).collect()
    }

    /// The pods with a network of their own, by uid. Namespaces are sought for those that are in the mesh, or
    /// belong there.
    pub fn wanted(&self, node: &NodeFacts) -> Vec<(Arc<str>, Wanted)> {
        let namespaces = self.namespaces();
        let wanted = |pod: &Pod| {
            let info = pod_info(pod, &namespaces, node)?;
            let marked = pod.annotations().contains_key(REDIRECTION_ANNOTATION);
            let sought = marked || info.eligibility.is_eligible();
            let own = info.eligibility != Eligibility::HostNetwork;
            own.then(|| (info.uid.clone(), Wanted { sought, ..wanted(pod, info.addresses) }))
        };
        self.pods.now.values().filter_map(wanted).collect()
    }
}

/// What is kept on disk.
#[derive(Serialize, Deserialize)]
struct Saved {
    pods: Vec<Pod>,
    namespaces: BTreeMap<String, Labels>,
}

/// The pod without what the agent does not use: most of its size, and values of its environment.
fn slim(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    if let Some(spec) = pod.spec.take() {
        pod.spec = Some(PodSpec {
            node_name: spec.node_name,
            service_account_name: spec.service_account_name,
            host_network: spec.host_network,
            runtime_class_name: spec.runtime_class_name,
            overhead: spec.overhead,
            ..PodSpec::default()
        });
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            container_statuses: ids_only(status.container_statuses),
            init_container_statuses: ids_only(status.init_container_statuses),
            ephemeral_container_statuses: ids_only(status.ephemeral_container_statuses),
            ..PodStatus::default()
        });
    }
    pod
}

fn ids_only(statuses: Option<Vec<ContainerStatus>>) -> Option<Vec<ContainerStatus>> {
    let slim = |status: ContainerStatus| ContainerStatus {
        name: status.name,
        container_id: status.container_id,
        ..ContainerStatus::default()
    };
    Some(statuses?.into_iter().map(slim).collect())
}

fn wanted(pod: &Pod, addresses: Vec<IpAddr>) -> Wanted {
    let status = pod.status.clone().unwrap_or_default();
    let lists =
        [status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses];
    let ids = lists.into_iter().flatten().flatten().filter_map(|container| {
        // `containerd://<id>`
        Some(container.container_id?.split_once("://")?.1.to_owned())
    });
    Wanted { uids: uids(pod), containers: ids.collect(), addresses, sought: true }
}

fn uids(pod: &Pod) -> Vec<Arc<str>> {
    let annotations = pod.metadata.annotations.as_ref().filter(|all| all.contains_key(MIRROR));
    let of_kubelet = annotations.and_then(|all| all.get(STATIC_UID));
    pod.metadata.uid.iter().chain(of_kubelet).map(|uid| uid.as_str().into()).collect()
}
