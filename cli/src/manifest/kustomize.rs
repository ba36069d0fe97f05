//! The kustomize base and its overlays. An overlay holds only what differs from the base, as JSON patches.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{
    NAMESPACE, crds,
    objects::{File, Object},
    profile::{PLATFORMS, PROFILES, Profile},
    resolve,
    values::Values,
    write::{Files, HEADER},
    yaml,
};
use crate::exit::Failure;

/// File of the definitions of kinds.
pub const CRDS: &str = "istio.yaml";

/// Every file below `manifests/`, apart from the chart.
///
/// # Errors
/// A profile does not fit the settings.
pub fn files() -> Result<Files, Failure> {
    let mut files = Files::new();
    let base = resolve::objects(&Values::defaults(NAMESPACE));
    let mut names = Vec::new();
    for (file, objects) in by_file(&base) {
        names.push(format!("{}.yaml", file.name()));
        files.insert(format!("base/{}.yaml", file.name()), documents(&objects));
    }
    files.insert("base/kustomization.yaml".to_owned(), kustomization(&json!({"resources": names}), &[]));
    let top = kustomization(
        &json!({"resources": ["base"]}),
        &["What `kubectl apply -k manifests` applies: the base."],
    );
    files.insert("kustomization.yaml".to_owned(), top);
    files.insert(format!("crds/{CRDS}"), definitions());
    let notes =
        ["For clusters without Istio's definitions; `culvert install` and Helm make those that are missing."];
    files.insert("crds/kustomization.yaml".to_owned(), kustomization(&json!({"resources": [CRDS]}), &notes));
    for profile in PROFILES.iter().chain(PLATFORMS) {
        overlay(profile, &base, &mut files)?;
    }
    Ok(files)
}

/// The definitions of kinds, as the chart has them too.
pub fn definitions() -> String {
    let body: Vec<_> = crds::all().iter().map(yaml::plain).collect();
    format!("{HEADER}---\n{}", body.join("---\n"))
}

fn by_file(objects: &[Object]) -> BTreeMap<File, Vec<&Object>> {
    let mut by_file: BTreeMap<File, Vec<&Object>> = BTreeMap::new();
    for object in objects {
        by_file.entry(object.file).or_default().push(object);
    }
    by_file
}

fn documents(objects: &[&Object]) -> String {
    let body: Vec<_> = objects.iter().map(|object| yaml::plain(&object.body)).collect();
    format!("{HEADER}---\n{}", body.join("---\n"))
}

fn kustomization(content: &Value, notes: &[&str]) -> String {
    let notes: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    let mut whole = json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"});
    for (key, value) in content.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    format!("{HEADER}{notes}{}", yaml::plain(&whole))
}

fn key(object: &Object) -> (String, String, String) {
    (object.kind().to_owned(), object.namespace().to_owned(), object.name().to_owned())
}

fn overlay(profile: &Profile, base: &[Object], files: &mut Files) -> Result<(), Failure> {
    let mut values = Values::defaults(NAMESPACE);
    profile.apply(&mut values)?;
    let wanted = resolve::objects(&values);
    let (mut patches, mut added) = (Vec::new(), Vec::new());
    for object in &wanted {
        match base.iter().find(|old| key(old) == key(object)) {
            None => added.push(object),
            Some(old) => {
                let mut operations = Vec::new();
                differ("", &old.body, &object.body, &mut operations);
                if !operations.is_empty() {
                    let target = json!({"kind": object.kind(), "name": object.name()});
                    patches.push(json!({"target": target, "patch": yaml::plain(&Value::from(operations))}));
                }
            }
        }
    }
    let kept: BTreeSet<_> = wanted.iter().map(key).collect();
    for gone in base.iter().filter(|old| !kept.contains(&key(old))) {
        let target = json!({"apiVersion": gone.api_version(), "kind": gone.kind(), "metadata": {"name": gone.name()}, "$patch": "delete"});
        patches.push(json!({"patch": yaml::plain(&target)}));
    }
    let mut content = json!({"resources": ["../../base"]});
    if !added.is_empty() {
        content["resources"] = json!(["../../base", "more.yaml"]);
        files.insert(format!("overlays/{}/more.yaml", profile.name), documents(&added));
    }
    if !patches.is_empty() {
        content["patches"] = Value::from(patches);
    }
    let name = format!("overlays/{}/kustomization.yaml", profile.name);
    files.insert(name, kustomization(&content, profile.notes));
    Ok(())
}

/// The operations of a JSON patch (RFC 6902) that make `new` of `old`. A list of another length is
/// replaced as a whole.
fn differ(path: &str, old: &Value, new: &Value, out: &mut Vec<Value>) {
    match (old, new) {
        _ if old == new => {}
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                let path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
                match old.get(key) {
                    Some(before) => differ(&path, before, value, out),
                    None => out.push(json!({"op": "add", "path": path, "value": value})),
                }
            }
            for key in old.keys().filter(|key| !new.contains_key(*key)) {
                let path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
                out.push(json!({"op": "remove", "path": path}));
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (at, (before, after)) in old.iter().zip(new).enumerate() {
                differ(&format!("{path}/{at}"), before, after, out);
            }
        }
        _ => out.push(json!({"op": "replace", "path": path, "value": new})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_names_what_is_new_other_and_gone() {
        let (old, new) =
            (json!({"a": [1, {"b": 2}], "c": [], "d/e": 1}), json!({"a": [1, {"b": 3}], "c": [1], "f": 1}));
        let mut out = Vec::new();
        differ("", &old, &new, &mut out);
        let ops: Vec<_> = out.iter().map(|o| format!("{} {}", o["op"], o["path"])).collect();
        let expected = [r#""replace" "/a/1/b""#, r#""replace" "/c""#, r#""add" "/f""#, r#""remove" "/d~1e""#];
        assert_eq!(ops, expected);
    }

    #[test]
    fn overlays_hold_only_what_differs_and_say_what_to_know() {
        let files = files().unwrap();
        let of = |name: &str| &files[&format!("overlays/{name}/kustomization.yaml")];
        assert!(!of("demo").contains("patches"), "{}", of("demo"));
        assert!(of("production").contains("path: /spec/replicas"), "{}", of("production"));
        assert!(files["overlays/production/more.yaml"].contains("kind: PodDisruptionBudget"));
        assert!(files["overlays/gke/more.yaml"].contains("kind: ResourceQuota"));
        assert!(of("openshift").contains("security context constraint"));
    }
}
