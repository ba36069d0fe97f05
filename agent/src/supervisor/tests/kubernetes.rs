//! What an API server and the CNI plugin make possible: pods that are blocked before they are known, refused
//! ones, and pods whose object is gone before they are.

use serde_json::json;

use super::*;
use crate::netns::{Held, Place};

impl Node {
    fn address(&self, verb: &str) {
        let namespace = File::open(&self.namespace.path).unwrap();
        let change = || Command::new("ip").args(["addr", verb, "10.0.0.2/32", "dev", "lo"]).status();
        assert!(netns::within(&namespace, change).unwrap().success());
    }

    fn blocked(&self) -> Pod {
        let (netns, v4) = (self.namespace.cookie(), Some([10, 0, 0, 2].into()));
        Pod { netns, v4, v6: None, state: PodState::Blocked, epoch: 0 }
    }

    fn label(&self) -> String {
        let label = self.registry.all().remove("u1").map(|status| status.label());
        label.unwrap_or_default().as_str().unwrap_or_default().to_owned()
    }
}

#[tokio::test]
async fn a_pod_that_the_plugin_blocked_for_want_of_knowledge_is_freed_when_it_does_not_belong() {
    if !root("a_pod_that_the_plugin_blocked_for_want_of_knowledge_is_freed_when_it_does_not_belong") {
        return;
    }
    let node = Node::new();
    node.say(PodEvent::Synced).await;
    until("what was there at the start is known", || node.ready.pending().is_empty()).await;
    // Without a namespace there is nothing but the entry to be undone.
    node.kernel.remember(node.blocked());
    let plain = node.pod("10.0.0.2", Eligibility::NotSelected);
    node.say(PodEvent::Pod(Arc::new(PodInfo { netns: None, ..plain.clone() }))).await;
    until("the entry is gone", || node.captured().is_none()).await;
    until("it is ignored", || node.label() == "ignored").await;
    // With it, what an agent may have set up inside goes too.
    node.kernel.remember(node.blocked());
    node.say(PodEvent::Pod(Arc::new(plain))).await;
    until("it has left", || node.captured().is_none()).await;
    // An entry with the same address in another namespace is another pod's.
    let other = Pod { netns: 7, ..node.blocked() };
    node.kernel.remember(other);
    node.plain().await;
    until("it is ignored", || node.label() == "ignored").await;
    assert_eq!(node.kernel.state(7), Some(PodState::Blocked));
}

#[tokio::test]
async fn what_is_left_of_a_pod_without_an_object_stays_closed_until_its_network_is_gone() {
    if !root("what_is_left_of_a_pod_without_an_object_stays_closed_until_its_network_is_gone") {
        return;
    }
    let node = Node::new();
    node.address("add");
    node.certify();
    let held = Held::new(File::open(&node.namespace.path).unwrap()).unwrap();
    let pod =
        PodInfo { netns: Some(Place::Open(Arc::new(held))), ..node.pod("10.0.0.2", Eligibility::PodLabel) };
    node.say(PodEvent::Pod(Arc::new(pod))).await;
    until("it is captured", || node.captured() == Some(PodState::Active)).await;
    // Deleted by force: the object goes at once, the processes later.
    node.say(PodEvent::Gone("u1".into())).await;
    until("it is closed", || node.captured() == Some(PodState::Blocked)).await;
    node.address("del");
    until("it is forgotten", || node.captured().is_none()).await;
}

#[tokio::test]
async fn a_pod_that_waits_or_is_refused_says_so_and_why() {
    if !root("a_pod_that_waits_or_is_refused_says_so_and_why") {
        return;
    }
    let node = Node::new();
    let pod = node.pod("10.0.0.2", Eligibility::PodLabel);
    let lacking = PodInfo { netns: None, lack: Some("no process".into()), ..pod.clone() };
    node.say(PodEvent::Pod(Arc::new(lacking))).await;
    until("it waits", || node.label() == "pending" && node.shown().1 == "no process").await;
    node.say(PodEvent::Pod(Arc::new(node.pod("10.0.0.2", Eligibility::SandboxedRuntime)))).await;
    until("it is refused", || node.label() == "refused" && node.shown().1.contains("runtime class")).await;
    assert_eq!(node.registry.show()[0]["state"], json!("refused"));
    assert!(node.captured().is_none());
}
