//! A store of blobs in a local directory, named by the SHA-256 of their content.

use sha2::{Digest, Sha256};
use std::{io, path::PathBuf};
use tars_certs::secret;

/// A directory of blobs.
#[derive(Debug, Clone)]
pub struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    /// Opens the store in `dir`, which is created if it does not exist.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        secret::create_dir(&dir)?;
        Ok(Self { dir })
    }

    /// Stores content durably and returns its name. Blocks on the disk.
    pub fn put(&self, content: &[u8]) -> io::Result<String> {
        let name = digest(content);
        let path = self.dir.join(&name);
        if !path.try_exists()? {
            secret::write(&path, content)?;
        }
        Ok(name)
    }

    /// Reads content back. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] when the content does not match its name.
    pub fn get(&self, name: &str) -> io::Result<Vec<u8>> {
        let content = std::fs::read(self.dir.join(name))?;
        if digest(&content) == name {
            Ok(content)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("blob {name} is damaged"),
            ))
        }
    }
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_content_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().join("b")).unwrap();
        let name = blobs.put(b"weights").unwrap();
        assert_eq!(blobs.get(&name).unwrap(), b"weights");
        std::fs::write(dir.path().join("b").join(&name), b"weightz").unwrap();
        assert_eq!(
            blobs.get(&name).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
