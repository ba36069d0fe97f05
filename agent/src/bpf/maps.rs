//! The kernel tables: one struct owns every handle, and map names appear nowhere else.

mod dump;

use std::{
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use agent_common::{
    addr::IpKey,
    event::{FlowEvent, SITES},
    maps::{
        Destination, FlowKey, LISTENER_HBONE, LISTENER_PLAINTEXT, ListenerKey, NodeConfig, PodEntry,
        ProbeKey, SockState,
    },
};
use aya::{
    Ebpf,
    maps::{
        Array, HashMap, IterableMap, LpmTrie, MapData, MapError, PerCpuArray, RingBuf, SockHash,
        lpm_trie::Key,
    },
};

use super::{BpfError, MapFill, Pod, ip_of, key_of, socket_addr};

/// Handles of the tables. Each one's lock is a leaf, held for one system call.
#[derive(Default)]
pub struct Maps {
    inner: Option<Inner>,
}

struct Inner {
    pods: Mutex<HashMap<MapData, u64, PodEntry>>,
    pod_ips: Mutex<HashMap<MapData, IpKey, u64>>,
    mesh: Mutex<LpmTrie<MapData, IpKey, u32>>,
    orig: Mutex<HashMap<MapData, u64, Destination>>,
    flow_dst: Mutex<HashMap<MapData, FlowKey, Destination>>,
    own: Mutex<HashMap<MapData, u64, u32>>,
    probes: Mutex<HashMap<MapData, ProbeKey, u32>>,
    socks: Mutex<HashMap<MapData, u64, SockState>>,
    listeners: Mutex<SockHash<MapData, ListenerKey>>,
    config: Mutex<Array<MapData, NodeConfig>>,
    counters: PerCpuArray<MapData, u64>,
    events: Mutex<RingBuf<MapData>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

macro_rules! take {
    ($object:expr, $name:literal) => {
        $object
            .take_map($name)
            .ok_or(BpfError::Missing { program: $name })?
            .try_into()
            .map_err(|source| BpfError::Map { map: $name, source })?
    };
}

/// Counts a table's entries; those that come and go meanwhile cannot make it count for ever.
macro_rules! fill {
    ($inner:expr, $table:ident, $name:literal) => {{
        let table = lock(&$inner.$table);
        let capacity = table.map().info().map_err(at($name))?.max_entries();
        MapFill { map: $name, entries: table.keys().take(capacity as usize).count(), capacity }
    }};
}

impl Maps {
    pub(super) fn default_closed() -> Self {
        Self::default()
    }

    pub(super) fn take(object: &mut Ebpf) -> Result<Self, BpfError> {
        let inner = Inner {
            pods: Mutex::new(take!(object, "PODS")),
            pod_ips: Mutex::new(take!(object, "POD_IPS")),
            mesh: Mutex::new(take!(object, "MESH")),
            orig: Mutex::new(take!(object, "ORIG")),
            flow_dst: Mutex::new(take!(object, "FLOW_DST")),
            own: Mutex::new(take!(object, "OWN")),
            probes: Mutex::new(take!(object, "PROBES")),
            socks: Mutex::new(take!(object, "SOCKS")),
            listeners: Mutex::new(take!(object, "LISTENERS")),
            config: Mutex::new(take!(object, "CONFIG")),
            counters: take!(object, "COUNTERS"),
            events: Mutex::new(take!(object, "EVENTS")),
        };
        Ok(Self { inner: Some(inner) })
    }

    fn inner(&self) -> Result<&Inner, BpfError> {
        self.inner.as_ref().ok_or(BpfError::NoObject)
    }

    /// Puts a pod into the kernel or changes its state. Its addresses go first: add referents, then the reference.
    ///
    /// # Errors
    /// A table is full; a pod that was not there before is then not there by halves.
    pub fn set_pod(&self, pod: &Pod) -> Result<(), BpfError> {
        let inner = self.inner()?;
        let put = || {
            for key in pod.addresses() {
                lock(&inner.pod_ips).insert(key, pod.netns, 0).map_err(at("POD_IPS"))?;
            }
            lock(&inner.pods).insert(pod.netns, pod.entry(), 0).map_err(at("PODS"))
        };
        let was_there = lock(&inner.pods).get(&pod.netns, 0).is_ok();
        put().inspect_err(|_| {
            if !was_there {
                // The table that was full is the error to tell.
                let _ = self.forget_addresses(pod);
            }
        })
    }

    /// Forgets a pod. Addresses that belong to a newer pod by now are kept.
    ///
    /// # Errors
    /// The kernel refuses; an unknown pod is no error.
    pub fn remove_pod(&self, pod: &Pod) -> Result<(), BpfError> {
        let inner = self.inner()?;
        ignore_missing(lock(&inner.pods).remove(&pod.netns)).map_err(at("PODS"))?;
        self.forget_addresses(pod)?;
        for kind in [LISTENER_HBONE, LISTENER_PLAINTEXT] {
            let key = ListenerKey { netns: pod.netns, kind, pad: 0 };
            ignore_missing(lock(&inner.listeners).remove(&key)).map_err(at("LISTENERS"))?;
        }
        Ok(())
    }

    fn forget_addresses(&self, pod: &Pod) -> Result<(), BpfError> {
        let mut ips = lock(&self.inner()?.pod_ips);
        for key in pod.addresses() {
            if ips.get(&key, 0).is_ok_and(|owner| owner == pod.netns) {
                ignore_missing(ips.remove(&key)).map_err(at("POD_IPS"))?;
            }
        }
        Ok(())
    }

    /// Pods that the kernel knows: what an earlier process left behind.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn pods(&self) -> Result<Vec<Pod>, BpfError> {
        let pods = lock(&self.inner()?.pods);
        pods.iter()
            .map(|item| item.map(|(netns, entry)| Pod::from_entry(netns, entry)).map_err(at("PODS")))
            .collect()
    }

    /// Names the sockets that take a pod's inbound connections.
    ///
    /// # Errors
    /// The sockets are no TCP listeners, or the table is full.
    pub fn set_listeners(
        &self,
        netns: u64,
        hbone: &impl AsRawFd,
        plaintext: &impl AsRawFd,
    ) -> Result<(), BpfError> {
        let mut listeners = lock(&self.inner()?.listeners);
        for (kind, fd) in [(LISTENER_HBONE, hbone.as_raw_fd()), (LISTENER_PLAINTEXT, plaintext.as_raw_fd())] {
            listeners.insert(ListenerKey { netns, kind, pad: 0 }, fd, 0).map_err(at("LISTENERS"))?;
        }
        Ok(())
    }

    /// Exempts a socket of the agent from capture; must be called before it connects. The kernel
    /// forgets it when the socket is closed.
    ///
    /// # Errors
    /// The table is full; the connect must then not be made.
    pub fn own_socket(&self, cookie: u64) -> Result<(), BpfError> {
        lock(&self.inner()?.own).insert(cookie, 1, 0).map_err(at("OWN"))
    }

    /// What a captured connection asked for, by the pod's namespace and the client's address as the
    /// agent sees it on accept. Taken: a second call finds nothing.
    ///
    /// # Errors
    /// The table cannot be read. An unknown connection is `None`, and must be refused.
    pub fn take_original(&self, netns: u64, client: SocketAddr) -> Result<Option<SocketAddr>, BpfError> {
        let key = FlowKey { netns, addr: key_of(client.ip()), port: client.port().into(), pad: 0 };
        let mut flows = lock(&self.inner()?.flow_dst);
        match flows.get(&key, 0) {
            Ok(original) => {
                ignore_missing(flows.remove(&key)).map_err(at("FLOW_DST"))?;
                Ok(Some(socket_addr(original)))
            }
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(BpfError::Map { map: "FLOW_DST", source }),
        }
    }

    /// Removes and adds ranges of the mesh, and says whether they are complete. Bypass is off while they
    /// are not, so also while this goes on; removals first, for a table that is nearly full.
    ///
    /// # Errors
    /// The table is full; bypass is off then.
    pub fn sync_mesh(
        &self,
        add: &[(std::net::IpAddr, u8)],
        remove: &[(std::net::IpAddr, u8)],
        complete: bool,
        epoch: u32,
    ) -> Result<(), BpfError> {
        let inner = self.inner()?;
        self.configure(|config| config.ranges_complete = 0)?;
        for (ip, length) in remove {
            ignore_missing(lock(&inner.mesh).remove(&range_key(*ip, *length))).map_err(at("MESH"))?;
        }
        for (ip, length) in add {
            lock(&inner.mesh).insert(&range_key(*ip, *length), epoch, 0).map_err(at("MESH"))?;
        }
        self.configure(|config| {
            config.ranges_complete = u32::from(complete);
            config.epoch = epoch;
        })
    }

    /// The ranges that the kernel holds now.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn mesh(&self) -> Result<Vec<(std::net::IpAddr, u8)>, BpfError> {
        let mesh = lock(&self.inner()?.mesh);
        mesh.keys().map(|key| key.map(range_of).map_err(at("MESH"))).collect()
    }

    /// Whether a destination outside the ranges is left alone.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn bypasses(&self) -> Result<bool, BpfError> {
        let config = lock(&self.inner()?.config).get(&0, 0).map_err(at("CONFIG"))?;
        Ok(config.ranges_complete == 1)
    }

    pub(super) fn set_host_netns(&self, cookie: u64) -> Result<(), BpfError> {
        self.configure(|config| config.host_netns = cookie)
    }

    fn configure(&self, change: impl FnOnce(&mut NodeConfig)) -> Result<(), BpfError> {
        let mut table = lock(&self.inner()?.config);
        let mut config = table.get(&0, 0).map_err(at("CONFIG"))?;
        change(&mut config);
        table.set(0, config, 0).map_err(at("CONFIG"))
    }

    /// Counters by site, summed over the CPUs.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, BpfError> {
        let counters = &self.inner()?.counters;
        let read = |(index, label): (usize, &&'static str)| {
            let values = counters.get(&(index as u32), 0).map_err(at("COUNTERS"))?;
            Ok((*label, values.iter().sum()))
        };
        SITES.iter().enumerate().map(read).collect()
    }

    /// Entries in the tables that hold per-socket state, all together: 0 when no socket is open.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn socket_entries(&self) -> Result<usize, BpfError> {
        let per_socket = ["ORIG", "FLOW_DST", "OWN", "PROBES", "SOCKS"];
        let fill = self.fill()?;
        Ok(fill.iter().filter(|table| per_socket.contains(&table.map)).map(|table| table.entries).sum())
    }

    /// How full the tables are; walks their keys, so not for a hot path.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn fill(&self) -> Result<Vec<MapFill>, BpfError> {
        let inner = self.inner()?;
        Ok(vec![
            fill!(inner, pods, "PODS"),
            fill!(inner, pod_ips, "POD_IPS"),
            fill!(inner, mesh, "MESH"),
            fill!(inner, orig, "ORIG"),
            fill!(inner, flow_dst, "FLOW_DST"),
            fill!(inner, own, "OWN"),
            fill!(inner, probes, "PROBES"),
            fill!(inner, socks, "SOCKS"),
            fill!(inner, listeners, "LISTENERS"),
        ])
    }

    /// Takes the events that are waiting. An item of another size is another ABI's and is skipped.
    ///
    /// # Errors
    /// The kernel side is not loaded.
    pub fn take_events(&self) -> Result<Vec<FlowEvent>, BpfError> {
        let mut ring = lock(&self.inner()?.events);
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            if item.len() == size_of::<FlowEvent>() {
                // SAFETY: the length is that of the type, which is valid for every bit pattern.
                events.push(unsafe { item.as_ptr().cast::<FlowEvent>().read_unaligned() });
            }
        }
        Ok(events)
    }
}

fn range_key(ip: std::net::IpAddr, length: u8) -> Key<IpKey> {
    let mapped = if ip.is_ipv4() { 96 } else { 0 };
    Key::new(u32::from(length) + mapped, key_of(ip))
}

fn range_of(key: Key<IpKey>) -> (std::net::IpAddr, u8) {
    let (ip, length) = (ip_of(key.data()), key.prefix_len() as u8);
    (ip, if ip.is_ipv4() { length.saturating_sub(96) } else { length })
}

fn at(map: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map { map, source }
}

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
