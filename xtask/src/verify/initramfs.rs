//! The guest's file system: busybox, `ip`, the loader and the modules that the checks need.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{cpio::Archive, kernel::Kernel, package};
use crate::command::{find, output};

/// Modules that the smoke test needs; Debian's cloud kernels have the rest built in.
const MODULES: [&str; 1] = ["veth"];
const FOLDERS: [&str; 13] =
    ["bin", "dev", "lib", "lib64", "modules", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "etc"];

/// Writes the archive for one kernel and returns its path.
pub fn write(root: &Path, kernel: &Kernel, guest: &Path) -> Result<PathBuf> {
    let busybox = package::fetch("busybox-static")?.join("bin/busybox");
    let mut archive = Archive::default();
    FOLDERS.iter().for_each(|folder| archive.folder(folder));
    archive.console();
    archive.copy("bin/busybox", &busybox)?;
    archive.copy("bin/verify-guest", guest)?;
    archive.file("init", 0o755, &fs::read(root.join("xtask/verify/init"))?);
    add_ip(&mut archive)?;
    for (order, module) in ordered(kernel, &busybox)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.copy(&format!("modules/{order:02}-{name}"), module)?;
    }
    let path = package::folder()?.join(format!(".{}-{}.cpio", std::process::id(), kernel.package));
    fs::write(&path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// This machine's `ip` with the libraries that it names.
fn add_ip(archive: &mut Archive) -> Result<()> {
    let ip = find("ip").or_else(|| Some(PathBuf::from("/usr/sbin/ip")).filter(|path| path.exists()));
    let ip = ip.context("there is no ip; run: cargo xtask setup")?;
    archive.copy("usr/bin/ip", &ip)?;
    for library in libraries(&output(Command::new("ldd").arg(&ip))?) {
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The program names its dynamic linker by full path; the rest is found by LD_LIBRARY_PATH.
        let folder = if library.starts_with("/lib64") { "lib64" } else { "lib" };
        archive.copy(&format!("{folder}/{name}"), &library)?;
    }
    Ok(())
}

/// Paths in ldd's output: `libc.so.6 => /lib/…/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    ldd.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// The wanted modules behind those that they depend on.
fn ordered(kernel: &Kernel, busybox: &Path) -> Result<Vec<PathBuf>> {
    let mut order: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        add_module(module, kernel, busybox, &mut order)?;
    }
    Ok(order)
}

fn add_module(name: &str, kernel: &Kernel, busybox: &Path, order: &mut Vec<PathBuf>) -> Result<()> {
    let path = find_module(&kernel.modules, name)?
        .with_context(|| format!("{} has no module {name}", kernel.package))?;
    for dependency in dependencies(&contents(&path, busybox)?) {
        add_module(&dependency, kernel, busybox, order)?;
    }
    if !order.contains(&path) {
        order.push(path);
    }
    Ok(())
}

/// A module's file names use either of `-` and `_`; from 6.12 they are compressed.
fn find_module(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
        if path.is_dir() {
            if let Some(found) = find_module(&path, name)? {
                return Ok(Some(found));
            }
        } else if [".ko", ".ko.xz"].iter().any(|ending| file == format!("{}{ending}", name.replace('-', "_")))
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn contents(module: &Path, busybox: &Path) -> Result<Vec<u8>> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(module).with_context(|| format!("cannot read {}", module.display()));
    }
    let out = Command::new(busybox).arg("xzcat").arg(module).output().context("busybox does not start")?;
    if !out.status.success() {
        bail!("{} cannot be decompressed", module.display());
    }
    Ok(out.stdout)
}

/// The `depends=` field of a module's information section: names by commas, ended by a zero byte.
fn dependencies(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) else { return Vec::new() };
    let list = module[at + FIELD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list).into_owned();
    list.split(',').filter(|name| !name.is_empty()).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_dependencies_are_read_from_its_information_section() {
        let module = b"\x7fELF..license=GPL\0depends=nf_tables,nf_conntrack\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["nf_tables", "nf_conntrack"]);
        assert!(dependencies(b"license=GPL\0depends=\0name=veth\0").is_empty());
    }

    #[test]
    fn libraries_are_the_absolute_paths_that_ldd_prints() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(ldd),
            [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
    }
}
