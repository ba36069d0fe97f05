//! Who calls: a bearer token that the tokens file knows, or that a reviewer (the API server) vouches for.

use std::{collections::BTreeMap, fmt, future::Future, path::PathBuf, pin::Pin, sync::Arc};

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

/// The answer of a review, which may have to ask another server.
pub type Reviewed<'a> = Pin<Box<dyn Future<Output = Result<Caller, Status>> + Send + 'a>>;

/// Says whose a token is.
pub trait Review: Send + Sync {
    /// The caller behind a token. Fails closed: `Unauthenticated` for a token that is refused,
    /// `PermissionDenied` for one whose owner may not call, `Unavailable` when nobody can tell.
    fn review<'a>(&'a self, token: &'a str) -> Reviewed<'a>;
}

/// Knows callers by the tokens file, a reviewer, or both (the file first).
#[derive(Clone, Default)]
pub struct Callers {
    file: Option<Tokens>,
    reviewer: Option<Arc<dyn Review>>,
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reviewer = self.reviewer.is_some();
        f.debug_struct("Callers").field("file", &self.file).field("reviewer", &reviewer).finish()
    }
}

impl Callers {
    /// With what there is; with neither, nobody may call.
    pub fn new(file: Option<PathBuf>, reviewer: Option<Arc<dyn Review>>) -> Self {
        Self { file: file.map(Tokens), reviewer }
    }

    /// The caller of a request.
    ///
    /// # Errors
    /// See [`Review::review`].
    pub async fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let token = bearer(metadata).map_err(Status::unauthenticated)?;
        let known = match &self.file {
            Some(file) => file.caller(token),
            None => Ok(None),
        };
        match (known, &self.reviewer) {
            (Ok(Some(caller)), _) => Ok(caller),
            // A file that cannot be read takes nothing from those that the reviewer knows.
            (Ok(None) | Err(_), Some(reviewer)) => reviewer.review(token).await,
            (Ok(None), None) => Err(Status::unauthenticated("the token is not known")),
            (Err(reason), None) => Err(Status::unauthenticated(reason)),
        }
    }
}

fn bearer(metadata: &MetadataMap) -> Result<&str, &'static str> {
    let header = metadata.get("authorization").ok_or("there is no bearer token")?;
    let token = header.to_str().ok().and_then(|h| h.strip_prefix("Bearer "));
    token.ok_or("authorization is no bearer token")
}

/// The tokens file (`token: node` or `token: namespace/account`); read for each call, because tokens come
/// and go.
#[derive(Debug, Clone)]
struct Tokens(PathBuf);

impl Tokens {
    fn caller(&self, token: &str) -> Result<Option<Caller>, &'static str> {
        let text = std::fs::read_to_string(&self.0).map_err(|_| "the tokens file cannot be read")?;
        let known: BTreeMap<String, String> =
            serde_norway::from_str(&text).map_err(|_| "the tokens file cannot be parsed")?;
        Ok(known.get(token).map(|name| match name.split_once('/') {
            Some((namespace, account)) => Caller::Waypoint(namespace.into(), account.into()),
            None => Caller::Node(name.as_str().into()),
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    struct Vouches;

    impl Review for Vouches {
        fn review<'a>(&'a self, token: &'a str) -> Reviewed<'a> {
            Box::pin(async move {
                match token {
                    "reviewed" => Ok(Caller::Node("node-r".into())),
                    _ => Err(Status::unavailable("nobody can tell")),
                }
            })
        }
    }

    fn with(token: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
        metadata
    }

    #[tokio::test]
    async fn a_token_of_the_file_needs_no_review_and_an_unknown_one_gets_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.yaml");
        std::fs::write(&path, "filed: node-f\nway: shop/waypoint\n").unwrap();
        let both = Callers::new(Some(path.clone()), Some(Arc::new(Vouches)));
        assert_eq!(both.caller(&with("filed")).await.unwrap(), Caller::Node("node-f".into()));
        assert_eq!(
            both.caller(&with("way")).await.unwrap(),
            Caller::Waypoint("shop".into(), "waypoint".into())
        );
        assert_eq!(both.caller(&with("reviewed")).await.unwrap(), Caller::Node("node-r".into()));
        assert_eq!(both.caller(&with("x")).await.unwrap_err().code(), tonic::Code::Unavailable);
        std::fs::remove_file(&path).unwrap();
        assert!(both.caller(&with("reviewed")).await.is_ok(), "without the file the reviewer still answers");
        let alone = Callers::new(Some(path), None);
        assert_eq!(alone.caller(&with("filed")).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    }

    #[tokio::test]
    async fn without_a_bearer_token_or_anybody_who_knows_tokens_nobody_may_call() {
        let nobody = Callers::default();
        for metadata in [MetadataMap::new(), with(""), with("x")] {
            let status = nobody.caller(&metadata).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unauthenticated);
        }
    }
}
