//! YAML as people write it: the usual order of keys, no quotes where none are needed, and for the chart
//! Helm's expressions where the tree refers to settings.

use serde_json::Value;

use super::{
    setting::{Kind, find},
    template::{Piece, condition, pieces, splice},
};

/// Keys that come first, in this order.
const FIRST: [&str; 6] = ["apiVersion", "kind", "name", "namespace", "metadata", "spec"];

/// An object without references, as a YAML document without its `---`.
pub fn plain(value: &Value) -> String {
    lines(value, false).join("\n") + "\n"
}

/// An object with references, as a Helm template.
pub fn helm(value: &Value) -> String {
    lines(value, true).join("\n") + "\n"
}

fn lines(value: &Value, chart: bool) -> Vec<String> {
    let mut out = Vec::new();
    match value {
        Value::Object(map) if !map.is_empty() => entries(map, chart, &mut out),
        Value::Array(items) if !items.is_empty() => {
            items.iter().for_each(|item| list_item(item, chart, &mut out))
        }
        other => out.push(scalar(other, chart)),
    }
    out
}

fn entries(map: &serde_json::Map<String, Value>, chart: bool, out: &mut Vec<String>) {
    let rank = |key: &str| FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len());
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort_by_key(|key| (rank(key), key.as_str()));
    for key in keys {
        let value = &map[key];
        match condition(value).filter(|_| chart) {
            Some((setting, inner)) => {
                out.push(format!("{{{{- if {} }}}}", helm_path(setting)));
                entry(key, inner, chart, out);
                out.push("{{- end }}".to_owned());
            }
            None => entry(key, value, chart, out),
        }
    }
}

fn entry(key: &str, value: &Value, chart: bool, out: &mut Vec<String>) {
    let key = quoted(key);
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push(format!("{key}:"));
            out.extend(indented(lines(value, chart)));
        }
        Value::Array(items) if !items.is_empty() => {
            out.push(format!("{key}:"));
            out.extend(lines(value, chart));
        }
        Value::String(text) if text.contains('\n') => {
            out.push(format!("{key}: |"));
            out.extend(text.trim_end().lines().map(|line| format!("  {line}").trim_end().to_owned()));
        }
        other => out.push(format!("{key}: {}", scalar(other, chart))),
    }
}

/// Helm's own lines stay at the left.
fn indented(lines: Vec<String>) -> impl Iterator<Item = String> {
    lines.into_iter().map(|line| match line.starts_with("{{- ") {
        true => line,
        false => format!("  {line}"),
    })
}

fn list_item(item: &Value, chart: bool, out: &mut Vec<String>) {
    if chart && let Some(setting) = splice(item) {
        out.push(format!("{{{{- range {} }}}}", helm_path(setting)));
        out.push("- {{ toJson . }}".to_owned());
        out.push("{{- end }}".to_owned());
        return;
    }
    if chart && let Some((setting, inner)) = condition(item) {
        out.push(format!("{{{{- if {} }}}}", helm_path(setting)));
        list_item(inner, chart, out);
        out.push("{{- end }}".to_owned());
        return;
    }
    let mut first = true;
    for line in lines(item, chart) {
        match (line.starts_with("{{- "), first) {
            (true, _) => out.push(line),
            (false, true) => out.push(format!("- {line}")),
            (false, false) => out.push(format!("  {line}")),
        }
        first = false;
    }
}

