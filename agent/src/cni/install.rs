//! Putting the plugin on the node, keeping it there, and taking it away again.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_core::error::chain;
use notify::{RecursiveMode, Watcher};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    PLUGIN,
    conflist::{self, ConflistError, Entry},
};

/// Changes that come within this time are looked at together.
const SETTLE: Duration = Duration::from_millis(50);
/// The folder is looked at after this time even when nobody told of a change.
const RESCAN: Duration = Duration::from_secs(30);
/// What the primary plugin's file is called while a list of it and ours stands in its place.
const SAVED: &str = "culvert-saved";

/// Why the plugin is not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file.
    #[error("{path} cannot be {doing}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was to be done.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The primary plugin's configuration.
    #[error("{path} is not understood; pods are enrolled without the plugin until it is repaired")]
    Conflist {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ConflistError,
    },
}

/// Where the plugin goes, and what is written into the primary plugin's list.
#[derive(Debug, Clone)]
pub struct Installer {
    /// The plugin's program, in the agent's image.
    pub program: PathBuf,
    /// Folder of the node's plugins.
    pub bin_dir: PathBuf,
    /// Folder of the node's lists of plugins.
    pub conf_dir: PathBuf,
    /// Our entry.
    pub entry: Entry,
}

/// What an installation found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Installed {
    /// It is in the list, in this file.
    Chained(PathBuf),
    /// There is no primary plugin yet.
    NoPrimary,
}

fn failed<'a>(path: &'a Path, doing: &'static str) -> impl Fn(io::Error) -> InstallError + 'a {
    move |source| InstallError::File { path: path.into(), doing, source }
}

impl Installer {
    /// Installs what is not there; the program first, because a list that names a missing one starts no pod.
    ///
    /// # Errors
    /// Says which file, and why.
    pub fn install(&self) -> Result<Installed, InstallError> {
        self.put_program()?;
        let Some(path) = self.primary()? else { return Ok(Installed::NoPrimary) };
        let text = fs::read_to_string(&path).map_err(failed(&path, "read"))?;
        let understood = |source| InstallError::Conflist { path: path.clone(), source };
        let Some(changed) = conflist::with(&text, &self.entry).map_err(understood)? else {
            return Ok(Installed::Chained(path));
        };
        if !conflist::is_single(&text) {
            replace(&path, changed.as_bytes(), &fs::metadata(&path).map_err(failed(&path, "read"))?)?;
            return Ok(Installed::Chained(path));
        }
        // The list first: with neither a node starts no pod, with both the plugin alone is used.
        let list = path.with_extension("conflist");
        replace(&list, changed.as_bytes(), &fs::metadata(&path).map_err(failed(&path, "read"))?)?;
        fs::rename(&path, saved(&path)).map_err(failed(&path, "renamed"))?;
        Ok(Installed::Chained(list))
    }

    /// Takes the plugin away; the list first, for the same reason.
    ///
    /// # Errors
    /// Says which file, and why.
    pub fn remove(&self) -> Result<(), InstallError> {
        for path in files(&self.conf_dir)? {
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let Ok(Some(changed)) = conflist::without(&text) else { continue };
            let original = saved(&path.with_extension("conf"));
            if original.exists() {
                let back = path.with_extension("conf");
                fs::rename(&original, &back).map_err(failed(&original, "renamed"))?;
                fs::remove_file(&path).map_err(failed(&path, "removed"))?;
            } else {
                replace(&path, changed.as_bytes(), &fs::metadata(&path).map_err(failed(&path, "read"))?)?;
            }
        }
        let program = self.bin_dir.join(PLUGIN);
        match fs::remove_file(&program) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&program, "removed")(error)),
            _ => Ok(()),
        }
    }

    /// Installs, and again whenever something in the folders changes, until cancelled.
    pub async fn keep(self, cancel: CancellationToken) {
        let changed = std::sync::Arc::new(Notify::new());
        let waker = changed.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                waker.notify_one();
            }
        });
        let (mut last, mut watched) = (String::new(), [false; 2]);
        loop {
            if let Ok(watcher) = &mut watcher {
                for (dir, watched) in [&self.bin_dir, &self.conf_dir].into_iter().zip(&mut watched) {
                    *watched = *watched || watcher.watch(dir, RecursiveMode::NonRecursive).is_ok();
                }
            }
            let installer = self.clone();
            let now = match tokio::task::spawn_blocking(move || installer.install()).await {
                Ok(Ok(Installed::Chained(path))) => {
                    format!("the CNI plugin is chained in {}", path.display())
                }
                Ok(Ok(Installed::NoPrimary)) => {
                    format!(
                        "{} has no list of plugins yet; pods are enrolled by the watch",
                        self.conf_dir.display()
                    )
                }
                Ok(Err(error)) => format!("the CNI plugin is not installed: {}", chain(&error)),
                Err(error) => error.to_string(),
            };
            if now != last {
                tracing::info!("{now}");
                last = now;
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = timeout(RESCAN, changed.notified()) => sleep(SETTLE).await,
            }
        }
    }

    fn put_program(&self) -> Result<(), InstallError> {
        let (from, to) = (&self.program, self.bin_dir.join(PLUGIN));
        let ours = fs::read(from).map_err(failed(from, "read"))?;
        if fs::read(&to).is_ok_and(|theirs| theirs == ours) {
            return Ok(());
        }
        fs::create_dir_all(&self.bin_dir).map_err(failed(&self.bin_dir, "made"))?;
        // A name that no list has; a program that runs can be renamed over.
        let hidden = self.bin_dir.join(format!(".{PLUGIN}.tmp"));
        fs::write(&hidden, ours)
            .and_then(|()| fs::set_permissions(&hidden, fs::Permissions::from_mode(0o755)))
            .and_then(|()| fs::rename(&hidden, &to))
            .map_err(failed(&to, "written"))
    }

    /// The file that runtimes use: the first by name.
    fn primary(&self) -> Result<Option<PathBuf>, InstallError> {
        Ok(files(&self.conf_dir)?.into_iter().next())
    }
}

