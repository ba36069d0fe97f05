//! Loading, attaching, pinning, adopting.

use std::{
    collections::HashMap,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use agent_common::ABI_VERSION;
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, CgroupSock, CgroupSockAddr, SkLookup, SockOps,
        links::{FdLink, PinnedLink},
    },
};

use aya_log::{EbpfLogger, Level};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{
    BpfError, OBJECT,
    maps::Maps,
    versions::{self, list, pod_link, pod_of, remove_link},
};

/// How the kernel side is set up.
#[derive(Debug, Clone)]
pub struct BpfConfig {
    /// Node name: part of the pin path, so that several nodes can share one kernel.
    pub node: String,
    /// Root of the node's cgroup v2 tree.
    pub cgroup: PathBuf,
    /// Mount point of the bpf file system.
    pub bpffs: PathBuf,
    /// Cookie of the node's own network namespace, whose probes reach applications; 0 for none.
    pub host_netns: u64,
    /// The programs log every decision (see [`Bpf::kernel_log`]); off, the logging code is not there.
    pub debug: bool,
    /// Capacities by map name that differ from the defaults of `agent_common::maps::MAPS`.
    pub capacities: HashMap<&'static str, u32>,
}

const CONNECT: [&str; 4] = ["culvert_connect4", "culvert_connect6", "culvert_peer4", "culvert_peer6"];
const SOCKETS: &str = "culvert_sockets";
const RELEASE: &str = "culvert_release";
const INBOUND: &str = "culvert_inbound";
/// Longest wait for another process that loads.
const TURN_LIMIT: Duration = Duration::from_secs(5);
/// Whether it is done is looked at this often.
const TURN_LOOK: Duration = Duration::from_millis(10);
/// Map of aya-log: one for all objects of a node.
const LOGS: &str = "AYA_LOGS";

/// The loaded kernel side of one node. Dropping it leaves everything pinned: capture outlives the agent.
pub struct Bpf {
    pins: PathBuf,
    digest: String,
    debug: bool,
    log: Mutex<Option<KernelLog>>,
    /// The tables.
    pub maps: Maps,
}

/// What the programs log, as records of the `log` crate with targets below `agent_ebpf`.
pub type KernelLog = EbpfLogger<&'static dyn log::Log>;

impl Bpf {
    /// Loads, or adopts what an earlier process pinned.
    ///
    /// # Errors
    /// Says which object failed and what to do; what was pinned before stays as it was.
    pub fn load(config: &BpfConfig) -> Result<Self, BpfError> {
        let bpf = Self::unloaded(config)?;
        let _turn = Turn::take(&bpf.pins)?;
        create(&bpf.map_dir())?;
        create(&bpf.link_dir())?;
        let mut object = bpf.object(0, &config.capacities)?;
        let log = if config.debug { Some(KernelLog::init(&mut object)?) } else { None };
        let bpf = Self { maps: Maps::take(&mut object)?, log: Mutex::new(log), ..bpf };
        bpf.maps.set_host_netns(config.host_netns)?;
        let cgroup = File::open(&config.cgroup)
            .map_err(|source| BpfError::Cgroup { path: config.cgroup.clone(), source })?;
        versions::close_pods(&bpf.pins, &bpf.maps)?;
        bpf.attach_node(&mut object, &cgroup)?;
        bpf.remove_other_links()?;
        versions::forget_tables(&bpf.pins)?;
        Ok(bpf)
    }

    /// Uses what another process, an agent of any build, keeps in the kernel, and replaces nothing of it.
    /// Loads only where nothing is, as after a start of the machine.
    ///
    /// # Errors
    /// The agent is about to load; only another ABI version is there; and as for [`Bpf::load`].
    pub fn join(config: &BpfConfig) -> Result<Self, BpfError> {
        let bpf = Self::unloaded(config)?;
        let turn = Turn::take(&bpf.pins)?;
        let whole =
            |dir: &PathBuf| CONNECT.iter().chain([&SOCKETS, &RELEASE]).all(|link| dir.join(link).exists());
        if !list(&bpf.pins.join("links"))?.iter().any(whole) {
            if !versions::other_links(&bpf.pins)?.is_empty() {
                return Err(BpfError::OtherVersion { path: bpf.pins });
            }
            drop(turn);
            return Self::load(config);
        }
        drop(turn);
        create(&bpf.link_dir())?;
        let mut object = bpf.object(0, &config.capacities)?;
        Ok(Self { maps: Maps::take(&mut object)?, ..bpf })
    }

