//! An object as the API server sends it. Decoding never fails: what is wrong in an object is found when
//! it is parsed, and concerns that object alone.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{api::ApiResource, core::DynamicResourceScope};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A document with the few fields that a watch itself needs.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    /// Name, namespace and resource version.
    pub meta: ObjectMeta,
    /// All of it, but for `managedFields`.
    pub value: Value,
}

impl From<Value> for Raw {
    fn from(mut value: Value) -> Self {
        if let Some(Value::Object(meta)) = value.get_mut("metadata") {
            // Often half of an object, and nothing for us.
            meta.remove("managedFields");
        }
        let text = |name: &str| value["metadata"][name].as_str().map(String::from);
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Self { meta, value }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Value::deserialize(from).map(Self::from)
    }
}

impl kube::Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        (&of.kind).into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        (&of.group).into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        (&of.version).into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        (&of.plural).into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
