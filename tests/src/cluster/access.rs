//! Reaching the cluster from a test's own code, and as a service account.

use std::{fs::File, panic, path::PathBuf, thread};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use serde_json::json;

use super::{API_PORT, Cluster};
use crate::net;

impl Cluster {
    /// Address of the API server.
    pub fn url(&self) -> String {
        format!("https://{}:{API_PORT}", net::UNDERLAY)
    }

    /// Runs code on a thread of its own inside the cluster's network, where an API client in the test's
    /// own process reaches the API server. A runtime for it has to be made in there, single-threaded.
    pub fn inside<T: Send>(&self, code: impl FnOnce() -> T + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.place().netns);
        let netns = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        let outcome = thread::scope(|scope| {
            let inner = move || -> Result<T> {
                setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter the cluster's network")?;
                Ok(code())
            };
            scope.spawn(inner).join()
        });
        outcome.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    }

    /// A token of a service account for an audience, made by the API server; good for an hour.
    pub fn token(&self, namespace: &str, account: &str, audience: &str) -> Result<String> {
        let audience = format!("--audience={audience}");
        let text = self.kubectl(&["-n", namespace, "create", "token", account, &audience])?;
        Ok(text.trim().to_string())
    }

    /// A kubeconfig of a service account, with a token as its pods have it.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["-n", namespace, "create", "token", account])?;
        let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k",
                "cluster": {"server": self.url(), "certificate-authority": self.pki.file("ca.crt")}}],
            "users": [{"name": "u", "user": {"token": token.trim()}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": namespace}}]});
        let path = self.pki.file(&format!("account-{namespace}-{account}.kubeconfig"));
        std::fs::write(&path, text.to_string())?;
        Ok(path)
    }
}
