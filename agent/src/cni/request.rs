//! What the runtime says: environment and standard input (CNI specification 1.1, sections 2 and 4).

use std::{collections::HashMap, net::IpAddr, path::PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{SOCKET, report::Failure};

/// The plugin's own part of the list, as the agent writes it.
#[derive(Debug, Clone, Deserialize)]
pub struct Settings {
    /// Version of the specification that the result must have.
    #[serde(rename = "cniVersion", default)]
    pub cni_version: String,
    /// Where the agent listens.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// The agent's state folder.
    #[serde(rename = "stateDir", default)]
    pub state_dir: PathBuf,
    /// Name of the node, by which the kernel's tables are found.
    #[serde(default)]
    pub node: String,
    /// Mount point of the bpf file system.
    #[serde(default)]
    pub bpffs: PathBuf,
    /// Root of the node's cgroup v2 tree; the system's mount when not given.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Namespaces that never take part.
    #[serde(rename = "excludeNamespaces", default)]
    pub excluded: Vec<String>,
    /// What the plugins before this one made.
    #[serde(rename = "prevResult", default)]
    pub previous: Option<Value>,
    /// Attachments that there should be (GC).
    #[serde(rename = "cni.dev/valid-attachments", default)]
    pub valid: Option<Vec<Attachment>>,
}

fn socket() -> PathBuf {
    SOCKET.into()
}

/// An attachment that is valid.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    /// Id of the sandbox.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Interface in it.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// A call of the plugin.
#[derive(Debug, Clone)]
pub struct Request {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_NETNS`; none when the sandbox has none any more.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    args: HashMap<String, String>,
    /// Standard input.
    pub settings: Settings,
}

/// A pod, as the kubelet's arguments name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodArgs {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid as the kubelet knows it; empty when the runtime does not say.
    pub uid: String,
}

impl Request {
    /// Reads a call.
    ///
    /// # Errors
    /// The environment lacks something, or the input is no configuration.
    pub fn read(env: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Self, Failure> {
        let text = |name: &str| env(name).unwrap_or_default();
        let command = text("CNI_COMMAND");
        if command.is_empty() {
            return Err(Failure::environment(
                "CNI_COMMAND is not set; culvert-cni is called by a container runtime",
            ));
        }
        let settings = match command.as_str() {
            // Its input has a version only.
            "VERSION" if input.trim_ascii().is_empty() => b"{}".as_slice(),
            _ => input,
        };
        let settings: Settings = serde_json::from_slice(settings)
            .map_err(|error| Failure::decoding(format!("configuration on standard input: {error}")))?;
        let pairs = text("CNI_ARGS");
        let args = pairs.split(';').filter_map(|pair| pair.split_once('='));
        Ok(Self {
            command,
            container: text("CNI_CONTAINERID"),
            interface: text("CNI_IFNAME"),
            netns: env("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from),
            args: args.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            settings,
        })
    }

    /// The pod; none when the caller is no kubelet.
    pub fn pod(&self) -> Option<PodArgs> {
        let arg = |name: &str| self.args.get(name).filter(|value| !value.is_empty()).cloned();
        Some(PodArgs {
            namespace: arg("K8S_POD_NAMESPACE")?,
            name: arg("K8S_POD_NAME")?,
            uid: arg("K8S_POD_UID").unwrap_or_default(),
        })
    }

    /// The sandbox's addresses, from the previous result: those of interfaces inside the sandbox, or all
    /// where the result does not say whose they are.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let Some(result) = &self.settings.previous else { return Vec::new() };
        let inside = |index: &Value| {
            let interface = result["interfaces"].get(usize::try_from(index.as_u64()?).ok()?)?;
            Some(interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty()))
        };
        let ips = result["ips"].as_array().into_iter().flatten();
        let ours = ips.filter(|ip| inside(&ip["interface"]).unwrap_or(true));
        ours.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(input: &str) -> Result<Request, Failure> {
        let env = |name: &str| {
            let value = match name {
                "CNI_COMMAND" => "ADD",
                "CNI_CONTAINERID" => "abc",
                "CNI_IFNAME" => "eth0",
                "CNI_NETNS" => "/var/run/netns/cni-1",
                "CNI_ARGS" => "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1;odd",
                _ => return None,
            };
            Some(value.to_owned())
        };
        Request::read(env, input.as_bytes())
    }

    #[test]
    fn a_call_of_a_kubelet_is_understood() {
        let request = request(
            r#"{"cniVersion": "1.0.0", "name": "n", "type": "culvert-cni", "node": "a", "unknown": 1, "prevResult": {
                "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/var/run/netns/cni-1"}],
                "ips": [{"address": "10.0.0.2/24", "interface": 1}, {"address": "10.0.0.1/24", "interface": 0},
                        {"address": "fd00::2/64"}, {"address": "nonsense"}]}}"#,
        )
        .unwrap();
        let pod = request.pod().unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("shop", "web", "u1"));
        let addresses: Vec<String> = request.addresses().iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.2", "fd00::2"]);
        assert_eq!(request.settings.socket, PathBuf::from(SOCKET));
    }

    #[test]
    fn nonsense_is_an_error_of_the_specification() {
        assert_eq!(request("{").unwrap_err().code, 6);
        assert_eq!(request("").unwrap_err().code, 6);
        assert_eq!(Request::read(|_| None, b"{}").unwrap_err().code, 4);
        assert!(request("{}").unwrap().addresses().is_empty());
    }
}
