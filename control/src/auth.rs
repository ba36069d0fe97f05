//! Who calls: a bearer token from the tokens file, `token: node` or `token: namespace/account`.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use tonic::{Status, metadata::MetadataMap};

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The agent of a node.
    Node(Arc<str>),
    /// A waypoint: namespace and service account.
    Waypoint(Arc<str>, Arc<str>),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Waypoint(namespace, account) => write!(f, "waypoint {namespace}/{account}"),
        }
    }
}

/// The tokens file; read for each call, because tokens come and go.
#[derive(Debug, Clone)]
pub struct Tokens(pub PathBuf);

impl Tokens {
    /// The caller of a request.
    ///
    /// # Errors
    /// `Unauthenticated` with the reason.
    #[allow(clippy::result_large_err, reason = "tonic's error type")]
    pub fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let refused = |reason: &str| Status::unauthenticated(reason.to_string());
        let header = metadata.get("authorization").ok_or_else(|| refused("there is no bearer token"))?;
        let token = header.to_str().ok().and_then(|h| h.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| refused("authorization is no bearer token"))?;
        let text = std::fs::read_to_string(&self.0).map_err(|_| refused("the tokens file cannot be read"))?;
        let known: BTreeMap<String, String> =
            serde_norway::from_str(&text).map_err(|_| refused("the tokens file cannot be parsed"))?;
        let name = known.get(token).ok_or_else(|| refused("the token is not known"))?;
        Ok(match name.split_once('/') {
            Some((namespace, account)) => Caller::Waypoint(namespace.into(), account.into()),
            None => Caller::Node(name.as_str().into()),
        })
    }
}
