//! Documents in which something is replaced by something else: nothing panics, and no policy is lost.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

fn policy() -> Value {
    json!({"kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "default", "labels": {"a": "b"}},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "action": "DENY", "rules": [
            {"from": [{"source": {"principals": ["x*"], "ipBlocks": ["10.0.0.0/8"]}}],
             "to": [{"operation": {"ports": ["80"], "methods": ["GET"]}}],
             "when": [{"key": "source.ip", "values": ["10.0.0.1"]}]}]}})
}

fn others() -> Vec<Value> {
    vec![
        json!({"kind": "ServiceEntry", "metadata": {"name": "s"}, "spec": {"hosts": ["a.example.com"],
            "addresses": ["192.0.2.0/24"], "resolution": "STATIC", "ports": [{"number": 80, "name": "http"}],
            "endpoints": [{"address": "198.51.100.1", "ports": {"http": 81}, "locality": "a/b", "weight": 1}]}}),
        json!({"kind": "WorkloadEntry", "metadata": {"name": "w"}, "spec": {"address": "198.51.100.1",
            "labels": {"app": "web"}}, "status": {"conditions": [{"type": "Healthy", "status": "True"}]}}),
        json!({"kind": "EndpointSlice", "metadata": {"name": "e", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "port": 80}], "endpoints": [{"addresses": ["198.51.100.2"],
            "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "x"}}]}),
        json!({"kind": "Service", "metadata": {"name": "web", "labels": {"istio.io/use-waypoint": "w"}},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}}),
        json!({"kind": "VirtualService", "metadata": {"name": "v"}, "spec": {"hosts": ["web"], "http": [
            {"match": [{"uri": {"prefix": "/"}}], "route": [{"destination": {"host": "web"}, "weight": 1}]}]}}),
        json!({"kind": "PeerAuthentication", "metadata": {"name": "a"}, "spec": {"mtls": {"mode": "STRICT"},
            "selector": {"matchLabels": {"app": "web"}}, "portLevelMtls": {"80": {"mode": "PERMISSIVE"}}}}),
        json!({"kind": "Pod", "metadata": {"name": "web-1", "labels": {"app": "web"}}, "spec": {"nodeName": "n"},
            "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}}),
    ]
}

/// One change: where, what is put there, and whether the key or the value changes.
type Change = (Index, Index, bool);

fn odd_values() -> [Value; 9] {
    [
        json!(null),
        json!(7),
        json!(-1.5),
        json!(true),
        json!(""),
        json!("odd: [\n- text"),
        json!([]),
        json!({}),
        json!([{"a": [null]}]),
    ]
}

/// Pointers to everything below a value.
fn places(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.into());
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, v)| places(v, &format!("{at}/{}", key.replace('/', "~1")), into))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, v)| places(v, &format!("{at}/{i}"), into))
        }
        _ => {}
    }
}

fn mangle(document: &mut Value, within: &str, (place, odd, rename): &Change) {
    let mut all = Vec::new();
    places(document.pointer(within).unwrap_or(&Value::Null), within, &mut all);
    let Some(target) = document.pointer_mut(place.get::<String>(&all)) else { return };
    match (rename, target.as_object_mut()) {
        (true, Some(map)) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            if let Some(key) = (!keys.is_empty()).then(|| odd.get(&keys)) {
                let value = map.remove(key).unwrap();
                map.insert(format!("{key}s"), value);
            }
        }
        _ => *target = odd.get(&odd_values()).clone(),
    }
}

fn compiled(documents: &[Value]) -> control::compile::Compiled {
    let folder = tempfile::tempdir().unwrap();
    for (index, document) in documents.iter().enumerate() {
        let yaml = serde_norway::to_string(document).unwrap();
        std::fs::write(folder.path().join(format!("{index}.yaml")), yaml).unwrap();
    }
    control::compile_folder(folder.path()).0
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(any::<Change>(), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_policy_is_never_lost_whatever_is_wrong_in_its_spec(changes in changes()) {
        let mut document = policy();
        changes.iter().for_each(|change| mangle(&mut document, "/spec", change));
        let compiled = compiled(&[document.clone()]);
        let known = compiled.policies.len() + compiled.l7_policies.len();
        prop_assert_eq!(known, 1, "{}", document);
        // A DENY that says nothing any more is one that its author emptied: `rules` gone or [].
        let denies = compiled.policies.values().all(|p| !p.rules.is_empty() || p.action == mesh_core::model::PolicyAction::Allow);
        let emptied = document.pointer("/spec/rules").is_none_or(|r| r.is_null() || *r == json!([]));
        prop_assert!(denies || emptied, "{}", document);
    }

    #[test]
    fn mangled_documents_harm_nobody(changes in prop::collection::vec(changes(), 7)) {
        let mut documents = others();
        for (document, changes) in documents.iter_mut().zip(&changes) {
            changes.iter().for_each(|change| mangle(document, "", change));
        }
        documents.push(json!({"kind": "Service", "metadata": {"name": "untouched"}, "spec": {"ports": [{"port": 80}]}}));
        let compiled = compiled(&documents);
        prop_assert!(compiled.services.values().any(|s| &*s.name == "untouched"));
        let encoded = control::publish::encode(&control::publish::Published::default(), &compiled);
        prop_assert_eq!(encoded.len(), 5);
    }
}
