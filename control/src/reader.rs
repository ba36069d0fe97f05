//! Reading an untyped document field by field: every wrong type and every unknown field is named.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;

use crate::finding::{Severity, Sink};

/// A place in a document.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    value: &'a Value,
    path: &'a Path<'a>,
    sink: &'a Sink,
}

/// A path that is only rendered when something is wrong.
pub enum Path<'a> {
    /// The document.
    Root,
    /// A field of an object.
    Field(&'a Path<'a>, &'a str),
    /// An element of a list.
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn render(&self) -> String {
        match self {
            Self::Root => String::new(),
            Self::Field(parent, name) => match parent.render() {
                above if above.is_empty() => (*name).into(),
                above => format!("{above}.{name}"),
            },
            Self::Index(parent, index) => format!("{}[{index}]", parent.render()),
        }
    }
}

static NULL: Value = Value::Null;

impl<'a> Reader<'a> {
    /// The top of a document.
    pub fn root(value: &'a Value, sink: &'a Sink) -> Self {
        Self { value, path: &Path::Root, sink }
    }

    /// Whether there is anything here.
    pub fn present(&self) -> bool {
        !self.value.is_null()
    }

    /// Raw value.
    pub fn raw(&self) -> &'a Value {
        self.value
    }

    /// Reports an error at this place: the document will be refused.
    pub fn error(&self, code: &'static str, reason: impl Into<String>, remedy: &str) {
        self.sink.add(Severity::Error, &self.path.render(), code, reason.into(), remedy);
    }

    /// Reports a warning at this place.
    pub fn warn(&self, code: &'static str, reason: impl Into<String>, remedy: &str) {
        self.sink.add(Severity::Warning, &self.path.render(), code, reason.into(), remedy);
    }

    /// Reports fields that are not in `known`, by name.
    pub fn known(&self, known: &[&str]) {
        let Some(map) = self.value.as_object() else { return self.shape("a mapping") };
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let path = Path::Field(self.path, key).render();
            let reason = format!("field {key:?} is not supported and has no effect");
            self.sink.add(
                Severity::Warning,
                &path,
                "unsupported-field",
                reason,
                "remove it or check its spelling",
            );
        }
    }

    /// Refuses fields that are not in `known`: where dropping one would make a policy mean something else.
    pub fn only(&self, known: &[&str]) {
        let Some(map) = self.value.as_object() else { return self.shape("a mapping") };
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let reason =
                format!("{key:?} is not supported, and without it the policy would mean something else");
            self.at(key, |field| field.error("unsupported-field", reason, "remove it or check its spelling"));
        }
    }

    /// Reports anything but a mapping or nothing.
    pub fn mapping(&self) {
        if !self.value.is_object() {
            self.shape("a mapping");
        }
    }

    fn shape(&self, want: &str) {
        if self.present() {
            self.error(
                "wrong-type",
                format!("must be {want}, not {}", kind(self.value)),
                "correct the value",
            );
        }
    }

    /// Runs `f` on a field; on null when it is absent.
    pub fn at<T>(&self, name: &str, f: impl FnOnce(Reader<'_>) -> T) -> T {
        let value = self.value.get(name).unwrap_or(&NULL);
        f(Reader { value, path: &Path::Field(self.path, name), sink: self.sink })
    }

    /// Runs `f` on a field if it is there.
    pub fn opt<T>(&self, name: &str, f: impl FnOnce(Reader<'_>) -> T) -> Option<T> {
        self.at(name, |field| field.present().then(|| f(field)))
    }

    /// Runs `f` on each element of a list field.
    pub fn each<T>(&self, name: &str, mut f: impl FnMut(Reader<'_>) -> T) -> Vec<T> {
        self.at(name, |field| match field.value.as_array() {
            Some(items) => items
                .iter()
                .enumerate()
                .map(|(index, value)| {
                    f(Reader { value, path: &Path::Index(field.path, index), sink: field.sink })
                })
                .collect(),
            None => {
                field.shape("a list");
                Vec::new()
            }
        })
    }

    /// This value as text; numbers and booleans are errors.
    pub fn text(&self) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.shape("text");
        }
        text
    }

    /// A text field.
    pub fn string(&self, name: &str) -> Option<Arc<str>> {
        self.at(name, |field| field.text().map(Arc::from))
    }

    /// A text field that must be there.
    pub fn required(&self, name: &str) -> Arc<str> {
        self.at(name, |field| {
            let text = field.text().unwrap_or_default();
            if text.is_empty() && (!field.present() || field.value.is_string()) {
                field.error("missing-field", format!("{name} is missing"), "add it");
            }
            Arc::from(text)
        })
    }

    /// A list of texts; an element that is nothing or empty is an error, because without it the list would
    /// mean something else.
    pub fn strings(&self, name: &str) -> Vec<Arc<str>> {
        self.each(name, |item| Arc::from(item.element().unwrap_or_default()))
    }

    /// An element of a list as text that says something.
    pub fn element(&self) -> Option<&'a str> {
        let text = self.text().filter(|text| !text.is_empty());
        if text.is_none() && (!self.present() || self.value.is_string()) {
            self.error("missing-value", "is an empty element of a list", "write a value or remove it");
        }
        text
    }

    /// A mapping of texts.
    pub fn map(&self, name: &str) -> BTreeMap<Arc<str>, Arc<str>> {
        self.at(name, |field| {
            let Some(map) = field.value.as_object() else {
                field.shape("a mapping of texts");
                return BTreeMap::new();
            };
            map.iter()
                .filter_map(|(key, _)| field.string(key).map(|text| (Arc::from(key.as_str()), text)))
                .collect()
        })
    }

    /// A whole number of at most `max`.
    pub fn number(&self, name: &str, max: u64) -> Option<u64> {
        self.opt(name, |field| {
            let number = field.value.as_u64().filter(|n| *n <= max);
            if number.is_none() {
                field.error("bad-number", format!("must be a whole number up to {max}"), "correct the value");
            }
            number
        })
        .flatten()
    }

    /// A boolean.
    pub fn flag(&self, name: &str) -> bool {
        self.at(name, |field| {
            if !field.value.is_boolean() {
                field.shape("true or false");
            }
            field.value.as_bool().unwrap_or(false)
        })
    }

    /// A port number, 1 to 65535.
    pub fn port(&self, name: &str) -> Option<u16> {
        self.opt(name, |field| {
            let port = field.value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
            if port.is_none() {
                field.error(
                    "bad-port",
                    format!("{} is no port", field.value),
                    "use a number from 1 to 65535",
                );
            }
            port
        })
        .flatten()
    }

    /// A protobuf duration: `1.5s`, `20ms`, `1m`, `1h`.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        self.opt(name, |field| {
            let duration = field.value.as_str().and_then(parse_duration);
            if duration.is_none() {
                field.error(
                    "bad-duration",
                    format!("{} is no duration", field.value),
                    "write it like 1.5s or 20ms",
                );
            }
            duration
        })
        .flatten()
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (unit, factor) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        total += amount * factor;
        rest = &rest[unit.len()..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}
