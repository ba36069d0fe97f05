//! Istio's (Envoy's) response flags.

use crate::outcome::Reason;

/// Why a response is not simply the upstream's: `response_flags` in metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ResponseFlag {
    /// Nothing special.
    #[default]
    None,
    /// No healthy upstream.
    NoHealthyUpstream,
    /// Connecting to the upstream failed.
    UpstreamConnectionFailure,
    /// The upstream ended the exchange.
    UpstreamConnectionTermination,
    /// The route's timeout.
    UpstreamRequestTimeout,
    /// A limit was reached.
    UpstreamOverflow,
    /// Retries used up.
    RetryLimitExceeded,
    /// No route.
    NoRoute,
    /// The route's destination does not exist.
    NoClusterFound,
    /// A delay was injected.
    DelayInjected,
    /// An abort was injected.
    FaultInjected,
    /// The client went away.
    DownstreamTermination,
    /// The request itself is wrong.
    DownstreamProtocolError,
}

impl ResponseFlag {
    /// The label value; `-` for none.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamOverflow => "UO",
            Self::RetryLimitExceeded => "URX",
            Self::NoRoute => "NR",
            Self::NoClusterFound => "NC",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
            Self::DownstreamTermination => "DC",
            Self::DownstreamProtocolError => "DPE",
        }
    }

    /// The flag that belongs to a reason.
    pub fn of(reason: Reason) -> Self {
        match reason {
            Reason::NoHealthyEndpoint => Self::NoHealthyUpstream,
            Reason::ConnectTimeout | Reason::ConnectFailed | Reason::TlsFailed | Reason::TunnelRefused => {
                Self::UpstreamConnectionFailure
            }
            Reason::TunnelBroken | Reason::UpstreamReset => Self::UpstreamConnectionTermination,
            Reason::RouteTimeout => Self::UpstreamRequestTimeout,
            Reason::LimitReached => Self::UpstreamOverflow,
            Reason::NoRoute => Self::NoRoute,
            Reason::UnknownDestination => Self::NoClusterFound,
            Reason::FaultInjected => Self::FaultInjected,
            Reason::ClientReset => Self::DownstreamTermination,
            Reason::BadRequest => Self::DownstreamProtocolError,
            // A denial by policy has none in Envoy either: UAEX is an external authorizer's.
            _ => Self::None,
        }
    }
}
