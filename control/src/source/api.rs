//! Objects of an API server in the store: one at a time, each by itself. The rules for what is refused are
//! those of the folder (decisions 0012, 0036).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    Origin, Store, Stored,
    kinds::{KINDS, Kind},
    problem,
};
use crate::{
    finding::{Finding, Problem, Severity, Sink},
    object::{Body, Key, Object, parse, stand_in},
};

/// In place of a file's name.
pub const ORIGIN: &str = "kubernetes";

/// What happened in the API server.
#[derive(Debug)]
pub enum Change {
    /// The good version of an object that may be refused now, as remembered: its text.
    Remembered(String),
    /// Another replica remembered something, or what was to be written could not be, or can be now.
    Shared,
    /// These kinds exist there: nothing is compiled before each that is needed was listed once.
    Present(Vec<&'static Kind>),
    /// A list of a kind begins.
    Begin(&'static Kind),
    /// An object of the list.
    Listed(&'static Kind, Value),
    /// The list is complete: what was not in it is gone.
    End(&'static Kind),
    /// An object was made or changed.
    Applied(&'static Kind, Value),
    /// The object of a namespace and name is gone.
    Deleted(&'static Kind, Option<String>, String),
    /// The kind itself was removed, and its objects with it.
    Gone(&'static Kind),
}

/// What is known of an object beside its meaning.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct About {
    /// The object's own id: another object of the same name has another one.
    pub uid: String,
    /// Counts changes of what it says.
    pub generation: i64,
    /// Its status as it is in the API server; null for kinds whose status is nothing to us.
    pub status: Value,
    /// Version of the object, which a write of its status has to name.
    pub version: String,
    /// Errors refuse what it says now.
    pub refused: bool,
    /// Of a Gateway its class, the names of its listeners and when it was made; of a GatewayClass its
    /// controller.
    pub detail: Value,
}

/// State of the API server's part of a store.
#[derive(Debug, Default)]
pub struct Api {
    /// Kinds that exist; none before that is known.
    present: Option<BTreeSet<&'static Kind>>,
    /// Kinds that were listed to the end at least once.
    listed: BTreeSet<&'static Kind>,
    /// Objects seen in lists that are not complete yet.
    seen: BTreeMap<&'static Kind, BTreeSet<Key>>,
    about: BTreeMap<Key, Arc<About>>,
    /// Of these what they say now is refused.
    refused: BTreeSet<Key>,
    findings: BTreeMap<Key, Vec<Finding>>,
}

impl Api {
    /// Kinds without which nothing can be compiled yet; none when all are there. Before it is known which
    /// kinds exist, that itself is missing.
    pub fn missing(&self) -> Vec<&'static str> {
        match &self.present {
            None => vec!["CustomResourceDefinition"],
            Some(present) => {
                let needed = present.iter().filter(|kind| kind.needed && !self.listed.contains(*kind));
                needed.map(|kind| kind.known).collect()
            }
        }
    }

    /// What is known of each object.
    pub fn about(&self) -> &BTreeMap<Key, Arc<About>> {
        &self.about
    }

    /// Objects that are refused as they are now.
    pub fn refused(&self) -> impl Iterator<Item = &Key> {
        self.refused.iter()
    }

    /// Findings of objects.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.values().flatten()
    }

    /// A VirtualService is refused without an earlier version: routes may be missing.
    pub(super) fn doubtful(&self, objects: &BTreeMap<Key, Stored>) -> bool {
        let lost = |key: &Key| &*key.kind == "VirtualService" && !objects.contains_key(key);
        self.refused.iter().any(lost)
    }

    fn keys(&self, kind: &Kind) -> Vec<Key> {
        self.about.keys().filter(|key| *key.kind == *kind.known).cloned().collect()
    }
}

impl Store {
    /// Takes over a change of the API server. Returns whether anything is different now.
    pub fn apply(&mut self, change: Change) -> bool {
        let before = self.read;
        let different = match change {
            Change::Shared => true,
            Change::Remembered(text) => {
                if let Some((kind, value)) = remembered(&text) {
                    self.put(kind, key_of(kind, &value), value);
                }
                false
            }
            Change::Present(kinds) => {
                self.api_mut().present = Some(kinds.into_iter().collect());
                false
            }
            Change::Begin(kind) => {
                self.api_mut().seen.insert(kind, BTreeSet::new());
                false
            }
            Change::Listed(kind, value) => {
                let key = key_of(kind, &value);
                self.api_mut().seen.entry(kind).or_default().insert(key.clone());
                self.put(kind, key, value)
            }
            Change::End(kind) => self.listed(kind),
            Change::Applied(kind, value) => self.put(kind, key_of(kind, &value), value),
            Change::Deleted(kind, namespace, name) => {
                self.remove(&key(kind, namespace.as_deref().unwrap_or_default(), &name))
            }
            Change::Gone(kind) => self.gone(kind),
        };
        self.refresh();
        different || before != self.read
    }

    fn api_mut(&mut self) -> &mut Api {
        self.api.get_or_insert_default()
    }

    fn listed(&mut self, kind: &'static Kind) -> bool {
        let api = self.api_mut();
        api.listed.insert(kind);
        let seen = api.seen.remove(kind).unwrap_or_default();
        let gone: Vec<Key> = api.keys(kind).into_iter().filter(|key| !seen.contains(key)).collect();
        self.remove_all(&gone)
    }

    fn gone(&mut self, kind: &'static Kind) -> bool {
        let api = self.api_mut();
        api.listed.remove(kind);
        api.seen.remove(kind);
        let keys = api.keys(kind);
        self.remove_all(&keys)
    }

    fn remove_all(&mut self, keys: &[Key]) -> bool {
        let mut different = false;
        for key in keys {
            different |= self.remove(key);
        }
        different
    }

    fn put(&mut self, kind: &Kind, key: Key, value: Value) -> bool {
        let value = typed(kind, value);
        let sink = Sink::default();
        let (_, object) = parse(&value, &sink);
        let problems = sink.into_problems();
        let refused = problems.iter().any(|p| p.severity == Severity::Error);
        let about = About::of(kind, &value, refused);
        let mut findings: Vec<Finding> = problems.iter().map(|p| placed(&key, p.clone())).collect();
        let here = self.objects.get(&key).filter(|stored| stored.origin == Origin::Kubernetes);
        let good = here.filter(|stored| !stored.stand_in).is_some();
        let text = if kind.custom && !refused { value.to_string() } else { String::new() };
        let next = match object {
            Some(object) if !refused => Some((object, false)),
            _ if good => {
                findings.push(placed(&key, last_good()));
                None
            }
            object => object.and_then(|o| stand_in::stand_in(&o, &problems)).map(|closed| (closed, true)),
        };
        let mut different = match next {
            Some((object, stand_in)) => {
                let matters = self.matters(&key, &object);
                self.set(key.clone(), object, text, stand_in) && matters
            }
            None if good => false,
            None => self.drop_effect(&key),
        };
        let api = self.api_mut();
        match refused {
            true => api.refused.insert(key.clone()),
            false => api.refused.remove(&key),
        };
        let known = api.about.insert(key.clone(), Arc::new(about));
        let (new, old) = (&api.about[&key], known.unwrap_or_default());
        different |= (new.refused, &new.uid, &new.detail) != (old.refused, &old.uid, &old.detail)
            || (kind.custom && new.generation != old.generation);
        let said = if findings.is_empty() {
            api.findings.remove(&key).unwrap_or_default()
        } else {
            api.findings.insert(key.clone(), findings.clone()).unwrap_or_default()
        };
        different || said != findings
    }

    /// Whether an object has a say. Slices of services that select pods have none, and every pod that comes or
    /// goes changes one: to compile for them would double the work.
    fn matters(&self, key: &Key, object: &Object) -> bool {
        let Body::Slice(slice) = &object.body else { return true };
        let Some(name) = slice.service.clone() else { return true };
        let service = Key { kind: "Service".into(), namespace: key.namespace.clone(), name };
        let selects =
            |stored: &Stored| matches!(&stored.object.body, Body::Service(s) if !s.selector.is_empty());
        !self.objects.get(&service).is_some_and(selects)
    }

    fn set(&mut self, key: Key, object: Object, text: String, stand_in: bool) -> bool {
        let same =
            |s: &Stored| s.origin == Origin::Kubernetes && s.stand_in == stand_in && s.object == object;
        if self.objects.get(&key).is_some_and(same) {
            return false;
        }
        let (file, prefix) = (ORIGIN.into(), String::new());
        let stored = Stored { file, line: 0, text, prefix, object, stand_in, origin: Origin::Kubernetes };
        if let Some(other) = self.objects.insert(key.clone(), stored)
            && other.origin == Origin::Folder
        {
            self.shadowed.insert(key, other);
        }
        true
    }

    fn remove(&mut self, key: &Key) -> bool {
        let api = self.api_mut();
        api.refused.remove(key);
        let known = api.about.remove(key).is_some();
        let said = api.findings.remove(key).is_some();
        self.drop_effect(key) || known || said
    }

    /// Takes an object out of effect; the folder's of the same name comes into effect.
    fn drop_effect(&mut self, key: &Key) -> bool {
        if self.objects.get(key).is_none_or(|stored| stored.origin != Origin::Kubernetes) {
            return false;
        }
        self.objects.remove(key);
        if let Some(other) = self.shadowed.remove(key) {
            self.objects.insert(key.clone(), other);
        }
        true
    }
}

fn key(kind: &Kind, namespace: &str, name: &str) -> Key {
    let namespace = if kind.namespaced { namespace } else { "" };
    Key { kind: kind.known.into(), namespace: namespace.into(), name: name.into() }
}

fn key_of(kind: &Kind, value: &Value) -> Key {
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default();
    key(kind, text("namespace"), text("name"))
}

/// The kind and the value of a remembered text.
fn remembered(text: &str) -> Option<(&'static Kind, Value)> {
    let value: Value = serde_json::from_str(text).ok()?;
    let group = value["apiVersion"].as_str()?.rsplit_once('/').map_or("", |(group, _)| group);
    let kind = KINDS.iter().find(|kind| value["kind"] == kind.kind && kind.group == group)?;
    Some((kind, value))
}

/// Objects of a list do not say of which kind they are.
fn typed(kind: &Kind, mut value: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        let version = kind.versions.first().copied().unwrap_or_default();
        map.entry("apiVersion").or_insert_with(|| kind.api_version(version).into());
        map.entry("kind").or_insert_with(|| kind.kind.into());
    }
    value
}

impl About {
    /// What an object of the API server says beside its meaning.
    pub fn of(kind: &Kind, value: &Value, refused: bool) -> Self {
        let meta = &value["metadata"];
        let text = |field: &str| meta[field].as_str().unwrap_or_default().to_string();
        let told = kind.custom || kind.kind == "Service";
        let detail = match kind.known {
            "Gateway" => {
                let listeners = value["spec"]["listeners"].as_array().map_or(&[][..], Vec::as_slice);
                let names: Vec<&Value> = listeners.iter().map(|listener| &listener["name"]).collect();
                json!({"class": value["spec"]["gatewayClassName"], "listeners": names,
                       "created": meta["creationTimestamp"]})
            }
            "GatewayClass" => json!({"controller": value["spec"]["controllerName"]}),
            _ => Value::Null,
        };
        Self {
            uid: text("uid"),
            generation: meta["generation"].as_i64().unwrap_or_default(),
            status: if told { value["status"].clone() } else { Value::Null },
            version: text("resourceVersion"),
            refused,
            detail,
        }
    }
}

fn placed(key: &Key, problem: Problem) -> Finding {
    problem.placed(ORIGIN, 0, &key.to_string())
}

fn last_good() -> Problem {
    let reason = "is refused; the version before stays in effect".into();
    problem("", Severity::Info, "last-good", reason, "correct the errors of this object")
}
