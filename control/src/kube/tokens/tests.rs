//! What counts as which caller, and for how long.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::json;
use tokio::time::advance;
use tonic::Code;

use super::*;

/// Answers what it was told to, and counts.
#[derive(Default)]
struct List {
    status: Mutex<TokenReviewStatus>,
    place: Option<Place>,
    away: AtomicBool,
    asked: AtomicUsize,
}

impl Reviewer for Arc<List> {
    async fn token(&self, _: &str) -> Result<TokenReviewStatus, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.away.load(Ordering::Relaxed) {
            true => Err("connection refused".into()),
            false => Ok(self.status.lock().unwrap().clone()),
        }
    }

    async fn pod(&self, _: &str, _: &str) -> Result<Option<Place>, String> {
        Ok(self.place.clone())
    }
}

fn status(account: &str, audiences: &[&str], extra: &[(&str, &str)]) -> TokenReviewStatus {
    let extra = extra.iter().map(|(name, value)| ((*name).to_string(), vec![(*value).to_string()]));
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(audiences.iter().map(|a| (*a).to_string()).collect()),
        user: Some(UserInfo {
            username: Some(account.into()),
            extra: Some(extra.collect()),
            ..UserInfo::default()
        }),
        error: None,
    }
}

const AGENT: &str = "system:serviceaccount:culvert-system:culvert-agent";
const NODE: (&str, &str) = ("authentication.kubernetes.io/node-name", "node-1");
const POD: (&str, &str) = ("authentication.kubernetes.io/pod-name", "culvert-agent-x");
const POD_UID: (&str, &str) = ("authentication.kubernetes.io/pod-uid", "u1");

fn reviews(list: List) -> (Reviews<Arc<List>>, Arc<List>) {
    let list = Arc::new(list);
    let agents = BTreeSet::from(["culvert-system/culvert-agent".parse().unwrap()]);
    (Reviews::new(list.clone(), agents), list)
}

fn token(seconds: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    format!("h.{}.s", URL_SAFE_NO_PAD.encode(json!({"exp": now + seconds}).to_string()))
}

async fn once(status: TokenReviewStatus, place: Option<Place>) -> Result<Caller, Code> {
    let (reviews, _) = reviews(List { status: Mutex::new(status), place, ..List::default() });
    reviews.caller(&token(3600)).await.map_err(|status| status.code())
}

fn place(uid: &str) -> Option<Place> {
    Some(Place { uid: uid.into(), node: "node-2".into() })
}

#[tokio::test]
async fn an_agents_node_is_that_of_its_token_or_of_the_very_pod_that_the_token_is_bound_to() {
    let us = &["istio-ca"];
    let node = |name: &str| Ok(Caller::Node(name.into()));
    assert_eq!(once(status(AGENT, us, &[NODE, POD, POD_UID]), None).await, node("node-1"));
    assert_eq!(once(status(AGENT, us, &[POD, POD_UID]), place("u1")).await, node("node-2"));
    for (extra, found) in [
        (vec![POD, POD_UID], place("u2")),
        (vec![POD, POD_UID], None),
        (vec![POD], place("u1")),
        (vec![], place("u1")),
    ] {
        let answer = once(status(AGENT, us, &extra), found).await;
        assert_eq!(answer, Err(Code::PermissionDenied), "{extra:?}");
    }
}

#[tokio::test]
async fn any_other_service_account_is_a_waypoint_even_with_a_node_in_its_token() {
    for account in ["shop:waypoint", "other:culvert-agent", "culvert-system:default"] {
        let answer = once(status(&format!("system:serviceaccount:{account}"), &["istio-ca"], &[NODE]), None);
        let (namespace, name) = account.split_once(':').unwrap();
        assert_eq!(answer.await, Ok(Caller::Waypoint(namespace.into(), name.into())));
    }
    for user in ["admin", "system:node:node-1", "system:serviceaccount:x", ""] {
        assert_eq!(
            once(status(user, &["istio-ca"], &[NODE]), None).await,
            Err(Code::PermissionDenied),
            "{user}"
        );
    }
}

#[tokio::test]
async fn a_token_that_is_refused_or_of_another_audience_is_unauthenticated() {
    assert_eq!(once(status(AGENT, &["vault"], &[NODE]), None).await, Err(Code::Unauthenticated));
    assert_eq!(once(status(AGENT, &[], &[NODE]), None).await, Err(Code::Unauthenticated));
    assert_eq!(once(TokenReviewStatus::default(), None).await, Err(Code::Unauthenticated));
    let (unknown, list) = reviews(List::default());
    assert_eq!(unknown.caller(&"x".repeat(9000)).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(list.asked.load(Ordering::Relaxed), 0, "nobody is asked about what cannot be a token");
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_for_a_minute_and_longer_only_while_nobody_can_be_asked() {
    let (reviews, list) =
        reviews(List { status: Mutex::new(status(AGENT, &["istio-ca"], &[NODE])), ..List::default() });
    let asked = || list.asked.load(Ordering::Relaxed);
    let token = token(3600);
    for _ in 0..3 {
        reviews.caller(&token).await.unwrap();
    }
    assert_eq!(asked(), 1);
    advance(kept::FRESH).await;
    reviews.caller(&token).await.unwrap();
    assert_eq!(asked(), 2, "asked anew");
    list.away.store(true, Ordering::Relaxed);
    advance(kept::STALE - Duration::from_secs(1)).await;
    reviews.caller(&token).await.unwrap();
    let other = reviews.caller("h.e30.s").await.unwrap_err();
    assert_eq!(other.code(), Code::Unavailable, "an unknown one is not refused: nobody can tell");
    advance(Duration::from_secs(1)).await;
    assert_eq!(reviews.caller(&token).await.unwrap_err().code(), Code::Unavailable, "too long ago");
    list.away.store(false, Ordering::Relaxed);
    *list.status.lock().unwrap() = TokenReviewStatus::default();
    assert_eq!(reviews.caller(&token).await.unwrap_err().code(), Code::Unauthenticated, "revoked meanwhile");
    list.away.store(true, Ordering::Relaxed);
    advance(kept::REFUSED).await;
    assert_eq!(reviews.caller(&token).await.unwrap_err().code(), Code::Unavailable, "and not accepted again");
}

#[tokio::test(start_paused = true)]
async fn an_answer_never_outlives_its_token() {
    let (reviews, list) =
        reviews(List { status: Mutex::new(status(AGENT, &["istio-ca"], &[NODE])), ..List::default() });
    let token = token(20);
    reviews.caller(&token).await.unwrap();
    list.away.store(true, Ordering::Relaxed);
    advance(Duration::from_secs(21)).await;
    assert_eq!(reviews.caller(&token).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_kept_for_a_moment_and_answers_are_kept_in_bounds() {
    let (reviews, list) = reviews(List::default());
    for _ in 0..2 {
        reviews.caller("h.e30.s").await.unwrap_err();
    }
    assert_eq!(list.asked.load(Ordering::Relaxed), 1);
    *list.status.lock().unwrap() = status(AGENT, &["istio-ca"], &[NODE]);
    let first = format!("{}0", token(3600));
    reviews.caller(&first).await.unwrap();
    advance(Duration::from_secs(1)).await;
    for number in 1..=kept::ENTRIES {
        reviews.caller(&format!("{}{number}", token(3600))).await.unwrap();
    }
    let before = list.asked.load(Ordering::Relaxed);
    reviews.caller(&first).await.unwrap();
    assert_eq!(list.asked.load(Ordering::Relaxed), before + 1, "the oldest made room");
}
