//! From what the API server says about a token to a caller (pure). Fails closed: what is missing or odd is
//! a refusal.

use std::{collections::BTreeSet, str::FromStr, sync::Arc};

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use tonic::{Code, Status};

use super::Place;
use crate::auth::Caller;

/// A service account: namespace and name. As text `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(format!("{text:?} is no service account: write namespace/name")),
        }
    }
}

/// Why a token gets no caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    code: Code,
    reason: String,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.reason)
    }
}

/// A caller or why there is none.
pub(super) type Reviewed = Result<Caller, Refusal>;

/// A caller, or the pod whose node has to be found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Known(Caller),
    Pod { namespace: String, name: String, uid: String },
}

const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

fn denied(reason: String) -> Refusal {
    Refusal { code: Code::PermissionDenied, reason }
}

fn unauthenticated(reason: String) -> Refusal {
    Refusal { code: Code::Unauthenticated, reason }
}

/// The caller of a review's answer.
pub(super) fn of(
    status: TokenReviewStatus,
    audience: &str,
    agents: &BTreeSet<Account>,
) -> Result<Bound, Refusal> {
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "no reason given".into());
        return Err(unauthenticated(format!("the API server refuses the token: {why}")));
    }
    // A server that does not know audiences answers without any: then nothing says that the token is for us.
    if !status.audiences.iter().flatten().any(|of| of == audience) {
        let given = status.audiences.unwrap_or_default().join(", ");
        return Err(unauthenticated(format!("the token is not for audience {audience} (for: {given})")));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.as_deref().unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(denied(format!("{name:?} is no service account")));
    };
    let account = Account { namespace: namespace.into(), name: account.into() };
    if !agents.contains(&account) {
        return Ok(Bound::Known(Caller::Waypoint(account.namespace, account.name)));
    }
    if let Some(node) = extra(&user, NODE) {
        return Ok(Bound::Known(Caller::Node(node.into())));
    }
    match (extra(&user, POD), extra(&user, POD_UID)) {
        (Some(pod), Some(uid)) => {
            Ok(Bound::Pod { namespace: namespace.into(), name: pod.into(), uid: uid.into() })
        }
        _ => Err(denied(format!(
            "the token of agent {namespace}/{} is bound to no pod: project it into the agent's pod",
            account.name
        ))),
    }
}

/// The agent of the node that a pod runs on; the pod must be the very one that the token is bound to.
pub(super) fn on_node(found: Option<Place>, namespace: &str, name: &str, uid: &str) -> Reviewed {
    match found {
        Some(place) if place.uid == uid => Ok(Caller::Node(place.node.into())),
        Some(_) => Err(denied(format!("pod {namespace}/{name} is another one than the token's"))),
        None => Err(denied(format!("pod {namespace}/{name} of the token is gone or has no node"))),
    }
}

/// The one value of an extra field.
fn extra<'a>(user: &'a UserInfo, name: &str) -> Option<&'a str> {
    match user.extra.as_ref()?.get(name)?.as_slice() {
        [one] if !one.is_empty() => Some(one),
        _ => None,
    }
}
