//! What `culvert install` notes in the cluster: version, settings and objects of the installation, so that
//! `upgrade` keeps the settings and removes what is gone, and `uninstall` knows all of it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    cluster::{
        ApiError, Cluster,
        client::{Change, MANAGER},
        kinds::path,
    },
    exit::Failure,
    manifest::{PART_OF, objects::Object, values::Values},
};

/// Name of the ConfigMap.
pub const NAME: &str = "culvert-install";

/// An installation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the `culvert` that wrote it.
    pub version: String,
    /// Version before that; empty when there was none.
    #[serde(default)]
    pub before: String,
    /// Whether everything was applied.
    pub complete: bool,
    /// Settings that are not the defaults.
    pub settings: Map<String, Value>,
    /// Every object.
    pub objects: Vec<Named>,
}

/// An object by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    /// API version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace; empty when it has none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Named {
    /// Of an object.
    pub fn of(object: &Object) -> Self {
        Self {
            api_version: object.api_version().to_owned(),
            kind: object.kind().to_owned(),
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
        }
    }

    /// Its path at the API server.
    pub fn path(&self) -> String {
        path(&self.api_version, &self.kind, &self.namespace, &self.name)
    }

    /// Whether it is the same object, perhaps of another version of its API.
    pub fn same(&self, other: &Self) -> bool {
        (&self.kind, &self.namespace, &self.name) == (&other.kind, &other.namespace, &other.name)
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl Record {
    /// The settings of the installation.
    ///
    /// # Errors
    /// A setting of it is none of this version.
    pub fn values(&self, namespace: &str) -> Result<Values, Failure> {
        let mut values = Values::defaults(namespace);
        for (path, value) in &self.settings {
            values.put(path, value.clone()).map_err(|error| {
                let reason = format!("the installation's settings do not fit this version: {}", error.reason);
                Failure::new(
                    reason,
                    "use the culvert that installed it, or upgrade with --reset-values and --set",
                )
            })?;
        }
        Ok(values)
    }
}

fn place(namespace: &str) -> String {
    path("v1", "ConfigMap", namespace, NAME)
}

/// The record of a namespace; none when `culvert install` was not used there.
///
/// # Errors
/// The API server does not answer, or the record cannot be read.
pub async fn read(cluster: &Cluster, namespace: &str) -> Result<Option<Record>, Failure> {
    let Some(map) = cluster.get(&place(namespace)).await? else { return Ok(None) };
    let text = map.pointer("/data/record").and_then(Value::as_str).unwrap_or_default();
    let record = serde_json::from_str(text).map_err(|error| {
        let reason = format!("ConfigMap {namespace}/{NAME}, data.record: {error}");
        Failure::new(
            reason,
            format!("delete it (kubectl -n {namespace} delete configmap {NAME}) and install again"),
        )
    })?;
    Ok(Some(record))
}

/// Writes the record.
///
/// # Errors
/// The API server refuses it.
pub async fn write(cluster: &Cluster, namespace: &str, record: &Record) -> Result<Change, ApiError> {
    let text = serde_json::to_string_pretty(record).unwrap_or_default();
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": namespace, "labels": {
            PART_OF.0: PART_OF.1, "app.kubernetes.io/managed-by": MANAGER,
        }},
        "data": {"record": text},
    });
    cluster.apply(&place(namespace), &map, false).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_a_record_come_back_and_a_setting_that_went_is_said() {
        let mut values = Values::defaults("n");
        values.set("control.replicas=3").unwrap();
        let mut record = Record { settings: values.changed(), ..Record::default() };
        assert_eq!(record.values("n").unwrap(), values);
        record.settings.insert("old.thing".to_owned(), json!(1));
        let error = record.values("n").unwrap_err();
        assert!(error.reason.contains("old.thing") && error.next.contains("--reset-values"), "{error}");
    }
}
