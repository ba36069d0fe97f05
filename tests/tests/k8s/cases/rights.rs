//! What our programs are granted, beside what they did.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use harness::cluster::audit::Use;
use serde_json::Value;

use crate::stage::{SYSTEM, Stage};

/// Nothing that the programs did was refused, and they look at everything that they may look at. Rights
/// to write are for events that these cases do not all bring about; unused ones are shown.
pub fn the_programs_use_what_they_are_granted_and_nothing_was_refused(stage: &mut Stage) -> Result<()> {
    stage.shop()?;
    let mut problems = Vec::new();
    for account in ["culvert-control", "culvert-agent"] {
        let user = format!("system:serviceaccount:{SYSTEM}:{account}");
        let uses = stage.cluster.uses(&user)?;
        ensure!(!uses.is_empty(), "{account} asked the API server nothing");
        // Just after its start the API server does not know the rules yet and refuses what it allows later.
        let later = |one: &Use| uses.contains(&Use { allowed: true, ..one.clone() });
        for one in uses.iter().filter(|one| !one.allowed && !later(one)) {
            problems.push(format!("{account} was refused: {} {}.{}", one.verb, one.resource, one.group));
        }
        let granted = granted(stage, account)?;
        ensure!(!granted.is_empty(), "{account} is granted nothing");
        let used: BTreeSet<(String, String, String)> =
            uses.iter().map(|one| (one.group.clone(), one.resource.clone(), one.verb.clone())).collect();
        let unused: Vec<String> = granted
            .difference(&used)
            .map(|(group, resource, verb)| format!("{verb} {resource}.{group}"))
            .collect();
        let looks = |right: &&String| right.starts_with("list ") || right.starts_with("watch ");
        let unseen = unused.iter().filter(looks);
        problems.extend(unseen.map(|right| format!("{account} is granted and never uses: {right}")));
        stage.say(&format!("{account} was granted and did not use: {}", unused.join(", ")));
        let broad = granted
            .iter()
            .filter(|(group, resource, verb)| [group, resource, verb].contains(&&"*".to_string()));
        problems.extend(broad.map(|one| format!("{account} is granted everything of a kind: {one:?}")));
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// Group, resource and verb of every rule that is bound to an account.
fn granted(stage: &Stage, account: &str) -> Result<BTreeSet<(String, String, String)>> {
    let mut granted = BTreeSet::new();
    for (bindings, roles) in [("clusterrolebindings", "clusterroles"), ("rolebindings", "roles")] {
        let list = stage.cluster.get(&["-A", bindings])?;
        for binding in list["items"].as_array().into_iter().flatten() {
            let subjects = binding["subjects"].as_array().cloned().unwrap_or_default();
            if !subjects.iter().any(|one| one["name"] == account && one["namespace"] == SYSTEM) {
                continue;
            }
            let role = binding["roleRef"]["name"].as_str().unwrap_or_default();
            let kind = binding["roleRef"]["kind"].as_str().unwrap_or_default();
            let roles = if kind == "ClusterRole" { "clusterroles" } else { roles };
            let namespace = binding["metadata"]["namespace"].as_str().unwrap_or(SYSTEM);
            let role = stage.cluster.get(&["-n", namespace, roles, role])?;
            role["rules"].as_array().into_iter().flatten().for_each(|rule| add(&mut granted, rule));
        }
    }
    Ok(granted)
}

fn add(granted: &mut BTreeSet<(String, String, String)>, rule: &Value) {
    let words = |field: &str| {
        let list = rule[field].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_string).collect::<Vec<_>>()
    };
    for group in words("apiGroups") {
        for resource in words("resources") {
            for verb in words("verbs") {
                granted.insert((group.clone(), resource.clone(), verb));
            }
        }
    }
}
