//! Custom resources of Istio and of the Gateway API, as their Go modules ship them.

use std::fs;

use anyhow::{Context, Result};

use super::Cluster;

/// A set of custom resource definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crds {
    /// `networking.istio.io`, `security.istio.io`, `telemetry.istio.io`, `extensions.istio.io`.
    Istio,
    /// `gateway.networking.k8s.io`, the experimental channel: it has all of the standard one.
    GatewayApi,
}

impl Crds {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Istio, Self::GatewayApi];

    fn folder(self) -> &'static str {
        match self {
            Self::Istio => "istio",
            Self::GatewayApi => "gateway-api",
        }
    }
}

impl Cluster {
    /// Applies a set and waits until the API server serves its kinds.
    pub fn install_crds(&self, crds: Crds) -> Result<()> {
        let folder = self.programs.crds().join(crds.folder());
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut words = ["apply", "--server-side", "--force-conflicts"].map(str::to_string).to_vec();
        for entry in entries {
            words.extend(["-f".to_string(), entry?.path().display().to_string()]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let applied = self.kubectl(&words)?;
        let names: Vec<&str> =
            applied.lines().filter(|line| line.starts_with("customresourcedefinition")).collect();
        let names = names.iter().filter_map(|line| line.split(' ').next());
        let wait = ["wait", "--for=condition=Established", "--timeout=60s"].into_iter();
        self.kubectl(&wait.chain(names).collect::<Vec<_>>()).map(drop)
    }
}
