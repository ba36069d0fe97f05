//! `cargo xtask tidy`: the structure that ARCHITECTURE.md promises.

mod features;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    codegen,
    command::{cargo, output},
};

/// Member → members it may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("agent-common", &[]),
    ("agent-ebpf", &["agent-common"]),
    ("mesh-core", &[]),
    ("mesh-net", &["mesh-core"]),
    ("agent", &["mesh-net", "mesh-core", "agent-common"]),
    ("waypoint", &["mesh-net", "mesh-core"]),
    ("control", &["mesh-net", "mesh-core"]),
    ("cli", &["mesh-core", "control"]),
    ("xtask", &[]),
    ("verify-guest", &["agent-common"]),
    ("culvert-tests", &["agent", "agent-common", "waypoint", "control", "cli", "mesh-net", "mesh-core"]),
];

/// Members that the code map does not list module by module: the harness, and verify's program, which
/// compiles the agent's own modules.
const UNMAPPED: &[&str] = &["culvert-tests", "verify-guest"];

/// Crates that `mesh-core` must never see.
const IMPURE: &[&str] = &["tokio", "hyper", "rustls", "kube", "tonic", "aya", "prometheus"];

/// Runs every check and reports all problems together.
pub fn run(root: &Path) -> Result<()> {
    let mut problems = edges(root, &mut cargo(root))?;
    problems.extend(cycles(root)?);
    problems.extend(code_map(root)?);
    problems.extend(abi_listing(root)?);
    problems.extend(features::check(root)?);
    codegen::run(root, true)?;
    for problem in &problems {
        println!("tidy: {problem}");
    }
    if !problems.is_empty() {
        bail!("{} problems; ARCHITECTURE.md says what is allowed", problems.len());
    }
    println!(
        "tidy: crate edges, module cycles, code map, ABI listing, feature list and generated files hold"
    );
    Ok(())
}

fn edges(root: &Path, cargo: &mut Command) -> Result<Vec<String>> {
    let text = output(cargo.args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata")?;
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().context("cargo metadata has packages")? {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = EDGES.iter().find(|(member, _)| *member == name) else {
            problems.push(format!("member {name} is not in the table of crate edges"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            problems.extend(bad_edge(name, allowed, to));
        }
        let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap_or_default());
        if !fs::read_to_string(&manifest)?.contains("[lints]\nworkspace = true") && name != "agent-ebpf" {
            problems.push(format!(
                "{}: lints.workspace = true is missing",
                manifest.strip_prefix(root)?.display()
            ));
        }
    }
    Ok(problems)
}

/// What is wrong with a dependency of a member that may depend on `allowed`.
fn bad_edge(name: &str, allowed: &[&str], to: &str) -> Option<String> {
    if EDGES.iter().any(|(member, _)| *member == to) && !allowed.contains(&to) {
        return Some(format!("{name} must not depend on {to}"));
    }
    (name == "mesh-core" && IMPURE.contains(&to)).then(|| format!("mesh-core must stay pure, without {to}"))
}

/// Top-level modules of a crate and which other top-level modules each names as `crate::<module>`.
fn module_graph(src: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    collect(src, src, &mut texts)?;
    let names: BTreeSet<String> = texts.keys().cloned().collect();
    let graph = texts.into_iter().map(|(module, text)| {
        let uses =
            names.iter().filter(|other| **other != module && mentions(&text, other)).cloned().collect();
        (module, uses)
    });
    Ok(graph.collect())
}

fn mentions(text: &str, module: &str) -> bool {
    let direct = format!("crate::{module}");
    text.match_indices(&direct)
        .any(|(at, _)| !text[at + direct.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        || text.match_indices("use crate::{").any(|(at, open)| {
            let list = &text[at + open.len()..];
            let end = closing(list);
            list[..end].split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == module)
        })
}

fn closing(list: &str) -> usize {
    let mut depth = 1;
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    list.len()
}

fn collect(src: &Path, dir: &Path, texts: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "bin" && name != "api") {
                collect(src, &path, texts)?;
            }
            continue;
        }
        let relative = path.strip_prefix(src)?;
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
        if path.extension().is_none_or(|extension| extension != "rs") || is_test {
            continue;
        }
        let Some(first) = relative.components().next() else { continue };
        let module = first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_string();
        if module == "lib" || module == "main" {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        texts.entry(module).or_default().push_str(code);
    }
    Ok(())
}

fn cycles(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (member, _) in EDGES.iter().filter(|(member, _)| !UNMAPPED.contains(member)) {
        let graph = module_graph(&root.join(member).join("src"))?;
        for module in graph.keys() {
            if reaches(&graph, module, module) {
                problems.push(format!("{member}: module {module} is part of a cycle"));
            }
        }
    }
    Ok(problems)
}

fn reaches(graph: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&String> = graph.get(from).into_iter().flatten().collect();
    while let Some(module) = open.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            open.extend(graph.get(module).into_iter().flatten());
        }
    }
    false
}

