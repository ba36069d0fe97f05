//! Where the cgroup v2 tree is. Production nodes mount it at `/sys/fs/cgroup`, hybrid ones elsewhere.

use std::{fs, io, path::PathBuf};

/// The first cgroup v2 mount of this mount namespace.
///
/// # Errors
/// `/proc/self/mountinfo` cannot be read, or there is no such mount.
pub fn v2_mount() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    find_v2(&text).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup v2 mount; mount one with: mount -t cgroup2 none /sys/fs/cgroup",
        )
    })
}

/// Finds the mount point in the text of mountinfo (proc_pid_mountinfo(5)).
fn find_v2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount_of_hybrid_and_unified_hosts() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n42 24 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_v2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            find_v2("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"),
            Some("/sys/fs/cgroup".into())
        );
        assert_eq!(find_v2("30 24 0:26 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
