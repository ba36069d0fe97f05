//! Names of endpoints that have no address.

use std::{net::SocketAddr, time::Duration};

use mesh_core::outcome::{Reason, Refusal};
use tokio::{net::lookup_host, time::timeout};

/// How long a name may take to resolve.
const LIMIT: Duration = Duration::from_secs(5);

/// An address of a host, of the preferred family if it has one.
///
/// # Errors
/// `ConnectFailed` with the name: no answer in time, or no address.
pub async fn resolve(host: &str, port: u16, prefer_v4: bool) -> Result<SocketAddr, Refusal> {
    let failed = |why: String| Refusal::new(Reason::ConnectFailed, format!("{host}: {why}"));
    let found = timeout(LIMIT, lookup_host((host, port)))
        .await
        .map_err(|_| failed(format!("no answer within {LIMIT:?}")))?
        .map_err(|error| failed(error.to_string()))?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(|address| address.is_ipv4() != prefer_v4);
    found.first().copied().ok_or_else(|| failed("has no address".into()))
}
