//! One root and its intermediates, as files in a folder.

use super::{
    CaError, Lifetimes, RootInfo, file, profile, read, read_secret, rotation::RootState,
    save_public, save_secret, unusable,
};
use crate::{KeyId, secret, trust::SigningCertificate};
use rcgen::{Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

#[derive(Debug)]
pub(super) struct Intermediate {
    pub(super) der: CertificateDer<'static>,
    pub(super) pem: String,
    pub(super) key: KeyId,
    key_pem: Zeroizing<String>,
    not_before: Duration,
    pub(super) not_after: Duration,
}

impl Intermediate {
    pub(super) fn issuer(&self) -> Result<Issuer<'static, KeyPair>, CaError> {
        let key = KeyPair::from_pem(&self.key_pem)?;
        Ok(Issuer::from_ca_cert_der(&self.der, key)?)
    }
}

#[derive(Debug)]
pub(super) struct Generation {
    pub(super) number: u32,
    pub(super) state: RootState,
    pub(super) cert: CertificateDer<'static>,
    pub(super) pem: String,
    pub(super) key: KeyId,
    subject: String,
    not_before: Duration,
    not_after: Duration,
    key_path: PathBuf,
    pub(super) intermediates: Vec<Intermediate>,
}

fn folder(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("root-{number}"))
}

impl Generation {
    pub(super) fn create(
        dir: &Path,
        number: u32,
        trust_domain: &str,
        lives: Lifetimes,
        now: Duration,
    ) -> Result<Self, CaError> {
        let folder = folder(dir, number);
        secret::create_dir(&folder).map_err(|e| file(&folder, e))?;
        let key = KeyPair::generate()?;
        let name = format!("{trust_domain} root {number}");
        let cert = profile::authority(&name, 1, now, now + lives.root).self_signed(&key)?;
        save_secret(&folder.join("root.key"), &key.serialize_pem())?;
        save_public(&folder.join("root.crt"), &cert.pem())?;
        // A rotation step that did not finish may have left a folder behind.
        for old in pairs(&folder)? {
            fs::remove_file(&old).map_err(|e| file(&old, e))?;
        }
        let mut made = Self::load(dir, number, RootState::Prepared, now)?;
        made.renew_intermediate(dir, trust_domain, lives, now)?;
        Ok(made)
    }

    pub(super) fn load(
        dir: &Path,
        number: u32,
        state: RootState,
        now: Duration,
    ) -> Result<Self, CaError> {
        let folder = folder(dir, number);
        let path = folder.join("root.crt");
        let pem = read(&path)?;
        let parsed = authority(&path, &pem, now)?;
        let mut intermediates = Vec::new();
        for path in pairs(&folder)? {
            if let Some(intermediate) = load_intermediate(&path, now)? {
                intermediates.push(intermediate);
            }
        }
        let mut root = Self {
            number,
            state,
            cert: parsed.der,
            pem,
            key: parsed.key,
            subject: parsed.subject,
            not_before: parsed.not_before,
            not_after: parsed.not_after,
            key_path: folder.join("root.key"),
            intermediates,
        };
        root.intermediates.sort_by_key(|i| i.not_before);
        if root.online() {
            root.check_key()?;
        } else if root.intermediates.is_empty() {
            let problem = "has no intermediate that is still valid, and no root.key to sign one";
            return Err(unusable(&folder, problem));
        }
        Ok(root)
    }

    fn check_key(&self) -> Result<(), CaError> {
        let key = KeyPair::from_pem(&Zeroizing::new(read_secret(&self.key_path)?))?;
        matching(&self.key_path, &key, self.key)
    }

    pub(super) fn online(&self) -> bool {
        self.key_path.exists()
    }

    pub(super) fn signs_as(&self, issuer: &KeyId) -> bool {
        self.key == *issuer || self.intermediates.iter().any(|i| i.key == *issuer)
    }