    fn unloaded(config: &BpfConfig) -> Result<Self, BpfError> {
        if OBJECT.is_empty() {
            return Err(BpfError::NoObject);
        }
        mount_bpffs(&config.bpffs)?;
        let pins = config.bpffs.join("culvert").join(&config.node).join(format!("v{ABI_VERSION}"));
        create(&pins)?;
        Ok(Self {
            digest: digest(config.debug),
            debug: config.debug,
            log: Mutex::new(None),
            maps: Maps::default_closed(),
            pins,
        })
    }

    /// What the programs log; none when they do not, and for whoever asks a second time.
    pub fn kernel_log(&self) -> Option<KernelLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn map_dir(&self) -> PathBuf {
        self.pins.join("maps")
    }

    fn link_dir(&self) -> PathBuf {
        self.pins.join("links").join(&self.digest)
    }

    fn object(&self, cookie: u64, capacities: &HashMap<&'static str, u32>) -> Result<Ebpf, BpfError> {
        let mut loader = EbpfLoader::new();
        let level = if self.debug { Level::Debug as u8 } else { 0 };
        loader
            .default_map_pin_directory(self.map_dir())
            .map_pin_path(LOGS, self.map_dir().join(LOGS))
            .override_global(aya_log::LEVEL, &level, true)
            .override_global("POD_COOKIE", &cookie, true);
        for (map, capacity) in capacities {
            loader.map_max_entries(map, *capacity);
        }
        loader.load(OBJECT).map_err(|source| BpfError::Load { source })
    }

    fn attach_node(&self, object: &mut Ebpf, cgroup: &File) -> Result<(), BpfError> {
        let mode = CgroupAttachMode::default();
        for name in CONNECT.into_iter().filter(|name| !self.is_pinned(name)) {
            let program: &mut CgroupSockAddr = program(object, name)?;
            let failed = |source| BpfError::Program { program: name, source };
            program.load().map_err(failed)?;
            let id = program.attach(cgroup, mode).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            self.pin(name, name, link.try_into().map_err(|_| BpfError::Missing { program: name })?)?;
        }
        if !self.is_pinned(SOCKETS) {
            let program: &mut SockOps = program(object, SOCKETS)?;
            let failed = |source| BpfError::Program { program: SOCKETS, source };
            program.load().map_err(failed)?;
            let id = program.attach(cgroup, mode).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            self.pin(SOCKETS, SOCKETS, link.try_into().map_err(|_| BpfError::Missing { program: SOCKETS })?)?;
        }
        if !self.is_pinned(RELEASE) {
            let program: &mut CgroupSock = program(object, RELEASE)?;
            let failed = |source| BpfError::Program { program: RELEASE, source };
            program.load().map_err(failed)?;
            let id = program.attach(cgroup, mode).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            self.pin(RELEASE, RELEASE, link.try_into().map_err(|_| BpfError::Missing { program: RELEASE })?)?;
        }
        Ok(())
    }

    /// Attaches inbound capture in a pod's namespace; adopts the link of an earlier process. The link
    /// of another object stays until the new one is attached, so that the pod is never open (S-4).
    ///
    /// # Errors
    /// The kernel refuses the program or the link cannot be pinned.
    pub fn attach_pod(&self, cookie: u64, netns: &File) -> Result<(), BpfError> {
        let name = pod_link(cookie);
        if !self.is_pinned(&name) {
            let mut object = self.object(cookie, &HashMap::new())?;
            let program: &mut SkLookup = program(&mut object, INBOUND)?;
            let failed = |source| BpfError::Program { program: INBOUND, source };
            program.load().map_err(failed)?;
            let id = program.attach(netns.as_fd()).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            self.pin(INBOUND, &name, link.into())?;
        }
        self.other_link_dirs()?.iter().try_for_each(|dir| remove_link(&dir.join(&name)))
    }

