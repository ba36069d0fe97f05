//! The API server as a reviewer of tokens.

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    core::v1::Pod,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use super::{AUDIENCE, Place, Reviewer};

/// Asks the API server.
#[derive(Clone)]
pub struct ApiServer(pub Client);

impl Reviewer for ApiServer {
    async fn token(&self, token: &str) -> Result<TokenReviewStatus, String> {
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.into()]), token: token.into() },
            status: None,
        };
        let answer = Api::<TokenReview>::all(self.0.clone()).create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| format!("the API server gives no TokenReview: {error}"))?;
        answer.status.ok_or_else(|| "the API server's TokenReview has no status".into())
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Place>, String> {
        let pods = Api::<Pod>::namespaced(self.0.clone(), namespace);
        let found = pods.get_opt(name).await;
        let found = found.map_err(|error| format!("pod {namespace}/{name} cannot be read: {error}"))?;
        Ok(found.and_then(|pod| {
            let node = pod.spec?.node_name.filter(|node| !node.is_empty())?;
            Some(Place { uid: pod.metadata.uid?, node })
        }))
    }
}
