//! Files of a cluster folder and the documents in them.

pub use mesh_net::folder::{list, read};

/// A document of a file.
pub struct Document {
    /// File, relative to the folder.
    pub file: String,
    /// Its first line, from 1.
    pub line: usize,
    /// Its text.
    pub text: String,
}

/// Splits a file where YAML begins or ends a document: at `---` and `...`, whatever else is on the line.
pub fn split(file: &str, text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let (mut start, mut current) = (1, String::new());
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let Some(rest) = after_marker(line) else {
            current.push_str(line);
            current.push('\n');
            continue;
        };
        documents.push(Document { file: file.into(), line: start, text: std::mem::take(&mut current) });
        start = index + 2;
        if !rest.trim().is_empty() {
            start = index + 1;
            current = format!("{rest}\n");
        }
    }
    documents.push(Document { file: file.into(), line: start, text: current });
    documents.retain(|d| d.text.lines().any(says_something));
    documents
}

/// What follows `---` or `...` on its line; none for a line that is no marker.
fn after_marker(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("---").or_else(|| line.strip_prefix("..."))?;
    (rest.is_empty() || rest.starts_with([' ', '\t', '\r'])).then_some(rest)
}

/// Comments and directives (`%YAML 1.2`) are no document.
fn says_something(line: &str) -> bool {
    let text = line.trim_start();
    !text.is_empty() && !text.starts_with('#') && !line.starts_with('%')
}
