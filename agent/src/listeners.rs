//! The three listeners of a pod, inside its namespace, once per worker: the kernel spreads
//! connections over the members of a port's group (`SO_REUSEPORT`), also behind `sk_lookup`.

use std::{fs::File, io, net::TcpListener};

use mesh_core::outbound::MESH_PORTS;
use mesh_net::listen;

use crate::netns;

/// One worker's listeners of one pod.
#[derive(Debug)]
pub struct Listeners {
    /// 15001: what the pod opens.
    pub outbound: TcpListener,
    /// 15006: plaintext that comes in, whatever port it was sent to.
    pub plaintext: TcpListener,
    /// 15008: HBONE.
    pub hbone: TcpListener,
}

/// Binds `workers` sets of listeners in a pod's namespace.
///
/// # Errors
/// A port is taken, or the namespace cannot be entered.
pub fn bind(netns: &File, workers: usize) -> io::Result<Vec<Listeners>> {
    let [outbound, plaintext, hbone] = MESH_PORTS;
    let group = |port, transparent| {
        listen::group(port, transparent, workers)
            .map_err(|error| io::Error::new(error.kind(), format!("port {port}: {error}")))
    };
    netns::within(netns, || {
        let groups =
            group(outbound, false)?.into_iter().zip(group(plaintext, true)?).zip(group(hbone, true)?);
        Ok(groups.map(|((outbound, plaintext), hbone)| Listeners { outbound, plaintext, hbone }).collect())
    })
}
