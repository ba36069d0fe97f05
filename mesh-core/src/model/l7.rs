//! What a waypoint knows beyond workloads and services: routes, subsets, traffic policy and L7
//! authorization. Compiled by the control plane from VirtualService, DestinationRule and
//! AuthorizationPolicy; on the wire it is `culvert.l7.v1`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{AppProtocol, PolicyAction, PolicyName, ServiceName, StringMatch};

/// Everything that routes requests addressed to one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceRoutes {
    /// The service.
    pub service: ServiceName,
    /// Declared protocol per service port.
    pub protocols: BTreeMap<u16, AppProtocol>,
    /// The object that the routes come from, for logs and `explain`; empty when there is none.
    pub origin: Arc<str>,
    /// HTTP routes, first match wins. Empty: the default route to the service itself.
    pub http: Vec<HttpRoute>,
    /// TCP routes by port, first match wins.
    pub tcp: Vec<TcpRoute>,
    /// Policy of the service as a destination (DestinationRule `trafficPolicy`).
    pub traffic_policy: TrafficPolicy,
    /// Named subsets of its endpoints.
    pub subsets: Vec<Subset>,
}

/// A named subset of a service's endpoints (DestinationRule `subsets[]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subset {
    /// Name.
    pub name: Arc<str>,
    /// Labels that an endpoint's workload must have.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Policy, already overlaid on the service's.
    pub traffic_policy: TrafficPolicy,
}

/// Load-balancing algorithm (DestinationRule `loadBalancer.simple`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum LbAlgorithm {
    /// Least requests of two random choices: Istio's default.
    #[default]
    LeastRequest,
    /// Round robin.
    RoundRobin,
    /// Random.
    Random,
}

/// How a destination is used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrafficPolicy {
    /// Endpoint choice.
    pub lb: LbAlgorithm,
    /// `connectionPool.tcp.maxConnections`; none is unlimited.
    pub max_connections: Option<u32>,
    /// `connectionPool.tcp.connectTimeout`; none is 10 s.
    pub connect_timeout: Option<Duration>,
    /// `connectionPool.http.http1MaxPendingRequests`.
    pub max_pending_requests: Option<u32>,
    /// `connectionPool.http.http2MaxRequests`: concurrent requests to the destination.
    pub max_requests: Option<u32>,
    /// `connectionPool.http.maxRetries`: concurrent retries.
    pub max_retries: Option<u32>,
    /// `connectionPool.http.maxRequestsPerConnection`; none is unlimited.
    pub max_requests_per_connection: Option<u32>,
}

/// How a string is compared in routes (Istio `StringMatch`; regex is a full match, RE2 syntax).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Starts with.
    Prefix(Arc<str>),
    /// Full regular expression match.
    Regex(Arc<str>),
    /// Present with any value.
    Presence,
}

/// One `http[].match[]` entry: everything in it must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HttpMatch {
    /// Name, for logs.
    pub name: Arc<str>,
    /// Path without query.
    pub uri: Option<RouteMatch>,
    /// `exact` and `prefix` of the uri ignore case.
    pub ignore_uri_case: bool,
    /// Scheme.
    pub scheme: Option<RouteMatch>,
    /// Method.
    pub method: Option<RouteMatch>,
    /// Host or :authority.
    pub authority: Option<RouteMatch>,
    /// Headers, lower-case names; all must match.
    pub headers: Vec<(Arc<str>, RouteMatch)>,
    /// Headers of which none may match.
    pub without_headers: Vec<(Arc<str>, RouteMatch)>,
    /// Query parameters; all must match.
    pub query: Vec<(Arc<str>, RouteMatch)>,
    /// Destination service port.
    pub port: Option<u16>,
    /// Labels of the client's workload.
    pub source_labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Namespace of the client's workload.
    pub source_namespace: Option<Arc<str>>,
}

