//! Which network namespace is a pod's: what the CNI plugin told, or the namespace that the pod's processes
//! are in (decision 40). Either way it counts only when it has the pod's addresses and is not the node's.

mod processes;
mod record;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use processes::Process;
pub use processes::Processes;
pub use record::{Record, RecordError, Records};

use tokio::sync::Notify;

use crate::netns::{self, Held};

/// A pod whose namespace is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The API server's uid, and for a static pod's mirror that of the kubelet.
    pub uids: Vec<Arc<str>>,
    /// Ids of its containers as the runtime knows them, without the scheme.
    pub containers: BTreeSet<String>,
    /// Its addresses; empty while the API server does not know them.
    pub addresses: Vec<IpAddr>,
    /// Whether its processes are looked at; otherwise only what the plugin told counts.
    pub sought: bool,
}

impl Wanted {
    /// What its processes' control groups may be named after.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.uids.iter().map(|uid| &**uid).chain(self.containers.iter().map(String::as_str))
    }
}

/// A pod's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its namespace.
    pub netns: Arc<Held>,
    /// Its addresses: as the plugin told them, which is before the API server knows them.
    pub addresses: Vec<IpAddr>,
}

/// A network, or why there is none, for people.
pub type Found = Result<Network, Arc<str>>;

/// See the module's description.
pub struct Sandboxes {
    processes: Processes,
    /// Device and inode of the node's own namespace.
    host: Option<(u64, u64)>,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    /// What the plugin told, by uid.
    told: HashMap<Arc<str>, Network>,
    /// Uids that were known the last time.
    seen: BTreeSet<Arc<str>>,
    /// What was found, and for which question.
    found: HashMap<Arc<str>, (Wanted, Arc<Held>)>,
}

