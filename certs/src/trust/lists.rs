//! Revocation lists (RFC 5280, section 5) that are mounted beside the roots.
//!
//! webpki parses them and rejects what it does not implement: delta and indirect lists, lists for
//! some reasons only, unknown critical extensions. But it takes the first list with an issuer's
//! name for that issuer's, verifies its signature in every handshake, and does not check whether a
//! root may sign lists. The list is therefore selected here.
//!
//! With lists mounted, verification fails closed: every certificate of a path except the root needs
//! a current list of its issuer. An expired list counts for nothing, because an authority that
//! stopped publishing cannot be told from an attacker who withholds its lists.

use super::{VerifyError, issuer::SigningCertificate};
use crate::{KeyId, crypto::provider};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};
use std::time::Duration;
use webpki::{CertRevocationList, Error, OwnedCertRevocationList};
use x509_parser::{
    extensions::{DistributionPointName, ParsedExtension},
    prelude::{CertificateRevocationList, FromDer, GeneralName, X509Certificate},
    x509::SubjectPublicKeyInfo,
};

/// How many signature checks are remembered per list. Issuers are chosen by whoever runs an
/// authority, so the number is bounded; below one root there are few.
const MAX_VERDICTS: usize = 16;

/// One list, parsed and ready for use.
#[derive(Debug)]
pub(crate) struct RevocationList {
    list: CertRevocationList<'static>,
    der: CertificateRevocationListDer<'static>,
    metadata: Metadata,
    /// Whether a key signed the list, verified once per key rather than once per handshake.
    signed_by: Mutex<Vec<(KeyId, bool)>>,
}

/// What a list states about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Metadata {
    /// The key identifier of its issuer; empty when it names none.
    key: Vec<u8>,
    /// Big-endian, without leading zeros.
    number: Vec<u8>,
    this_update: Duration,
    next_update: Duration,
    scope: Scope,
}

/// Which certificates of its issuer it covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Scope {
    users_only: bool,
    authorities_only: bool,
    /// When set, only certificates that name one of these distribution points.
    points: Option<Vec<String>>,
}

/// A certificate of a path whose status is being checked.
pub(super) struct Subject<'a> {
    pub(super) serial: &'a [u8],
    pub(super) issuer_name: &'a [u8],
    pub(super) is_authority: bool,
    pub(super) der: &'a [u8],
}

/// The certificate that signed it.
pub(super) struct Issuer<'a> {
    pub(super) is: SigningCertificate,
    /// Its SubjectPublicKeyInfo.
    pub(super) spki: &'a [u8],
}

fn since_epoch(at: x509_parser::time::ASN1Time) -> Duration {
    Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or(0))
}

fn uris(name: &DistributionPointName<'_>) -> Vec<String> {
    let DistributionPointName::FullName(names) = name else {
        return Vec::new();
    };
    let uri = |n: &GeneralName<'_>| match n {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.iter().filter_map(uri).collect()
}

impl Metadata {
    fn of(list: &CertificateRevocationList<'_>) -> Self {
        let (mut key, mut scope) = (Vec::new(), Scope::default());
        for extension in list.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    key = id.key_identifier.as_ref().map_or(key, |k| k.0.to_vec());
                }
                ParsedExtension::IssuingDistributionPoint(point) => {
                    scope = Scope {
                        users_only: point.only_contains_user_certs,
                        authorities_only: point.only_contains_ca_certs,
                        points: point.distribution_point.as_ref().map(uris),
                    };
                }
                _ => {}
            }
        }
        Self {
            key,
            number: list.crl_number().map_or_else(Vec::new, |n| n.to_bytes_be()),
            this_update: since_epoch(list.last_update()),
            next_update: list.next_update().map_or(Duration::ZERO, since_epoch),
            scope,
        }
    }

    /// Numbers of equal length sort like their bytes.
    fn order(&self) -> (usize, &[u8], Duration) {
        (self.number.len(), &self.number, self.this_update)
    }
}