/// Configurations in the order in which runtimes read them.
fn files(dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(dir, "read"))?,
    };
    let is = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conf" | "conflist" | "json")) && path.is_file()
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is).collect();
    found.sort();
    Ok(found)
}

fn saved(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(SAVED);
    name.into()
}

/// Writes a file in one step, with the mode and owner of another.
fn replace(path: &Path, text: &[u8], like: &fs::Metadata) -> Result<(), InstallError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}.culvert-tmp"));
    let write = || {
        let mut file = fs::File::create(&hidden)?;
        file.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
        std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&hidden, path)
    };
    write().map_err(failed(path, "written"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}]}"#;

    fn installer(root: &Path) -> Installer {
        fs::create_dir_all(root.join("net.d")).unwrap();
        fs::write(root.join("program"), "plugin").unwrap();
        Installer {
            program: root.join("program"),
            bin_dir: root.join("bin"),
            conf_dir: root.join("net.d"),
            entry: Entry {
                node: "a".into(),
                socket: "/run/culvert/cni.sock".into(),
                state_dir: "/var/lib/culvert/agent".into(),
                bpffs: "/sys/fs/bpf".into(),
                cgroup: None,
                excluded: vec![],
            },
        }
    }

    fn value(path: &Path) -> Value {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn types(path: &Path) -> Vec<String> {
        let list = value(path);
        list["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_plugin_comes_last_in_the_first_list_and_goes_without_a_trace() {
        let root = tempfile::tempdir().unwrap();
        let installer = installer(root.path());
        assert_eq!(installer.install().unwrap(), Installed::NoPrimary);
        let (first, second) =
            (root.path().join("net.d/10-a.conflist"), root.path().join("net.d/20-b.conflist"));
        fs::write(&first, LIST).unwrap();
        fs::write(&second, LIST).unwrap();
        fs::set_permissions(&first, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(installer.install().unwrap(), Installed::Chained(first.clone()));
        assert_eq!(types(&first), ["ptp", "culvert-cni"]);
        assert_eq!(types(&second), ["ptp"]);
        assert_eq!(fs::metadata(&first).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read(root.path().join("bin/culvert-cni")).unwrap(), b"plugin");
        let before = fs::metadata(&first).unwrap().ino();
        installer.install().unwrap();
        assert_eq!(fs::metadata(&first).unwrap().ino(), before, "nothing is written twice");
        // The primary plugin writes its list again.
        fs::write(&first, LIST.replace("pods", "again")).unwrap();
        installer.install().unwrap();
        assert!(types(&first) == ["ptp", "culvert-cni"] && value(&first)["name"] == "again");
        installer.remove().unwrap();
        assert_eq!(types(&first), ["ptp"]);
        assert!(!root.path().join("bin/culvert-cni").exists());
        let left = fs::read_dir(root.path().join("net.d")).unwrap().count();
        assert_eq!(left, 2);
        installer.remove().unwrap();
    }

    #[test]
    fn a_single_plugin_stands_aside_for_a_list_and_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let installer = installer(root.path());
        let single = root.path().join("net.d/10-a.conf");
        let text = r#"{"cniVersion": "0.4.0", "name": "n", "type": "bridge"}"#;
        fs::write(&single, text).unwrap();
        let list = root.path().join("net.d/10-a.conflist");
        assert_eq!(installer.install().unwrap(), Installed::Chained(list.clone()));
        assert_eq!(types(&list), ["bridge", "culvert-cni"]);
        assert!(!single.exists());
        assert_eq!(installer.install().unwrap(), Installed::Chained(list.clone()));
        installer.remove().unwrap();
        assert!(fs::read_to_string(&single).unwrap() == text && !list.exists());
    }

    #[test]
    fn what_is_not_understood_is_left_alone_and_said() {
        let root = tempfile::tempdir().unwrap();
        let installer = installer(root.path());
        let broken = root.path().join("net.d/10-a.conflist");
        fs::write(&broken, "{").unwrap();
        let error = installer.install().unwrap_err();
        assert!(error.to_string().contains("10-a.conflist"), "{error}");
        assert_eq!(fs::read_to_string(&broken).unwrap(), "{");
        installer.remove().unwrap();
        assert_eq!(fs::read_to_string(&broken).unwrap(), "{");
    }

    #[tokio::test]
    async fn a_list_that_is_rewritten_is_repaired_at_once() {
        let root = tempfile::tempdir().unwrap();
        let installer = installer(root.path());
        let list = root.path().join("net.d/10-a.conflist");
        let cancel = CancellationToken::new();
        let kept = tokio::spawn(installer.keep(cancel.clone()));
        for name in ["one", "two"] {
            let hidden = root.path().join("net.d/.hidden");
            fs::write(&hidden, LIST.replace("pods", name)).unwrap();
            fs::rename(&hidden, &list).unwrap();
            let repaired = async {
                while types(&list) != ["ptp", "culvert-cni"] || value(&list)["name"] != name {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(20), repaired).await.unwrap();
        }
        cancel.cancel();
        kept.await.unwrap();
    }
}
