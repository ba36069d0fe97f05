//! Profiles and platforms: named sets of values, each an overlay of the kustomize base.

use serde_json::Value;

use super::values::Values;
use crate::exit::Failure;

/// A named set of values.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    /// Name, also of the overlay's folder.
    pub name: &'static str,
    /// What it is for, and what to know on such a platform.
    pub notes: &'static [&'static str],
    /// Setting and value, as JSON.
    pub values: &'static [(&'static str, &'static str)],
}

const CRITICAL: &str = r#""system-cluster-critical""#;
const SPREAD: &str = r#"[{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "culvert-control"}}}]"#;

/// How much there is to lose.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "demo",
        notes: &["One replica of the control plane, small requests: the defaults."],
        values: &[],
    },
    Profile {
        name: "production",
        notes: &[
            "Two replicas of the control plane on different nodes, a disruption budget, a priority that survives a full cluster.",
            "Losing the control plane stops no traffic, but new pods wait for their certificates.",
        ],
        values: &[
            ("control.replicas", "2"),
            ("control.podDisruptionBudget", "true"),
            ("control.topologySpreadConstraints", SPREAD),
            ("control.priorityClassName", CRITICAL),
            (
                "control.resources",
                r#"{"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}"#,
            ),
            ("agent.resources", r#"{"requests": {"cpu": "200m", "memory": "256Mi"}}"#),
        ],
    },
];

/// Where it runs.
pub const PLATFORMS: &[Profile] = &[
    Profile {
        name: "k3s",
        notes: &[
            "For k3s and k3d. k3s keeps CNI plugins and configuration in folders of its own.",
            "k3d: `k3d image import IMAGE.tar -c CLUSTER` for images that no registry has.",
            "Its nodes need cgroup v2 and Linux 6.1 or newer on the host.",
        ],
        values: &[
            ("cni.binDir", r#""/var/lib/rancher/k3s/data/cni""#),
            ("cni.confDir", r#""/var/lib/rancher/k3s/agent/etc/cni/net.d""#),
        ],
    },
    Profile {
        name: "kind",
        notes: &[
            "`kind load image-archive IMAGE.tar` for images that no registry has; they are never pulled.",
            "All nodes of kind share the host's kernel: it needs Linux 6.1 or newer with BTF, and cgroup v2.",
        ],
        values: &[("image.pullPolicy", r#""Never""#)],
    },
    Profile {
        name: "gke",
        notes: &[
            "GKE admits critical priority classes outside kube-system only with a ResourceQuota, which is part of this overlay.",
            "Standard clusters only: Autopilot refuses the host's network and folders.",
            "Node images: Container-Optimized OS 113 or newer (Linux 6.1), Ubuntu 24.04.",
        ],
        values: &[("cni.binDir", r#""/home/kubernetes/bin""#), ("resourceQuota.enabled", "true")],
    },
    Profile {
        name: "eks",
        notes: &[
            "Node images: Amazon Linux 2023 or Bottlerocket with Linux 6.1 or newer.",
            "Security groups for pods: set POD_SECURITY_GROUP_ENFORCING_MODE=standard on the VPC CNI, and let port 15008 through between nodes.",
            "Bottlerocket confines containers with SELinux: agents run as super_t there.",
        ],
        values: &[(
            "agent.seLinuxOptions",
            r#"{"user": "system_u", "role": "system_r", "type": "super_t", "level": "s0"}"#,
        )],
    },
    Profile {
        name: "aks",
        notes: &[
            "Node images: Azure Linux 3 or Ubuntu 24.04. Ubuntu 22.04 has Linux 5.15, which is too old.",
            "Azure CNI powered by Cilium: see docs/install.md about Cilium.",
        ],
        values: &[],
    },
    Profile {
        name: "openshift",
        notes: &[
            "Agents get the security context constraint `privileged` (the host's network and folders), though they run with a list of capabilities; the control plane `nonroot-v2`.",
            "Multus owns the CNI configuration, so the plugin is off: agents see new pods by their watch, and a pod may send before that. The taint option closes the gap.",
            "RHEL CoreOS 9 has Linux 5.14: `culvert check` refuses it. RHEL CoreOS 10 has 6.12.",
        ],
        values: &[
            ("cni.enabled", "false"),
            ("openshift.enabled", "true"),
            ("agent.seLinuxOptions", r#"{"type": "spc_t"}"#),
        ],
    },
];

/// Names of a list, with commas.
pub fn names(of: &[Profile]) -> String {
    of.iter().map(|profile| profile.name).collect::<Vec<_>>().join(", ")
}

impl Profile {
    /// Puts its values in.
    ///
    /// # Errors
    /// A value of the table does not fit its setting.
    pub fn apply(&self, values: &mut Values) -> Result<(), Failure> {
        for (path, json) in self.values {
            let value: Value = serde_json::from_str(json)
                .map_err(|error| Failure::new(format!("{}: {path}: {error}", self.name), "report this"))?;
            values.put(path, value)?;
        }
        Ok(())
    }
}

/// The profile or platform of that name.
///
/// # Errors
/// There is none.
pub fn find(of: &'static [Profile], name: &str) -> Result<&'static Profile, Failure> {
    let unknown = || Failure::new(format!("there is no {name}"), format!("choose one of {}", names(of)));
    of.iter().find(|profile| profile.name == name).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_fits_the_settings() {
        for profile in PROFILES.iter().chain(PLATFORMS) {
            let mut values = Values::defaults("x");
            profile.apply(&mut values).unwrap();
            assert_eq!(values.changed().len(), profile.values.len(), "{}", profile.name);
            assert!(!profile.notes.is_empty());
        }
        assert!(find(PROFILES, "prod").unwrap_err().next.contains("production"));
    }
}