impl RevocationList {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, Error> {
        let list = OwnedCertRevocationList::from_der(der)?;
        let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|_| Error::BadDer)?;
        Ok(Self {
            metadata: Metadata::of(&parsed),
            list: list.into(),
            der: der.to_vec().into(),
            signed_by: Mutex::default(),
        })
    }

    /// Whether it covers the same certificates of the same issuer as another list.
    fn replaces(&self, other: &Self) -> bool {
        let subject = |l: &Self| (l.metadata.key.clone(), l.metadata.scope.clone());
        self.list.issuer() == other.list.issuer() && subject(self) == subject(other)
    }

    fn is_older_than(&self, other: &Self) -> bool {
        self.metadata.order() < other.metadata.order()
    }

    /// Whether it covers a certificate, provided that its issuer signed the list.
    fn covers(&self, subject: &Subject<'_>) -> bool {
        let scope = &self.metadata.scope;
        let kind = match subject.is_authority {
            true => !scope.users_only,
            false => !scope.authorities_only,
        };
        let place = scope.points.as_ref().is_none_or(|points| {
            let named = distribution_points(subject.der);
            named.iter().any(|p| points.contains(p))
        });
        self.list.issuer() == subject.issuer_name && kind && place
    }

    fn is_signed_by(&self, issuer: &Issuer<'_>) -> bool {
        let known = |verdicts: &Vec<(KeyId, bool)>| {
            let mut verdicts = verdicts.iter();
            verdicts.find(|v| v.0 == issuer.is.key).map(|v| v.1)
        };
        if let Some(verdict) = known(&self.signed_by.lock()) {
            return verdict;
        }
        let verdict = self.verify(issuer.spki).is_some();
        let mut verdicts = self.signed_by.lock();
        if verdicts.len() < MAX_VERDICTS {
            verdicts.push((issuer.is.key, verdict));
        }
        verdict
    }

    /// Verifies the signature with the algorithms that are accepted for certificates.
    fn verify(&self, spki: &[u8]) -> Option<()> {
        let (_, list) = CertificateRevocationList::from_der(&self.der).ok()?;
        let (_, key) = SubjectPublicKeyInfo::from_der(spki).ok()?;
        let signed = list.tbs_cert_list.as_ref();
        let signature = &list.signature_value.data;
        let public_key = &key.subject_public_key.data;
        let supported = provider().signature_verification_algorithms.all;
        supported.iter().find_map(|algorithm| {
            let same = |id: &x509_parser::x509::AlgorithmIdentifier<'_>, wanted: &[u8]| {
                x509_parser::der_parser::oid::Oid::from_der(wanted)
                    .is_ok_and(|(_, oid)| oid == id.algorithm)
            };
            let fits = same(&list.signature_algorithm, &algorithm.signature_alg_id())
                && same(&key.algorithm, &algorithm.public_key_alg_id());
            let verified = || algorithm.verify_signature(public_key, signed, signature);
            (fits && verified().is_ok()).then_some(())
        })
    }

    fn check(&self, subject: &Subject<'_>, now: UnixTime) -> Result<(), Error> {
        let (at, metadata) = (Duration::from_secs(now.as_secs()), &self.metadata);
        if at >= metadata.next_update || at < metadata.this_update {
            return Err(Error::CrlExpired {
                time: now,
                next_update: UnixTime::since_unix_epoch(metadata.next_update),
            });
        }
        match self.list.find_serial(subject.serial)? {
            Some(_) => Err(Error::CertRevoked),
            None => Ok(()),
        }
    }
}

/// The distribution points that a certificate names.
fn distribution_points(der: &[u8]) -> Vec<String> {
    let Ok((_, cert)) = X509Certificate::from_der(der) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for extension in cert.iter_extensions() {
        if let ParsedExtension::CRLDistributionPoints(points) = extension.parsed_extension() {
            let names = points.iter().filter_map(|p| p.distribution_point.as_ref());
            found.extend(names.flat_map(uris));
        }
    }
    found
}

/// The newest list of each issuer and scope.
#[derive(Debug, Default)]
pub(super) struct Lists(Vec<RevocationList>);

impl Lists {
    pub(super) fn new(ders: Vec<CertificateRevocationListDer<'static>>) -> Result<Self, Error> {
        let mut lists = Self::default();
        for der in ders {
            lists.add(RevocationList::parse(&der)?);
        }
        Ok(lists)
    }

    fn add(&mut self, list: RevocationList) {
        match self.0.iter_mut().find(|l| l.replaces(&list)) {
            Some(same) if same.is_older_than(&list) => *same = list,
            Some(_) => tracing::debug!("ignoring an older revocation list of the same issuer"),
            None => self.0.push(list),
        }
    }

    pub(super) fn ders(&self) -> impl Iterator<Item = &CertificateRevocationListDer<'static>> {
        self.0.iter().map(|l| &l.der)
    }

    /// The offered lists, where one that is older than a current list in use is replaced by that.
    pub(super) fn newest(
        &self,
        offered: Vec<CertificateRevocationListDer<'static>>,
        now: Duration,
    ) -> Vec<CertificateRevocationListDer<'static>> {
        let keep = |der: CertificateRevocationListDer<'static>| {
            let Ok(list) = RevocationList::parse(&der) else {
                return der;
            };
            let newer = self.0.iter().find(|own| {
                own.replaces(&list) && list.is_older_than(own) && own.metadata.next_update > now
            });
            newer.map_or(der, |own| {
                tracing::warn!(
                    number = crate::name::hex(&list.metadata.number),
                    in_use = crate::name::hex(&own.metadata.number),
                    "ignoring a revocation list older than the one in use"
                );
                own.der.clone()
            })
        };
        offered.into_iter().map(keep).collect()
    }

    /// Whether a certificate of a path is still good, if any lists are mounted.
    pub(super) fn check(
        &self,
        subject: &Subject<'_>,
        issuer: &Issuer<'_>,
        now: UnixTime,
    ) -> Result<(), VerifyError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut missing = Error::UnknownRevocationStatus;
        let mut found = false;
        for list in self.0.iter().filter(|l| l.covers(subject)) {
            if !list.is_signed_by(issuer) {
                missing = Error::InvalidCrlSignatureForPublicKey;
                continue;
            }
            if !issuer.is.signs_lists {
                return Err(VerifyError::Chain(Error::IssuerNotCrlSigner));
            }
            list.check(subject, now).map_err(|e| match e {
                Error::CertRevoked => VerifyError::Revoked,
                other => VerifyError::Chain(other),
            })?;
            found = true;
        }
        found.then_some(()).ok_or(VerifyError::Chain(missing))
    }
}
