//! An identity as mounted files, under the names that Kubernetes and cert-manager use.

use crate::{
    Identity, IdentityError,
    ca::{CaError, Issued, file},
    identity::Parts,
    secret,
};
use rustls::{
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    time_provider::TimeProvider,
};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use zeroize::Zeroizing;

#[derive(Debug, Clone)]
pub struct IdentityFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
    /// Revocation lists of the authority, when it publishes any; may be absent.
    pub crl: PathBuf,
}

/// What tells one state of the files from another without reading them: mounts that swap a symlink
/// change the inode behind the path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<Option<FileState>>);

/// Device, inode, modification time in seconds and nanoseconds, size.
type FileState = (u64, u64, i64, i64, u64);

impl IdentityFiles {
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            cert: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            ca: dir.join("ca.crt"),
            crl: dir.join("ca.crl"),
        }
    }

    pub fn save(&self, issued: &Issued, roots_pem: &str) -> Result<(), CaError> {
        let key = issued.key_pem.as_ref().ok_or(CaError::NoKey)?;
        self.write(&issued.chain_pem, key, roots_pem)
    }

    pub fn save_identity(&self, identity: &Identity) -> Result<(), CaError> {
        let pem = IdentityPem::of(identity);
        self.write(&pem.chain, &pem.key, &pem.roots)
    }

    fn write(&self, chain: &str, key: &str, roots: &str) -> Result<(), CaError> {
        let dir = self.cert.parent().unwrap_or(Path::new("."));
        secret::create_dir(dir).map_err(|e| file(dir, e))?;
        secret::write(&self.key, key.as_bytes()).map_err(|e| file(&self.key, e))?;
        secret::write_public(&self.cert, chain.as_bytes()).map_err(|e| file(&self.cert, e))?;
        secret::write_public(&self.ca, roots.as_bytes()).map_err(|e| file(&self.ca, e))
    }

    /// Reads the files and checks them together.
    pub fn load(&self, time: &Arc<dyn TimeProvider>) -> Result<Identity, IdentityError> {
        let key =
            Zeroizing::new(secret::read(&self.key).map_err(|e| bad(&self.key, &e.to_string()))?);
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|e| bad(&self.key, &e.to_string()))?;
        let parts = Parts {
            chain: certificates(&self.cert)?,
            key,
            roots: certificates(&self.ca)?,
            crls: self.revocation_lists()?,
        };
        Identity::new(parts, time)
    }

    fn revocation_lists(
        &self,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, IdentityError> {
        let bytes = match fs::read(&self.crl) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(bad(&self.crl, &e.to_string())),
        };
        if !bytes.starts_with(b"-----") {
            return Ok(vec![bytes.into()]);
        }
        CertificateRevocationListDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|e| bad(&self.crl, &e.to_string()))
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let look = |path: &PathBuf| {
            let m = fs::metadata(path).ok()?;
            Some((m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
        };
        Fingerprint(
            [&self.cert, &self.key, &self.ca, &self.crl]
                .map(look)
                .to_vec(),
        )
    }
}

/// An identity as text.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct IdentityPem {
    pub chain: String,
    pub key: Zeroizing<String>,
    pub roots: String,
}

impl IdentityPem {
    pub fn of(identity: &Identity) -> Self {
        let certificates = |ders: &[CertificateDer<'_>]| -> String {
            let texts = ders.iter().map(|der| encode("CERTIFICATE", der));
            texts.collect()
        };
        Self {
            chain: certificates(identity.chain()),
            key: Zeroizing::new(encode("PRIVATE KEY", identity.key().secret_der())),
            roots: certificates(identity.trust().roots()),
        }
    }

    pub fn load(&self, time: &Arc<dyn TimeProvider>) -> Result<Identity, IdentityError> {
        let text = |e: rustls::pki_types::pem::Error| bad(Path::new("identity"), &e.to_string());
        let certificates = |pem: &str| -> Result<Vec<CertificateDer<'static>>, IdentityError> {
            CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(text)
        };
        let parts = Parts {
            chain: certificates(&self.chain)?,
            key: PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(text)?,
            roots: certificates(&self.roots)?,
            crls: Vec::new(),
        };
        Identity::new(parts, time)
    }
}

pub fn encode(tag: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), config)
}

fn bad(path: &Path, problem: &str) -> IdentityError {
    IdentityError::File {
        path: path.display().to_string(),
        problem: problem.to_owned(),
    }
}

/// The certificates of a PEM file, at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let certs: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| bad(path, &e.to_string()))?;
    if certs.is_empty() {
        return Err(bad(path, "holds no certificate"));
    }
    Ok(certs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_swapped_symlink_is_another_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["v1", "v2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            for name in ["tls.crt", "tls.key", "ca.crt"] {
                fs::write(dir.path().join(version).join(name), "same").unwrap();
            }
        }
        let data = dir.path().join("..data");
        symlink("v1", &data).unwrap();
        let files = IdentityFiles::in_dir(&data);
        let first = files.fingerprint();
        assert_eq!(first, files.fingerprint());
        let staged = dir.path().join("..tmp");
        symlink("v2", &staged).unwrap();
        fs::rename(&staged, &data).unwrap();
        assert_ne!(first, files.fingerprint());
        fs::remove_file(&data).unwrap();
        assert_ne!(files.fingerprint(), first, "gone is a state, too");
    }
}
