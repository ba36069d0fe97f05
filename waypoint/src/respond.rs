//! Every answer that does not come from an upstream, in one place.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use mesh_core::{
    http::ResponseFlag,
    model::l7::AbortStatus,
    outcome::{Reason, Refusal},
};

use crate::{body::Answer, telemetry::Record};

/// Answers a refused request. The body is one short line; the reason is in `x-culvert-reason`, the
/// object that decided only in the access log. gRPC clients get a gRPC status in an HTTP 200.
pub fn refusal(refusal: Refusal, exhausted: bool, mut record: Record) -> Response<Answer> {
    let (status, text, grpc) = describe(refusal.reason);
    record.flag = if exhausted { ResponseFlag::RetryLimitExceeded } else { flag(refusal.reason) };
    let reason = HeaderValue::from_static(refusal.reason.as_str());
    record.reason = Some((refusal.reason, refusal.detail));
    let mut response = match record.is_grpc {
        true => grpc_answer(grpc, text, record),
        false => plain(status, text, record),
    };
    response.headers_mut().insert("x-culvert-reason", reason);
    response
}

/// As [`ResponseFlag::of`]; no tunnel for want of a proven identity is a failed connection too.
fn flag(reason: Reason) -> ResponseFlag {
    match reason {
        Reason::PeerIdentityRejected | Reason::CertificateUnavailable => {
            ResponseFlag::UpstreamConnectionFailure
        }
        other => ResponseFlag::of(other),
    }
}

fn describe(reason: Reason) -> (StatusCode, &'static str, u16) {
    match reason {
        Reason::PolicyDenied | Reason::NoAllowMatched | Reason::PolicyUnknown => {
            (StatusCode::FORBIDDEN, "RBAC: access denied", 7)
        }
        Reason::NoRoute => (StatusCode::NOT_FOUND, "no route matches", 12),
        Reason::BadRequest => (StatusCode::BAD_REQUEST, "bad request", 13),
        Reason::RouteTimeout => (StatusCode::GATEWAY_TIMEOUT, "upstream request timeout", 14),
        Reason::NoHealthyEndpoint => (StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream", 14),
        Reason::UnknownDestination => (StatusCode::SERVICE_UNAVAILABLE, "no such destination", 14),
        Reason::LimitReached => (StatusCode::SERVICE_UNAVAILABLE, "upstream limit reached", 14),
        Reason::UpstreamReset | Reason::TunnelBroken => {
            (StatusCode::SERVICE_UNAVAILABLE, "upstream connect error or disconnect/reset before headers", 14)
        }
        _ => (StatusCode::SERVICE_UNAVAILABLE, "upstream connection failure", 14),
    }
}

/// An injected abort.
pub fn abort(status: AbortStatus, mut record: Record) -> Response<Answer> {
    record.flag = ResponseFlag::FaultInjected;
    record.reason = Some((Reason::FaultInjected, record.route.to_string()));
    match status {
        AbortStatus::Http(code) => {
            let code = StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            plain(code, "fault filter abort", record)
        }
        AbortStatus::Grpc(code) => {
            grpc_answer(u16::try_from(code).unwrap_or(2), "fault filter abort", record)
        }
    }
}

/// A redirect.
pub fn redirect(code: u16, location: &str, record: Record) -> Response<Answer> {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    let mut response = plain(status, "", record);
    if let Ok(value) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

/// A status with a text body.
pub fn plain(status: StatusCode, text: &str, mut record: Record) -> Response<Answer> {
    record.code = status.as_u16();
    let mut response = Response::new(Answer::local(Bytes::copy_from_slice(text.as_bytes()), record));
    *response.status_mut() = status;
    if !text.is_empty() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

fn grpc_answer(status: u16, message: &'static str, mut record: Record) -> Response<Answer> {
    record.code = 200;
    record.grpc_status = Some(status);
    let mut response = Response::new(Answer::local(Bytes::new(), record));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(status));
    headers.insert("grpc-message", HeaderValue::from_static(message));
    response
}
