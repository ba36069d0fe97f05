//! The bill of materials of an image (CycloneDX 1.5): crates from the lock file, and the libraries that
//! its programs are linked to.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    archive::digest,
    rootfs::{Rootfs, package_of},
};
use crate::command::{cargo, output};

/// What cargo knows of the workspace and everything below it.
pub fn metadata(root: &Path) -> Result<Value> {
    let text = output(cargo(root).args(["metadata", "--format-version", "1", "--locked"]))?;
    serde_json::from_str(&text).context("cargo metadata")
}

/// The bill of one package's programs.
pub fn bill(metadata: &Value, package: &str, files: &Rootfs) -> Result<Value> {
    let mut components: Vec<Value> = crates(metadata, package)?
        .into_iter()
        .map(|(name, version, licence)| {
            json!({"type": "library", "name": name, "version": version,
                "purl": format!("pkg:cargo/{name}@{version}"),
                "licenses": [{"expression": licence.replace('/', " OR ")}]})
        })
        .collect();
    for (path, library) in &files.libraries {
        let hash = json!([{"alg": "SHA-256", "content": digest(files.contents(path).unwrap_or_default())}]);
        let mut component = json!({"type": "file", "name": path, "hashes": hash});
        if let Some((name, version)) = package_of(library) {
            component["version"] = version.clone().into();
            component["purl"] = format!("pkg:deb/debian/{name}@{version}").into();
        }
        components.push(component);
    }
    Ok(json!({"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "application", "name": format!("culvert-{package}"),
            "version": env!("CARGO_PKG_VERSION")}},
        "components": components}))
}

/// Name, version and licence of every crate that ends up in a package's programs, sorted.
fn crates(metadata: &Value, package: &str) -> Result<BTreeSet<(String, String, String)>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|one| (text(&one["id"]), one)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|one| (text(&one["id"]), one)).collect();
    let members: BTreeSet<String> = list(&metadata["workspace_members"]).iter().map(text).collect();
    let start = members.iter().find(|id| packages.get(*id).is_some_and(|one| one["name"] == package));
    let mut open = vec![start.with_context(|| format!("no package {package} in the workspace"))?.clone()];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let Some(node) = nodes.get(&id) else { continue };
        // Neither what only builds nor what only tests is in the program.
        let linked = list(&node["deps"])
            .into_iter()
            .filter(|dep| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()));
        open.extend(linked.map(|dep| text(&dep["pkg"])));
    }
    let known = seen.iter().filter_map(|id| packages.get(id));
    Ok(known.map(|one| (text(&one["name"]), text(&one["version"]), text(&one["license"]))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bill_names_what_is_linked_and_not_what_only_builds_or_tests() {
        let dep = |id: &str, kind: Value| json!({"pkg": id, "dep_kinds": [{"kind": kind}]});
        let package =
            |id: &str| json!({"id": id, "name": id, "version": "1.0.0", "license": "MIT/Apache-2.0"});
        let metadata = json!({"workspace_members": ["ours"],
            "packages": [package("ours"), package("linked"), package("deep"), package("builds"), package("tests")],
            "resolve": {"nodes": [
                {"id": "ours", "deps": [dep("linked", Value::Null), dep("builds", json!("build")), dep("tests", json!("dev"))]},
                {"id": "linked", "deps": [dep("deep", Value::Null)]}]}});
        let bill = bill(&metadata, "ours", &Rootfs::default()).unwrap();
        let names: Vec<_> =
            bill["components"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
        assert_eq!(names, ["deep", "linked", "ours"]);
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert!(super::bill(&metadata, "absent", &Rootfs::default()).is_err());
    }
}
