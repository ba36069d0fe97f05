//! The Unix socket of the admin endpoint: there while the process runs, for its owner only.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A living process answers there.
    #[error("--admin-socket {0}: another process serves it")]
    Taken(PathBuf),
    /// Something else is there; it is left alone.
    #[error("--admin-socket {0}: what is there is not a socket")]
    NotASocket(PathBuf),
    /// The file system refuses.
    #[error("--admin-socket {path}: {source}")]
    Io {
        /// Path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The file of a bound socket. Dropping it removes the file, unless somebody has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    /// Binds `path` and makes its folder; a file left by a process that is gone is replaced.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub async fn bind(path: &Path) -> Result<(UnixListener, Self), SocketError> {
        make_room(path).await?;
        let failed = |source| SocketError::Io { path: path.to_path_buf(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok((listener, Self { path: path.to_path_buf(), inode }))
    }
}

async fn make_room(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_path_buf(), source };
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => Err(SocketError::NotASocket(path.to_path_buf())),
        Ok(_) if UnixStream::connect(path).await.is_ok() => Err(SocketError::Taken(path.to_path_buf())),
        Ok(_) => fs::remove_file(path).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(folder) => fs::create_dir_all(folder).map_err(failed),
            None => Ok(()),
        },
        Err(error) => Err(failed(error)),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