    /// Ends inbound capture of a pod. Flows that are open are not touched.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub fn detach_pod(&self, cookie: u64) -> Result<(), BpfError> {
        let name = pod_link(cookie);
        remove_link(&self.link_dir().join(&name))?;
        self.other_link_dirs()?.iter().try_for_each(|dir| remove_link(&dir.join(&name)))
    }

    /// Takes every program of this node out of the kernel and forgets its tables, those of other versions
    /// too (uninstall).
    ///
    /// # Errors
    /// The pins cannot be removed.
    pub fn remove_all(self) -> Result<(), BpfError> {
        for dir in list(&self.pins.join("links"))?.into_iter().chain(versions::other_links(&self.pins)?) {
            list(&dir)?.iter().try_for_each(|link| remove_link(link))?;
        }
        let node = self.pins.parent().unwrap_or(&self.pins).to_path_buf();
        fs::remove_dir_all(&node).map_err(|source| BpfError::Pins { path: node.clone(), source })?;
        // Empty when no other node has its folder on this machine.
        if let Some(all) = node.parent() {
            fs::remove_dir(all).ok();
        }
        Ok(())
    }

    fn is_pinned(&self, name: &str) -> bool {
        PinnedLink::from_pin(self.link_dir().join(name)).is_ok()
    }

    fn pin(&self, program: &'static str, name: &str, link: FdLink) -> Result<(), BpfError> {
        let path = self.link_dir().join(name);
        link.pin(&path).map(drop).map_err(|source| BpfError::Pin { program, path, source })
    }

    /// The node's links of another object: the new ones are attached already, so capture has no gap.
    /// Links of pods stay until [`Bpf::attach_pod`] replaces each or [`Bpf::detach_pod`] removes it.
    fn remove_other_links(&self) -> Result<(), BpfError> {
        for dir in self.other_link_dirs()? {
            for link in list(&dir)?.iter().filter(|link| pod_of(link).is_none()) {
                remove_link(link)?;
            }
            // A folder that still holds links of pods is not empty, and stays.
            fs::remove_dir(&dir).ok();
        }
        Ok(())
    }

    /// Folders with links of other objects, of this version and of others.
    fn other_link_dirs(&self) -> Result<Vec<PathBuf>, BpfError> {
        let mut dirs = list(&self.pins.join("links"))?;
        dirs.retain(|dir| *dir != self.link_dir());
        dirs.extend(versions::other_links(&self.pins)?);
        Ok(dirs)
    }

    /// Pins of the links of this object: what runs now.
    pub(super) fn pinned_links(&self) -> Result<Vec<PathBuf>, BpfError> {
        list(&self.link_dir())
    }
}

/// Only one process at a time changes what is pinned for the node.
struct Turn(#[allow(dead_code, reason = "the lock is held while it lives")] Flock<File>);

impl Turn {
    /// Loading takes a fraction of a second, so waiting for it is bounded by [`TURN_LIMIT`].
    fn take(pins: &Path) -> Result<Self, BpfError> {
        let failed = |source| BpfError::Busy { path: pins.to_path_buf(), source };
        let mut folder = File::open(pins).map_err(failed)?;
        let until = Instant::now() + TURN_LIMIT;
        loop {
            match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self(lock)),
                Err((back, Errno::EWOULDBLOCK)) if Instant::now() < until => {
                    folder = back;
                    thread::sleep(TURN_LOOK);
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }
}

/// Identifies the object whose links are pinned; not a security boundary (root owns the folder). With
/// and without logging are two objects: switching it replaces the links.
fn digest(debug: bool) -> String {
    let mut hasher = DefaultHasher::new();
    (OBJECT, debug).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<P, BpfError>
where
    P: TryFrom<&'a mut aya::programs::Program>,
{
    let found = object.program_mut(name).and_then(|program| P::try_from(program).ok());
    found.ok_or(BpfError::Missing { program: name })
}

fn create(dir: &Path) -> Result<(), BpfError> {
    fs::create_dir_all(dir).map_err(|source| BpfError::Bpffs { path: dir.to_path_buf(), source })
}

const BPF_FS_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0xcafe_4a11);

fn mount_bpffs(path: &Path) -> Result<(), BpfError> {
    create(path)?;
    let failed = |errno: nix::Error| BpfError::Bpffs { path: path.to_path_buf(), source: errno.into() };
    if nix::sys::statfs::statfs(path).map_err(failed)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    nix::mount::mount(Some("bpf"), path, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
        .map_err(failed)
}
