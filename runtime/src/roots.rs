//! Certificates in files, by which a process and the servers that it uses verify each other.

use crate::password::unusable;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use std::path::Path;

/// Reads the certificates in a PEM file.
///
/// # Errors
///
/// For the operator: that the file cannot be read, or holds no certificate. `setting` is the setting that
/// names the file.
pub(crate) fn certificates(
    setting: &str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let found: Vec<_> = found.map_err(|e| unusable(setting, file, &e))?;
    match found.is_empty() {
        true => Err(unusable(setting, file, &"holds no certificate")),
        false => Ok(found),
    }
}

/// Reads the authorities in a PEM file.
///
/// # Errors
///
/// As [`certificates`], and where one of them cannot be an authority.
pub(crate) fn roots(setting: &str, file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(setting, file)? {
        let added = roots.add(certificate);
        added.map_err(|e| unusable(setting, file, &e))?;
    }
    Ok(roots)
}