    pub(super) fn signer(&self, now: Duration) -> Option<&Intermediate> {
        self.intermediates.last().filter(|i| i.not_after > now)
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        let due = self.intermediates.last().map_or(Duration::ZERO, |i| {
            i.not_before + i.not_after.saturating_sub(i.not_before) * 2 / 3
        });
        now >= due && self.online()
    }

    pub(super) fn renew_intermediate(
        &mut self,
        dir: &Path,
        trust_domain: &str,
        lives: Lifetimes,
        now: Duration,
    ) -> Result<(), CaError> {
        let folder = folder(dir, self.number);
        let root = KeyPair::from_pem(&Zeroizing::new(read_secret(&self.key_path)?))?;
        let issuer = Issuer::from_ca_cert_der(&self.cert, root)?;
        let key = KeyPair::generate()?;
        let name = format!(
            "{trust_domain} intermediate {}-{}",
            self.number,
            now.as_secs()
        );
        let end = (now + lives.intermediate).min(self.not_after);
        let cert = profile::authority(&name, 0, now, end).signed_by(&key, &issuer)?;
        let stem = format!("intermediate-{}", now.as_millis());
        save_secret(&folder.join(format!("{stem}.key")), &key.serialize_pem())?;
        let path = folder.join(format!("{stem}.crt"));
        save_public(&path, &cert.pem())?;
        self.intermediates.retain(|i| i.not_after > now);
        self.intermediates.extend(load_intermediate(&path, now)?);
        Ok(())
    }

    pub(super) fn info(&self) -> RootInfo {
        RootInfo {
            generation: self.number,
            state: self.state,
            key: self.key,
            subject: self.subject.clone(),
            der: self.cert.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
            online: self.online(),
        }
    }
}

fn pairs(folder: &Path) -> Result<Vec<PathBuf>, CaError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| file(folder, e))? {
        let path = entry.map_err(|e| file(folder, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("intermediate-") && name.ends_with(".crt") {
            found.push(path);
        }
    }
    Ok(found)
}

/// `None` for an intermediate that has expired: it cannot sign, and nothing it signed is valid.
fn load_intermediate(path: &Path, now: Duration) -> Result<Option<Intermediate>, CaError> {
    let pem = read(path)?;
    let parsed = match authority(path, &pem, now) {
        Err(CaError::Unusable { problem, .. }) if problem == EXPIRED => return Ok(None),
        other => other?,
    };
    let key_path = path.with_extension("key");
    let key_pem = Zeroizing::new(read_secret(&key_path)?);
    matching(&key_path, &KeyPair::from_pem(&key_pem)?, parsed.key)?;
    Ok(Some(Intermediate {
        der: parsed.der,
        pem,
        key: parsed.key,
        key_pem,
        not_before: parsed.not_before,
        not_after: parsed.not_after,
    }))
}

fn matching(path: &Path, key: &KeyPair, expected: KeyId) -> Result<(), CaError> {
    use rcgen::PublicKeyData;
    if KeyId::of_spki(&key.subject_public_key_info()) == expected {
        Ok(())
    } else {
        Err(unusable(
            path,
            "is not the key of the certificate beside it",
        ))
    }
}

struct Parsed {
    der: CertificateDer<'static>,
    key: KeyId,
    subject: String,
    not_before: Duration,
    not_after: Duration,
}

const EXPIRED: &str = "has expired";

/// Parses a CA certificate, and rejects one that is expired or may not sign certificates and lists.
fn authority(path: &Path, pem: &str, now: Duration) -> Result<Parsed, CaError> {
    let none = || unusable(path, "is not a certificate");
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| none())?;
    let (_, cert) = X509Certificate::from_der(&der).map_err(|_| none())?;
    let is = SigningCertificate::of(&cert, None).map_err(|e| unusable(path, &e.to_string()))?;
    if !is.signs_lists {
        return Err(unusable(path, "may not sign revocation lists (cRLSign)"));
    }
    if is.not_after <= now {
        return Err(unusable(path, EXPIRED));
    }
    Ok(Parsed {
        key: is.key,
        subject: cert.subject().to_string(),
        not_before: is.not_before,
        not_after: is.not_after,
        der: der.into_owned(),
    })
}
