//! Where the cluster's programs are: those built from the Go module, and the machine's own.

use std::path::{Path, PathBuf};

/// Names the folder of the image archives that `cargo xtask test` wrote.
pub const IMAGES: &str = "CULVERT_CLUSTER_IMAGES";

/// Names the folder of the image archives of Istio's parts that `cargo xtask test --ztunnel` wrote.
pub const ISTIO_IMAGES: &str = "CULVERT_ISTIO_IMAGES";

/// Names the folder of the programs that `cargo xtask setup` built.
pub const VARIABLE: &str = "CULVERT_CLUSTER_PROGRAMS";

/// See the module's description.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The folder that [`VARIABLE`] names, if an API server is there.
    #[allow(clippy::disallowed_methods, reason = "the cluster's one reader of the environment")]
    pub fn find() -> Option<Self> {
        let folder = PathBuf::from(std::env::var(VARIABLE).ok()?);
        folder.join("kube-apiserver").is_file().then_some(Self { folder })
    }

    /// A program: the built one, else the machine's, which PATH finds.
    pub fn path(&self, name: &str) -> PathBuf {
        let built = self.folder.join(name);
        if built.is_file() { built } else { PathBuf::from(name) }
    }

    /// The folder of the built programs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Folder of the custom resource definitions, beside that of the programs.
    pub fn crds(&self) -> PathBuf {
        self.folder.parent().unwrap_or(&self.folder).join("crds")
    }
}

/// The image archives that the nodes may fetch.
pub fn images() -> Option<Vec<PathBuf>> {
    archives(IMAGES)
}

/// The same of Istio's own parts; none when no ztunnel is given.
pub fn istio_images() -> Option<Vec<PathBuf>> {
    archives(ISTIO_IMAGES)
}

#[allow(clippy::disallowed_methods, reason = "the cluster's one reader of the environment")]
fn archives(variable: &str) -> Option<Vec<PathBuf>> {
    let entries = std::fs::read_dir(std::env::var(variable).ok()?).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Some(paths.filter(|path| path.extension().is_some_and(|end| end == "tar")).collect())
}
