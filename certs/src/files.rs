//! An identity in mounted files, under the names that Kubernetes and cert-manager use.

use crate::{
    Identity, IdentityError, Trust,
    blocks::{self, Problem},
    ca::{CaError, Issued, file},
    crypto,
    identity::Parts,
    secret,
    trust::RevocationList,
};
use rustls::{
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer},
    time_provider::TimeProvider,
};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// The paths of an identity's files.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    /// The leaf and its intermediates, in PEM.
    pub cert: PathBuf,
    /// The private key in PEM, not encrypted.
    pub key: PathBuf,
    /// The trusted roots in PEM.
    pub ca: PathBuf,
    /// Revocation lists, in PEM or as one list in DER. The file is optional.
    pub crl: PathBuf,
}

/// Detects changed files without reading them: a mount that swaps a symlink changes the inode
/// behind the path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<Option<FileState>>);

/// Device, inode, modification time in seconds and nanoseconds, size.
type FileState = (u64, u64, i64, i64, u64);

impl IdentityFiles {
    /// The files `tls.crt`, `tls.key`, `ca.crt` and `ca.crl` of a directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            cert: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            ca: dir.join("ca.crt"),
            crl: dir.join("ca.crl"),
        }
    }

    /// Writes a certificate issued here, with its key and the trusted roots. Creates the directory.
    ///
    /// # Errors
    ///
    /// [`CaError::NoKey`] when the certificate was issued for a key held elsewhere.
    pub fn save(&self, issued: &Issued, roots_pem: &str) -> Result<(), CaError> {
        let key = issued.key_pem.as_ref().ok_or(CaError::NoKey)?;
        self.write(&issued.chain_pem, key, roots_pem)
    }

    /// Writes the certificate, key and roots of an identity. Creates the directory.
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

    /// Reads the files and verifies them together, as [`Identity::new`] does.
    pub fn load(&self, time: &Arc<dyn TimeProvider>) -> Result<Identity, IdentityError> {
        self.load_after(None, time)
    }

    /// Like [`load`](Self::load), as the successor of an identity: a revocation list that is older
    /// than the one in use is ignored.
    pub fn load_after(
        &self,
        current: Option<&Trust>,
        time: &Arc<dyn TimeProvider>,
    ) -> Result<Identity, IdentityError> {
        let text =
            Zeroizing::new(secret::read(&self.key).map_err(|e| bad(&self.key, &e.to_string()))?);
        let key = private_key(text.as_bytes()).map_err(|e| bad(&self.key, &e))?;
        let now = time.current_time().map_or(0, |t| t.as_secs());
        let mut crls = self.revocation_lists()?;
        if let Some(current) = current {
            crls = current.newest_lists(crls, Duration::from_secs(now));
        }
        let parts = Parts {
            chain: certificates(&self.cert)?,
            key,
            roots: certificates(&self.ca)?,
            crls,
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
        lists_in(bytes).map_err(|e| bad(&self.crl, &e))
    }

    /// The current state of the files.
    pub fn fingerprint(&self) -> Fingerprint {
        let state = |path: &PathBuf| {
            let m = fs::metadata(path).ok()?;
            Some((m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
        };
        Fingerprint(
            [&self.cert, &self.key, &self.ca, &self.crl]
                .map(state)
                .to_vec(),
        )
    }
}

/// An identity as PEM text.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct IdentityPem {
    /// The leaf and its intermediates.
    pub chain: String,
    /// The private key.
    pub key: Zeroizing<String>,
    /// The trusted roots.
    pub roots: String,
}

impl IdentityPem {
    /// Encodes an identity. Its revocation lists are not included.
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

    /// Decodes and verifies the identity.
    pub fn load(&self, time: &Arc<dyn TimeProvider>) -> Result<Identity, IdentityError> {
        let text = |e: String| bad(Path::new("identity"), &e);
        let parts = Parts {
            chain: certificates_in(self.chain.as_bytes()).map_err(text)?,
            key: private_key(self.key.as_bytes()).map_err(text)?,
            roots: certificates_in(self.roots.as_bytes()).map_err(text)?,
            crls: Vec::new(),
        };
        Identity::new(parts, time)
    }
}

/// Encodes DER as a PEM block with the label `tag`.
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

/// Reads the certificates of a PEM file.
///
/// # Errors
///
/// When the file cannot be read, a block in it is malformed, or it contains no certificate.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bytes = fs::read(path).map_err(|e| bad(path, &e.to_string()))?;
    certificates_in(&bytes).map_err(|e| bad(path, &e))
}

fn certificates_in(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let blocks = blocks::parse(bytes).map_err(|e| e.to_string())?;
    let certificates = blocks.iter().filter(|b| b.is("CERTIFICATE"));
    let certificates: Vec<CertificateDer<'static>> = certificates
        .map(|block| match is_certificate(&block.der) {
            true => Ok(block.der.to_vec().into()),
            false => Err(block.bad(Problem::NotACertificate).to_string()),
        })
        .collect::<Result<_, _>>()?;
    if certificates.is_empty() {
        return Err("holds no certificate (PEM, BEGIN CERTIFICATE)".to_owned());
    }
    Ok(certificates)
}

fn is_certificate(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(rest, _)| rest.is_empty())
}

/// The first private key in a file, as OpenSSL selects it.
fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    for block in blocks::parse(bytes).map_err(|e| e.to_string())? {
        let Some(key) = block.private_key() else {
            continue;
        };
        let usable = crypto::provider()
            .key_provider
            .load_private_key(key.clone_key());
        return match usable {
            Ok(_) => Ok(key),
            Err(_) => Err(block.bad(Problem::NotAKey).to_string()),
        };
    }
    Err("holds no private key (PEM, BEGIN PRIVATE KEY)".to_owned())
}

/// Revocation lists in PEM, or one in DER, the forms in which authorities publish them.
fn lists_in(bytes: Vec<u8>) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    if !blocks::is_pem(&bytes) {
        return match RevocationList::parse(&bytes) {
            Ok(_) => Ok(vec![bytes.into()]),
            Err(e) => Err(format!("is neither PEM nor a revocation list in DER: {e}")),
        };
    }
    let blocks = blocks::parse(&bytes).map_err(|e| e.to_string())?;
    let lists = blocks.iter().filter(|b| b.is("X509 CRL"));
    let lists: Vec<CertificateRevocationListDer<'static>> = lists
        .map(|block| match RevocationList::parse(&block.der) {
            Ok(_) => Ok(block.der.to_vec().into()),
            Err(e) => Err(format!("{}: {e}", block.bad(Problem::NotAList))),
        })
        .collect::<Result<_, _>>()?;
    if lists.is_empty() {
        return Err("holds no revocation list (PEM, BEGIN X509 CRL)".to_owned());
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_swapped_symlink_changes_the_fingerprint() {
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
        assert_ne!(
            files.fingerprint(),
            first,
            "a missing file is a state of its own"
        );
    }
}
