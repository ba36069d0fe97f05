//! Which kernel a step needs at least: the one table that allows a skip.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Lines `<step> <major>.<minor>`; the host reads the same file and refuses any other skip.
const TABLE: &str = include_str!("../../verify/minimum-kernels.txt");

/// The kernel's name and the programs' entry conditions.
///
/// # Errors
/// The kernel does not say its release.
pub fn kernel() -> Result<Value> {
    let names = nix::sys::utsname::uname().context("uname")?;
    let release = names.release().to_string_lossy().into_owned();
    let jit = std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    Ok(json!({"release": release, "version": names.version().to_string_lossy(), "jit": jit.trim()}))
}

/// The minimum kernel of a step when this one is older.
pub fn too_old_for(step: &str) -> Option<String> {
    let (_, minimum) =
        TABLE.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == step)?;
    let release = nix::sys::utsname::uname().ok()?.release().to_string_lossy().into_owned();
    (version(&release) < version(minimum)).then(|| minimum.trim().to_string())
}

/// Major and minor number at the start of a release such as `6.1.0-56-cloud-amd64`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers =
        release.trim().split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_release_is_compared_by_its_numbers() {
        assert!(version("6.1.0-56-cloud-amd64") < version("6.12"));
        assert!(version("5.10.1") < version("6.1"));
        assert_eq!(version("6.12.117+deb12-cloud-amd64"), (6, 12));
    }
}