/// Header operations on a request or a response, in the order set, add, remove.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HeaderOps {
    /// Overwrite.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Append.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Delete.
    pub remove: Vec<Arc<str>>,
}

/// One weighted destination of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedDestination {
    /// Service.
    pub service: ServiceName,
    /// Subset; none is all endpoints.
    pub subset: Option<Arc<str>>,
    /// Port; none is the port that the client asked for.
    pub port: Option<u16>,
    /// Relative weight.
    pub weight: u32,
    /// Operations on the request.
    pub request_headers: HeaderOps,
    /// Operations on the response.
    pub response_headers: HeaderOps,
}

/// `http[].rewrite`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// Replaces the matched prefix, or the whole path when the match was not a prefix.
    pub uri: Option<Arc<str>>,
    /// Pattern and substitution over the path (`\1` groups).
    pub uri_regex: Option<(Arc<str>, Arc<str>)>,
    /// New host.
    pub authority: Option<Arc<str>>,
}

/// `http[].redirect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// Status: 301, 302, 303, 307 or 308.
    pub code: u16,
    /// New path.
    pub uri: Option<Arc<str>>,
    /// New host.
    pub authority: Option<Arc<str>>,
    /// New scheme.
    pub scheme: Option<Arc<str>>,
    /// New port.
    pub port: Option<u16>,
}

/// `http[].directResponse`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectResponse {
    /// Status.
    pub status: u16,
    /// Body.
    pub body: Arc<str>,
}

/// One condition of `retries.retryOn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RetryCondition {
    /// Any 5xx, reset or no answer.
    Status5xx,
    /// 502, 503 or 504.
    GatewayError,
    /// No answer at all (disconnect, reset, read timeout).
    Reset,
    /// Reset before the request was sent.
    ResetBeforeRequest,
    /// Could not connect.
    ConnectFailure,
    /// HTTP/2 REFUSED_STREAM.
    RefusedStream,
    /// 409.
    Retriable4xx,
    /// One status code.
    Status(u16),
    /// gRPC status `cancelled`.
    GrpcCancelled,
    /// gRPC status `deadline-exceeded`.
    GrpcDeadlineExceeded,
    /// gRPC status `internal`.
    GrpcInternal,
    /// gRPC status `resource-exhausted`.
    GrpcResourceExhausted,
    /// gRPC status `unavailable`.
    GrpcUnavailable,
}

/// `http[].retries`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Retries after the first try; 0 turns them off.
    pub attempts: u32,
    /// Limit of one try; none means only the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// When to retry.
    pub retry_on: Vec<RetryCondition>,
    /// First back-off (25 ms by default), doubled up to ten times itself.
    pub backoff: Duration,
}

impl Default for RetryPolicy {
    /// Istio's default policy: two retries on connect-failure, refused-stream, unavailable, cancelled.
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout: None,
            retry_on: vec![
                RetryCondition::ConnectFailure,
                RetryCondition::RefusedStream,
                RetryCondition::GrpcUnavailable,
                RetryCondition::GrpcCancelled,
            ],
            backoff: Duration::from_millis(25),
        }
    }
}

/// `http[].fault`: percentages in millionths, so that 0.0001 % is exact.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fault {
    /// Delay and the share of requests that get it (parts per million).
    pub delay: Option<(Duration, u32)>,
    /// Answer instead of the upstream's and the share of requests that get it (parts per million).
    pub abort: Option<(AbortStatus, u32)>,
}

/// What an injected abort answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbortStatus {
    /// HTTP status.
    Http(u16),
    /// gRPC status code with HTTP 200.
    Grpc(u32),
}

/// What a route does with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteAction {
    /// Send to one of these.
    Forward(Vec<WeightedDestination>),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer directly.
    Direct(DirectResponse),
}

