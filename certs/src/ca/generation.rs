//! One root and its intermediates, as they are used.

use super::{
    CaError, RootInfo,
    pem::{Pair, RootContents},
    rotation::{RootEntry, RootState},
    unusable,
};
use crate::{KeyId, trust::SigningCertificate};
use rcgen::{Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
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
    /// `None` for an intermediate that has expired and whose key is gone. Others that have expired are
    /// kept, though they sign nothing: by a clock that is ahead for a while, any of them has.
    fn load(
        folder: &Path,
        stem: &str,
        pair: &Pair,
        now: Duration,
    ) -> Result<Option<Self>, CaError> {
        let parsed = parse(&folder.join(format!("{stem}.crt")), &pair.cert)?;
        let key_path = folder.join(format!("{stem}.key"));
        let key_pem = match &pair.key {
            Some(key) => key.clone(),
            None if parsed.not_after <= now => return Ok(None),
            None => return Err(unusable(&key_path, "is missing")),
        };
        matching(&key_path, &KeyPair::from_pem(&key_pem)?, parsed.key)?;
        Ok(Some(Self {
            der: parsed.der,
            pem: pair.cert.clone(),
            key: parsed.key,
            key_pem,
            not_before: parsed.not_before,
            not_after: parsed.not_after,
        }))
    }

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
    pub(super) subject: String,
    not_before: Duration,
    not_after: Duration,
    key_path: PathBuf,
    /// Whether the root key was there when this was loaded.
    pub(super) has_key: bool,
    pub(super) intermediates: Vec<Intermediate>,
}

/// The folder of a root.
pub(super) fn folder(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("root-{number}"))
}

impl Generation {
    /// The root of an authority in `dir`. Errors name the files that hold what is wrong.
    pub(super) fn load(
        dir: &Path,
        entry: &RootEntry,
        root: &RootContents,
        now: Duration,
    ) -> Result<Self, CaError> {
        let folder = folder(dir, entry.generation);
        let parsed = authority(&folder.join("root.crt"), &root.cert, now)?;
        let mut intermediates = Vec::new();
        for (stem, pair) in &root.intermediates {
            intermediates.extend(Intermediate::load(&folder, stem, pair, now)?);
        }
        intermediates.sort_by_key(|i| i.not_before);
        let key_path = folder.join("root.key");
        if let Some(key) = &root.key {
            matching(&key_path, &KeyPair::from_pem(key)?, parsed.key)?;
        } else if intermediates.iter().all(|i| i.not_after <= now) {
            let problem = "has no intermediate that is still valid, and no root.key to sign one";
            return Err(unusable(&folder, problem));
        }
        Ok(Self {
            number: entry.generation,
            state: entry.state,
            cert: parsed.der,
            pem: root.cert.clone(),
            key: parsed.key,
            subject: parsed.subject,
            not_before: parsed.not_before,
            not_after: parsed.not_after,
            key_path,
            has_key: root.key.is_some(),
            intermediates,
        })
    }

    pub(super) fn entry(&self) -> RootEntry {
        RootEntry {
            generation: self.number,
            state: self.state,
        }
    }

    pub(super) fn online(&self) -> bool {
        self.key_path.exists()
    }

    pub(super) fn signs_as(&self, issuer: &KeyId) -> bool {
        self.key == *issuer || self.intermediates.iter().any(|i| i.key == *issuer)
    }

    /// The newest intermediate that is valid. When none is, because the clock is behind, one that will
    /// be.
    pub(super) fn signer(&self, now: Duration) -> Option<&Intermediate> {
        let newest = self.intermediates.last().filter(|i| i.not_after > now);
        self.valid(now).or(newest)
    }

    /// Without those of the future, which a clock that was ahead has left behind.
    fn valid(&self, now: Duration) -> Option<&Intermediate> {
        let mut newest_first = self.intermediates.iter().rev();
        newest_first.find(|i| i.not_before <= now && now < i.not_after)
    }

    /// Whether two thirds of the lifetime of the newest valid intermediate are over, or there is none.
    pub(super) fn is_renewal_due(&self, now: Duration) -> bool {
        self.valid(now).is_none_or(|i| {
            let life = i.not_after.saturating_sub(i.not_before);
            now >= i.not_before + life * 2 / 3
        })
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

/// Parses a CA certificate, and rejects one that is expired or may not sign certificates and lists.
fn authority(path: &Path, pem: &str, now: Duration) -> Result<Parsed, CaError> {
    let parsed = parse(path, pem)?;
    if parsed.not_after <= now {
        return Err(unusable(path, "has expired"));
    }
    Ok(parsed)
}

/// When a CA certificate expires.
pub(super) fn end_of(path: &Path, pem: &str) -> Result<Duration, CaError> {
    parse(path, pem).map(|parsed| parsed.not_after)
}

fn parse(path: &Path, pem: &str) -> Result<Parsed, CaError> {
    let none = || unusable(path, "is not a certificate");
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| none())?;
    let (_, cert) = X509Certificate::from_der(&der).map_err(|_| none())?;
    let is = SigningCertificate::of(&cert, None).map_err(|e| unusable(path, &e.to_string()))?;
    if !is.signs_lists {
        return Err(unusable(path, "may not sign revocation lists (cRLSign)"));
    }
    Ok(Parsed {
        key: is.key,
        subject: cert.subject().to_string(),
        not_before: is.not_before,
        not_after: is.not_after,
        der: der.into_owned(),
    })
}
