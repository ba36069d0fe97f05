//! A server and two clients on each node, each with an identity of its own, under STRICT; and what the node
//! agents, whosever they are, say of their connections.

use anyhow::{Context, Result};
use harness::wait;
use serde_json::{Value, json};

use crate::{
    istio::ISTIO,
    stage::{LIMIT, ROLLOUT, SYSTEM, Stage, TOOLS},
};

/// Their namespace.
pub const ENDS: &str = "ends";
/// A client and the server on the other node.
pub const WAYS: [(&str, &str); 2] = [("client-a", "web-b"), ("client-b", "web-a")];

/// Kind and name for `kubectl exec` in a client.
pub fn inside(client: &str) -> String {
    format!("deployment/{client}")
}

/// A request for a server that succeeds or not.
pub fn curl(server: &str) -> String {
    format!("/usr/bin/curl -sf --max-time 5 -o /dev/null http://{server}.{ENDS}/")
}

/// Identity of a server or client.
fn identity(name: &str) -> String {
    format!("spiffe://cluster.local/ns/{ENDS}/sa/{name}")
}

/// A policy about a server's pods that denies a client.
fn deny(client: &str, server: &str) -> Value {
    let principal = identity(client).replace("spiffe://", "");
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": format!("deny-{client}"), "namespace": ENDS},
        "spec": {"selector": {"matchLabels": {"app": server}}, "action": "DENY",
            "rules": [{"from": [{"source": {"principals": [principal]}}]}]}})
}

impl Stage {
    /// Makes them, or finds them as an earlier case left them, and waits until both ways work.
    pub fn ends(&self) -> Result<()> {
        if self.cluster.kubectl(&["get", "namespace", ENDS]).is_err() {
            // Not by `namespace`: it lasts until the cluster goes.
            let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ENDS}});
            self.cluster.apply_object(&home)?;
            self.label(ENDS, true)?;
            self.strict(ENDS)?;
            for end in ["a", "b"] {
                ["web", "client", "other"].iter().try_for_each(|role| self.end(role, end))?;
            }
        }
        self.both_ways()
    }

    /// Waits until every end is in the mesh and a request succeeds in each direction.
    pub fn both_ways(&self) -> Result<()> {
        for end in ["a", "b"] {
            for role in ["web", "client", "other"] {
                self.cluster.rolled_out(ENDS, &format!("deployment/{role}-{end}"), ROLLOUT)?;
            }
        }
        self.enrolled(ENDS, true)?;
        WAYS.iter()
            .try_for_each(|(client, server)| self.until(ENDS, &inside(client), &curl(server)).map(drop))
    }

    fn end(&self, role: &str, end: &str) -> Result<()> {
        let name = format!("{role}-{end}");
        let meta = json!({"name": name, "namespace": ENDS});
        self.cluster
            .apply_object(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}))?;
        let mut pod = json!({"serviceAccountName": name, "terminationGracePeriodSeconds": 1,
            "nodeSelector": {"kubernetes.io/hostname": format!("node-{end}")}});
        if role == "web" {
            return self.web(ENDS, &name, 1, &pod);
        }
        pod["containers"] = json!([{"name": role, "image": TOOLS, "command": ["/bin/sleep", "1000000"]}]);
        let labels = json!({"app": name});
        self.cluster
            .apply_object(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
                "spec": {"selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod}}}))
            .map(drop)
    }

    /// Both agents of a connection have logged its service and the identity that the other one has proven.
    pub fn proven(&self, client: &str, server: &str) -> Result<()> {
        let service = format!("dst.service={server}.{ENDS}.svc.cluster.local");
        for (direction, own, peer) in [
            ("outbound", client, format!("dst.identity={}", identity(server))),
            ("inbound", server, format!("src.identity={}", identity(client))),
        ] {
            let direction = format!("direction={direction}");
            self.agent_says(own, &[&direction, &peer, &service, "dst.hbone_addr="])?;
        }
        Ok(())
    }

    /// A policy about a server refuses a client and nobody else, the server's agent names it, and when it is
    /// gone the client is accepted again.
    pub fn denied_and_released(&self, client: &str, server: &str) -> Result<()> {
        let policy = deny(client, server);
        let (request, fails) = (curl(server), format!("! {}", curl(server)));
        self.cluster.apply_object(&policy)?;
        self.until(ENDS, &inside(client), &fails)?;
        let other = inside(&client.replace("client", "other"));
        self.exec(ENDS, &other, &["/bin/sh", "-c", &request]).context("another principal was refused")?;
        self.exec(ENDS, &inside(client), &["/bin/sh", "-c", &fails]).context("denied only once")?;
        let who = format!("src.identity={}", identity(client));
        let which = format!("{ENDS}/deny-{client}");
        self.agent_says(server, &["direction=inbound", &who, "explicitly denied by", &which])?;
        self.cluster.delete(&policy.to_string())?;
        self.until(ENDS, &inside(client), &request).context("after the policy was removed").map(drop)
    }

    /// Waits for a line in the log of the agent of an end's node that has all of these words.
    pub fn agent_says(&self, end: &str, words: &[&str]) -> Result<()> {
        let (_, node) = end.split_once('-').context("ends are named by their node")?;
        let (namespace, pod) = self.agent_of(&format!("node-{node}"))?;
        let what = format!("a line of {pod} with {}", words.join(" "));
        wait::until(LIMIT, &what, || {
            // Quotes differ.
            let log = self.cluster.kubectl(&["-n", namespace, "logs", &pod]).ok()?.replace('"', "");
            log.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        })
    }

    /// Namespace and pod of the agent of a node.
    pub fn agent_of(&self, node: &str) -> Result<(&'static str, String)> {
        let on = format!("spec.nodeName={node}");
        for (namespace, labels) in [(SYSTEM, "app.kubernetes.io/name=culvert-agent"), (ISTIO, "app=ztunnel")]
        {
            let words = ["-n", namespace, "get", "pods", "-l", labels, "--field-selector", &on, "-o", "name"];
            let names = self.cluster.kubectl(&words)?;
            if let Some(pod) = names.lines().next() {
                return Ok((namespace, pod.to_string()));
            }
        }
        anyhow::bail!("{node} has neither our agent nor ztunnel")
    }
}
