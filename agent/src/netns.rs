//! Entering network namespaces. One of the few files with `unsafe`.

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Where a pod's network namespace is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// At a path that its source says.
    Path(PathBuf),
    /// Found and opened: it stays the same whatever happens to the process that it was found by.
    Open(Arc<Held>),
}

impl Place {
    /// A descriptor of the namespace.
    ///
    /// # Errors
    /// There is none at the path, or no descriptors are left.
    pub fn open(&self) -> io::Result<File> {
        match self {
            Self::Path(path) => File::open(path),
            Self::Open(held) => held.file.try_clone(),
        }
    }
}

/// An open network namespace; equal to another one when both are the same namespace.
#[derive(Debug)]
pub struct Held {
    file: File,
    id: (u64, u64),
}

impl Held {
    /// Holds an open namespace.
    ///
    /// # Errors
    /// The descriptor cannot be asked what it is.
    pub fn new(file: File) -> io::Result<Self> {
        let data = file.metadata()?;
        Ok(Self { id: (data.dev(), data.ino()), file })
    }

    /// The namespace.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Device and inode: nobody else has them while it is held.
    pub fn id(&self) -> (u64, u64) {
        self.id
    }

    /// Addresses of the namespace's interfaces.
    ///
    /// # Errors
    /// The namespace cannot be entered (needs CAP_SYS_ADMIN).
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        within(&self.file, || {
            let of = |address: nix::ifaddrs::InterfaceAddress| {
                let address = address.address?;
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            };
            Ok(nix::ifaddrs::getifaddrs()?.filter_map(of).collect())
        })
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Held {}

/// Runs `work` on a short-lived thread inside the namespace; sockets made there stay there.
///
/// # Errors
/// The namespace cannot be entered (needs CAP_SYS_ADMIN), or `work` failed.
pub fn within<T: Send>(netns: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        });
        inside.join().unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
    })
}

/// A thread's own namespace, to come back to.
pub struct Home(File);

impl Home {
    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn here() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self)
    }

    /// Runs `work` on this thread inside another namespace: two system calls, for the data path.
    /// `work` must not yield to other tasks of the thread.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` failed.
    pub fn visit<T>(&self, netns: &File, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let back = Back(&self.0);
        let result = work();
        drop(back);
        result
    }
}

struct Back<'a>(&'a File);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET) {
            // Going on in a pod's namespace would mix up pods: nothing may run on this thread any more.
            eprintln!("a worker cannot leave a pod's network namespace: {error}");
            std::process::abort();
        }
    }
}

/// The cookie of a network namespace: what kernel programs know it by (`SO_NETNS_COOKIE`).
///
/// # Errors
/// The namespace cannot be entered, or the kernel is older than 5.14.
pub fn cookie(netns: &File) -> io::Result<u64> {
    within(netns, || {
        let socket =
            std::net::UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| std::net::UdpSocket::bind(("::1", 0)))?;
        cookie_option(&socket, libc::SO_NETNS_COOKIE)
    })
}

/// The cookie of a socket (`SO_COOKIE`).
///
/// # Errors
/// The descriptor is no socket.
pub fn socket_cookie(socket: &impl AsRawFd) -> io::Result<u64> {
    cookie_option(socket, libc::SO_COOKIE)
}

fn cookie_option(socket: &impl AsRawFd, option: libc::c_int) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to live locals of the sizes given; the kernel writes at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
