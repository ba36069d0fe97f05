//! What objects of an API server are told about themselves.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use control::{
    all_findings,
    compile::{Options, compile},
    memory::Memory,
    object::Key,
    publish::Published,
    source::{
        Store,
        api::{About, Change},
        kinds::{KINDS, Kind},
    },
    status::{Told, patch, told},
};
use serde_json::{Value, json};

const NOW: &str = "2026-01-01T00:00:00Z";

fn kind(known: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.known == known).unwrap()
}

/// What is published when an API server has these objects.
fn published(objects: &[(&str, Value)]) -> Published {
    let mut store = Store::default().on_kubernetes(false);
    store.apply(Change::Present(KINDS.iter().collect()));
    for (known, value) in objects {
        store.apply(Change::Applied(kind(known), value.clone()));
    }
    for kind in &KINDS {
        store.apply(Change::Begin(kind));
        for (_, value) in objects.iter().filter(|(known, _)| *known == kind.known) {
            store.apply(Change::Listed(kind, value.clone()));
        }
        store.apply(Change::End(kind));
    }
    assert!(store.read);
    let mut memory = Memory::new(control::SERVICE_CIDR, None);
    let compiled = compile(&store, &Options::default(), &mut memory);
    let findings = all_findings(&store, &compiled);
    Published::next(&Published::default(), &store, compiled, findings)
}

fn of(published: &Published, known: &str, name: &str) -> (Told, About) {
    let cluster = known == "GatewayClass";
    let namespace = if cluster { "" } else { "default" };
    let key = Key { kind: known.into(), namespace: namespace.into(), name: name.into() };
    let told = told(published).remove(&key).unwrap();
    (told, About::clone(&published.about[&key]))
}

fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": "default", "generation": 3, "uid": name, "resourceVersion": "7",
           "creationTimestamp": NOW})
}

fn service(name: &str, port: u16) -> (&'static str, Value) {
    let labels = json!({"app": name});
    (
        "Service",
        json!({"metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"},
        "spec": {"clusterIP": "10.96.0.9", "selector": labels, "ports": [{"port": port}]}}),
    )
}

fn route(host: &str, timeout: &str) -> (&'static str, Value) {
    (
        "VirtualService",
        json!({"metadata": meta("vs"), "spec": {"hosts": [host],
        "http": [{"timeout": timeout, "route": [{"destination": {"host": host}}]}]}}),
    )
}

fn condition<'a>(status: &'a Value, name: &str) -> &'a Value {
    let all = status["status"]["conditions"].as_array().unwrap();
    all.iter().find(|condition| condition["type"] == name).unwrap()
}

#[test]
fn a_refused_object_is_told_why_with_istios_message_and_a_good_one_that_it_is_in_effect() {
    let bad = published(&[service("web", 80), route("web", "never")]);
    let (told, about) = of(&bad, "VirtualService", "vs");
    let status = patch(&told, &about, NOW).unwrap();
    let accepted = condition(&status, "Accepted");
    assert_eq!((&accepted["status"], &accepted["reason"]), (&json!("False"), &json!("Invalid")));
    assert!(accepted["message"].as_str().unwrap().contains("spec.http[0].timeout"), "{accepted}");
    assert_eq!(accepted["observedGeneration"], 3);
    assert_eq!(status["status"]["validationMessages"][0]["type"]["code"], "IST0106");
    assert_eq!(status["status"]["validationMessages"][0]["level"], "ERROR");
    let good = published(&[service("web", 80), route("web", "1s")]);
    let (told, about) = of(&good, "VirtualService", "vs");
    let status = patch(&told, &about, NOW).unwrap();
    assert_eq!(condition(&status, "Accepted")["reason"], "Accepted");
    assert_eq!(status["status"]["validationMessages"], json!([]));
}

#[test]
fn what_is_said_already_is_not_written_again_and_others_conditions_and_old_times_stay() {
    let (known, mut object) = route("nowhere", "1s");
    let now = published(&[(known, object.clone())]);
    let (told, about) = of(&now, known, "vs");
    let mut written = patch(&told, &about, NOW).unwrap();
    assert_eq!(condition(&written, "Accepted")["reason"], "PartiallyInvalid");
    assert_eq!(written["status"]["validationMessages"][0]["type"]["name"], "ReferencedResourceNotFound");
    let foreign = json!({"type": "Reconciled", "status": "True"});
    written["status"]["conditions"].as_array_mut().unwrap().push(foreign.clone());
    object["status"] = written["status"].clone();
    let again = published(&[(known, object.clone())]);
    let (told, about) = of(&again, known, "vs");
    assert_eq!(patch(&told, &about, "2027-01-01T00:00:00Z"), None);
    // The service comes: another reason, the same truth since the same time.
    let better = published(&[(known, object), service("nowhere", 80)]);
    let (told, about) = of(&better, known, "vs");
    let status = patch(&told, &about, "2027-01-01T00:00:00Z").unwrap();
    assert_eq!(condition(&status, "Accepted")["reason"], "Accepted");
    assert_eq!(condition(&status, "Accepted")["lastTransitionTime"], NOW);
    assert_eq!(*condition(&status, "Reconciled"), foreign);
}

