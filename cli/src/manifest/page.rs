//! Generated pages: the table of settings, and of rights.

use super::{
    objects::{
        CAPABILITIES,
        rbac::{RULES, Rule, Scope},
    },
    setting::SETTINGS,
    write::Files,
};

/// Marks where generated pages come from.
const MADE: &str = "<!-- Made by `cargo xtask codegen` from cli/src/manifest: edit there. -->\n";

/// Every page, below `docs/`.
pub fn files() -> Files {
    let settings = format!(
        "{MADE}# Settings of an installation\n\nFor `culvert install --set NAME=VALUE`, `--values FILE`, and the Helm chart. `docs/install.md` says how to use them.\n\n{}",
        settings()
    );
    [("rbac.md".to_owned(), rbac()), ("settings.md".to_owned(), settings)].into_iter().collect()
}

/// The settings as a table.
pub fn settings() -> String {
    let mut out = "| setting | kind | default | meaning |\n|---|---|---|---|\n".to_owned();
    for setting in SETTINGS {
        let (path, kind, default) = (setting.path, setting.kind.words(), setting.default);
        out.push_str(&format!("| `{path}` | {kind} | `{default}` | {} |\n", setting.about));
    }
    out
}

fn rbac() -> String {
    let mut out = format!(
        "{MADE}# What Culvert's programs may do\n\nNo wider than this: the manifests are made from this list. Nobody holds a wildcard, and only Culvert's own namespace's secrets are read.\n"
    );
    for (program, title) in [("agent", "Agents"), ("control", "Control plane")] {
        out.push_str(&format!("\n## {title}: at the API server\n\n| where | group | resources | names | verbs | why |\n|---|---|---|---|---|---|\n"));
        RULES.iter().filter(|rule| rule.program == program).for_each(|rule| out.push_str(&row(rule)));
    }
    out.push_str(
        "\nWaypoints have a service account without any right: its token proves who they are, no more.\n",
    );
    out.push_str("\n## Agents: on their node\n\nNot privileged, the root file system is read-only, seccomp is the runtime's default. All capabilities are dropped but these:\n\n| capability | why |\n|---|---|\n");
    for (name, why) in CAPABILITIES {
        out.push_str(&format!("| `{name}` | {why} |\n"));
    }
    out.push_str("\nThe control plane and waypoints run as user 65532 without capabilities on a read-only root file system.\n");
    out
}

fn row(rule: &Rule) -> String {
    let scope = match rule.scope {
        Scope::Cluster => "every namespace",
        Scope::Own => "its own namespace",
    };
    let group = if rule.group.is_empty() { "core" } else { rule.group };
    let names = if rule.names.is_empty() { "any".to_owned() } else { rule.names.join(", ") };
    let why = match rule.when {
        Some(setting) => format!("{} (only with `{setting}`)", rule.why),
        None => rule.why.to_owned(),
    };
    let (resources, verbs) = (rule.resources.join(", "), rule.verbs.join(", "));
    format!("| {scope} | {group} | {resources} | {names} | {verbs} | {why} |\n")
}
