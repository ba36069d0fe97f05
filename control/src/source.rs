//! The cluster folder and the objects of an API server as one set of objects. A bad document is refused by
//! itself; the last good version of its object stays. A refused policy without one is closed by a stand-in
//! (decision 0012). Of an object that is in both, the API server's counts (decision 0036).

pub mod api;
pub mod files;
pub mod good;
pub mod kinds;
mod yaml;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::Value;

use self::{api::Api, files::Document};
use crate::{
    finding::{Finding, Problem, Severity, Sink},
    lines::locate,
    object::{KINDS, Key, Object, parse, stand_in},
};

/// Where an object is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    Folder,
    /// The API server.
    Kubernetes,
}

/// One object and where it came from.
#[derive(Debug, Clone)]
pub struct Stored {
    /// File, relative to the folder.
    pub file: String,
    /// First line of its document.
    pub line: usize,
    /// Text of the document, for lines of later findings.
    pub text: String,
    /// Where the object is in its document: `items[0].` in a list, else empty.
    pub prefix: String,
    /// What it says.
    pub object: Object,
    /// Takes the place of a refused document that has no earlier version.
    pub stand_in: bool,
    /// Where it is from.
    pub origin: Origin,
}

/// All objects of a folder, an API server, or both.
#[derive(Debug, Default)]
pub struct Store {
    /// Objects in effect by key.
    pub objects: BTreeMap<Key, Stored>,
    /// Findings of the folder's last load.
    pub findings: Vec<Finding>,
    /// Every source could be read at least once: before that nothing is known to be absent.
    pub read: bool,
    /// The folder itself could be read the last time.
    pub readable: bool,
    /// Some routes may be missing: a file cannot be read, or a VirtualService without an earlier version
    /// is refused. What is absent may then be wanted all the same.
    pub doubtful: bool,
    /// The API server's part; none when there is none.
    api: Option<Api>,
    /// Objects of the folder that the API server has too.
    shadowed: BTreeMap<Key, Stored>,
    folder: Folder,
}

/// State of the folder's part.
#[derive(Debug, Default)]
struct Folder {
    read: bool,
    doubtful: bool,
    /// There is none to be read.
    absent: bool,
}

impl Stored {
    /// A problem of this object at its line; 0 for an object of no file.
    pub fn finding(&self, key: &Key, problem: Problem) -> Finding {
        if self.origin == Origin::Kubernetes {
            return problem.placed(&self.file, 0, &key.to_string());
        }
        let line = self.line + locate(&self.text, &format!("{}{}", self.prefix, problem.field)) - 1;
        problem.placed(&self.file, line, &key.to_string())
    }
}

/// One pass over the folder.
#[derive(Default)]
struct Load {
    objects: BTreeMap<Key, Stored>,
    stand_ins: BTreeMap<Key, Stored>,
    /// Objects whose document is refused: an earlier version stays.
    refused: BTreeSet<Key>,
    /// Files and folders that cannot be read, relative: what came from there stays.
    unreadable: BTreeSet<String>,
    findings: Vec<Finding>,
}

impl Store {
    /// Makes the API server a source as well, or with `folder` false the only one.
    pub fn on_kubernetes(mut self, folder: bool) -> Self {
        self.api = Some(Api::default());
        self.folder.absent = !folder;
        self.readable |= !folder;
        self.refresh();
        self
    }

    /// The API server's part; none when it is no source.
    pub fn api(&self) -> Option<&Api> {
        self.api.as_ref()
    }

    /// Findings of documents and objects, before compilation.
    pub fn all_findings(&self) -> impl Iterator<Item = Finding> {
        let twice = |(key, stored): (&Key, &Stored)| {
            let reason = "is also in the API server, whose version is used".into();
            let two = problem("metadata.name", Severity::Warning, "duplicate", reason, "keep one of them");
            stored.finding(key, two)
        };
        let api = self.api.iter().flat_map(Api::findings).cloned();
        self.findings.iter().cloned().chain(api).chain(self.shadowed.iter().map(twice))
    }

    /// What follows from the state of both sources. Once all was read it stays so: what cannot be read
    /// later stays as it was.
    fn refresh(&mut self) {
        let listed = self.api.as_ref().is_none_or(|api| api.missing().is_empty());
        self.read |= (self.folder.read || self.folder.absent) && listed;
        let unsure = self.api.as_ref().is_some_and(|api| api.doubtful(&self.objects));
        self.doubtful = self.folder.doubtful || unsure;
    }

    /// Loads the folder again. What cannot be read is a finding, and what came from there stays.
    pub fn load(&mut self, folder: &Path) {
        let mut load = Load::default();
        load.folder(folder);
        self.readable = !load.unreadable.contains("");
        self.folder.read |= self.readable;
        let (own, of_api): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.objects)
            .into_iter()
            .partition(|(_, stored)| stored.origin == Origin::Folder);
        let before = own.into_iter().chain(std::mem::take(&mut self.shadowed));
        for (key, stored) in before.filter(|(_, s)| !s.stand_in) {
            if load.objects.contains_key(&key) {
                continue;
            }
            let refused = load.refused.contains(&key);
            if refused {
                load.kept(&key, &stored);
            }
            if refused || load.is_unreadable(&stored.file) {
                load.objects.insert(key, stored);
            }
        }
        for (key, stored) in std::mem::take(&mut load.stand_ins) {
            load.objects.entry(key).or_insert(stored);
        }
        let lost = |key: &Key| &*key.kind == "VirtualService" && !load.objects.contains_key(key);
        self.folder.doubtful = !load.unreadable.is_empty() || load.refused.iter().any(lost);
        self.objects = of_api;
        for (key, stored) in load.objects {
            let hidden = self.objects.contains_key(&key);
            let into = if hidden { &mut self.shadowed } else { &mut self.objects };
            into.insert(key, stored);
        }
        self.findings = load.findings;
        self.refresh();
    }
}

