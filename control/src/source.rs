//! The cluster folder as a set of objects. A bad document is refused by itself; the last good version
//! of its object stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    finding::{Finding, Severity, Sink},
    lines::locate,
    object::{Key, Object, parse},
};

/// One object and where it came from.
#[derive(Debug, Clone)]
pub struct Stored {
    /// File, relative to the folder.
    pub file: String,
    /// First line of its document.
    pub line: usize,
    /// Text of the document, for lines of later findings.
    pub text: String,
    /// What it says.
    pub object: Object,
}

/// All objects of a folder.
#[derive(Debug, Default)]
pub struct Store {
    /// Objects by key.
    pub objects: BTreeMap<Key, Stored>,
    /// Findings of the last load.
    pub findings: Vec<Finding>,
}

struct Document {
    file: String,
    line: usize,
    text: String,
}

impl Store {
    /// Loads the folder again. Files that cannot be read are findings.
    pub fn load(&mut self, folder: &Path) {
        self.findings.clear();
        let mut next: BTreeMap<Key, Stored> = BTreeMap::new();
        let mut broken: BTreeSet<String> = BTreeSet::new();
        for document in self.documents(folder, &mut broken) {
            self.take(document, &mut next, &mut broken);
        }
        for (key, stored) in std::mem::take(&mut self.objects) {
            if broken.contains(&stored.file) || broken.contains(&key.to_string()) {
                next.entry(key).or_insert(stored);
            }
        }
        self.objects = next;
    }

    fn documents(&mut self, folder: &Path, broken: &mut BTreeSet<String>) -> Vec<Document> {
        let mut found = Vec::new();
        for path in files(folder) {
            let file = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
            match fs::read_to_string(&path) {
                Ok(text) => found.extend(split(&file, &text)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    broken.insert(file.clone());
                    let reason = format!("cannot be read: {error}");
                    self.report(&file, 1, "", "", Severity::Error, "unreadable", reason, "make it readable");
                }
            }
        }
        found
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a finding")]
    fn report(
        &mut self,
        file: &str,
        line: usize,
        object: &str,
        field: &str,
        severity: Severity,
        code: &'static str,
        reason: String,
        remedy: &str,
    ) {
        self.findings.push(Finding {
            file: file.into(),
            line,
            object: object.into(),
            field: field.into(),
            severity,
            code,
            reason,
            remedy: remedy.into(),
        });
    }

    fn take(&mut self, doc: Document, next: &mut BTreeMap<Key, Stored>, broken: &mut BTreeSet<String>) {
        match serde_norway::Deserializer::from_str(&doc.text).next().map(Value::deserialize) {
            None | Some(Ok(Value::Null)) => {}
            Some(Ok(value)) if value["kind"].as_str().is_some_and(|k| k.ends_with("List")) => {
                for item in value["items"].as_array().into_iter().flatten() {
                    self.object(&doc, item, next, broken);
                }
            }
            Some(Ok(value)) => self.object(&doc, &value, next, broken),
            Some(Err(error)) => {
                let line = doc.line + error.location().map_or(0, |at| at.line().saturating_sub(1));
                broken.insert(doc.file.clone());
                let reason = format!("is no YAML: {error}");
                self.report(
                    &doc.file,
                    line,
                    "",
                    "",
                    Severity::Error,
                    "bad-yaml",
                    reason,
                    "correct the syntax",
                );
            }
        }
    }

    fn object(
        &mut self,
        doc: &Document,
        value: &Value,
        next: &mut BTreeMap<Key, Stored>,
        broken: &mut BTreeSet<String>,
    ) {
        let sink = Sink::default();
        let (key, object) = parse(value, &sink);
        let name = key.to_string();
        let mut refused = object.is_none();
        for problem in sink.into_problems() {
            refused |= problem.severity == Severity::Error;
            let line = doc.line + locate(&doc.text, &problem.field) - 1;
            self.report(
                &doc.file,
                line,
                &name,
                &problem.field,
                problem.severity,
                problem.code,
                problem.reason,
                &problem.remedy,
            );
        }
        if refused {
            broken.insert(name);
            return;
        }
        let Some(object) = object else { return };
        if let Some(first) = next.get(&key) {
            let reason = format!("is also in {}:{}, which is used", first.file, first.line);
            let line = doc.line + locate(&doc.text, "metadata.name") - 1;
            let remedy = "keep one of them";
            return self.report(
                &doc.file,
                line,
                &name,
                "metadata.name",
                Severity::Error,
                "duplicate",
                reason,
                remedy,
            );
        }
        let stored = Stored { file: doc.file.clone(), line: doc.line, text: doc.text.clone(), object };
        next.insert(key, stored);
    }
}

fn split(file: &str, text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let (mut start, mut current) = (1, String::new());
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("---") && line[3..].trim().is_empty() {
            documents.push(Document { file: file.into(), line: start, text: std::mem::take(&mut current) });
            start = index + 2;
        } else {
            current.push_str(line);
            current.push('\n');
        }
    }
    documents.push(Document { file: file.into(), line: start, text: current });
    documents.retain(|d| !d.text.trim().is_empty());
    documents
}

/// YAML files below a folder, sorted; names that start with a dot are skipped.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or(".");
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path));
        } else if name.ends_with(".yaml") || name.ends_with(".yml") || name.ends_with(".json") {
            found.push(path);
        }
    }
    found.sort();
    found
}