fn scalar(value: &Value, chart: bool) -> String {
    match value {
        Value::String(text) if chart => helm_string(text),
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

/// Path of a setting in a template.
pub(super) fn helm_path(setting: &str) -> String {
    match setting {
        "namespace" => ".Release.Namespace".to_owned(),
        path => format!(".Values.{path}"),
    }
}

fn helm_string(text: &str) -> String {
    let pieces = pieces(text);
    if let [Piece::Reference { path, text }] = pieces.as_slice() {
        let kind = find(path).map_or(Kind::Text, |setting| setting.kind);
        let path = helm_path(path);
        return match (kind, text) {
            (Kind::Text | Kind::Choice(_), _) => format!("{{{{ {path} | quote }}}}"),
            (Kind::Whole, true) => format!("{{{{ {path} | int | quote }}}}"),
            (Kind::Whole, false) => format!("{{{{ {path} | int }}}}"),
            (_, true) => format!("{{{{ {path} | toJson | quote }}}}"),
            (_, false) => format!("{{{{ {path} | toJson }}}}"),
        };
    }
    if pieces.iter().all(|piece| matches!(piece, Piece::Literal(_))) {
        return quoted(text);
    }
    let (mut format, mut arguments) = (String::new(), String::new());
    for piece in &pieces {
        match piece {
            Piece::Literal(text) => format.push_str(&text.replace('%', "%%")),
            Piece::Reference { path, .. } => {
                let whole = find(path).is_some_and(|setting| setting.kind == Kind::Whole);
                format.push_str(if whole { "%d" } else { "%s" });
                let path = helm_path(path);
                arguments.push_str(&if whole { format!(" (int {path})") } else { format!(" {path}") });
            }
        }
    }
    format!("{{{{ printf {}{arguments} | quote }}}}", Value::from(format))
}

/// A string, with quotes (JSON's, which YAML has too) when it could be read as something else.
fn quoted(text: &str) -> String {
    let ordinary = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '-');
    let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "-", "---"];
    let plain = starts && text.chars().all(|c| ordinary(c) || c == '=' || c == ',' || c == ':' || c == '@');
    let ambiguous = text.ends_with(':')
        || words.contains(&text.to_lowercase().as_str())
        || (text.starts_with('-') && !text.starts_with("--"))
        || text.parse::<f64>().is_ok();
    if plain && !ambiguous { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::manifest::template::{each, when};

    #[test]
    fn what_is_written_is_read_back_as_it_was() {
        let tree = json!({
            "kind": "X", "apiVersion": "v1", "a": [], "b": {}, "c": null, "d": [1, "1", "yes", "-1", "0x10", "1e3", "a: b", "# c"],
            "e": [{"name": "n", "k": [["x"], {"y": "z"}]}], "f.g/h": "--a=b,c:15", "i": "two\nlines\n", "j": "", "k": " x", "l": "a:",
            "m": "null", "n": 1.5, "o": true, "p": ".5", "q": "*", "r": "{x}", "s": "12:30", "t": "é\u{1}",
        });
        let text = plain(&tree);
        let read: Value = serde_norway::from_str(&text).unwrap();
        assert_eq!(read, tree, "{text}");
        assert!(text.starts_with("apiVersion: v1\nkind: X\n"), "{text}");
    }

    #[test]
    fn a_template_refers_to_values_by_kind() {
        let tree = json!({
            "args": ["--x=${trustDomain}", each("agent.extraArgs"), when("cni.enabled", json!("--cni"))],
            "r": "${control.replicas}", "t": "${agent.workers:text}", "m": "${agent.resources}", "ns": "${namespace}",
            "o": when("openshift.enabled", json!({"a": "${agent.drainSeconds}s"})),
        });
        let expected = "args:\n\
            - {{ printf \"--x=%s\" .Values.trustDomain | quote }}\n\
            {{- range .Values.agent.extraArgs }}\n- {{ toJson . }}\n{{- end }}\n\
            {{- if .Values.cni.enabled }}\n- --cni\n{{- end }}\n\
            m: {{ .Values.agent.resources | toJson }}\n\
            ns: {{ .Release.Namespace | quote }}\n\
            {{- if .Values.openshift.enabled }}\no:\n  a: {{ printf \"%ds\" (int .Values.agent.drainSeconds) | quote }}\n{{- end }}\n\
            r: {{ .Values.control.replicas | int }}\n\
            t: {{ .Values.agent.workers | int | quote }}\n";
        let text = helm(&tree);
        assert_eq!(text, expected);
    }
}
