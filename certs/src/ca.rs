//! The built-in certificate authority: a root that may be taken offline, and a short-lived
//! intermediate that signs leaves.
//!
//! Files in the CA directory: `root.crt`, `root.key`, `intermediate.crt`, `intermediate.key`.
//! Without `root.key` leaves are still issued until the intermediate ends.

use crate::{SpiffeId, peer::PeerCertificate, secret};
use parking_lot::RwLock;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Clocks of peers may be behind by this much.
const BACKDATE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: {problem}")]
    Unusable {
        path: PathBuf,
        problem: &'static str,
    },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("there is already a certificate authority in {0}")]
    Exists(PathBuf),
    #[error(
        "the intermediate ends before a certificate could be issued, and root.key is not here to sign a new one"
    )]
    Expired,
}

/// How long things live.
#[derive(Debug, Clone, Copy)]
pub struct Lives {
    pub root: Duration,
    pub intermediate: Duration,
}

/// A leaf to issue.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: SpiffeId,
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub life: Duration,
}

/// A leaf with its chain and private key.
#[derive(Debug)]
pub struct Issued {
    /// The leaf, then the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub chain_pem: String,
    pub key_pem: zeroize::Zeroizing<String>,
}

#[derive(Debug)]
struct Intermediate {
    der: CertificateDer<'static>,
    pem: String,
    key_pem: zeroize::Zeroizing<String>,
    not_before: Duration,
    not_after: Duration,
}

#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    lives: Lives,
    trust_domain: String,
    root: CertificateDer<'static>,
    root_pem: String,
    intermediate: RwLock<Intermediate>,
}

impl Authority {
    /// Makes a new authority in an empty directory.
    pub fn init(
        dir: &Path,
        trust_domain: &str,
        lives: Lives,
        now: Duration,
    ) -> Result<Self, CaError> {
        let root_path = dir.join("root.crt");
        if root_path.exists() {
            return Err(CaError::Exists(dir.to_owned()));
        }
        secret::create_dir(dir).map_err(|e| file(dir, e))?;
        let key = KeyPair::generate()?;
        let params = ca_params(&format!("{trust_domain} root"), 1, now, now + lives.root);
        let cert = params.self_signed(&key)?;
        save_secret(&dir.join("root.key"), &key.serialize_pem())?;
        save_public(&root_path, &cert.pem())?;
        let root = Root {
            cert: cert.der().clone(),
            key,
        };
        new_intermediate(dir, trust_domain, &root, lives, now)?;
        Self::open(dir, trust_domain, lives, now)
    }

    /// Opens what `init` made; renews the intermediate when it is due and the root key is here.
    pub fn open(
        dir: &Path,
        trust_domain: &str,
        lives: Lives,
        now: Duration,
    ) -> Result<Self, CaError> {
        let root_path = dir.join("root.crt");
        let root_pem = read(&root_path)?;
        let root = certificate(&root_path, &root_pem, now)?;
        let authority = Self {
            dir: dir.to_owned(),
            lives,
            trust_domain: trust_domain.to_owned(),
            root,
            root_pem,
            intermediate: RwLock::new(load_intermediate(dir)?),
        };
        authority.renew_intermediate_if_due(now)?;
        Ok(authority)
    }

    pub fn open_or_init(
        dir: &Path,
        trust_domain: &str,
        lives: Lives,
        now: Duration,
    ) -> Result<Self, CaError> {
        if dir.join("root.crt").exists() {
            Self::open(dir, trust_domain, lives, now)
        } else {
            Self::init(dir, trust_domain, lives, now)
        }
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// What peers must trust.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.clone()]
    }

    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    pub fn root_path(&self) -> PathBuf {
        self.dir.join("root.crt")
    }