impl Sandboxes {
    /// Looks at the processes below `proc`; `host` is the node's own network namespace.
    pub fn new(proc: PathBuf, host: &Path) -> Self {
        let host = std::fs::metadata(host).ok().map(|data| (data.dev(), data.ino()));
        Self { processes: Processes::new(proc), host, inner: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the plugin has told something since the last time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The plugin's word for a pod's network: the runtime made it for this pod.
    ///
    /// # Errors
    /// It is the node's own namespace, or no namespace at all.
    pub fn told(&self, uid: Arc<str>, file: File, addresses: Vec<IpAddr>) -> io::Result<Arc<Held>> {
        let held = Arc::new(Held::new(file)?);
        if self.is_host(&held) {
            return Err(io::Error::other("it is the node's own network namespace"));
        }
        self.lock().told.insert(uid, Network { netns: held.clone(), addresses });
        self.changed.notify_one();
        Ok(held)
    }

    /// What the plugin noted while no agent listened: the same, by path. Records whose namespace is gone, or
    /// another one by now, are nobody's.
    pub fn recall(&self, records: &Records) {
        for record in records.all() {
            // The runtime's name for a folder that containers have under its own name only.
            let path = match record.netns.strip_prefix("/var/run") {
                Ok(rest) => Path::new("/run").join(rest),
                Err(_) => record.netns.clone(),
            };
            let Ok(file) = File::open(path) else { continue };
            if netns::cookie(&file).is_ok_and(|cookie| cookie == record.cookie) {
                // The node's own is nobody's.
                let _ = self.told(record.uid.as_str().into(), file, record.addresses);
            }
        }
    }

    /// Forgets what the plugin told of a network that ends.
    pub fn ended(&self, uid: &str) {
        self.lock().told.remove(uid);
        self.changed.notify_one();
    }

    /// Drops what is held for pods that are not in `uids`: a namespace lives as long as it is held.
    pub fn keep_only(&self, uids: &BTreeSet<Arc<str>>) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        // What was told runs ahead of the API server's word; it is dropped with its sandbox.
        inner.told.retain(|uid, _| uids.contains(uid) || !inner.seen.contains(uid));
        inner.seen.clone_from(uids);
        inner.found.retain(|uid, _| uids.contains(uid));
    }

    /// The networks of pods, in their order. Reads `/proc` at most once, so it blocks.
    pub fn find(&self, wanted: &[Wanted]) -> Vec<Found> {
        let mut answers: Vec<Option<Found>> = wanted.iter().map(|pod| self.known(pod).map(Ok)).collect();
        let search = |pod: &Wanted| pod.sought && !pod.addresses.is_empty();
        let open = || wanted.iter().zip(&answers).filter(|(pod, answer)| search(pod) && answer.is_none());
        let ids: BTreeSet<&str> = open().flat_map(|(pod, _)| pod.names()).collect();
        let processes = if ids.is_empty() { Ok(HashMap::new()) } else { self.processes.of(&ids) };
        for (pod, answer) in wanted.iter().zip(&mut answers) {
            if answer.is_none() {
                let found = match &processes {
                    _ if !search(pod) => Err("it has no address yet".into()),
                    Ok(processes) => self.search(pod, processes),
                    Err(error) => Err(format!("{error}").into()),
                };
                *answer = Some(found.or_else(|why| self.still(pod).ok_or(why)));
            }
        }
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err("it was not looked for".into())))
            .collect()
    }

    /// What needs no look at processes.
    fn known(&self, pod: &Wanted) -> Option<Network> {
        let told = pod.uids.iter().find_map(|uid| self.lock().told.get(uid).cloned());
        if let Some(network) = told {
            // The order is the plugin's: another order is no other network.
            if pod.addresses.is_empty() || same(&pod.addresses, &network.addresses) {
                return (!network.addresses.is_empty()).then_some(network);
            }
            if has(&network.netns, &pod.addresses) {
                return Some(Network { addresses: pod.addresses.clone(), ..network });
            }
        }
        let inner = self.lock();
        let (asked, held) = inner.found.get(pod.uids.first()?)?;
        (asked == pod).then(|| Network { netns: held.clone(), addresses: pod.addresses.clone() })
    }

    /// What was found earlier, when all processes have ended: the sandbox may live on.
    fn still(&self, pod: &Wanted) -> Option<Network> {
        let held = self.lock().found.get(pod.uids.first()?)?.1.clone();
        has(&held, &pod.addresses).then(|| Network { netns: held, addresses: pod.addresses.clone() })
    }

    /// The namespace of the oldest of the pod's processes that is in one with the pod's addresses.
    fn search(&self, pod: &Wanted, processes: &HashMap<String, Vec<Process>>) -> Found {
        let mut candidates: Vec<_> = pod.names().filter_map(|name| processes.get(name)).flatten().collect();
        candidates.sort();
        let mut why = format!(
            "none of its processes is in {}: none has started yet, or it has a sandboxed runtime; \
             in a container the agent needs the node's /proc (--proc)",
            self.processes.root().display()
        );
        for process in candidates {
            let pid = process.pid;
            match self.processes.namespace(process) {
                Ok(held) if self.is_host(&held) => {
                    why = format!("its process {pid} is in the node's network namespace");
                }
                Ok(held) if !has(&held, &pod.addresses) => {
                    why = format!("the network namespace of its process {pid} lacks an address of the pod");
                }
                Ok(held) => {
                    let netns = Arc::new(held);
                    if let Some(uid) = pod.uids.first() {
                        self.lock().found.insert(uid.clone(), (pod.clone(), netns.clone()));
                    }
                    return Ok(Network { netns, addresses: pod.addresses.clone() });
                }
                Err(error) => {
                    why = format!(
                        "the network namespace of its process {pid} cannot be opened: {error}; \
                         the agent needs CAP_SYS_PTRACE"
                    );
                }
            }
        }
        Err(why.into())
    }

    /// Whether an open namespace is the node's own.
    pub fn is_hosts(&self, file: &File) -> bool {
        file.metadata().is_ok_and(|data| Some((data.dev(), data.ino())) == self.host)
    }

    fn is_host(&self, held: &Held) -> bool {
        Some(held.id()) == self.host
    }
}

fn same(one: &[IpAddr], other: &[IpAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|ip| other.contains(ip))
}

/// Whether a namespace has all addresses of a pod. One that cannot be entered has none.
fn has(held: &Held, addresses: &[IpAddr]) -> bool {
    held.addresses().is_ok_and(|own| {
        let own: Vec<IpAddr> = own.iter().map(IpAddr::to_canonical).collect();
        !addresses.is_empty() && addresses.iter().all(|address| own.contains(&address.to_canonical()))
    })
}
