//! The registry that the nodes fetch every image from, whatever registry its name says: nginx over
//! unpacked archives. So manifests keep their public names, and nothing leaves the cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cluster;
use crate::{net, shell, wait};

/// Port of the registry on [`net::UNDERLAY`].
pub const PORT: u16 = 5000;
const LIMIT: Duration = Duration::from_secs(20);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What containerd reads to find this registry in place of every other.
pub fn hosts() -> String {
    let url = format!("http://{}:{PORT}", net::UNDERLAY);
    format!("server = \"{url}\"\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n")
}

impl Cluster {
    /// Unpacks archives and starts serving them.
    pub(super) fn start_registry(&mut self, archives: &[PathBuf]) -> Result<()> {
        let folder = self.root.join("registry");
        for archive in archives {
            self.publish(archive)?;
        }
        let config = folder.join("nginx.conf");
        fs::create_dir_all(&folder)?;
        fs::write(&config, nginx(&folder))?;
        let (config, log) = (config.display().to_string(), self.log_file("registry").display().to_string());
        self.run("registry", "nginx", &["-c", &config, "-e", &log, "-g", "daemon off;"])?;
        let url = format!("http://{}:{PORT}/v2/", net::UNDERLAY);
        wait::until(LIMIT, "the registry", || {
            shell::output(self.place().command("curl").ok()?.args(["-sf", "--max-time", "2", &url])).ok()
        })
        .with_context(|| format!("last lines of the registry:\n{}", self.tail("registry")))?;
        Ok(())
    }

    /// Adds an image archive; nodes that have an image of that name already keep theirs.
    pub fn publish(&self, archive: &Path) -> Result<()> {
        let folder = self.root.join("registry");
        fs::create_dir_all(&folder)?;
        shell::output(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&folder))?;
        let index: Value = serde_json::from_str(&fs::read_to_string(folder.join("index.json"))?)?;
        for manifest in index["manifests"].as_array().context("an archive has a list of images")? {
            let name = manifest["annotations"]["io.containerd.image.name"].as_str();
            let name = name.context("an image in an archive has a name")?;
            let (name, tag) = name.rsplit_once(':').context("an image's name has a tag")?;
            let digest = manifest["digest"].as_str().unwrap_or_default().replace(':', "/");
            let place = folder.join("names").join(name);
            fs::create_dir_all(&place)?;
            fs::copy(folder.join("blobs").join(digest), place.join(tag))?;
        }
        Ok(())
    }

    /// Serves the images of a registry and tag under another tag too, as if they were another version.
    pub fn retag(&self, registry: &str, from: &str, to: &str) -> Result<()> {
        let images = self.root.join("registry/names").join(registry);
        for image in fs::read_dir(&images).with_context(|| format!("no images in {}", images.display()))? {
            let image = image?.path();
            if image.join(from).exists() {
                fs::copy(image.join(from), image.join(to))?;
            }
        }
        Ok(())
    }
}

/// The parts of the distribution protocol that a pull needs; `ns` is the registry that was meant.
fn nginx(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "user root;
worker_processes 1;
pid {folder}/nginx.pid;
events {{}}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  sendfile on;
  server {{
    listen {address}:{PORT};
    location = /v2/ {{ return 200; }}
    location ~ ^/v2/.+/blobs/sha256:([0-9a-f]+)$ {{
      default_type application/octet-stream;
      alias {folder}/blobs/sha256/$1;
    }}
    location ~ ^/v2/.+/manifests/sha256:([0-9a-f]+)$ {{
      default_type {MANIFEST};
      alias {folder}/blobs/sha256/$1;
    }}
    location ~ ^/v2/(.+)/manifests/([^/:]+)$ {{
      default_type {MANIFEST};
      alias {folder}/names/$arg_ns/$1/$2;
    }}
  }}
}}
",
        address = net::UNDERLAY
    )
}
