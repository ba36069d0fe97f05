//! How a pod's traffic comes to the agent: the seam between enrolment and the kernel.

mod ebpf;
pub mod fake;

use std::{fs::File, io, net::SocketAddr, sync::Arc};

use socket2::Socket;

use crate::{
    bpf::{BpfError, Pod, PodState},
    listeners::Listeners,
    netns,
};

pub use ebpf::Ebpf;

/// Why redirection of a pod could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] BpfError),
    /// A system call.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A pod as redirection sees it. Keeps the pod's network namespace alive.
#[derive(Debug)]
pub struct Target {
    /// Cookie of the namespace.
    pub cookie: u64,
    /// The namespace.
    pub netns: File,
    /// How the kernel knows it; the state is that of the next call.
    pub pod: Pod,
}

impl Target {
    /// Opens a pod's namespace.
    ///
    /// # Errors
    /// It is gone or cannot be entered.
    pub fn open(place: &netns::Place, addresses: &[std::net::IpAddr]) -> Result<Self, RedirectError> {
        let failed = |doing| move |source| RedirectError::System { doing, source };
        Self::of(place.open().map_err(failed("network namespace cannot be opened"))?, addresses)
    }

    /// A pod by its open namespace.
    ///
    /// # Errors
    /// It cannot be entered.
    pub fn of(netns: File, addresses: &[std::net::IpAddr]) -> Result<Self, RedirectError> {
        let failed = |doing| move |source| RedirectError::System { doing, source };
        let cookie = netns::cookie(&netns).map_err(failed("network namespace cannot be entered"))?;
        let v4 = addresses.iter().find_map(|ip| match ip.to_canonical() {
            std::net::IpAddr::V4(v4) => Some(v4),
            std::net::IpAddr::V6(_) => None,
        });
        let v6 = addresses.iter().find_map(|ip| match ip.to_canonical() {
            std::net::IpAddr::V6(v6) => Some(v6),
            std::net::IpAddr::V4(_) => None,
        });
        let pod = Pod { netns: cookie, v4, v6, state: PodState::Blocked, epoch: 0 };
        Ok(Self { cookie, netns, pod })
    }
}

/// Changes and answers about redirection. All calls block for microseconds, except those that attach
/// programs (milliseconds): call these away from the data path.
pub trait Redirector: Send + Sync + 'static {
    /// Captures and refuses everything.
    ///
    /// # Errors
    /// The pod may then be open or captured: the call is repeated.
    fn block(&self, target: &Target) -> Result<(), RedirectError>;

    /// Sends what the pod opens and receives to the listeners.
    ///
    /// # Errors
    /// The pod stays as it was.
    fn capture(&self, target: &Target, listeners: &Listeners) -> Result<(), RedirectError>;

    /// Ends capture of new connections. Open flows are not touched.
    ///
    /// # Errors
    /// Capture may go on: the call is repeated.
    fn release(&self, target: &Target) -> Result<(), RedirectError>;

    /// What a captured connection asked for; none must be refused.
    ///
    /// # Errors
    /// The table cannot be read; the connection must be refused.
    fn original(&self, cookie: u64, client: SocketAddr) -> Result<Option<SocketAddr>, RedirectError>;

    /// Exempts a socket from capture, before it connects.
    ///
    /// # Errors
    /// The connect must not be made.
    fn exempt(&self, socket: &Socket) -> Result<(), RedirectError>;

    /// Pods that an earlier process left captured.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    fn captured(&self) -> Result<Vec<Pod>, RedirectError>;

    /// Forgets a captured pod whose namespace is gone.
    ///
    /// # Errors
    /// The kernel refuses.
    fn forget(&self, pod: &Pod) -> Result<(), RedirectError>;
}

/// Any redirector.
pub type AnyRedirector = Arc<dyn Redirector>;
