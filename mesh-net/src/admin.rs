//! The admin endpoint of a program: `/metrics`, `/healthz`, `/readyz`, `/logging` and what the program
//! adds, over TCP (anybody who reaches the port may read) and over a Unix socket (the machine's root).

mod serve;
mod socket;
#[cfg(test)]
mod tests;

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode};
use prometheus::{Registry, TextEncoder};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::task::Ready;

pub use self::{
    serve::{serve_tcp, serve_unix},
    socket::bind_unix,
};

/// Time for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const TEXT: &str = "text/plain; charset=utf-8";

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `content-type`.
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// Plain text.
    pub fn text(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, content_type: TEXT, body: body.into() }
    }

    /// A value as JSON, status 200; 500 when it cannot be written as JSON.
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status: 200, content_type: "application/json", body: body.into() },
            Err(error) => Self::text(500, format!("{error}\n")),
        }
    }
}

type Answering = Pin<Box<dyn Future<Output = Option<Answer>> + Send>>;
type Handler = Arc<dyn Fn(String, Option<String>) -> Answering + Send + Sync>;
type Figures = Arc<dyn Fn(&mut String) + Send + Sync>;
type Logging = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Tcp,
    Unix,
}

/// What the endpoint shows. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    registry: Registry,
    ready: Ready,
    draining: CancellationToken,
    handler: Option<Handler>,
    figures: Option<Figures>,
    logging: Option<Logging>,
}

impl Admin {
    /// Shows metrics and readiness; not ready any more once `draining` is cancelled.
    pub fn new(registry: Registry, ready: Ready, draining: CancellationToken) -> Self {
        Self { registry, ready, draining, handler: None, figures: None, logging: None }
    }

    /// Adds paths for GET: path and query → answer, none for a path that there is not.
    #[must_use]
    pub fn with_handler<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(String, Option<String>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<Answer>> + Send + 'static,
    {
        self.handler = Some(Arc::new(move |path, query| Box::pin(handler(path, query))));
        self
    }

    /// Adds metrics that are read when somebody asks, as text in Prometheus's format.
    #[must_use]
    pub fn with_figures(mut self, figures: impl Fn(&mut String) + Send + Sync + 'static) -> Self {
        self.figures = Some(Arc::new(figures));
        self
    }

    /// Adds `/logging`: shows the log level, and sets it by POST with `?level=`, which only the Unix
    /// socket accepts. `level` gets the new one, or none to be asked, and answers what holds now.
    #[must_use]
    pub fn with_logging(
        mut self,
        level: impl Fn(Option<&str>) -> Result<String, String> + Send + Sync + 'static,
    ) -> Self {
        self.logging = Some(Arc::new(level));
        self
    }

    async fn answer(&self, origin: Origin, method: &Method, path: &str, query: Option<&str>) -> Answer {
        if path == "/logging" {
            return self.log(origin, method, query);
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            return refusal(StatusCode::METHOD_NOT_ALLOWED);
        }
        match path {
            "/metrics" | "/stats/prometheus" => self.metrics(),
            "/healthz" => Answer::text(200, "ok\n"),
            "/readyz" | "/healthz/ready" => self.readiness(),
            _ => self.special(path, query).await,
        }
    }

    async fn special(&self, path: &str, query: Option<&str>) -> Answer {
        let Some(handler) = &self.handler else { return refusal(StatusCode::NOT_FOUND) };
        match timeout(ANSWER_LIMIT, handler(path.to_owned(), query.map(str::to_owned))).await {
            Ok(Some(answer)) => answer,
            Ok(None) => refusal(StatusCode::NOT_FOUND),
            Err(_) => refusal(StatusCode::GATEWAY_TIMEOUT),
        }
    }

    fn readiness(&self) -> Answer {
        match self.ready.pending() {
            _ if self.draining.is_cancelled() => Answer::text(503, "draining\n"),
            list if list.is_empty() => Answer::text(200, "ready\n"),
            list => Answer::text(503, format!("awaiting {}\n", list.join(", "))),
        }
    }

    fn metrics(&self) -> Answer {
        match TextEncoder::new().encode_to_string(&self.registry.gather()) {
            Ok(mut text) => {
                if let Some(figures) = &self.figures {
                    figures(&mut text);
                }
                Answer { status: 200, content_type: "text/plain; version=0.0.4", body: text.into() }
            }
            Err(error) => Answer::text(500, format!("{error}\n")),
        }
    }

    fn log(&self, origin: Origin, method: &Method, query: Option<&str>) -> Answer {
        let Some(logging) = &self.logging else { return refusal(StatusCode::NOT_FOUND) };
        let level = query.and_then(|q| q.split('&').find_map(|pair| pair.strip_prefix("level=")));
        let told = match (method, origin) {
            (&Method::GET, _) => logging(None),
            (&Method::POST, Origin::Unix) => logging(level),
            (&Method::POST, Origin::Tcp) => return refusal(StatusCode::FORBIDDEN),
            _ => return refusal(StatusCode::METHOD_NOT_ALLOWED),
        };
        match told {
            Ok(level) => Answer::text(200, format!("{level}\n")),
            Err(why) => Answer::text(400, format!("{why}\n")),
        }
    }
}

fn refusal(status: StatusCode) -> Answer {
    let why = status.canonical_reason().unwrap_or_default().to_lowercase();
    Answer::text(status.as_u16(), format!("{why}\n"))
}
