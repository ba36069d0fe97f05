//! The values of the settings of one installation.

use serde_json::{Map, Value};

use super::setting::{Kind, SETTINGS, Setting, find};
use crate::exit::Failure;

/// Largest file of values, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A value for each setting, and the namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    namespace: String,
    set: Map<String, Value>,
}

impl Values {
    /// Every default.
    pub fn defaults(namespace: &str) -> Self {
        let default = |setting: &Setting| {
            let value = serde_json::from_str(setting.default).unwrap_or_default();
            (setting.path.to_owned(), value)
        };
        Self { namespace: namespace.to_owned(), set: SETTINGS.iter().map(default).collect() }
    }

    /// Namespace of Culvert's own programs.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Value of a setting, or of `namespace`. None when there is no such setting.
    pub fn get(&self, path: &str) -> Option<Value> {
        if path == "namespace" {
            return Some(Value::from(self.namespace.as_str()));
        }
        self.set.get(path).cloned()
    }

    /// A text.
    pub fn text(&self, path: &str) -> String {
        self.get(path).and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Whether a switch is on, a text or list not empty, a number not 0: what a Helm `if` takes for true.
    pub fn holds(&self, path: &str) -> bool {
        match self.get(path) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(on)) => on,
            Some(Value::Number(n)) => n.as_u64() != Some(0),
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
        }
    }

    /// What differs from the defaults, by setting.
    pub fn changed(&self) -> Map<String, Value> {
        let defaults = Self::defaults(&self.namespace).set;
        self.set.iter().filter(|(path, value)| defaults.get(*path) != Some(value)).map(pair).collect()
    }

    /// Takes one value.
    ///
    /// # Errors
    /// There is no such setting, or the value is of another kind.
    pub fn put(&mut self, path: &str, value: Value) -> Result<(), Failure> {
        let setting = find(path).ok_or_else(|| unknown(path))?;
        if !setting.kind.holds(&value) {
            let kind = setting.kind.words();
            let reason = format!("setting {path}: {value} is no {kind}");
            return Err(Failure::new(reason, format!("give {kind}; its default is {}", setting.default)));
        }
        self.set.insert(path.to_owned(), value);
        Ok(())
    }

    /// Takes `name=value`, as `--set` has it. Lists and objects are JSON.
    ///
    /// # Errors
    /// As [`Self::put`], and a text without `=`.
    pub fn set(&mut self, assignment: &str) -> Result<(), Failure> {
        let Some((path, text)) = assignment.split_once('=') else {
            let reason = format!("--set {assignment} has no value");
            return Err(Failure::new(reason, "write --set NAME=VALUE"));
        };
        let setting = find(path).ok_or_else(|| unknown(path))?;
        let value = match setting.kind {
            Kind::Text | Kind::Choice(_) => Value::from(text),
            _ => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        self.put(path, value)
    }

    /// Takes every value of a YAML or JSON file, nested as in the chart's `values.yaml`.
    ///
    /// # Errors
    /// The file cannot be read or is no YAML, or as [`Self::put`].
    pub fn load(&mut self, file: &std::path::Path) -> Result<(), Failure> {
        let next = "give a file of settings as manifests/helm/culvert/values.yaml has them";
        let fail = |cause: String| Failure::new(format!("{}: {cause}", file.display()), next);
        let size = std::fs::metadata(file).map_err(|e| fail(e.to_string()))?.len();
        if size > MAX_FILE {
            return Err(fail(format!("is larger than {} MiB", MAX_FILE >> 20)));
        }
        let text = std::fs::read_to_string(file).map_err(|e| fail(e.to_string()))?;
        let tree: Value = serde_norway::from_str(&text).map_err(|e| fail(e.to_string()))?;
        match tree {
            Value::Null => Ok(()),
            Value::Object(map) => self.merge("", map),
            _ => Err(fail("is no list of settings".to_owned())),
        }
    }

    fn merge(&mut self, prefix: &str, map: Map<String, Value>) -> Result<(), Failure> {
        for (name, value) in map {
            let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            match value {
                Value::Object(inner) if find(&path).is_none() && is_group(&path) => {
                    self.merge(&path, inner)?;
                }
                value => self.put(&path, value)?,
            }
        }
        Ok(())
    }

    /// As a tree, as a values file has them.
    pub fn tree(&self) -> Value {
        let mut tree = Value::Object(Map::new());
        for setting in SETTINGS {
            let mut at = &mut tree;
            for part in setting.path.split('.') {
                at = &mut at[part];
            }
            *at = self.set.get(setting.path).cloned().unwrap_or_default();
        }
        tree
    }
}

fn pair((path, value): (&String, &Value)) -> (String, Value) {
    (path.clone(), value.clone())
}

fn is_group(path: &str) -> bool {
    SETTINGS.iter().any(|s| s.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

fn unknown(path: &str) -> Failure {
    let last = path.rsplit('.').next().unwrap_or(path).to_lowercase();
    let near = |s: &&Setting| s.path.to_lowercase().contains(&last) || is_group_of(path, s.path);
    let near: Vec<_> = SETTINGS.iter().filter(near).map(|s| s.path).collect();
    let next = match near.is_empty() {
        true => "docs/install.md lists the settings".to_owned(),
        false => format!("near ones: {}; docs/install.md lists all", near.join(", ")),
    };
    Failure::new(format!("there is no setting {path}"), next)
}

/// Whether both are in the same group of settings.
fn is_group_of(path: &str, other: &str) -> bool {
    path.split_once('.').is_some_and(|(group, _)| other.starts_with(&format!("{group}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_by_kind_and_what_differs_is_known() {
        let mut values = Values::defaults("x");
        values.set("control.replicas=3").unwrap();
        values.set("image.tag=1.2").unwrap();
        values.set(r#"agent.tolerations=[{"key":"a"}]"#).unwrap();
        values.set("cni.enabled=false").unwrap();
        assert_eq!(values.get("control.replicas"), Some(Value::from(3)));
        assert_eq!(values.get("image.tag"), Some(Value::from("1.2")), "a text stays one");
        assert!(!values.holds("cni.enabled") && values.holds("agent.tolerations"));
        assert_eq!(values.changed().len(), 4);
    }

    #[test]
    fn unknown_names_and_wrong_kinds_are_refused_with_what_would_do() {
        let mut values = Values::defaults("x");
        let unknown = values.set("control.replica=3").unwrap_err();
        assert!(unknown.reason.contains("no setting control.replica"), "{unknown}");
        assert!(unknown.next.contains("control.replicas"), "{}", unknown.next);
        let wrong = values.set("control.replicas=many").unwrap_err();
        assert!(wrong.reason.contains("is no whole number"), "{wrong}");
        assert!(values.set("image.pullPolicy=Sometimes").unwrap_err().next.contains("IfNotPresent"));
        assert!(values.set("agent").unwrap_err().reason.contains("no value"));
    }

    #[test]
    fn a_file_is_read_as_the_chart_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("v.yaml");
        std::fs::write(&file, "control: {replicas: 2, resources: {limits: {cpu: 1}}}\ntrustDomain: a.b\n")
            .unwrap();
        let mut values = Values::defaults("x");
        values.load(&file).unwrap();
        assert_eq!(values.text("trustDomain"), "a.b");
        assert_eq!(values.tree()["control"]["resources"]["limits"]["cpu"], 1);
        std::fs::write(&file, "control: {replica: 2}\n").unwrap();
        assert!(values.load(&file).unwrap_err().reason.contains("control.replica"));
        std::fs::write(&file, "- a\n").unwrap();
        assert!(values.load(&file).unwrap_err().reason.contains("no list of settings"));
    }
}
