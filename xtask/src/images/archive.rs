//! An archive that containerd, kind, k3d and Docker load: an OCI layout with Docker's list beside it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType};

use super::rootfs::{Rootfs, header};

/// An image over the archive's one layer.
pub struct Image {
    /// Full names, with registry and tag.
    pub names: Vec<String>,
    /// `config` of the image: user, entry point, environment, labels.
    pub config: Value,
}

/// Writes an archive of images that share one layer.
pub fn write(path: &Path, files: &Rootfs, images: &[Image]) -> Result<()> {
    let bytes = archive(files, images)?;
    let half = path.with_extension("half");
    fs::write(&half, bytes).with_context(|| format!("cannot write {}", half.display()))?;
    Ok(fs::rename(&half, path)?)
}

fn archive(files: &Rootfs, images: &[Image]) -> Result<Vec<u8>> {
    let mut blobs = Blobs::default();
    let layer = blobs.add(files.layer()?, "application/vnd.oci.image.layer.v1.tar")?;
    let mut manifests = Vec::new();
    let mut docker = Vec::new();
    for image in images {
        let config = json!({"architecture": architecture(), "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": image.config, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
        let config = blobs.add(serde_json::to_vec(&config)?, "application/vnd.oci.image.config.v1+json")?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
        let manifest = blobs.add(serde_json::to_vec(&manifest)?, kind)?;
        for name in &image.names {
            let mut entry = manifest.clone();
            entry["platform"] = json!({"architecture": architecture(), "os": "linux"});
            let tag = name.rsplit(':').next().unwrap_or_default();
            entry["annotations"] =
                json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
            manifests.push(entry);
        }
        docker.push(
            json!({"Config": blob_path(&config), "RepoTags": image.names, "Layers": [blob_path(&layer)]}),
        );
    }
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests});
    let mut tar = Builder::new(Vec::new());
    let mut put = |path: &str, bytes: &[u8]| -> Result<()> {
        let size = u64::try_from(bytes.len())?;
        Ok(tar.append_data(&mut header(EntryType::Regular, 0o644, size), path, bytes)?)
    };
    put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    put("index.json", &serde_json::to_vec(&index)?)?;
    put("manifest.json", &serde_json::to_vec(&docker)?)?;
    for (digest, bytes) in &blobs.0 {
        put(&format!("blobs/sha256/{digest}"), bytes)?;
    }
    tar.into_inner().context("cannot finish an archive")
}

/// Contents by their digest.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds contents and returns their descriptor.
    fn add(&mut self, bytes: Vec<u8>, kind: &str) -> Result<Value> {
        let digest = digest(&bytes);
        let descriptor =
            json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()});
        self.0.insert(digest, bytes);
        Ok(descriptor)
    }
}

/// SHA-256 in hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn blob_path(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
}

/// The processor as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut files = Rootfs::default();
        files.file("/a", 0o755, b"program".to_vec());
        let image = Image {
            names: vec!["culvert.local/a:1".to_string()],
            config: json!({"User": "65532:65532", "Entrypoint": ["/a"]}),
        };
        archive(&files, &[image]).unwrap()
    }

    fn unpack(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut seen = BTreeMap::new();
        for entry in tar::Archive::new(bytes).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            seen.insert(entry.path().unwrap().display().to_string(), contents);
        }
        seen
    }

    #[test]
    fn the_same_files_give_the_same_archive_and_every_digest_fits_its_contents() {
        let bytes = sample();
        assert_eq!(bytes, sample());
        let seen = unpack(&bytes);
        for (path, contents) in seen.iter().filter(|(path, _)| path.starts_with("blobs/")) {
            assert_eq!(path, &format!("blobs/sha256/{}", digest(contents)));
        }
        assert_eq!(digest(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn containerd_and_docker_find_the_image_by_its_name() {
        let seen = unpack(&sample());
        let index: Value = serde_json::from_slice(&seen["index.json"]).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(entry["annotations"]["io.containerd.image.name"], "culvert.local/a:1");
        let manifest: Value = serde_json::from_slice(&seen[&blob_path(entry)]).unwrap();
        let docker: Value = serde_json::from_slice(&seen["manifest.json"]).unwrap();
        assert_eq!(docker[0]["RepoTags"][0], "culvert.local/a:1");
        assert_eq!(docker[0]["Config"], blob_path(&manifest["config"]));
        let config: Value = serde_json::from_slice(&seen[docker[0]["Config"].as_str().unwrap()]).unwrap();
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    }
}
