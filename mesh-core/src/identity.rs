//! SPIFFE identities as Istio writes them: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The identity of a workload: what its certificate says and what policies name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Identity {
    /// Trust domain, for example `cluster.local`.
    pub trust_domain: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Kubernetes service account.
    pub service_account: Arc<str>,
}

/// Why a string is not a SPIFFE identity of a workload.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// The scheme is missing.
    #[error("identity {0:?} does not start with spiffe://")]
    Scheme(String),
    /// Not exactly `<td>/ns/<ns>/sa/<sa>` with non-empty parts.
    #[error("identity {0:?} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape(String),
}

impl Identity {
    /// Builds an identity from its three parts.
    pub fn new(
        trust_domain: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
        service_account: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// The text that policies compare against: the id without its scheme, `td/ns/<ns>/sa/<sa>`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| IdentityError::Scheme(text.into()))?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            [td, "ns", ns, "sa", sa] if !td.is_empty() && !ns.is_empty() && !sa.is_empty() => {
                Ok(Self::new(*td, *ns, *sa))
            }
            _ => Err(IdentityError::Shape(text.into())),
        }
    }
}

impl From<Identity> for String {
    fn from(id: Identity) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_round_trips_through_its_text() {
        let id = Identity::new("cluster.local", "default", "client");
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/default/sa/client");
        assert_eq!(id.to_string().parse::<Identity>().unwrap(), id);
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/client");
    }

    #[test]
    fn refuses_anything_that_is_not_a_workload_identity() {
        for bad in
            ["", "http://a/ns/b/sa/c", "spiffe://a/ns/b", "spiffe://a/ns/b/sa/", "spiffe://a/ns/b/sa/c/d"]
        {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