    /// Signs a leaf with a new key. Its life never exceeds the intermediate's.
    pub fn issue(&self, request: &Request, now: Duration) -> Result<Issued, CaError> {
        self.renew_intermediate_if_due(now)?;
        let signer = self.intermediate.read();
        if signer.not_after <= now {
            return Err(CaError::Expired);
        }
        let key = KeyPair::generate()?;
        let params = leaf_params(request, now, signer.not_after)?;
        let issuer = Issuer::from_ca_cert_der(&signer.der, KeyPair::from_pem(&signer.key_pem)?)?;
        let cert = params.signed_by(&key, &issuer)?;
        Ok(Issued {
            chain: vec![cert.der().clone(), signer.der.clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            chain_pem: format!("{}{}", cert.pem(), signer.pem),
            key_pem: key.serialize_pem().into(),
        })
    }

    /// The intermediate is replaced at two thirds of its life.
    fn renew_intermediate_if_due(&self, now: Duration) -> Result<(), CaError> {
        let due = {
            let current = self.intermediate.read();
            current.not_before + (current.not_after.saturating_sub(current.not_before)) * 2 / 3
        };
        let key_path = self.dir.join("root.key");
        if now < due || !key_path.exists() {
            return Ok(());
        }
        let key = KeyPair::from_pem(&read_secret(&key_path)?)?;
        let root = Root {
            cert: self.root.clone(),
            key,
        };
        new_intermediate(&self.dir, &self.trust_domain, &root, self.lives, now)?;
        *self.intermediate.write() = load_intermediate(&self.dir)?;
        Ok(())
    }
}

struct Root {
    cert: CertificateDer<'static>,
    key: KeyPair,
}

fn new_intermediate(
    dir: &Path,
    trust_domain: &str,
    root: &Root,
    lives: Lives,
    now: Duration,
) -> Result<(), CaError> {
    let key = KeyPair::generate()?;
    let (_, until) = validity(&root.cert)
        .ok_or_else(|| unusable(&dir.join("root.crt"), "is not a certificate"))?;
    let end = (now + lives.intermediate).min(until);
    let params = ca_params(
        &format!("{trust_domain} intermediate {}", now.as_secs()),
        0,
        now,
        end,
    );
    let issuer = Issuer::from_ca_cert_der(&root.cert, &root.key)?;
    let cert = params.signed_by(&key, &issuer)?;
    save_secret(&dir.join("intermediate.key"), &key.serialize_pem())?;
    save_public(&dir.join("intermediate.crt"), &cert.pem())
}

fn load_intermediate(dir: &Path) -> Result<Intermediate, CaError> {
    let path = dir.join("intermediate.crt");
    let pem = read(&path)?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| unusable(&path, "is not a certificate"))?;
    let (not_before, not_after) =
        validity(&der).ok_or_else(|| unusable(&path, "is not a certificate"))?;
    let key_pem = read_secret(&dir.join("intermediate.key"))?.into();
    Ok(Intermediate {
        der,
        pem,
        key_pem,
        not_before,
        not_after,
    })
}

/// Reads a CA certificate and refuses one that cannot be a CA any more.
fn certificate(path: &Path, pem: &str, now: Duration) -> Result<CertificateDer<'static>, CaError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| unusable(path, "is not a certificate"))?;
    let (_, not_after) = validity(&der).ok_or_else(|| unusable(path, "is not a certificate"))?;
    if not_after <= now {
        return Err(unusable(path, "has expired"));
    }
    let (_, parsed) =
        X509Certificate::from_der(&der).map_err(|_| unusable(path, "is not a certificate"))?;
    if !parsed.is_ca() {
        return Err(unusable(path, "lacks the CA bit"));
    }
    Ok(der)
}

fn validity(der: &CertificateDer<'_>) -> Option<(Duration, Duration)> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let seconds = |t: i64| Duration::from_secs(u64::try_from(t).unwrap_or(0));
    let validity = cert.validity();
    Some((
        seconds(validity.not_before.timestamp()),
        seconds(validity.not_after.timestamp()),
    ))
}

fn ca_params(name: &str, path_len: u8, now: Duration, end: Duration) -> CertificateParams {
    let mut params = base_params(name, now, end);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(
    request: &Request,
    now: Duration,
    issuer_end: Duration,
) -> Result<CertificateParams, CaError> {
    let name = request.id.path().rsplit('/').next().unwrap_or_default();
    let mut params = base_params(name, now, (now + request.life).min(issuer_end));
    params.subject_alt_names = vec![SanType::URI(request.id.as_str().try_into()?)];
    for dns in &request.dns {
        params
            .subject_alt_names
            .push(SanType::DnsName(dns.as_str().try_into()?));
    }
    params
        .subject_alt_names
        .extend(request.ips.iter().copied().map(SanType::IpAddress));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

fn base_params(name: &str, now: Duration, end: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::UNIX_EPOCH + now.saturating_sub(BACKDATE);
    params.not_after = OffsetDateTime::UNIX_EPOCH + end;
    params.serial_number = Some(serial());
    params.use_authority_key_identifier_extension = true;
    params
}

/// 127 random bits: positive, and never repeated.
fn serial() -> SerialNumber {
    let mut bytes = rand::random::<[u8; 16]>();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn file(path: &Path, source: io::Error) -> CaError {
    CaError::File {
        path: path.to_owned(),
        source,
    }
}

fn unusable(path: &Path, problem: &'static str) -> CaError {
    CaError::Unusable {
        path: path.to_owned(),
        problem,
    }
}

fn read(path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|e| file(path, e))
}

fn read_secret(path: &Path) -> Result<String, CaError> {
    secret::read(path).map_err(|e| file(path, e))
}

fn save_secret(path: &Path, text: &str) -> Result<(), CaError> {
    secret::write(path, text.as_bytes()).map_err(|e| file(path, e))
}

fn save_public(path: &Path, text: &str) -> Result<(), CaError> {
    secret::write_public(path, text.as_bytes()).map_err(|e| file(path, e))
}

/// Where an identity's three files are.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

impl IdentityFiles {
    /// The names that Kubernetes and cert-manager use.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            cert: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            ca: dir.join("ca.crt"),
        }
    }

    pub fn save(&self, issued: &Issued, roots_pem: &str) -> Result<(), CaError> {
        let dir = self.cert.parent().unwrap_or(Path::new("."));
        secret::create_dir(dir).map_err(|e| file(dir, e))?;
        save_secret(&self.key, &issued.key_pem)?;
        save_public(&self.cert, &issued.chain_pem)?;
        save_public(&self.ca, roots_pem)
    }
}