#[test]
fn a_gateway_of_ours_is_programmed_when_its_waypoint_is_ready_and_one_of_others_is_left_alone() {
    let spec = |class: &str| {
        json!({"gatewayClassName": class,
        "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]})
    };
    let gateway = ("Gateway", json!({"metadata": meta("way"), "spec": spec("culvert-waypoint")}));
    let other = ("Gateway", json!({"metadata": meta("other"), "spec": spec("somebody")}));
    let class = (
        "GatewayClass",
        json!({"metadata": {"name": "culvert-waypoint", "generation": 1},
        "spec": {"controllerName": "culvert.dev/waypoint-controller"}}),
    );
    let pending = published(&[gateway.clone(), other, class.clone()]);
    let (told_class, about) = of(&pending, "GatewayClass", "culvert-waypoint");
    let status = patch(&told_class, &about, NOW).unwrap();
    assert_eq!(condition(&status, "Accepted")["status"], "True");
    let keys: Vec<String> = told(&pending).into_keys().map(|key| key.name.to_string()).collect();
    assert_eq!(keys, ["way", "culvert-waypoint"]);
    let (told_way, about) = of(&pending, "Gateway", "way");
    let status = patch(&told_way, &about, NOW).unwrap();
    assert_eq!(condition(&status, "Accepted")["status"], "True");
    assert_eq!(condition(&status, "Programmed")["reason"], "Pending");
    let pod = (
        "Pod",
        json!({"metadata": {"name": "way-1", "namespace": "default", "labels": {"app": "way"}},
        "spec": {"nodeName": "n"}, "status": {"podIP": "10.0.0.1",
        "conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    let ready = published(&[gateway, class, service("way", 15008), pod]);
    let (told_way, about) = of(&ready, "Gateway", "way");
    let status = patch(&told_way, &about, NOW).unwrap();
    assert_eq!(condition(&status, "Programmed")["status"], "True");
    assert_eq!(status["status"]["addresses"][0]["value"], "way.default.svc.cluster.local");
    assert_eq!(status["status"]["listeners"][0]["name"], "mesh");
}

#[test]
fn a_service_is_told_its_waypoint_as_istio_does_and_one_without_is_told_nothing() {
    let (known, mut bound) = service("web", 80);
    bound["metadata"]["labels"] = json!({"istio.io/use-waypoint": "way"});
    let now = published(&[(known, bound.clone()), service("way", 15008)]);
    let (told, about) = of(&now, known, "web");
    let status = patch(&told, &about, NOW).unwrap();
    let waypoint = condition(&status, "istio.io/WaypointBound");
    assert_eq!(waypoint["message"], "Successfully attached to waypoint default/way");
    let (plain, about) = of(&now, known, "way");
    assert_eq!(patch(&plain, &about, NOW), None);
    // The label goes, and the condition with it.
    bound["metadata"].as_object_mut().unwrap().remove("labels");
    bound["status"] = status["status"].clone();
    let later = published(&[(known, bound), service("way", 15008)]);
    let (told, about) = of(&later, known, "web");
    assert_eq!(patch(&told, &about, NOW).unwrap(), json!({"status": {"conditions": []}}));
}

#[test]
fn policies_have_istios_condition_of_the_place_that_enforces_them() {
    let policy = |spec: Value| ("AuthorizationPolicy", json!({"metadata": meta("p"), "spec": spec}));
    let at_pods = published(&[policy(json!({"action": "ALLOW"}))]);
    let (told, about) = of(&at_pods, "AuthorizationPolicy", "p");
    let status = patch(&told, &about, NOW).unwrap();
    assert_eq!(condition(&status, "ZtunnelAccepted")["status"], "True");
    let target = json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}]});
    let attached = published(&[policy(target), service("web", 80)]);
    let (told, about) = of(&attached, "AuthorizationPolicy", "p");
    let status = patch(&told, &about, NOW).unwrap();
    assert_eq!(condition(&status, "WaypointAccepted")["type"], "WaypointAccepted");
    let names: Vec<_> = told.conditions.iter().map(|c| c.name).collect();
    assert_eq!(names, ["Accepted", "WaypointAccepted"]);
}
