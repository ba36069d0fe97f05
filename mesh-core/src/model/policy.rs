//! L4 authorization policies (`istio.security.Authorization`) and string matching shared with L7.

use std::{fmt, str::FromStr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The key of a policy: `<namespace>/<name>`, the xDS resource name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PolicyName {
    /// Namespace (the root namespace for mesh-wide policies).
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl PolicyName {
    /// Builds a name.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// A policy key that is not `<namespace>/<name>`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("policy key {0:?} is not <namespace>/<name>")]
pub struct PolicyNameError(pub String);

impl FromStr for PolicyName {
    type Err = PolicyNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((ns, name)) if !name.is_empty() => Ok(Self::new(ns, name)),
            _ => Err(PolicyNameError(text.into())),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<PolicyName> for String {
    fn from(name: PolicyName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for PolicyName {
    type Error = PolicyNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// To which workloads a policy applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyScope {
    /// The whole mesh.
    Global,
    /// All workloads of its namespace.
    Namespace,
    /// Workloads that name it.
    Workload,
}

/// What a matching policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PolicyAction {
    /// Allow; as soon as one allow policy applies, what none of them matches is denied.
    Allow,
    /// Deny; wins over every allow.
    Deny,
}

/// A string matcher of Istio's policies (`StringMatch`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StringMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Starts with.
    Prefix(Arc<str>),
    /// Ends with.
    Suffix(Arc<str>),
    /// Any non-empty value.
    Presence,
}

impl StringMatch {
    /// Istio's spelling in YAML: `*` presence, `*x` suffix, `x*` prefix, anything else exact.
    pub fn from_istio(text: &str) -> Self {
        match text {
            "*" => Self::Presence,
            _ if text.starts_with('*') => Self::Suffix(text[1..].into()),
            _ if text.ends_with('*') => Self::Prefix(text[..text.len() - 1].into()),
            _ => Self::Exact(text.into()),
        }
    }

    /// Whether `value` matches; an absent value is the empty string and never satisfies presence.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(want) => value == &**want,
            Self::Prefix(want) => value.starts_with(&**want),
            Self::Suffix(want) => value.ends_with(&**want),
            Self::Presence => !value.is_empty(),
        }
    }
}

/// A service account, whatever its trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAccountMatch {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
}

/// One block of conditions; every non-empty list must hold (AND), a value of a positive list
/// suffices (OR), no value of a `not_` list may match. A block with nothing in it matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "field names are those of istio.security.Match")]
pub struct L4Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// Match blocks of which one must hold (OR); no blocks at all is true.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct L4Clause {
    /// Blocks.
    pub matches: Vec<L4Match>,
}

/// Clauses that must all hold (AND); no clauses at all is true.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct L4Rule {
    /// Clauses.
    pub clauses: Vec<L4Clause>,
}

/// An L4 authorization policy. Matches if any rule does; an empty rule list never matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Key.
    pub key: PolicyName,
    /// Reach.
    pub scope: PolicyScope,
    /// Effect.
    pub action: PolicyAction,
    /// Rules (OR).
    pub rules: Vec<L4Rule>,
    /// Only logged.
    pub dry_run: bool,
}