/// One HTTP route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRoute {
    /// `http[].name`, or its index: what logs and `explain` call it.
    pub name: Arc<str>,
    /// Alternatives (OR); empty matches everything.
    pub matches: Vec<HttpMatch>,
    /// Effect.
    pub action: RouteAction,
    /// Rewrite.
    pub rewrite: Option<Rewrite>,
    /// Operations on the request.
    pub request_headers: HeaderOps,
    /// Operations on the response.
    pub response_headers: HeaderOps,
    /// Limit of the whole exchange; none is no limit.
    pub timeout: Option<Duration>,
    /// Retries.
    pub retries: RetryPolicy,
    /// Fault injection.
    pub fault: Fault,
}

/// One TCP route (VirtualService `tcp[]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRoute {
    /// Service port; none matches all.
    pub port: Option<u16>,
    /// Destinations.
    pub destinations: Vec<WeightedDestination>,
}

/// To which requests of a waypoint an L7 policy applies.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum L7Target {
    /// Every request through the named waypoint (`targetRefs: Gateway`): namespace and name.
    Gateway {
        /// Namespace.
        namespace: Arc<str>,
        /// Name.
        name: Arc<str>,
    },
    /// Requests to one service (`targetRefs: Service` or `ServiceEntry`).
    Service(ServiceName),
    /// Every waypoint (`targetRefs: GatewayClass` in the root namespace).
    AllWaypoints,
}

/// One `from.source` block; lists as in [`super::L4Match`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "field names are those of AuthorizationPolicy source")]
pub struct L7Source {
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub service_accounts: Vec<super::ServiceAccountMatch>,
    pub not_service_accounts: Vec<super::ServiceAccountMatch>,
    pub ip_blocks: Vec<IpNet>,
    pub not_ip_blocks: Vec<IpNet>,
    pub remote_ip_blocks: Vec<IpNet>,
    pub not_remote_ip_blocks: Vec<IpNet>,
}

/// One `to.operation` block.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "field names are those of AuthorizationPolicy operation")]
pub struct L7Operation {
    pub hosts: Vec<StringMatch>,
    pub not_hosts: Vec<StringMatch>,
    pub ports: Vec<u16>,
    pub not_ports: Vec<u16>,
    pub methods: Vec<StringMatch>,
    pub not_methods: Vec<StringMatch>,
    pub paths: Vec<StringMatch>,
    pub not_paths: Vec<StringMatch>,
}

/// What a `when` condition looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionKey {
    /// `request.headers[x]`, lower-case.
    Header(Arc<str>),
    /// `source.ip`, the connection's: values are CIDRs.
    SourceIp,
    /// `remote.ip`, the request's: values are CIDRs.
    RemoteIp,
    /// `source.namespace`.
    SourceNamespace,
    /// `source.principal`.
    SourcePrincipal,
    /// `destination.ip`: values are CIDRs.
    DestinationIp,
    /// `destination.port`.
    DestinationPort,
}

/// One `when` condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct L7Condition {
    /// Attribute.
    pub key: ConditionKey,
    /// Any of these; empty is no constraint.
    pub values: Vec<StringMatch>,
    /// None of these.
    pub not_values: Vec<StringMatch>,
}

/// One rule: a source (OR, empty is any), an operation (OR, empty is any) and all conditions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct L7Rule {
    /// `from[]`.
    pub from: Vec<L7Source>,
    /// `to[]`.
    pub to: Vec<L7Operation>,
    /// `when[]`.
    pub when: Vec<L7Condition>,
}

/// An AuthorizationPolicy that a waypoint enforces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct L7Policy {
    /// Key.
    pub key: PolicyName,
    /// Reach; any of these.
    pub targets: Vec<L7Target>,
    /// Effect.
    pub action: PolicyAction,
    /// Rules (OR); empty never matches, so an empty ALLOW denies everything.
    pub rules: Vec<L7Rule>,
    /// Only logged.
    pub dry_run: bool,
}

/// Labels of a workload; only waypoints get them (subsets and `sourceLabels`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadLabels {
    /// Workload.
    pub uid: super::WorkloadUid,
    /// Labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}
