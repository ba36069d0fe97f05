//! Redirection by the eBPF programs.

use std::{net::SocketAddr, sync::Arc};

use socket2::Socket;

use super::{RedirectError, Redirector, Target};
use crate::{
    bpf::{Bpf, Pod, PodState},
    listeners::Listeners,
    netns,
};

/// See [`Redirector`].
pub struct Ebpf(pub Arc<Bpf>);

impl Ebpf {
    fn put(&self, target: &Target, state: PodState) -> Result<(), RedirectError> {
        Ok(self.0.maps.set_pod(&Pod { state, ..target.pod.clone() })?)
    }
}

impl Redirector for Ebpf {
    /// The entry first: the inbound program passes traffic of pods that have none.
    fn block(&self, target: &Target) -> Result<(), RedirectError> {
        self.put(target, PodState::Blocked)?;
        Ok(self.0.attach_pod(target.cookie, &target.netns)?)
    }

    fn capture(&self, target: &Target, listeners: &Listeners) -> Result<(), RedirectError> {
        self.0.maps.set_listeners(target.cookie, &listeners.hbone, &listeners.plaintext)?;
        self.0.attach_pod(target.cookie, &target.netns)?;
        self.put(target, PodState::Active)
    }

    fn release(&self, target: &Target) -> Result<(), RedirectError> {
        self.0.detach_pod(target.cookie)?;
        Ok(self.0.maps.remove_pod(&target.pod)?)
    }

    fn original(&self, cookie: u64, client: SocketAddr) -> Result<Option<SocketAddr>, RedirectError> {
        Ok(self.0.maps.take_original(cookie, client)?)
    }

    fn exempt(&self, socket: &Socket) -> Result<(), RedirectError> {
        let failed = |source| RedirectError::System { doing: "socket has no cookie", source };
        let cookie = netns::socket_cookie(socket).map_err(failed)?;
        Ok(self.0.maps.own_socket(cookie)?)
    }

    fn captured(&self) -> Result<Vec<Pod>, RedirectError> {
        Ok(self.0.maps.pods()?)
    }

    fn forget(&self, pod: &Pod) -> Result<(), RedirectError> {
        self.0.detach_pod(pod.netns)?;
        Ok(self.0.maps.remove_pod(pod)?)
    }
}
