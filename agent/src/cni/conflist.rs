//! The primary plugin's list and our place in it. Pure: what others wrote stays as it is.

use serde_json::{Map, Value, json};

use super::PLUGIN;

/// Why a file is no list of plugins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConflistError {
    /// Not JSON, or not an object.
    #[error("it is no JSON object: {0}")]
    Json(String),
    /// Neither a list nor a plugin.
    #[error("it has neither `plugins` nor `type`")]
    Shape,
}

/// What is written into the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name of the node.
    pub node: String,
    /// Where the agent listens.
    pub socket: String,
    /// The agent's state folder, as the node sees it.
    pub state_dir: String,
    /// Mount point of the bpf file system.
    pub bpffs: String,
    /// Root of the node's cgroup v2 tree, when the agent was told.
    pub cgroup: Option<String>,
    /// Namespaces that never take part.
    pub excluded: Vec<String>,
}

impl Entry {
    fn value(&self) -> Value {
        json!({
            "type": PLUGIN,
            "node": self.node,
            "socket": self.socket,
            "stateDir": self.state_dir,
            "bpffs": self.bpffs,
            "cgroup": self.cgroup,
            "excludeNamespaces": self.excluded,
        })
    }
}

/// The list with our entry in it, at the end when it was not there; none when it is as it should be. A
/// single plugin becomes a list of its own and ours.
///
/// # Errors
/// The text is no list and no plugin.
pub fn with(text: &str, entry: &Entry) -> Result<Option<String>, ConflistError> {
    let mut list = parse(text)?;
    let ours = entry.value();
    let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else {
        return single(list, ours).map(Some);
    };
    match plugins.iter().position(is_ours) {
        Some(at) if plugins[at] == ours => return Ok(None),
        Some(at) => plugins[at] = ours,
        None => plugins.push(ours),
    }
    Ok(Some(print(list)))
}

/// The list without our entry; none when it has none.
///
/// # Errors
/// The text is no list and no plugin.
pub fn without(text: &str) -> Result<Option<String>, ConflistError> {
    let mut list = parse(text)?;
    let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else {
        return Ok(None);
    };
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    Ok((plugins.len() != before).then(|| print(list)))
}

/// Whether the text is one plugin and no list.
pub fn is_single(text: &str) -> bool {
    parse(text).is_ok_and(|list| !list.contains_key("plugins") && list.contains_key("type"))
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == PLUGIN
}

fn parse(text: &str) -> Result<Map<String, Value>, ConflistError> {
    serde_json::from_str(text).map_err(|error| ConflistError::Json(error.to_string()))
}

fn print(list: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(list))
}

/// Name and version move from the plugin to the list, which gives them to every plugin.
fn single(mut plugin: Map<String, Value>, ours: Value) -> Result<String, ConflistError> {
    if !plugin.contains_key("type") {
        return Err(ConflistError::Shape);
    }
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        list.extend(plugin.remove(key).map(|value| (key.to_owned(), value)));
    }
    list.insert("plugins".into(), json!([plugin, ours]));
    Ok(print(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            node: "a".into(),
            socket: "/run/culvert/cni.sock".into(),
            state_dir: "/var/lib/culvert/agent".into(),
            bpffs: "/sys/fs/bpf".into(),
            cgroup: None,
            excluded: vec!["kube-system".into()],
        }
    }

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "custom": {"big": 18446744073709551615, "f": 0.1},
        "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}]]}},
                    {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    #[test]
    fn our_entry_comes_last_and_goes_again_and_nothing_else_changes() {
        let with_ours = with(LIST, &entry()).unwrap().unwrap();
        let plugins = value(&with_ours)["plugins"].as_array().unwrap().clone();
        assert_eq!((plugins.len(), &plugins[2]["type"]), (3, &json!("culvert-cni")));
        assert_eq!(with(&with_ours, &entry()).unwrap(), None, "it is there already");
        assert_eq!(value(&without(&with_ours).unwrap().unwrap()), value(LIST));
        assert_eq!(without(LIST).unwrap(), None);
    }

    #[test]
    fn an_older_entry_is_replaced_where_it_is() {
        let older = LIST.replace(
            r#"{"type": "portmap""#,
            r#"{"type": "culvert-cni", "node": "old"}, {"type": "portmap""#,
        );
        let plugins = value(&with(&older, &entry()).unwrap().unwrap())["plugins"].clone();
        assert_eq!((plugins.as_array().unwrap().len(), &plugins[1]["node"]), (3, &json!("a")));
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let single = r#"{"cniVersion": "0.4.0", "name": "n", "type": "bridge", "bridge": "b"}"#;
        assert!(is_single(single) && !is_single(LIST));
        let list = value(&with(single, &entry()).unwrap().unwrap());
        assert_eq!((&list["name"], &list["cniVersion"]), (&json!("n"), &json!("0.4.0")));
        assert_eq!(list["plugins"][0], json!({"type": "bridge", "bridge": "b"}));
        assert_eq!(list["plugins"][1]["type"], "culvert-cni");
    }

    #[test]
    fn what_is_no_list_is_left_alone() {
        for wrong in ["", "[]", "{", "{}", "{\"name\": \"n\"}", "{\"plugins\": 3}"] {
            assert!(with(wrong, &entry()).is_err(), "{wrong}");
            assert!(without(wrong).is_err() || without(wrong) == Ok(None), "{wrong}");
        }
    }
}
