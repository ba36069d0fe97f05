//! Settings of network namespaces. In a container without privileges `/proc/sys` is read-only, whatever the
//! capabilities are: the agent then uses a proc file system of its own that is mounted nowhere.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Writes settings (paths below `/proc/sys`) of the namespace that the calling thread is in.
///
/// # Errors
/// A setting is unknown to the kernel, or CAP_NET_ADMIN or CAP_SYS_ADMIN is missing.
pub fn write<'a>(settings: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> io::Result<()> {
    let put = |root: &str| {
        settings.clone().try_for_each(|(setting, value)| fs::write(format!("{root}/{setting}"), value))
    };
    match put("/proc/sys") {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            let own = own_proc()?;
            put(&format!("/proc/self/fd/{}/sys", own.as_raw_fd()))
        }
        result => result,
    }
}

/// A proc file system that nobody else sees; it ends with the descriptor.
fn own_proc() -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let safe = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, safe)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    const SETTING: &str = "net/ipv4/tcp_fwmark_accept";

    #[test]
    #[allow(clippy::disallowed_methods, reason = "whether this test may be skipped")]
    fn a_setting_of_the_threads_namespace_is_written_where_proc_sys_is_read_only_too() {
        let name = "a_setting_of_the_threads_namespace_is_written_where_proc_sys_is_read_only_too";
        if !nix::unistd::geteuid().is_root() {
            let required = std::env::var("CULVERT_REQUIRE").unwrap_or_default().contains("root");
            assert!(!required, "{name} must run: CULVERT_REQUIRE lists root");
            return println!("SKIP {name}: needs root");
        }
        let host = fs::read_to_string(format!("/proc/sys/{SETTING}")).unwrap();
        std::thread::spawn(|| {
            // A mount namespace of the thread's own, in which `/proc/sys` is as a container has it.
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
            let script = "mount --make-rprivate / && mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys";
            assert!(Command::new("sh").args(["-c", script]).status().unwrap().success());
            let direct = fs::write(format!("/proc/sys/{SETTING}"), "1").unwrap_err();
            assert_eq!(direct.kind(), io::ErrorKind::ReadOnlyFilesystem);
            write([(SETTING, "1")].into_iter()).unwrap();
            assert_eq!(fs::read_to_string(format!("/proc/sys/{SETTING}")).unwrap().trim(), "1");
            assert!(write([("net/ipv4/no_such_setting", "1")].into_iter()).is_err());
        })
        .join()
        .unwrap();
        assert_eq!(fs::read_to_string(format!("/proc/sys/{SETTING}")).unwrap(), host);
    }
}
