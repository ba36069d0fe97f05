//! The API server as the bench writes to it.

use std::{collections::VecDeque, path::Path};

use anyhow::{Context, Result};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tokio::task::JoinSet;

/// Requests under way at once while a fleet is made.
const AT_ONCE: usize = 32;

/// A client of the API server.
#[derive(Clone)]
pub struct Api(Client);

/// One request.
#[derive(Debug, Clone)]
pub enum Write {
    /// Makes an object in a collection.
    Post(String, Value),
    /// Merges into an object.
    Patch(String, Value),
    /// Takes an object away at once.
    Delete(String),
}

impl Api {
    /// Reads the kubeconfig; makes no request.
    pub async fn new(kubeconfig: &Path) -> Result<Self> {
        let read = Kubeconfig::read_from(kubeconfig).context("the admin's kubeconfig")?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        Ok(Self(Client::try_from(config)?))
    }

    /// Writes; returns when the API server has acknowledged it.
    pub async fn write(&self, write: &Write) -> Result<()> {
        let (method, path, kind, body) = match write {
            Write::Post(path, object) => ("POST", path, "application/json", object.to_string()),
            Write::Patch(path, patch) => ("PATCH", path, "application/merge-patch+json", patch.to_string()),
            Write::Delete(path) => {
                ("DELETE", path, "application/json", r#"{"gracePeriodSeconds": 0}"#.to_string())
            }
        };
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(body.into_bytes())?;
        self.0.request_text(request).await.map(drop).with_context(|| format!("{method} {path}"))
    }

    /// Writes everything; each inner list in its order, the lists side by side.
    pub async fn write_all(&self, lists: impl IntoIterator<Item = Vec<Write>>) -> Result<()> {
        let mut lists: VecDeque<Vec<Write>> = lists.into_iter().collect();
        let mut running = JoinSet::new();
        while let Some(list) = lists.pop_front() {
            if running.len() == AT_ONCE {
                running.join_next().await.context("requests are under way")???;
            }
            let api = self.clone();
            running.spawn(async move {
                for write in &list {
                    api.write(write).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        Ok(())
    }
}
