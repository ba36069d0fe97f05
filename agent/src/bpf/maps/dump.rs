//! What the tables hold, for people: `/debug/config`.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{BpfError, IpKey, Key, LISTENER_HBONE, ListenerKey, MapError, Maps, at, lock};

/// Entries of one table that are shown.
const SHOWN: usize = 1000;

impl Maps {
    /// The tables that decisions rest on besides the pods: addresses, listeners, ranges, configuration.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn dump(&self) -> Result<Value, BpfError> {
        let inner = self.inner()?;
        let (owners, ranges) = (lock(&inner.pod_ips), lock(&inner.mesh));
        let owners = owners
            .iter()
            .map(|entry| entry.map(|(ip, netns)| json!({"address": address(ip), "netns": netns})));
        let listeners = lock(&inner.listeners);
        let config = lock(&inner.config).get(&0, 0).map_err(at("CONFIG"))?;
        Ok(json!({
            "POD_IPS": shown("POD_IPS", owners)?,
            "LISTENERS": shown("LISTENERS", listeners.keys().map(|key| key.map(listener)))?,
            "MESH": shown("MESH", ranges.keys().map(|key| key.map(range)))?,
            "CONFIG": {
                "host_netns": config.host_netns,
                "ranges_complete": config.ranges_complete == 1,
                "epoch": config.epoch,
            },
        }))
    }
}

fn shown(
    map: &'static str,
    entries: impl Iterator<Item = Result<Value, MapError>>,
) -> Result<Vec<Value>, BpfError> {
    entries.take(SHOWN).collect::<Result<_, _>>().map_err(at(map))
}

fn range(key: Key<IpKey>) -> Value {
    let ip = address(key.data());
    let mapped = if ip.is_ipv4() { 96 } else { 0 };
    json!(format!("{ip}/{}", key.prefix_len().saturating_sub(mapped)))
}

fn listener(key: ListenerKey) -> Value {
    let kind = if key.kind == LISTENER_HBONE { "hbone" } else { "plaintext" };
    json!({"netns": key.netns, "kind": kind})
}

fn address(key: IpKey) -> IpAddr {
    IpAddr::from(key.0).to_canonical()
}
