//! Ending a pinned link at once. One of the few files with `unsafe`.
//!
//! A link whose pin is removed ends too, but later: the kernel leaves that to a worker of its own, and until
//! then the program still runs.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Commands of bpf(2).
const OBJ_GET: libc::c_long = 7;
const LINK_DETACH: libc::c_long = 34;

/// What `OBJ_GET` is told.
#[repr(C)]
struct Get {
    path: u64,
    fd: u32,
    flags: u32,
}

/// What `LINK_DETACH` is told.
#[repr(C)]
struct Detach {
    link: RawFd,
}

/// Takes the program of a pinned link off its hook.
///
/// # Errors
/// There is no such pin, or it is not one of a link that can be detached.
pub(super) fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let link = bpf(OBJ_GET, &Get { path: path.as_ptr().expose_provenance() as u64, fd: 0, flags: 0 })?;
    // SAFETY: the call succeeded, so that this is a new descriptor, which nobody else has.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    bpf(LINK_DETACH, &Detach { link: link.as_raw_fd() }).map(drop)
}

fn bpf<T>(command: libc::c_long, told: &T) -> io::Result<RawFd> {
    // SAFETY: `told` is live and of the size given; the kernel reads no more of it, and writes nothing for
    // these commands. What `Get` points to lives as long as its caller.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(told), size_of::<T>()) };
    RawFd::try_from(done).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)
}