/// Whether `abi.txt` is what the types say: the crate's own test compares, because this one depends on none
/// of ours.
fn abi_listing(root: &Path) -> Result<Vec<String>> {
    let test = ["test", "--quiet", "--package", "agent-common", "--test", "abi"];
    let ran = cargo(root).args(test).output().context("cargo test of the ABI listing")?;
    if ran.status.success() {
        return Ok(Vec::new());
    }
    let said = [ran.stdout, ran.stderr].concat();
    Ok(vec![format!("agent-common/abi.txt is not fresh:\n{}", String::from_utf8_lossy(&said).trim())])
}

fn code_map(root: &Path) -> Result<Vec<String>> {
    let map = fs::read_to_string(root.join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
    let mut problems = Vec::new();
    if map.lines().count() > 250 {
        problems.push("ARCHITECTURE.md is longer than 250 lines".to_string());
    }
    for (member, _) in EDGES.iter().filter(|(member, _)| !UNMAPPED.contains(member)) {
        for module in module_graph(&root.join(member).join("src"))?.into_keys() {
            if !is_mapped(&map, member, &module) {
                problems.push(format!("ARCHITECTURE.md's code map lacks `{module}` of {member}"));
            }
        }
    }
    Ok(problems)
}

/// Whether the crate's own line names the module; another crate's module of that name does not count.
fn is_mapped(map: &str, member: &str, module: &str) -> bool {
    let line = map.lines().find(|line| line.starts_with(&format!("- `{member}`:")));
    line.is_some_and(|line| line.contains(&format!("`{module}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        edges.iter().map(|(from, to)| (from.to_string(), names(to))).collect()
    }

    #[test]
    fn a_dependency_against_the_edges_or_of_mesh_core_on_a_runtime_is_a_problem() {
        assert!(bad_edge("waypoint", &["mesh-net", "mesh-core"], "agent").is_some());
        assert!(bad_edge("mesh-core", &[], "tokio").is_some());
        assert!(bad_edge("waypoint", &["mesh-net", "mesh-core"], "mesh-net").is_none());
        assert!(bad_edge("waypoint", &["mesh-net", "mesh-core"], "tokio").is_none());
    }

    #[test]
    fn a_module_that_reaches_itself_is_a_cycle_and_a_chain_is_none() {
        let cycle = graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"]), ("d", &["a"])]);
        assert!(reaches(&cycle, "a", "a") && reaches(&cycle, "c", "c"));
        assert!(!reaches(&cycle, "d", "d"));
        let chain = graph(&[("a", &["b"]), ("b", &["c"]), ("c", &[])]);
        assert!(["a", "b", "c"].iter().all(|module| !reaches(&chain, module, module)));
    }

    #[test]
    fn a_use_of_a_module_is_seen_in_a_path_and_in_a_list_and_not_in_a_longer_name() {
        assert!(mentions("crate::bpf::Bpf", "bpf"));
        assert!(mentions("use crate::{netns, bpf::{Bpf, Pod}, flow};", "flow"));
        assert!(!mentions("crate::bpf_more::Bpf", "bpf"));
        assert!(!mentions("use crate::{netns}; struct flow;", "flow"));
    }

    #[test]
    fn a_module_is_mapped_only_in_the_line_of_its_own_crate() {
        let map = "- `agent`: `app`, `config`.\n- `waypoint`: `serve`.\n";
        assert!(is_mapped(map, "agent", "config"));
        assert!(!is_mapped(map, "waypoint", "config"));
        assert!(!is_mapped(map, "control", "config"));
    }
}
