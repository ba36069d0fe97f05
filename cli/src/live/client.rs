//! One HTTP/1.1 request to an admin endpoint, with a time and a size limit.

use std::{convert::Infallible, io, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    select,
    time::timeout,
};

use crate::{
    cluster::connect::{Reach, connect},
    contract::Refused,
    endpoint::{Endpoint, PodPort},
    exit::Failure,
};

/// Limit of one question from connecting to the last byte of the answer.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer, in bytes: the snapshot of a very large mesh.
pub const MAX_ANSWER: usize = 64 << 20;
/// How much of a refusal's text is shown, in characters.
const SHOWN: usize = 300;

/// An answer of any status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// What a body that is no success says: the `error` of its JSON, else its text.
    pub fn reason(&self) -> String {
        let refused: Option<Refused> = serde_json::from_slice(&self.body).ok();
        let text = || String::from_utf8_lossy(&self.body).trim().chars().take(SHOWN).collect();
        refused.map_or_else(text, |r| r.error)
    }
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No connection.
    #[error("{endpoint} cannot be reached: {cause}")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        cause: io::Error,
    },
    /// No whole answer within [`TIMEOUT`].
    #[error("{endpoint} did not answer {path} within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// Where.
        endpoint: Endpoint,
        /// What was asked.
        path: String,
    },
    /// An answer larger than [`MAX_ANSWER`].
    #[error("{endpoint} answered {path} with more than {} MiB", MAX_ANSWER >> 20)]
    TooLarge {
        /// Where.
        endpoint: Endpoint,
        /// What was asked.
        path: String,
    },
    /// What is there speaks no HTTP, or broke off.
    #[error("{endpoint} broke off while answering {path}: {cause}")]
    Http {
        /// Where.
        endpoint: Endpoint,
        /// What was asked.
        path: String,
        /// Why.
        cause: String,
    },
    /// A status that is no success.
    #[error("{endpoint} answered {path} with {status}: {reason}")]
    Status {
        /// Where.
        endpoint: Endpoint,
        /// What was asked.
        path: String,
        /// Status.
        status: u16,
        /// Its reason.
        reason: String,
    },
    /// A body that is not what was asked for.
    #[error("{endpoint} answered {path} with something else than expected: {cause}")]
    Decode {
        /// Where.
        endpoint: Endpoint,
        /// What was asked.
        path: String,
        /// What does not fit.
        cause: serde_json::Error,
    },
}

impl AskError {
    /// What to do about it.
    pub fn next(&self) -> &'static str {
        match self {
            Self::Connect { cause, .. } => match cause.kind() {
                io::ErrorKind::PermissionDenied => "the socket belongs to root: run it again with sudo",
                io::ErrorKind::NotFound => {
                    "there is no such socket or host: is it running, is the name right?"
                }
                io::ErrorKind::ConnectionRefused => "nothing listens there: is it running?",
                _ => "check the address and that it is running",
            },
            Self::Timeout { .. } => "it hangs or is very busy: look at its log",
            Self::TooLarge { .. } => "that is no admin endpoint of a Culvert program: check the address",
            Self::Http { .. } => "it may have ended, or is no admin endpoint: check the address and its log",
            Self::Status { status: 404, .. } => "is it an older version, or no admin endpoint of Culvert?",
            Self::Status { .. } => "look at its log",
            Self::Decode { .. } => "use a culvert of the same version as the programs that run",
        }
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self::new(error.to_string(), error.next())
    }
}

/// Asks for a path; any status is an answer.
///
/// # Errors
/// No whole answer within the limits.
pub async fn get(endpoint: &Endpoint, path: &str) -> Result<Answer, AskError> {
    match timeout(TIMEOUT, exchange(endpoint, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(AskError::Timeout { endpoint: endpoint.clone(), path: path.to_owned() }),
    }
}

/// Asks for a path and reads its JSON.
///
/// # Errors
/// As [`get`], and a status other than 200 or a body of another shape.
pub async fn get_json<T: DeserializeOwned>(endpoint: &Endpoint, path: &str) -> Result<T, AskError> {
    let answer = get(endpoint, path).await?;
    let (endpoint, path) = (endpoint.clone(), path.to_owned());
    if answer.status != 200 {
        return Err(AskError::Status { endpoint, path, status: answer.status, reason: answer.reason() });
    }
    serde_json::from_slice(&answer.body).map_err(|cause| AskError::Decode { endpoint, path, cause })
}

async fn exchange(endpoint: &Endpoint, path: &str) -> Result<Answer, AskError> {
    let fail = |cause| AskError::Connect { endpoint: endpoint.clone(), cause };
    match endpoint {
        Endpoint::Tcp(authority) => {
            let stream = TcpStream::connect(authority).await.map_err(fail)?;
            request(stream, endpoint, authority, path).await
        }
        Endpoint::Unix(socket) => {
            let stream = UnixStream::connect(socket).await.map_err(fail)?;
            request(stream, endpoint, "localhost", path).await
        }
        Endpoint::Pod(pod) => through(pod, path).await.map_err(|error| fail(io::Error::other(error))),
    }
}

/// Asks a pod through the API server.
async fn through(pod: &PodPort, path: &str) -> Result<Answer, String> {
    let reach = Reach { kubeconfig: pod.kubeconfig.clone(), context: pod.context.clone() };
    let cluster = connect(&reach).await.map_err(|failure| failure.reason)?;
    let place =
        format!("/api/v1/namespaces/{}/pods/http:{}:{}/proxy{path}", pod.namespace, pod.pod, pod.port);
    let (status, body) = cluster.answer(&place).await.map_err(|error| error.message)?;
    Ok(Answer { status, body })
}

async fn request(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    endpoint: &Endpoint,
    host: &str,
    path: &str,
) -> Result<Answer, AskError> {
    let broken = |cause: String| AskError::Http { endpoint: endpoint.clone(), path: path.to_owned(), cause };
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(e.to_string()))?;
    let request = Request::get(path).header(HOST, host).body(Empty::<Bytes>::new());
    let request = request.map_err(|e| broken(e.to_string()))?;
    let ask = async {
        let response = sender.send_request(request).await.map_err(|e| broken(e.to_string()))?;
        let status = response.status().as_u16();
        match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
            Ok(body) => Ok(Answer { status, body: body.to_bytes() }),
            Err(e) if e.is::<LengthLimitError>() => {
                Err(AskError::TooLarge { endpoint: endpoint.clone(), path: path.to_owned() })
            }
            Err(e) => Err(broken(e.to_string())),
        }
    };
    // The connection may end before the answer is taken from it, and its errors reach `ask` too.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    select! {
        answer = ask => answer,
        never = drive => match never {},
    }
}
