//! The Helm chart, from the same tree of objects.

use serde_json::{Value, json};

use super::{
    kustomize::{CRDS, definitions},
    objects::{File, Object, all},
    profile::{PLATFORMS, PROFILES, Profile},
    setting::{SETTINGS, Setting, TAG},
    values::Values,
    write::{Files, HEADER},
    yaml::{self, helm_path},
};
use crate::exit::Failure;

/// Every file of the chart, below `helm/culvert/`.
///
/// # Errors
/// A profile does not fit the settings.
pub fn files() -> Result<Files, Failure> {
    let mut files = Files::new();
    let mut put = |name: &str, text: String| files.insert(format!("helm/culvert/{name}"), text);
    put("Chart.yaml", chart());
    put("values.yaml", values());
    // Helm makes what is missing of this folder, and never changes or removes it.
    put(&format!("crds/{CRDS}"), definitions());
    put("values.schema.json", serde_json::to_string_pretty(&schema()).unwrap_or_default() + "\n");
    put("README.md", readme());
    put("templates/NOTES.txt", NOTES.to_owned());
    for profile in PROFILES.iter().chain(PLATFORMS).filter(|profile| !profile.values.is_empty()) {
        put(&format!("values-{}.yaml", profile.name), profile_values(profile)?);
    }
    // The namespace is Helm's own affair: `--create-namespace`.
    for file in File::ALL.into_iter().filter(|file| *file != File::Namespace) {
        let objects: Vec<_> = all().into_iter().filter(|object| object.file == file).collect();
        put(&format!("templates/{}.yaml", file.name()), template(&objects));
    }
    Ok(files)
}

fn chart() -> String {
    let chart = json!({
        "apiVersion": "v2",
        "name": "culvert",
        "description": "Culvert, a sidecarless service mesh: node agents and control plane.",
        "type": "application",
        "version": TAG,
        "appVersion": TAG,
        "kubeVersion": format!(">= 1.{}.0-0", crate::cluster::OLDEST_MINOR),
    });
    format!("{HEADER}{}", yaml::plain(&chart))
}

fn template(objects: &[Object]) -> String {
    let mut out = HEADER.to_owned();
    for object in objects {
        let body = yaml::helm(&object.body);
        match object.when {
            Some(setting) => {
                out.push_str(&format!("{{{{- if {} }}}}\n---\n{body}{{{{- end }}}}\n", helm_path(setting)));
            }
            None => out.push_str(&format!("---\n{body}")),
        }
    }
    out
}

/// The defaults with their meaning, in the order of the list of settings.
fn values() -> String {
    let mut out = HEADER.to_owned();
    let mut group = "";
    for setting in SETTINGS {
        let (prefix, name) = setting.path.split_once('.').unwrap_or(("", setting.path));
        if prefix != group && !prefix.is_empty() {
            out.push_str(&format!("{prefix}:\n"));
        }
        group = prefix;
        let indent = if prefix.is_empty() { "" } else { "  " };
        out.push_str(&format!("{indent}# {}\n", setting.about));
        out.push_str(&format!("{indent}{name}: {}\n", setting.default));
    }
    out
}

fn profile_values(profile: &Profile) -> Result<String, Failure> {
    let mut values = Values::defaults("");
    profile.apply(&mut values)?;
    let mut tree = json!({});
    for (path, value) in values.changed() {
        let mut at = &mut tree;
        for part in path.split('.') {
            at = &mut at[part];
        }
        *at = value;
    }
    let notes: String = profile.notes.iter().map(|note| format!("# {note}\n")).collect();
    Ok(format!("{HEADER}{notes}{}", yaml::plain(&tree)))
}

/// Schema of the values. Unknown names are refused, so that a misspelled one is no silent default.
fn schema() -> Value {
    let mut schema =
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the Culvert chart"});
    group(&mut schema);
    // Helm passes these to every chart.
    schema["properties"]["global"] = json!({"type": "object"});
    for setting in SETTINGS {
        let mut at = &mut schema;
        let parts: Vec<_> = setting.path.split('.').collect();
        let (name, groups) = parts.split_last().map_or(("", &[][..]), |(name, groups)| (*name, groups));
        for part in groups {
            at = &mut at["properties"][*part];
            group(at);
        }
        at["properties"][name] = described(setting);
    }
    schema
}

fn group(at: &mut Value) {
    at["type"] = json!("object");
    at["additionalProperties"] = json!(false);
}

fn described(setting: &Setting) -> Value {
    let mut schema = setting.kind.schema();
    schema["description"] = json!(setting.about);
    schema["default"] = serde_json::from_str(setting.default).unwrap_or_default();
    schema
}

fn readme() -> String {
    format!(
        "# Culvert's Helm chart\n\nMade by `cargo xtask codegen` from the source of `culvert install`: edit `cli/src/manifest`, not this folder.\n\n\
        ```\nkubectl create namespace culvert-system\nkubectl label namespace culvert-system pod-security.kubernetes.io/enforce=privileged\n\
        helm install culvert manifests/helm/culvert --namespace culvert-system --wait\n```\n\n\
        `values-production.yaml` and `values-PLATFORM.yaml` are the overlays of kustomize as values: `--values manifests/helm/culvert/values-production.yaml`.\n\
        Before `helm uninstall`, run `culvert uninstall --nodes-only`: it removes programs and plugin from the nodes, which no chart can.\n\n\
        ## Values\n\n{}",
        super::page::settings()
    )
}

const NOTES: &str = "\
Culvert {{ .Chart.AppVersion }} is in namespace {{ .Release.Namespace }}.

Is everything ready?      culvert check
Put a namespace into the mesh:
                          kubectl label namespace default istio.io/dataplane-mode=ambient
Before helm uninstall:    culvert uninstall --nodes-only
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_file_is_the_defaults_and_the_schema_knows_every_setting() {
        let read: Value = serde_norway::from_str(&values()).unwrap();
        assert_eq!(read, Values::defaults("").tree());
        let schema = schema();
        for setting in SETTINGS {
            let pointer = format!("/properties/{}", setting.path.replace('.', "/properties/"));
            assert!(schema.pointer(&pointer).is_some(), "{pointer}");
        }
        assert_eq!(schema["properties"]["control"]["additionalProperties"], false);
    }
}
