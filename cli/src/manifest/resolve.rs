//! The object tree with the values of one installation put in.

use serde_json::Value;

use super::{
    objects::{Object, all},
    template::{Piece, condition, pieces, splice},
    values::Values,
};

/// Every object of an installation, in the order in which they are applied.
pub fn objects(values: &Values) -> Vec<Object> {
    let wanted = |object: &Object| object.when.is_none_or(|setting| values.holds(setting));
    let resolved = |mut object: Object| {
        object.body = resolve(&object.body, values);
        object
    };
    all().into_iter().filter(wanted).map(resolved).collect()
}

/// A value with every reference replaced.
pub fn resolve(value: &Value, values: &Values) -> Value {
    match value {
        Value::String(text) => string(text, values),
        Value::Array(items) => Value::Array(items.iter().flat_map(|item| list_item(item, values)).collect()),
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| match condition(value) {
                Some((setting, inner)) if values.holds(setting) => {
                    Some((key.clone(), resolve(inner, values)))
                }
                Some(_) => None,
                None => Some((key.clone(), resolve(value, values))),
            };
            Value::Object(map.iter().filter_map(entry).collect())
        }
        other => other.clone(),
    }
}

fn list_item(item: &Value, values: &Values) -> Vec<Value> {
    if let Some(setting) = splice(item) {
        return values.get(setting).and_then(|v| v.as_array().cloned()).unwrap_or_default();
    }
    match condition(item) {
        Some((setting, inner)) if values.holds(setting) => vec![resolve(inner, values)],
        Some(_) => Vec::new(),
        None => vec![resolve(item, values)],
    }
}

fn string(text: &str, values: &Values) -> Value {
    let pieces = pieces(text);
    if let [Piece::Reference { path, text: false }] = pieces.as_slice() {
        return values.get(path).unwrap_or_default();
    }
    let piece = |piece: &Piece| match piece {
        Piece::Literal(text) => text.clone(),
        Piece::Reference { path, .. } => match values.get(path).unwrap_or_default() {
            Value::String(text) => text,
            other => other.to_string(),
        },
    };
    Value::String(pieces.iter().map(piece).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::manifest::template::{each, when};

    #[test]
    fn references_take_kinds_conditions_drop_and_lists_are_put_in() {
        let mut values = Values::defaults("ns");
        values.set(r#"agent.extraArgs=["--a","--b"]"#).unwrap();
        let tree = json!({
            "replicas": "${control.replicas}", "text": "${control.replicas:text}",
            "image": "${image.registry}/x:${image.tag}", "ns": "${namespace}",
            "args": ["--z", each("agent.extraArgs"), when("cni.enabled", json!("--cni")), when("network", json!("--network"))],
            "absent": when("openshift.enabled", json!(1)), "plain": "$x {y}",
        });
        let expected = json!({
            "replicas": 1, "text": "1", "image": "culvert.local/x:0.1.0", "ns": "ns",
            "args": ["--z", "--a", "--b", "--cni"], "plain": "$x {y}",
        });
        assert_eq!(resolve(&tree, &values), expected);
    }
}
