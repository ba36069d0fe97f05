//! Objects as JSON, each question with a time limit.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use kube::{Client, Error, client::Body};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::error::ApiError;

/// Limit of one question.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Objects in one answer of a list.
const PAGE: usize = 500;
/// Most objects that a list returns; more is an error and never a part.
pub const MOST: usize = 200_000;
/// Largest answer of a pod's endpoint, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// Name under which Culvert's fields are owned.
pub const MANAGER: &str = "culvert-cli";

/// An API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// Its address.
    pub server: String,
}

/// What applying an object changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It was not there.
    Created,
    /// It was other.
    Changed,
    /// It was so already.
    Unchanged,
}

impl Cluster {
    /// With a client.
    pub fn new(client: Client, server: String) -> Self {
        Self { client, server }
    }

    async fn ask<T>(
        &self,
        what: &str,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, ApiError> {
        match timeout(LIMIT, question).await {
            Ok(answer) => answer.map_err(|error| ApiError::new(what, &error)),
            Err(_) => Err(ApiError::timeout(what, LIMIT)),
        }
    }

    async fn send(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Value, ApiError> {
        let what = format!(
            "{method} {}{}",
            self.server.trim_end_matches('/'),
            path.split('?').next().unwrap_or(path)
        );
        let mut request = hyper::Request::builder().method(method).uri(path);
        let mut bytes = Vec::new();
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind);
            bytes = body.to_string().into_bytes();
        }
        let request = request.body(bytes);
        let request = request.map_err(|error| ApiError {
            what: what.clone(),
            status: 0,
            message: error.to_string(),
        })?;
        self.ask(&what, self.client.request(request)).await
    }

    /// An object or document; none when there is none.
    ///
    /// # Errors
    /// No answer, or another status than 200 and 404.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, ApiError> {
        match self.send("GET", path, None).await {
            Err(error) if error.status == 404 => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Status and body of a pod's endpoint, whatever they are.
    ///
    /// # Errors
    /// No whole answer within the limits.
    pub async fn answer(&self, path: &str) -> Result<(u16, Bytes), ApiError> {
        let what = format!("GET {path}");
        let error = |message: String| ApiError { what: what.clone(), status: 0, message };
        let request = hyper::Request::get(path).body(Body::empty()).map_err(|e| error(e.to_string()))?;
        let exchange = async {
            let answer = self.client.send(request).await.map_err(|e| ApiError::new(&what, &e))?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            Ok((status, body.map_err(|e| error(e.to_string()))?.to_bytes()))
        };
        timeout(LIMIT, exchange).await.unwrap_or_else(|_| Err(ApiError::timeout(&what, LIMIT)))
    }

    /// Every object of a collection; none when the kind is not known. `query` selects, such as
    /// `labelSelector=a%3Db`.
    ///
    /// # Errors
    /// As [`Self::get`], and more than [`MOST`] objects.
    pub async fn list(&self, path: &str, query: &str) -> Result<Vec<Value>, ApiError> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let page = format!("{path}?limit={PAGE}&{query}{next}");
            let Some(mut answer) = self.get(&page).await? else { return Ok(all) };
            if let Value::Array(items) = answer["items"].take() {
                all.extend(items);
            }
            if all.len() > MOST {
                let message = format!("more than {MOST} objects");
                return Err(ApiError { what: format!("GET {path}"), status: 0, message });
            }
            match answer.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(token) if !token.is_empty() => {
                    let token =
                        percent_encoding::utf8_percent_encode(token, percent_encoding::NON_ALPHANUMERIC);
                    next = format!("&continue={token}");
                }
                _ => return Ok(all),
            }
        }
    }

    /// Applies an object on the server's side: its fields are ours from then on, also when somebody else
    /// set them. With `dry_run` the server checks and changes nothing.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn apply(&self, path: &str, body: &Value, dry_run: bool) -> Result<Change, ApiError> {
        let before = self.get(path).await?;
        let dry = if dry_run { "&dryRun=All" } else { "" };
        let path = format!("{path}?fieldManager={MANAGER}&force=true&fieldValidation=Strict{dry}");
        let after = self.send("PATCH", &path, Some(("application/apply-patch+yaml", body))).await?;
        // A dry run answers with the old version also when something would change.
        let same = |before: &Value| match dry_run {
            true => content(before) == content(&after),
            false => {
                before.pointer("/metadata/resourceVersion") == after.pointer("/metadata/resourceVersion")
            }
        };
        Ok(match before {
            None => Change::Created,
            Some(before) if same(&before) => Change::Unchanged,
            Some(_) => Change::Changed,
        })
    }

    /// Creates an object.
    ///
    /// # Errors
    /// The server refuses it, or it is there already (409).
    pub async fn create(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        let path = format!("{path}?fieldManager={MANAGER}");
        self.send("POST", &path, Some(("application/json", body))).await
    }

    /// Merges fields into an object (RFC 7386); whether it is there.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn merge(&self, path: &str, fields: &Value) -> Result<bool, ApiError> {
        let path = format!("{path}?fieldManager={MANAGER}");
        match self.send("PATCH", &path, Some(("application/merge-patch+json", fields))).await {
            Err(error) if error.status == 404 => Ok(false),
            answer => answer.map(|_| true),
        }
    }

    /// Deletes an object; whether it was there. What it owns follows.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn delete(&self, path: &str) -> Result<bool, ApiError> {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
        match self.send("DELETE", path, Some(("application/json", &options))).await {
            Err(error) if error.status == 404 => Ok(false),
            answer => answer.map(|_| true),
        }
    }
}

/// An object without what the server counts in it.
fn content(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("managedFields");
        meta.remove("generation");
        meta.remove("resourceVersion");
    }
    object
}