impl Load {
    fn folder(&mut self, folder: &Path) {
        let listing = files::list(folder);
        let relative = |path: &Path| path.strip_prefix(folder).unwrap_or(path).display().to_string();
        for (path, error) in listing.unreadable {
            self.unreadable(relative(&path), &error);
        }
        for path in listing.files {
            match files::read(&path) {
                Ok(text) => {
                    files::split(&relative(&path), &text).into_iter().for_each(|doc| self.document(&doc));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => self.unreadable(relative(&path), &error),
            }
        }
    }

    fn unreadable(&mut self, path: String, error: &std::io::Error) {
        let reason = format!("cannot be read: {error}; what was read from it before stays in effect");
        let problem = problem("", Severity::Error, "unreadable", reason, "make it readable");
        let shown = if path.is_empty() { "." } else { &path };
        self.findings.push(problem.placed(shown, 1, ""));
        self.unreadable.insert(path);
    }

    fn is_unreadable(&self, file: &str) -> bool {
        let whole = |at: &String| at.is_empty() || file == at;
        self.unreadable.iter().any(|at| whole(at) || Path::new(file).starts_with(at))
    }

    fn document(&mut self, doc: &Document) {
        match yaml::parse(&doc.text) {
            Ok(Value::Null) => {}
            Ok(value) => self.value(doc, "", &value),
            Err(error) => {
                let line = doc.line + error.location().map_or(0, |at| at.line().saturating_sub(1));
                let reason = format!("is no YAML: {error}");
                let problem = problem("", Severity::Error, "bad-yaml", reason, "correct the syntax");
                self.findings.push(problem.placed(&doc.file, line, ""));
                self.unreadable.insert(doc.file.clone());
            }
        }
    }

    /// An object, or the objects of a list.
    fn value(&mut self, doc: &Document, prefix: &str, value: &Value) {
        match items(value) {
            None => self.object(doc, prefix, value),
            Some(Ok(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.value(doc, &format!("{prefix}items[{index}]."), item);
                }
            }
            Some(Err(reason)) => {
                let problem =
                    problem("items", Severity::Error, "wrong-type", reason, "write the objects there");
                let key = Key { kind: "List".into(), namespace: "".into(), name: "".into() };
                self.report(doc, prefix, &key, &[problem]);
            }
        }
    }

    fn object(&mut self, doc: &Document, prefix: &str, value: &Value) {
        let sink = Sink::default();
        let (key, object) = parse(value, &sink);
        let problems = sink.into_problems();
        self.report(doc, prefix, &key, &problems);
        let stored = |object, stand_in| Stored {
            file: doc.file.clone(),
            line: doc.line,
            text: doc.text.clone(),
            prefix: prefix.into(),
            object,
            stand_in,
            origin: Origin::Folder,
        };
        let refused = problems.iter().any(|p| p.severity == Severity::Error);
        match object {
            Some(object) if refused => {
                if let Some(closed) = stand_in::stand_in(&object, &problems) {
                    let name = named(&key, doc);
                    self.stand_ins.entry(name).or_insert_with(|| stored(closed, true));
                }
                self.refused.insert(key);
            }
            None => drop(self.refused.insert(key)),
            Some(object) => self.keep(doc, key, stored(object, false)),
        }
    }

    fn keep(&mut self, doc: &Document, key: Key, stored: Stored) {
        if let Some(first) = self.objects.get(&key) {
            let reason = format!("is also in {}:{}, which is used", first.file, first.line);
            let code = "duplicate";
            let twice = problem("metadata.name", Severity::Error, code, reason, "keep one of them");
            return self.report(doc, &stored.prefix, &key, &[twice]);
        }
        self.objects.insert(key, stored);
    }

    fn report(&mut self, doc: &Document, prefix: &str, key: &Key, problems: &[Problem]) {
        for problem in problems {
            let line = doc.line + locate(&doc.text, &format!("{prefix}{}", problem.field)) - 1;
            self.findings.push(problem.clone().placed(&doc.file, line, &key.to_string()));
        }
    }

    fn kept(&mut self, key: &Key, stored: &Stored) {
        let reason = format!("is refused; the version read before, of {}, stays in effect", stored.file);
        let info = problem("", Severity::Info, "last-good", reason, "correct the errors of this object");
        self.findings.push(info.placed(&stored.file, stored.line, &key.to_string()));
    }
}

/// The objects of a list (`kind: List`, `PodList`); none for what is no list, such as another API's `BlockList`.
fn items(value: &Value) -> Option<Result<&[Value], String>> {
    let of = value["kind"].as_str()?.strip_suffix("List")?;
    match &value["items"] {
        Value::Array(items) => Some(Ok(items)),
        _ if of.is_empty() || KINDS.contains(&of) => Some(Err("items is missing or no list".into())),
        _ => None,
    }
}

/// A refused policy without a name still needs a key of its own.
fn named(key: &Key, doc: &Document) -> Key {
    match key.name.is_empty() {
        true => Key { name: format!("unnamed {}:{}", doc.file, doc.line).into(), ..key.clone() },
        false => key.clone(),
    }
}

fn problem(field: &str, severity: Severity, code: &'static str, reason: String, remedy: &str) -> Problem {
    Problem { severity, field: field.into(), code, reason, remedy: remedy.into() }
}
