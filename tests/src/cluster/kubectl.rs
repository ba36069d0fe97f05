//! `kubectl` against a cluster, as its admin or somebody else.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Cluster;
use crate::{shell, wait};

/// File in a kept cluster's folder with the words that begin a `kubectl` command, as JSON.
pub const WORDS: &str = "kubectl.json";

impl Cluster {
    /// The admin's kubeconfig; it is good inside [`Cluster::place`]'s network.
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki.file("admin.kubeconfig")
    }

    /// The same as a person would type it.
    pub fn kubectl_words(&self) -> Vec<String> {
        let enter = format!("--net=/run/netns/{}", self.place().netns);
        let config = self.kubeconfig().display().to_string();
        let program = self.programs.path("kubectl").display().to_string();
        vec!["nsenter".into(), enter, program, "--kubeconfig".into(), config]
    }

    /// A `kubectl` command as the admin.
    pub fn kubectl_command(&self) -> Result<Command> {
        self.kubectl_as(&self.kubeconfig())
    }

    /// A `kubectl` command with another kubeconfig.
    pub fn kubectl_as(&self, kubeconfig: &Path) -> Result<Command> {
        let mut command =
            self.place_of("kubectl").command(&self.programs.path("kubectl").to_string_lossy())?;
        command.arg("--kubeconfig").arg(kubeconfig).arg("--cache-dir").arg(self.root.join("kubectl"));
        Ok(command)
    }

    /// Runs `kubectl` with these words and returns what it printed.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        shell::output(self.kubectl_command()?.args(words))
    }

    /// Applies YAML or JSON text.
    pub fn apply(&self, text: &str) -> Result<String> {
        self.feed(&["apply", "--server-side", "--force-conflicts", "-f", "-"], text)
    }

    /// Applies an object.
    pub fn apply_object(&self, object: &Value) -> Result<String> {
        self.apply(&object.to_string())
    }

    /// Deletes what YAML or JSON text names, and waits until it is gone.
    pub fn delete(&self, text: &str) -> Result<String> {
        self.feed(&["delete", "--ignore-not-found", "-f", "-"], text)
    }

    /// Runs `kubectl` with text on its standard input.
    pub fn feed(&self, words: &[&str], text: &str) -> Result<String> {
        let mut command = self.kubectl_command()?;
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start kubectl")?;
        child.stdin.take().context("kubectl's input is piped")?.write_all(text.as_bytes())?;
        let out = child.wait_with_output()?;
        if !out.status.success() {
            bail!("kubectl {} ended with {}: {}", words.join(" "), out.status, stderr(&out.stderr));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// An object or a list, as `kubectl get -o json` shows it.
    pub fn get(&self, words: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], words].concat())?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// Looks at an object until `observe` returns a value.
    pub fn wait_for<T>(
        &self,
        limit: Duration,
        what: &str,
        words: &[&str],
        mut observe: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let mut last = String::new();
        wait::until(limit, what, || match self.get(words) {
            Ok(object) => {
                let seen = observe(&object);
                last = object.to_string();
                seen
            }
            Err(error) => {
                last = format!("{error:#}");
                None
            }
        })
        .with_context(|| format!("last seen: {}", last.chars().take(2000).collect::<String>()))
    }
}

fn stderr(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_string()
}