/// What `tars certs inspect` shows of one certificate.
#[derive(Debug, serde::Serialize)]
pub struct Summary {
    pub subject: String,
    pub issuer: String,
    pub serial: String,
    pub is_ca: bool,
    pub spiffe_id: Option<String>,
    pub not_before: i64,
    pub not_after: i64,
}

pub fn summarise(der: &[u8]) -> Option<Summary> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    Some(Summary {
        subject: cert.subject().to_string(),
        issuer: cert.issuer().to_string(),
        serial: cert.raw_serial_as_string(),
        is_ca: cert.is_ca(),
        spiffe_id: PeerCertificate::parse(der).ok().map(|p| p.id.to_string()),
        not_before: cert.validity().not_before.timestamp(),
        not_after: cert.validity().not_after.timestamp(),
    })
}

impl Default for Lives {
    fn default() -> Self {
        Self {
            root: DAY * 3650,
            intermediate: DAY * 30,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn request(life: Duration) -> Request {
        Request {
            id: SpiffeId::new("tars.local", "/auth").unwrap(),
            dns: vec!["localhost".into()],
            ips: vec![IpAddr::from([127, 0, 0, 1])],
            life,
        }
    }

    #[test]
    fn a_leaf_says_who_it_is_and_not_more() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::init(dir.path(), "tars.local", Lives::default(), NOW).unwrap();
        let issued = ca.issue(&request(Duration::from_secs(3600)), NOW).unwrap();
        let peer = PeerCertificate::parse(&issued.chain[0]).unwrap();
        assert_eq!(peer.id.as_str(), "spiffe://tars.local/auth");
        assert!(peer.client_auth && peer.server_auth);
        assert_eq!(peer.not_after, NOW + Duration::from_secs(3600));
        assert_eq!(issued.chain.len(), 2);
    }

    #[test]
    fn a_leaf_never_outlives_its_issuer() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::init(dir.path(), "tars.local", Lives::default(), NOW).unwrap();
        let issued = ca.issue(&request(DAY * 400), NOW).unwrap();
        assert_eq!(
            PeerCertificate::parse(&issued.chain[0]).unwrap().not_after,
            NOW + DAY * 30
        );
    }

    #[test]
    fn the_intermediate_is_replaced_in_time_and_only_with_the_root_key() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::init(dir.path(), "tars.local", Lives::default(), NOW).unwrap();
        let first = ca.issue(&request(DAY), NOW).unwrap().chain[1].clone();
        let second = ca.issue(&request(DAY), NOW + DAY * 21).unwrap().chain[1].clone();
        assert_ne!(first, second);
        fs::remove_file(dir.path().join("root.key")).unwrap();
        let late = ca.issue(&request(DAY), NOW + DAY * 60);
        assert!(matches!(late, Err(CaError::Expired)));
    }

    #[test]
    fn an_authority_is_never_overwritten_and_its_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        Authority::init(dir.path(), "tars.local", Lives::default(), NOW).unwrap();
        let again = Authority::init(dir.path(), "tars.local", Lives::default(), NOW);
        assert!(matches!(again, Err(CaError::Exists(_))));
        secret::write_public(&dir.path().join("intermediate.key"), b"x").unwrap();
        let open = Authority::open(dir.path(), "tars.local", Lives::default(), NOW);
        assert!(matches!(open, Err(CaError::File { .. })));
    }

    #[test]
    fn a_root_that_is_none_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::init(dir.path(), "tars.local", Lives::default(), NOW).unwrap();
        let reason = |e: CaError| e.to_string();
        let late = Authority::open(dir.path(), "tars.local", Lives::default(), NOW + DAY * 4000);
        assert!(reason(late.unwrap_err()).contains("has expired"));
        let leaf = ca.issue(&request(DAY), NOW).unwrap();
        fs::write(dir.path().join("root.crt"), leaf.chain_pem).unwrap();
        let not_ca = Authority::open(dir.path(), "tars.local", Lives::default(), NOW);
        assert!(reason(not_ca.unwrap_err()).contains("lacks the CA bit"));
        fs::write(dir.path().join("root.crt"), "nonsense").unwrap();
        assert!(Authority::open(dir.path(), "tars.local", Lives::default(), NOW).is_err());
    }
}
