//! The Unix socket of the admin endpoint: there while the process runs, readable by its owner only.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("admin socket {0} is served by another process: stop it or choose another path")]
    Taken(PathBuf),
    /// Something that is no socket is there; it is not removed.
    #[error("{0} is there and is no socket: choose another path for the admin socket")]
    NoSocket(PathBuf),
    /// The file system refuses.
    #[error("admin socket {path} cannot be made")]
    File {
        /// Path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket file; removed when dropped, unless another one took its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|data| data.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds a socket; a stale file of a process that is gone is replaced.
///
/// # Errors
/// See [`SocketError`].
pub async fn bind(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |source| SocketError::File { path: path.into(), source };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    if let Ok(data) = fs::symlink_metadata(path) {
        if !data.file_type().is_socket() {
            return Err(SocketError::NoSocket(path.into()));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(SocketError::Taken(path.into()));
        }
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
    Ok((listener, SocketFile { path: path.into(), inode }))
}
