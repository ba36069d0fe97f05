//! Callers by their service-account tokens (decision 0038): the API server reviews a token, its answer is
//! kept for a short time, and while the API server is away an answer that is already there is used longer.

mod answer;
mod api;
mod expiry;
mod kept;

use std::{collections::BTreeSet, fmt, future::Future, sync::Arc, time::Duration};

use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tonic::Status;

use self::{
    answer::{Bound, Refusal, Reviewed},
    kept::Kept,
};
use crate::auth::{self, Caller, Review};

pub use self::{answer::Account, api::ApiServer};

/// Audience that a token must be made for, asked for and checked in the answer: Istio's, so that agents and
/// proxies of both take the same token.
pub const AUDIENCE: &str = "istio-ca";
/// Longest token that is looked at, bytes; the API server's are below 2 KiB.
const LONGEST: usize = 8 << 10;
/// Reviews under way at one time; more wait.
const CONCURRENT: usize = 32;
/// Longest wait for a review, the wait for its turn included.
const DEADLINE: Duration = Duration::from_secs(10);

/// Who can be asked about tokens: the API server, or a list in a test.
pub trait Reviewer: Send + Sync + 'static {
    /// What is said about a token for our audience; an error when nobody can tell.
    fn token(&self, token: &str) -> impl Future<Output = Result<TokenReviewStatus, String>> + Send;

    /// Node and uid of a pod; none when there is no such pod or it has no node.
    fn pod(&self, namespace: &str, name: &str) -> impl Future<Output = Result<Option<Place>, String>> + Send;
}

/// Where a pod runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its uid.
    pub uid: String,
    /// Its node.
    pub node: String,
}

/// Reviews of tokens, with the answers of the last minutes.
pub struct Reviews<R> {
    reviewer: R,
    agents: BTreeSet<Account>,
    kept: Kept,
    turns: Semaphore,
}

impl<R> fmt::Debug for Reviews<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviews").field("agents", &self.agents).finish_non_exhaustive()
    }
}

impl<R: Reviewer> Reviews<R> {
    /// Accounts in `agents` are agents of the nodes that their pods run on.
    pub fn new(reviewer: R, agents: BTreeSet<Account>) -> Self {
        Self { reviewer, agents, kept: Kept::default(), turns: Semaphore::new(CONCURRENT) }
    }

    async fn caller(&self, token: &str) -> Result<Caller, Status> {
        if token.is_empty() || token.len() > LONGEST {
            return Err(Status::unauthenticated(
                "the token is empty or too long for one of a service account",
            ));
        }
        if let Some(answer) = self.kept.fresh(token, Instant::now()) {
            return answer.map_err(Refusal::into);
        }
        let asked = timeout(DEADLINE, self.ask(token)).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", DEADLINE.as_secs())));
        let now = Instant::now();
        match asked {
            Ok(answer) => {
                self.kept.keep(token, answer.clone(), expiry::left(token), now);
                answer.map_err(Refusal::into)
            }
            Err(reason) => match self.kept.stale(token, now) {
                Some(caller) => {
                    tracing::warn!(%caller, reason, "token cannot be reviewed now; its last review still counts");
                    Ok(caller)
                }
                None => {
                    tracing::warn!(reason, "token cannot be reviewed");
                    Err(Status::unavailable(format!("the token cannot be reviewed now: {reason}")))
                }
            },
        }
    }

    /// The API server's answer, or why there is none.
    async fn ask(&self, token: &str) -> Result<Reviewed, String> {
        let _turn = self.turns.acquire().await.map_err(|_| "the control plane ends")?;
        let status = self.reviewer.token(token).await?;
        match answer::of(status, AUDIENCE, &self.agents) {
            Err(refusal) => Ok(Err(refusal)),
            Ok(Bound::Known(caller)) => Ok(Ok(caller)),
            // API servers before 1.30 name the pod only.
            Ok(Bound::Pod { namespace, name, uid }) => {
                let found = self.reviewer.pod(&namespace, &name).await?;
                Ok(answer::on_node(found, &namespace, &name, &uid))
            }
        }
    }
}

impl<R: Reviewer> Review for Reviews<R> {
    fn review<'a>(&'a self, token: &'a str) -> auth::Reviewed<'a> {
        Box::pin(self.caller(token))
    }
}

/// The reviewer of a running control plane.
pub fn reviews(client: kube::Client, agents: BTreeSet<Account>) -> Arc<dyn Review> {
    Arc::new(Reviews::new(ApiServer(client), agents))
}

#[cfg(test)]
mod tests;
